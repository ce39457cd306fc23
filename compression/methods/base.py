"""MethodConfig: what the config of every method declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from compression import allocation
from compression.masks import Masks
from compression.objectives.config import TeacherObjectiveConfig
from compression.session import Session
from compression.spaces import Choices

SPARSITIES = Choices((0.8, 0.9, 0.95, 0.98))
"""What a search tries: the usual values for pruning at initialisation."""


class MethodConfig:
    """The settings of a method: each subclass is a frozen dataclass. A run's identity depends only on its fields.

    What is declared here may be a field, a property or a class attribute of the subclass.
    """

    label: Any
    """name in tables"""
    objective: Any
    """ObjectiveConfig of the training"""
    sparsity: Any = None
    """share of convolution and linear weights that masks remove; None: no weight is masked"""
    same_model_as: Any = None
    """an experiment whose `model` must be that of the method's own experiment; None: there is none"""
    files: Any = ()
    """paths that the run reads beside its data; their contents are compared before a finished run is used again"""
    options: ClassVar[Mapping[str, str]] = {}
    """recipe option ("distillation" or "criterion") that this method has -> the field that it sets"""

    @property
    def teachers(self) -> Sequence[tuple[Any, Any]]:
        """The arguments (experiment, method) of each `session.teacher` that `run` calls; None as there."""
        own = self.objective
        return [(own.teacher, None)] if isinstance(own, TeacherObjectiveConfig) else []

    def trainings(self, own: Any) -> Sequence[Any]:
        """The trainings that `run` goes through; own: the experiment's."""
        return [own]

    @classmethod
    def at(cls, sparsity: float, **values: Any) -> Self:
        """The config for a recipe of this sparsity. values: fields set by options."""
        if cls.sparsity is not None:
            values["sparsity"] = sparsity
        return cls(**values)

    def run(self, session: Session) -> nn.Module:
        """Run the method and return the finished network."""
        raise TypeError(f"{type(self).__name__} does not define run(session)")

    def controls(self) -> Sequence[MethodConfig]:
        """The configs of runs with which the method's claim must be compared."""
        return []


MANY_TIES = 0.01
"""Share of weights with the same score from which on a run says that their order decides."""


def note_ties(session: Session, masks: Masks, scores: Mapping[str, Tensor]) -> None:
    """Say so if the order of many weights with the same score decides which of them are kept."""
    if (share := allocation.share_of_ties(masks, scores)) > MANY_TIES:
        session.note(
            f"{share:.1%} of the weights have the lowest score that is kept: which of them stay is decided by their "
            "order in the network, not by the criterion"
        )
