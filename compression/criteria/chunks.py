"""The loss as a function of the parameters: of a whole batch, or in chunks to save memory."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.batch import Batch
from compression.masks import prunable
from compression.modules import in_mode
from compression.objectives.base import Objective

Tensors = Mapping[str, Tensor]


def detached_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the model's buffers, so that running statistics are not updated in the model."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def total_loss(model: nn.Module, parameters: Tensors, buffers: Tensors, objective: Objective, batch: Batch) -> Tensor:
    """The sum of the objective's losses with the given parameters and buffers."""
    losses = objective(lambda images: functional_call(model, {**parameters, **buffers}, (images,)), batch)
    return torch.stack(list(losses.values())).sum()


def check_batches(batches: Sequence[Batch], allowed: Sequence[int] | None = None) -> None:
    """ValueError unless there are batches, and their number is one of `allowed`."""
    if not batches or (allowed is not None and len(batches) not in allowed):
        wanted = "at least 1" if allowed is None else " or ".join(str(n) for n in sorted(set(allowed)))
        raise ValueError(f"scoring takes {wanted} batches, not {len(batches)}")


class ChunkedLoss:
    """An objective's loss of a batch as a sum over its chunks.

    Each chunk is weighted by its share of the images, since losses are means. BatchNorm uses statistics of the chunk.
    The objective is copied: scoring does not change its state.
    """

    def __init__(self, objective: Objective, chunk_size: int | None = None) -> None:
        check_num_images(chunk_size=chunk_size)
        self.chunk_size = chunk_size
        self._initial = copy.deepcopy(objective)
        self._objectives = [copy.deepcopy(objective)]

    def parts(self, model: nn.Module, parameters: Tensors, buffers: Tensors, batch: Batch) -> Iterator[Tensor]:
        """The terms of the sum, one at a time: compute the gradient of each before the next."""
        chunks = split(batch, self.chunk_size)
        for place, chunk in enumerate(chunks):
            loss = total_loss(model, parameters, buffers, self._objective(place), chunk)
            yield loss if len(chunks) == 1 else loss * (len(chunk) / len(batch))

    def gradients(
        self, model: nn.Module, parameters: Tensors, buffers: Tensors, batch: Batch, inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradient of the whole loss by each of `inputs`, without a graph."""
        total: list[Tensor] | None = None
        for loss in self.parts(model, parameters, buffers, batch):
            found = torch.autograd.grad(loss, inputs, materialize_grads=True)
            total = list(found) if total is None else [t + f for t, f in zip(total, found, strict=True)]
        assert total is not None
        return total

    def _objective(self, place: int) -> Objective:
        """The objective for the chunks at a position: state that is local to a worker is local to a position here."""
        if self._initial.replicated:
            return self._objectives[0]
        while len(self._objectives) <= place:
            self._objectives.append(copy.deepcopy(self._initial))
        return self._objectives[place]


def mean_gradients(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    masks: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Gradient of the loss by each prunable weight, averaged over the batches, in the network pruned by `masks`.

    BatchNorm uses batch statistics. A pruned weight has a gradient too: the one at zero.
    """
    check_batches(batches)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for name, mask in (masks or {}).items():
        parameters[name] = parameters[name].masked_fill(~mask.to(parameters[name].device), 0)
    weights = {name: parameters[name].requires_grad_() for name in prunable(model)}
    buffers, loss = detached_buffers(model), ChunkedLoss(objective, chunk_size)
    total = [torch.zeros_like(w) for w in weights.values()]
    with in_mode(model, training=True), torch.enable_grad():
        for batch in batches:
            found = loss.gradients(model, parameters, buffers, batch, list(weights.values()))
            total = [t + f for t, f in zip(total, found, strict=True)]
    return {name: t / len(batches) for name, t in zip(weights, total, strict=True)}


def split(batch: Batch, chunk_size: int | None) -> list[Batch]:
    """The batch in the fewest chunks of at most `chunk_size` images. Their sizes differ by at most one image."""
    if chunk_size is None or chunk_size >= len(batch):
        return [batch]
    num_chunks = -(-len(batch) // chunk_size)
    places = torch.arange(len(batch)).tensor_split(num_chunks)
    return [batch.part(int(part[0]), int(part[-1]) + 1) for part in places]


def check_num_images(**sizes: int | None) -> None:
    """ValueError that names each size that is neither None nor at least 1."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} is a number of images, 1 or more, not {size}")
