"""Scoring a batch in chunks, so that memory holds the activations of one chunk and not of the whole batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria.functional import (
    check_batches,
    detached_buffers,
    scoring_copy,
    total_loss,
    training_mode,
)
from compression.masks import prunable
from compression.objectives.base import Objective


class ChunkedLoss:
    """An objective's loss of a batch as a sum over chunks of it.

    The losses are means over images, so a chunk weighs as much as its share of them. Without BatchNorm the sum is the
    loss of the whole batch; with it, each chunk is normalised by its own statistics.
    """

    def __init__(self, objective: Objective, chunk_size: int | None = None) -> None:
        check_chunk_size(chunk_size)
        self.chunk_size = chunk_size
        self._fresh = scoring_copy(objective)
        self._objectives = [scoring_copy(objective)]

    def parts(
        self, model: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch
    ) -> Iterator[Tensor]:
        """The summands, one after the other: take the gradient of each before asking for the next."""
        chunks = split(batch, self.chunk_size)
        for place, chunk in enumerate(chunks):
            loss = total_loss(model, parameters, buffers, self._objective(place), chunk)
            yield loss if len(chunks) == 1 else loss * (len(chunk) / len(batch))

    def gradients(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        batch: Batch,
        inputs: Sequence[Tensor],
    ) -> list[Tensor]:
        """The gradient of the whole loss for each of `inputs`, without a graph."""
        total: list[Tensor] | None = None
        for loss in self.parts(model, parameters, buffers, batch):
            found = torch.autograd.grad(loss, inputs, materialize_grads=True)
            total = list(found) if total is None else [t + f for t, f in zip(total, found, strict=True)]
        assert total is not None
        return total

    def _objective(self, place: int) -> Objective:
        """The objective of the chunks at a place. What a worker alone remembers, the chunks of a place share."""
        if self._fresh.replicated:
            return self._objectives[0]
        while len(self._objectives) <= place:
            self._objectives.append(scoring_copy(self._fresh))
        return self._objectives[place]


def mean_gradients(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    masks: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Gradient of the loss by each prunable weight, averaged over the batches, where `masks` has zeroed its weights.

    BatchNorm uses batch statistics. A pruned weight has a gradient too: that of the zero in its place.
    """
    check_batches(batches)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for name, mask in (masks or {}).items():
        parameters[name] = parameters[name].masked_fill(~mask.to(parameters[name].device), 0)
    weights = {name: parameters[name].requires_grad_() for name in prunable(model)}
    buffers, loss = detached_buffers(model), ChunkedLoss(objective, chunk_size)
    total = [torch.zeros_like(w) for w in weights.values()]
    with training_mode(model), torch.enable_grad():
        for batch in batches:
            found = loss.gradients(model, parameters, buffers, batch, list(weights.values()))
            total = [t + f for t, f in zip(total, found, strict=True)]
    return {name: t / len(batches) for name, t in zip(weights, total, strict=True)}


def split(batch: Batch, chunk_size: int | None) -> list[Batch]:
    """The batch in as few chunks of at most `chunk_size` images as there can be, equal in size but for one image."""
    if chunk_size is None or chunk_size >= len(batch):
        return [batch]
    num_chunks = -(-len(batch) // chunk_size)
    places = torch.arange(len(batch)).tensor_split(num_chunks)
    return [take(batch, range(int(part[0]), int(part[-1]) + 1)) for part in places]


def take(batch: Batch, places: range) -> Batch:
    """The images at some places of a batch, with all that belongs to them."""
    part = slice(places.start, places.stop)
    whole: dict[str, Any] = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    cut: dict[str, Any] = {name: value if value is None else value[part] for name, value in whole.items()}
    return Batch(**cut)


def check_chunk_size(chunk_size: int | None) -> None:
    """ValueError unless there are images in a chunk."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is a number of images, 1 or more, not {chunk_size}")


def check_scoring_batch_size(size: int | None) -> None:
    """ValueError unless there are images in a batch."""
    if size is not None and size < 1:
        raise ValueError(f"scoring_batch_size is a number of images, 1 or more, not {size}")
