"""Objective: a loss that may look at more than one image of a sample and may remember."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch, Info

Model = Callable[[Tensor], Tensor]


class Objective:
    """Maps (model, batch) to named scalar losses whose sum is the loss.

    Subclasses implement `__call__`; one that remembers also `state_dict`, `load_state_dict` and, where workers must
    share what they remember, `sync`. An objective can be deep-copied: scoring works on a copy.
    """

    needs: frozenset[str] = frozenset()
    """What a Batch must hold beyond images and labels: any of "paired", "second_view", "index"."""

    replicated: bool = True
    """Whether the state after `sync` is the same on every worker (then one copy is stored) or each worker's own."""

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} does not define __call__(model, batch)")

    def setup(self, info: Info, device: torch.device) -> None:
        """Called once before first use in training; here an objective sizes its memory."""

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Called before each epoch (counted from 0) and on resume inside one; sets values only."""

    def sync(self) -> None:
        """The one collective: make the memory whole on every worker."""

    def state_dict(self) -> dict[str, Tensor]:
        """What this worker remembers, as plain tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor], batch_at: Callable[[Tensor, int], Batch]) -> None:
        """Take up what `state_dict` gave; `batch_at(index, epoch)` derives samples again as that epoch drew them."""

    def scoring_batches(self, steps: int) -> int:
        """How many batches a criterion with `steps` inner steps takes under this objective: 1 or steps + 1."""
        return steps + 1


def full_precision(logits: Tensor) -> Tensor:
    """Logits in which a loss may be computed: half precisions become float32, wider ones stay."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def distillation_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al., arXiv 1503.02531).

    Both logits are (N, K). T^2 keeps the gradient's size independent of the temperature. The teacher is detached.
    """
    check_same_classes(teacher_logits, student_logits)
    teacher = F.log_softmax(full_precision(teacher_logits).detach() / temperature, dim=1)
    student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def check_positive(**values: float) -> None:
    """ValueError that names each value which is not above zero."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")


def check_share(**values: float) -> None:
    """ValueError that names each value which does not lie in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], not {value}")


def check_same_classes(teacher_logits: Tensor, student_logits: Tensor) -> None:
    """ValueError unless both are (N, K) of the same N and K: broadcasting would hide it."""
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"the teacher's logits are {tuple(teacher_logits.shape)} and the student's {tuple(student_logits.shape)}: "
            "take a teacher of the same classes"
        )
