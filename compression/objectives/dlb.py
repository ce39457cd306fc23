"""DLB: self-distillation from the last mini-batch (Shen et al., CVPR 2022, arXiv 2203.16172)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch
from compression.config import searched, with_fields
from compression.objectives.base import Model, Objective, check_positive, distillation_divergence, full_precision
from compression.objectives.config import ObjectiveConfig
from compression.spaces import LogRange


@dataclass(frozen=True)
class _Last:
    """The previous batch: its second view, and the logits (N, K) of its first view from the previous step."""

    view: Tensor
    labels: Tensor
    index: Tensor
    logits: Tensor
    epoch: int


class DLB(Objective):
    """Each batch is used twice: with its first view, and in the next step with its second view and the first logits.

    CE over the 2N logits of the last batch's second view and this batch's first view
    + weight * T^2 * KL(last logits, detached || the second view's logits). The first step has only CE. The two forward
    passes are separate: in train mode each has its own BatchNorm statistics. The last batch of an epoch is used in the
    next epoch.
    """

    needs = frozenset({"second_view", "index"})
    replicated = False

    def __init__(self, temperature: float = 3.0, weight: float = 1.0) -> None:
        check_positive(temperature=temperature)
        self.temperature = temperature
        self.weight = weight
        self.last: _Last | None = None
        self._epoch = 0

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        self._epoch = epoch

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        if batch.second_view is None:
            raise ValueError("DLB needs batch.second_view: the same images under a second augmentation")
        last = self.last
        logits = full_precision(model(batch.images))
        self.last = _Last(batch.second_view, batch.labels, batch.index, logits.detach(), self._epoch)
        if last is None:
            return {"cross_entropy": F.cross_entropy(logits, batch.labels)}
        again = full_precision(model(last.view))
        return {
            "cross_entropy": F.cross_entropy(torch.cat([again, logits]), torch.cat([last.labels, batch.labels])),
            "dlb": self.weight * distillation_divergence(last.logits, again, self.temperature),
        }

    def state_dict(self) -> dict[str, Tensor]:
        if self.last is None:
            return {}
        return {"index": self.last.index, "logits": self.last.logits, "epoch": torch.tensor(self.last.epoch)}

    def load_state_dict(self, state: dict[str, Tensor], batch_at: Callable[[Tensor, int], Batch]) -> None:
        if not state:
            self.last = None
            return
        epoch = int(state["epoch"])
        batch = batch_at(state["index"], epoch)
        assert batch.second_view is not None
        self.last = _Last(batch.second_view, batch.labels, state["index"], state["logits"], epoch)


@dataclass(frozen=True)
class DLBConfig(ObjectiveConfig):
    """Self-distillation from the last mini-batch."""

    temperature: float = searched(3.0, LogRange(1.0, 20.0))
    """divides the logits before the softmax"""
    weight: float = searched(1.0, LogRange(0.1, 10.0))
    """weight of the distillation term; cross-entropy has weight 1"""

    label = "DLB"
    objective = with_fields(DLB, "temperature", "weight")
