"""A network that was trained elsewhere, taken as it is: a teacher, or a row to compare with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compression.methods.base import MethodConfig
from compression.objectives import CrossEntropyConfig, ObjectiveConfig
from compression.pretrained import read_weights
from compression.session import Session


@dataclass(frozen=True)
class Pretrained(MethodConfig):
    """Load weights and train nothing."""

    weights: str = ""
    """a .safetensors file, the folder of a finished run, or of a hub: hub (its default), IMAGENET1K_V1, a1_in1k..."""

    label = "pretrained"

    @property
    def objective(self) -> ObjectiveConfig:
        """What it is measured by; nothing trains by it."""
        return CrossEntropyConfig()

    def run(self, session: Session) -> nn.Module:
        return pretrained(session, self)


def pretrained(session: Session, config: Pretrained) -> nn.Module:
    """The experiment's architecture with the weights that the config names."""
    model = session.model()
    state = session.stage("load", lambda: read_weights(model, config.weights))
    model.load_state_dict(state)
    return model
