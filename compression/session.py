"""Session: what a method may ask of its surroundings, and nothing else.

A method is a function of a Session and its config. Data, devices, workers, checkpoints and tracking stay behind this
Protocol, so a method reads like its paper's algorithm box and holds no resume logic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.masks import Masks
from compression.objectives.base import Objective


@dataclass(frozen=True)
class Info:
    """What a method may know of its data.

    num_classes: how many classes the labels have.
    input_shape: (C, H, W) of one image.
    sizes: number of samples in "train", "val" and "test".
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    sizes: Mapping[str, int]


StageResult = Masks | dict[str, Tensor] | dict[str, Any] | list[Any]


class Session(Protocol):
    """Every worker runs the method's body on the unwrapped model; wrapping for several workers happens in `train`."""

    seed: int
    device: torch.device
    info: Info

    def model(self) -> nn.Module:
        """The experiment's network with the weights of its seed, the same on every worker."""
        ...

    def batches(self, objective: Objective, num: int) -> Sequence[Batch]:
        """`num` global training batches, the same on every worker, with what `objective.needs` of them."""
        ...

    def stage(self, name: str, fn: Callable[[], StageResult]) -> Any:
        """The result of `fn`, computed once by the first worker, stored, and read back when the run starts again.

        `fn` holds no collectives and returns a dict of tensors, Masks or plain JSON.
        """
        ...

    def train(self, name: str, model: nn.Module, objective: Objective, *, masks: Masks | None = None) -> nn.Module:
        """Train `model` in place by the experiment's schedule; durable, and goes on inside the stage after a kill."""
        ...

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Accuracy (share of 1) and mean cross-entropy of `model` on "val" or "test"."""
        ...

    def log(self, **metrics: float) -> None:
        """Record numbers of the run as a whole (a cost, a count of empty layers)."""
        ...
