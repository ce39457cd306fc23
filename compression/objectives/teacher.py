"""Teacher: a trained network that gives an objective logits and is never changed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch import distributed as dist

from compression.batch import Batch, Info
from compression.objectives.base import Model, full_precision


class Teacher:
    """Logits (N, K) of a fixed network: in eval mode, without a graph, in the network's precision.

    network: a module, which is set to eval mode and moved to the device by `setup`, or any callable images -> logits.
    cache: store the logits of each sample by `batch.index`, in (num_train, K). Correct only if a sample's image is the
    same in every epoch, which is not checked here. Until every sample is stored, the network runs on each whole batch
    (a search for missing samples would synchronise the device). After the next `sync` it is not used any more.

    A copy (objectives are deep-copied for scoring) shares the network and starts with an empty cache.
    """

    def __init__(self, network: Model, cache: bool = False) -> None:
        self.network = network.eval() if isinstance(network, nn.Module) else network
        self.cache = cache
        self.num_samples = 0
        self._rows: Tensor | None = None
        self._complete = False

    def __deepcopy__(self, memo: dict[int, object]) -> Teacher:
        copied = Teacher(self.network, self.cache)
        copied.num_samples = self.num_samples
        return copied

    def setup(self, info: Info, device: torch.device) -> None:
        """Move to the device. ValueError if the network has another number of classes than the data."""
        self.num_samples = info.sizes["train"]
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        num_classes = self._ask(torch.zeros(1, *info.input_shape, device=device)).shape[1]
        if num_classes != info.num_classes:
            raise ValueError(
                f"the teacher has {num_classes} classes and the data have {info.num_classes}: use a teacher that was "
                "trained on the same classes"
            )

    def __call__(self, batch: Batch) -> Tensor:
        if self._complete:
            assert self._rows is not None
            return self._rows[batch.index]
        logits = self._ask(batch.images)
        if self.cache:
            if self._rows is None:
                if not self.num_samples:
                    raise ValueError("a teacher with a cache needs the number of samples: call setup(info, device)")
                # Minus infinity means "not seen": the maximum over workers gives the logits of those that saw it.
                self._rows = logits.new_full((self.num_samples, logits.shape[1]), -math.inf)
            self._rows[batch.index] = logits
        return logits

    def sync(self) -> None:
        """Share the workers' caches. A collective until the cache is complete."""
        if self._rows is None or self._complete:
            return
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self._rows, op=dist.ReduceOp.MAX)
        self._complete = not torch.isneginf(self._rows[:, 0]).any()

    def _ask(self, images: Tensor) -> Tensor:
        if isinstance(self.network, nn.Module):
            if self.network.training:
                self.network.eval()
            floating = (p.dtype for p in self.network.parameters() if p.is_floating_point())
            images = images.to(next(floating, images.dtype))
        with torch.no_grad():
            return full_precision(self.network(images)).detach()
