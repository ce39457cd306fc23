"""Teacher: a trained network that an objective asks for logits and never changes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch import distributed as dist

from compression.batch import Batch, Info
from compression.objectives.base import Model, full_precision


class Teacher:
    """Logits (N, K) of a fixed network: in eval mode, without a graph, in the precision the network has.

    network: a module, which is put into eval mode and moved to the device by `setup`, or any callable images -> logits.
    cache: remember the logits of each sample by `batch.index`, in (num_train, K). Right only where a sample's image is
    the same in every epoch, which cannot be seen from here. Until every sample has been seen once, the network is
    asked for each whole batch (to look for samples that are missing would make the host wait for the device); at the
    first `sync` after that it is asked no more.

    A copy of it (objectives are deep-copied for scoring) shares the network and starts with an empty cache.
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
        """Move to the device. ValueError unless the network tells as many classes as the data have."""
        self.num_samples = info.sizes["train"]
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        num_classes = self._ask(torch.zeros(1, *info.input_shape, device=device)).shape[1]
        if num_classes != info.num_classes:
            raise ValueError(
                f"the teacher has {num_classes} classes and the data have {info.num_classes}: take a teacher that was "
                "trained on the same classes"
            )

    def __call__(self, batch: Batch) -> Tensor:
        if self._complete:
            assert self._rows is not None
            return self._rows[batch.index]
        logits = self._ask(batch.images)
        if self.cache:
            self._remember(batch.index, logits)
        return logits

    def sync(self) -> None:
        """Share what workers have cached; collective, until the cache is complete."""
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

    def _remember(self, index: Tensor, logits: Tensor) -> None:
        if self._rows is None:
            if not self.num_samples:
                raise ValueError(
                    "a teacher with a cache must know the number of samples: call setup(info, device) first"
                )
            # Minus infinity means "not seen": below every logit, so that the largest over workers is what was seen.
            self._rows = logits.new_full((self.num_samples, logits.shape[1]), -math.inf)
        self._rows[index] = logits
