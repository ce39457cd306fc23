"""KD: knowledge distillation from a trained teacher (Hinton, Vinyals and Dean, arXiv 1503.02531)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch, Info
from compression.config import searched, with_fields
from compression.objectives.base import (
    Model,
    Objective,
    check_positive,
    check_same_classes,
    check_share,
    distillation_divergence,
    full_precision,
)
from compression.objectives.config import TeacherObjectiveConfig
from compression.objectives.teacher import Teacher
from compression.spaces import LogRange, Range

Divergence = Literal["kl", "authors"]


class KD(Objective):
    """alpha * divergence(teacher, student) + (1 - alpha) * CE(student, labels).

    divergence "kl": T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.
    divergence "authors": `log_target_divergence`, as in the published code of PDD.

    The teacher (a module or any callable images -> logits) runs in eval mode and without a graph. It is not part of the
    state, and copies of the objective share it. `setup` raises ValueError if its classes are not those of the data.
    cache: as of `Teacher`. It is not part of the state: it is filled again after a resume.
    """

    def __init__(
        self,
        teacher: Model,
        temperature: float = 4.0,
        alpha: float = 0.9,
        divergence: Divergence = "kl",
        cache: bool = False,
    ) -> None:
        check_kd(temperature, alpha, divergence)
        self.temperature = temperature
        self.alpha = alpha
        self._divergence = distillation_divergence if divergence == "kl" else log_target_divergence
        self.needs = frozenset({"index"}) if cache else frozenset()
        self._teacher = Teacher(teacher, cache)

    @property
    def teacher(self) -> Model:
        return self._teacher.network

    def setup(self, info: Info, device: torch.device) -> None:
        self._teacher.setup(info, device)

    def sync(self) -> None:
        self._teacher.sync()

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        logits = full_precision(model(batch.images))
        return {
            "cross_entropy": (1 - self.alpha) * F.cross_entropy(logits, batch.labels),
            "kd": self.alpha * self._divergence(self._teacher(batch), logits, self.temperature),
        }


def log_target_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Mean over the N * K entries of -log softmax(teacher / T) * log softmax(student / T), for comparison only.

    PDD's published code passes log-probabilities to PyTorch's `kl_div`, which expects probabilities, with reduction
    "mean" and without T^2: nan with recent PyTorch, but with the finite gradient of this expression. This is not a
    divergence: it is not minimal for equal outputs.
    """
    check_same_classes(teacher_logits, student_logits)
    teacher = F.log_softmax(full_precision(teacher_logits).detach() / temperature, dim=1)
    student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    return -(teacher * student).mean()


def check_kd(temperature: float, alpha: float, divergence: str) -> None:
    """ValueError for invalid values."""
    check_positive(temperature=temperature)
    check_share(alpha=alpha)
    if divergence not in ("kl", "authors"):
        raise ValueError(f'divergence must be "kl" or "authors", not {divergence!r}')


@dataclass(frozen=True)
class KDConfig(TeacherObjectiveConfig):
    """Distillation from a trained teacher."""

    temperature: float = searched(4.0, LogRange(1.0, 20.0))
    """divides the logits before the softmax"""
    alpha: float = searched(0.9, Range(0.1, 0.99))
    """weight of the distillation term; cross-entropy has 1 - alpha"""
    divergence: Divergence = "kl"
    """kl: T^2 * KL, mean over the batch; authors: the term in PDD's published code, for comparison"""
    cache: bool = False
    """run the teacher only once for each sample; only for data without augmentation that fit in memory"""

    label = "KD"
    objective = with_fields(KD, "temperature", "alpha", "divergence", "cache")

    def __post_init__(self) -> None:
        check_kd(self.temperature, self.alpha, self.divergence)
