"""Dense training: the network as it is, by any objective. The row that every pruned one is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from compression.objectives import CrossEntropyConfig, ObjectiveConfig
from compression.session import Session, objective_of


@dataclass(frozen=True)
class Dense:
    """Train without pruning."""

    objective: ObjectiveConfig = field(default_factory=CrossEntropyConfig)

    @property
    def label(self) -> str:
        return "dense" if self.objective.label == "CE" else f"dense ({self.objective.label})"


def dense(session: Session, config: Dense) -> nn.Module:
    """Train every weight."""
    return session.train("train", session.model(), objective_of(session, config.objective))
