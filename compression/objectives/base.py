"""Objective: a loss that may use several images of a sample and may have state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch, Info

Model = Callable[[Tensor], Tensor]


class Objective:
    """Maps (model, batch) to named scalar losses; their sum is the loss.

    Subclasses implement `__call__`. Those with state also implement `state_dict`, `load_state_dict` and, if workers
    must share it, `sync`. An objective can be deep-copied: criteria work on a copy.
    """

    needs: frozenset[str] = frozenset()
    """What a Batch must contain besides images and labels: any of "paired", "second_view", "index"."""

    replicated: bool = True
    """Whether the state after `sync` is the same on every worker (one copy is stored) or local to each worker."""

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} does not define __call__(model, batch)")

    def setup(self, info: Info, device: torch.device) -> None:
        """Called once before training, with the sizes of the data."""

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Called before each epoch (counted from 0), and again when a run resumes inside it. Must be idempotent."""

    def sync(self) -> None:
        """Make the state complete on every worker. The only collective of an objective."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state of this worker, as plain tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor], batch_at: Callable[[Tensor, int], Batch]) -> None:
        """Restore what `state_dict` returned. `batch_at(index, epoch)` gives samples as they were in that epoch."""

    def scoring_batches(self, steps: int) -> int:
        """The number of batches for a criterion with `steps` inner steps and this objective: 1 or steps + 1."""
        return steps + 1


def full_precision(logits: Tensor) -> Tensor:
    """Logits for computing a loss: half precisions become float32, others stay."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def distillation_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al., arXiv 1503.02531).

    Both logits are (N, K). With T^2, the size of the gradient does not depend on the temperature. The teacher is
    detached.
    """
    check_same_classes(teacher_logits, student_logits)
    teacher = F.log_softmax(full_precision(teacher_logits).detach() / temperature, dim=1)
    student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def check_positive(**values: float) -> None:
    """ValueError that names the first value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")


def check_share(**values: float) -> None:
    """ValueError that names the first value that is not in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], not {value}")


def check_same_classes(teacher_logits: Tensor, student_logits: Tensor) -> None:
    """ValueError unless both have the same shape (N, K): broadcasting would hide the error."""
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"the teacher's logits are {tuple(teacher_logits.shape)} and the student's {tuple(student_logits.shape)}: "
            "use a teacher for the same classes"
        )
