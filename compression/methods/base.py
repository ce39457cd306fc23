"""MethodConfig: what the config of every method declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import nn

from compression.session import Session


class MethodConfig:
    """The settings of a method: each subclass is a frozen dataclass. A run's identity depends on its fields alone."""

    objective: Any
    """ObjectiveConfig of the training; a field or a property"""
    sparsity: Any = None
    """share of convolution and linear weights that masks remove; a field or a property; None: no weight is masked"""
    same_model_as: Any = None
    """an experiment whose `model` must be that of the method's own experiment; None: there is none"""
    options: ClassVar[Mapping[str, str]] = {}
    """recipe option ("distillation" or "criterion") that this method has -> the field that it sets"""

    @property
    def label(self) -> str:
        """Name in tables."""
        raise NotImplementedError

    @classmethod
    def at(cls, sparsity: float, **values: Any) -> Self:
        """The config for a recipe of this sparsity. values: fields set by options."""
        return cls(**values)

    def run(self, session: Session) -> nn.Module:
        """Carry out the method and return the finished network."""
        raise NotImplementedError

    def controls(self) -> Sequence[MethodConfig]:
        """The configs of runs with which the method's claim must be compared."""
        return []
