"""Session: what a method may ask of its surroundings, and nothing else.

A method is a function of a Session and its config. Data, devices, workers, checkpoints and tracking stay behind this
Protocol, so a method reads like its paper's algorithm box and holds no resume logic.
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
    """Every worker runs the method's body on the unwrapped model; wrapping for several workers happens in `train`."""

    seed: int
    device: torch.device
    info: Info
    epochs: int
    """of the experiment's training schedule"""

    def model(self, spec: Mapping[str, Any] | None = None) -> nn.Module:
        """The experiment's network, or the one of `spec`, with the weights of the seed, the same on every worker.

        spec: {"name": architecture, argument: value...} for `compression.models.build`, without the number of classes.
        """
        ...

    def teacher(self, experiment: Any = None, *, method: Any = None) -> nn.Module:
        """The finished network of another Experiment, frozen and in eval mode; run first if that is still to be done.

        experiment: None is this run's own network, data and training, by the method `Dense`.
        method: carry out that one instead of the experiment's own.
        ValueError if its classes are not as many as this run's.
        """
        ...

    def batches(self, objective: Objective, num: int, size: int | None = None) -> Sequence[Batch]:
        """`num` global training batches, the same on every worker, with what `objective.needs` of them.

        size: images in each; None is the training's batch size.
        """
        ...

    def stage(self, name: str, fn: Callable[[], StageResult]) -> Any:
        """The result of `fn`, computed once by the first worker, stored, and read back when the run starts again.

        `fn` holds no collectives and returns a dict of tensors, Masks or plain JSON.
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
        """Train `model` in place; durable, and goes on inside the stage after a kill.

        schedule: another training than the experiment's (an opaque value of a method's config); None is its own.
        epochs: which part of the schedule, say range(2, 15); None is all of it.
        param_groups: dicts with "params" and what differs from the optimiser's values in them; "lr_scale" multiplies
        the learning rate. None: all parameters alike.
        """
        ...

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Of `model` on "val" or "test": accuracy (share of 1), and means over samples of what it says of them.

        loss: cross-entropy; entropy: of the softmax, in nats; max_probability: its largest entry.
        """
        ...

    def log(self, **metrics: float) -> None:
        """Record numbers of the run as a whole (a cost, a count of empty layers)."""
        ...

    def note(self, text: str) -> None:
        """Tell the person who watches the run."""
        ...


def objective_of(session: Session, config: ObjectiveConfig) -> Objective:
    """The objective of a config, with its trained teacher if it has one."""
    if isinstance(config, TeacherObjectiveConfig):
        return config.objective(session.teacher(config.teacher))
    return config.objective()
