"""Dense training with any objective: the baseline of every pruned network."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from compression.methods.base import MethodConfig
from compression.objectives import CrossEntropyConfig, ObjectiveConfig
from compression.session import Session, objective_of


@dataclass(frozen=True)
class Dense(MethodConfig):
    """Train without pruning."""

    objective: ObjectiveConfig = field(default_factory=CrossEntropyConfig)

    options: ClassVar = {"distillation": "objective"}

    @property
    def label(self) -> str:
        return "dense" if self.objective.label == "CE" else f"dense ({self.objective.label})"

    def run(self, session: Session) -> nn.Module:
        return dense(session, self)


def dense(session: Session, config: Dense) -> nn.Module:
    """Train all weights."""
    return session.train("train", session.model(), objective_of(session, config.objective))
