"""Every method, objective and criterion of the registries, as a small experiment on real digits.

The registries are read, never listed: whoever adds an entry has enrolled it in the tests that use this. One whose
config cannot be made by default needs a line in `EXAMPLES`, or those tests cannot be collected.
"""

from __future__ import annotations

from typing import Any

from compression.criteria import CRITERIA
from compression.methods import (
    METHODS,
    PDD,
    Dense,
    EarlyPruning,
    IterativeMagnitude,
    Pretrained,
    PruneThenDistill,
)
from compression.objectives import OBJECTIVES
from pipelines.data.config import Digits
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD

DIGITS = Digits()
TRAINING = Training(epochs=2, batch_size=256, optimizer=SGD(lr=0.1))
"""Ten steps, five in each epoch."""

FROZEN = Training(epochs=2, batch_size=64, optimizer=SGD(lr=1e-3), precision="float64", freeze_batchnorm=True)
FEWER_DIGITS = Digits(val_fraction=0.55)
"""Together twenty steps, ten in each epoch, in which two workers compute what one does."""

SMALL = "vgg3"
NETWORKS: dict[type, str] = {PDD: "resnet20"}
"""The network of a method's cases, if it is not SMALL: one real network is enough."""

WEIGHTS = "weights.safetensors"

EXAMPLES: dict[type, list[Any]] = {
    # Each way to train again, and only two rounds.
    IterativeMagnitude: [
        IterativeMagnitude(rounds=2),
        IterativeMagnitude(rounds=2, rewind="learning_rate", rewind_epoch=1),
        IterativeMagnitude(rounds=2, rewind="restart"),
    ],
    PruneThenDistill: [PruneThenDistill(rounds=2)],
    # It has no weights by default.
    Pretrained: [Pretrained(WEIGHTS)],
}
"""Configs to try a method by, in place of the one that its class makes by default."""

TRAINS_NOTHING = (Pretrained,)


def methods() -> dict[str, Any]:
    """Name -> config; one or more for each method."""
    configs = {name: EXAMPLES.get(made_of) or [made_of()] for name, made_of in METHODS.items()}
    return {f"{name}, {config.label}": config for name, of_name in configs.items() for config in of_name}


def objectives() -> dict[str, Any]:
    """Name -> dense training by it."""
    return {f"objective {name}": Dense(made_of()) for name, made_of in OBJECTIVES.items() if made_of().label != "CE"}


def criteria() -> dict[str, Any]:
    """Name -> early pruning by it, in three rounds where it usually takes more."""
    configs = {f"criterion {name}": made_of() for name, made_of in CRITERIA.items()}
    return {name: EarlyPruning(config, rounds=min(config.rounds, 3)) for name, config in configs.items()}


def small(method: Any, training: Training = TRAINING, data: Digits = DIGITS) -> Experiment:
    """The experiment of a config."""
    return Experiment(method, NETWORKS.get(type(method), SMALL), data, training, seed=3)
