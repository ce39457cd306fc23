"""What the configs of criteria share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from compression.config import added
from compression.criteria.chunks import check_chunk_size
from compression.criteria.rounds import Criterion
from compression.objectives.base import Objective, check_positive


class CriterionConfig:
    """The settings of a criterion: each subclass is a frozen dataclass."""

    label: ClassVar[str]
    """name in tables"""
    rounds: int = 1
    """usual number of rounds of scoring and pruning"""
    score: Any
    """a `Criterion`: (model, batches, objective) -> scores, with a parameter `masks` if it scores a pruned network"""

    def num_batches(self, objective: Objective) -> int:
        """How many training batches `score` takes."""
        return 1


@dataclass(frozen=True, kw_only=True)
class GradientCriterionConfig(CriterionConfig):
    """The settings of a criterion that averages or sums gradients over batches."""

    function: ClassVar[Criterion]
    """(model, batches, objective, chunk_size=...) -> scores"""

    batches: int = 1
    """number of training batches over which the gradient is averaged"""
    chunk_size: int | None = added(None)
    """images scored at once, to save memory; None: a whole batch"""

    def __post_init__(self) -> None:
        check_positive(batches=self.batches)
        check_chunk_size(self.chunk_size)

    def num_batches(self, objective: Objective) -> int:
        return self.batches

    @property
    def score(self) -> Criterion:
        return partial(type(self).function, chunk_size=self.chunk_size)
