"""Session: the interface through which a method gets data, networks and training.

A method is a function of a Session and its config. Data, devices, workers, checkpoints and tracking are hidden behind
this Protocol, so that a method reads like the algorithm in its paper and needs no code to resume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compression.batch import Batch, Info
from compression.masks import Masks
from compression.objectives.base import Objective
from compression.objectives.config import ObjectiveConfig, TeacherObjectiveConfig

StageResult = Masks | dict[str, Tensor] | dict[str, Any] | list[Any]


class Session(Protocol):
    """Every worker runs the method with the unwrapped model; `train` wraps it for several workers."""

    seed: int
    device: torch.device
    info: Info
    epochs: int
    """of the experiment's training schedule"""

    def model(self, spec: Mapping[str, Any] | None = None) -> nn.Module:
        """The experiment's network, or that of `spec`, with initial weights from the seed, the same on every worker.

        spec: {"name": architecture, argument: value...} for `compression.models.build`, without the number of classes.
        """
        ...

    def teacher(self, experiment: Any = None, *, method: Any = None) -> nn.Module:
        """The finished network of another Experiment, frozen and in eval mode. The experiment is run first if needed.

        experiment: None is this run's own network, data and training with the method `Dense`.
        method: run this method instead of the experiment's own.
        ValueError if its number of classes is not that of this run.
        """
        ...

    def batches(self, objective: Objective, num: int, size: int | None = None) -> Sequence[Batch]:
        """`num` global training batches, the same on every worker, with the fields that the objective needs.

        size: images in each batch; None is the training's batch size.
        """
        ...

    def stage(self, name: str, fn: Callable[[], StageResult]) -> Any:
        """The result of `fn`: the first worker computes and stores it once; a resumed run loads it.

        `fn` must not use collectives. It returns a dict of tensors, Masks or plain JSON.
        """
        ...

    def train(
        self,
        name: str,
        model: nn.Module,
        objective: Objective,
        *,
        masks: Masks | None = None,
        schedule: Any = None,
        epochs: range | None = None,
        param_groups: Sequence[dict[str, Any]] | None = None,
    ) -> nn.Module:
        """Train `model` in place. The stage is stored, and resumed from its last checkpoint after a kill.

        schedule: another training than the experiment's (a value of the method's config); None is the experiment's.
        epochs: part of the schedule, for example range(2, 15); None is the whole schedule.
        param_groups: dicts with "params" and the values that differ from the optimiser's; "lr_scale" multiplies the
        learning rate. None: the same values for all parameters.
        """
        ...

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Metrics of `model` on "val" or "test", as means over the samples.

        accuracy: in [0, 1]; loss: cross-entropy; entropy: of the softmax, in nats; max_probability: its largest entry.
        """
        ...

    def log(self, **metrics: float) -> None:
        """Record numbers of the whole run (a cost, the number of empty layers)."""
        ...

    def note(self, text: str) -> None:
        """Show a message to the user."""
        ...


def objective_of(session: Session, config: ObjectiveConfig) -> Objective:
    """The objective of a config, with its trained teacher if it has one."""
    if isinstance(config, TeacherObjectiveConfig):
        return config.objective(session.teacher(config.teacher))
    return config.objective()
