"""Tf-KD: teacher-free knowledge distillation (Yuan et al., CVPR 2020, arXiv 1909.11723)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch, Info
from compression.config import searched, with_fields
from compression.objectives.base import (
    Model,
    Objective,
    check_positive,
    check_share,
    distillation_divergence,
    full_precision,
)
from compression.objectives.config import ObjectiveConfig, TeacherObjectiveConfig
from compression.objectives.teacher import Teacher
from compression.spaces import LogRange, Range

SELF_TEMPERATURE, SELF_ALPHA, SELF_MULTIPLIER = 6.0, 0.95, 50.0
"""The authors' values for a pretrained ResNet-18 as teacher of itself, on CIFAR-100."""

REG_TEMPERATURE, REG_ALPHA, REG_MULTIPLIER = 20.0, 0.1, 100.0
"""The authors' values for the virtual teacher, on CIFAR-100."""

AUTHORS_CLASSES, CONFIDENCE = 100, 0.99


class TfKD(Objective):
    """(1 - alpha) * CE + alpha * multiplier * divergence / K, as in the authors' code, for K classes.

    With a teacher, a pretrained copy of the same network ("self"), the divergence is
    T^2 * KL(softmax(teacher / T) || softmax(student / T)).
    Without a teacher ("reg") it is KL(u || softmax(student)), with u = softmax(v / T) and v the probabilities of a
    virtual teacher: `confidence` on the label, the rest spread over the other classes. The softmax of probabilities
    makes u nearly uniform.

    The authors average over all N * K entries, which divides by K and needs large multipliers. With 1, "self"
    is KD with this average. Values of None are the authors' for "self" or "reg".

    classes: the number of classes for which the multiplier was chosen; the divergence then has the same weight for
    every K. None: K, as in the authors' code, where 50 on CIFAR-100 has ten times the weight on CIFAR-10.
    """

    def __init__(
        self,
        teacher: Model | None = None,
        temperature: float | None = None,
        alpha: float | None = None,
        multiplier: float | None = None,
        confidence: float = CONFIDENCE,
        classes: int | None = None,
    ) -> None:
        alone = teacher is None
        self.temperature = (REG_TEMPERATURE if alone else SELF_TEMPERATURE) if temperature is None else temperature
        self.alpha = (REG_ALPHA if alone else SELF_ALPHA) if alpha is None else alpha
        self.multiplier = (REG_MULTIPLIER if alone else SELF_MULTIPLIER) if multiplier is None else multiplier
        self.confidence = confidence
        self.classes = classes
        check_tf_kd(self.temperature, self.alpha, self.multiplier, confidence)
        self._teacher = None if teacher is None else Teacher(teacher)

    @property
    def teacher(self) -> Model | None:
        return None if self._teacher is None else self._teacher.network

    def setup(self, info: Info, device: torch.device) -> None:
        if self._teacher is not None:
            self._teacher.setup(info, device)

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        logits = full_precision(model(batch.images))
        if self._teacher is not None:
            divergence = distillation_divergence(self._teacher(batch), logits, self.temperature)
        else:
            target = virtual_teacher(batch.labels, logits, self.temperature, self.confidence)
            divergence = F.kl_div(F.log_softmax(logits, dim=1), target, reduction="batchmean")
        weight = self.multiplier / (self.classes or logits.shape[1])
        return {
            "cross_entropy": (1 - self.alpha) * F.cross_entropy(logits, batch.labels),
            "tf_kd": self.alpha * weight * divergence,
        }


def virtual_teacher(labels: Tensor, logits: Tensor, temperature: float, confidence: float = CONFIDENCE) -> Tensor:
    """The target (N, K) of "reg": softmax(v / T), v = `confidence` on the label, (1 - confidence) / (K - 1) elsewhere.

    labels: (N,). logits: (N, K), only for shape and dtype.
    """
    num_classes = logits.shape[1]
    elsewhere = (1 - confidence) / (num_classes - 1)
    onehot = F.one_hot(labels, num_classes).to(logits.dtype)
    return F.softmax((elsewhere + (confidence - elsewhere) * onehot) / temperature, dim=1)


def check_tf_kd(temperature: float, alpha: float, multiplier: float, confidence: float = CONFIDENCE) -> None:
    """ValueError for invalid values."""
    check_positive(temperature=temperature, multiplier=multiplier)
    check_share(alpha=alpha, confidence=confidence)


@dataclass(frozen=True)
class TfKDSelfConfig(TeacherObjectiveConfig):
    """Teacher-free distillation from a pretrained copy of the network."""

    temperature: float = searched(SELF_TEMPERATURE, LogRange(1.0, 20.0))
    """divides the logits before the softmax"""
    alpha: float = searched(SELF_ALPHA, Range(0.1, 0.99))
    """weight of the distillation term; cross-entropy has 1 - alpha"""
    multiplier: float = searched(SELF_MULTIPLIER, LogRange(5.0, 200.0))
    """of the distillation term, for 100 classes; scaled for other numbers, so that the term has the same weight"""

    label = "Tf-KD self"
    objective = with_fields(TfKD, "temperature", "alpha", "multiplier", classes=AUTHORS_CLASSES)

    def __post_init__(self) -> None:
        check_tf_kd(self.temperature, self.alpha, self.multiplier)


@dataclass(frozen=True)
class TfKDRegConfig(ObjectiveConfig):
    """Teacher-free distillation from a virtual teacher with almost all probability on the label."""

    temperature: float = searched(REG_TEMPERATURE, LogRange(5.0, 80.0))
    """divides the virtual teacher's probabilities before the softmax"""
    alpha: float = searched(REG_ALPHA, Range(0.05, 0.9))
    """weight of the distillation term; cross-entropy has 1 - alpha"""
    multiplier: float = searched(REG_MULTIPLIER, LogRange(10.0, 400.0))
    """of the distillation term, for 100 classes; scaled for other numbers, so that the term has the same weight"""
    confidence: float = searched(CONFIDENCE, Range(0.9, 0.999))
    """probability that the virtual teacher gives the label"""

    label = "Tf-KD reg"
    objective = with_fields(TfKD, "temperature", "alpha", "multiplier", "confidence", classes=AUTHORS_CLASSES)

    def __post_init__(self) -> None:
        check_tf_kd(self.temperature, self.alpha, self.multiplier, self.confidence)
