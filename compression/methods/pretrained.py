"""A network that was trained elsewhere, as a teacher or for comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compression.methods.base import MethodConfig
from compression.objectives import CrossEntropyConfig, ObjectiveConfig
from compression.pretrained import files, read_weights
from compression.session import Session


@dataclass(frozen=True)
class Pretrained(MethodConfig):
    """Load weights, without training."""

    weights: str = ""
    """a .safetensors file, the folder of a finished run, or a hub's: hub (the default), IMAGENET1K_V1, a1_in1k..."""

    label = "pretrained"

    @property
    def objective(self) -> ObjectiveConfig:
        """Only used to measure costs: there is no training."""
        return CrossEntropyConfig()

    def trainings(self, own: Any) -> list[Any]:
        return []

    @property
    def files(self) -> Sequence[Path]:
        return files(self.weights)

    def run(self, session: Session) -> nn.Module:
        return pretrained(session, self)


def pretrained(session: Session, config: Pretrained) -> nn.Module:
    """The experiment's architecture with the named weights."""
    model = session.model()
    state = session.stage("load", lambda: read_weights(model, config.weights))
    model.load_state_dict(state)
    return model
