"""The config of a criterion: how many batches it wants, and its score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from compression.batch import Batch
from compression.objectives.base import Objective


class CriterionConfig(Protocol):
    """A frozen dataclass that scores weights."""

    @property
    def label(self) -> str:
        """The criterion's name in tables and tags."""
        ...

    def num_batches(self, objective: Objective) -> int: ...

    def score(self, model: nn.Module, batches: Sequence[Batch], objective: Objective) -> dict[str, Tensor]: ...
