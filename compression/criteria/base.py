"""What the configs of criteria share."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

from compression.config import added
from compression.criteria.chunks import check_num_images
from compression.criteria.rounds import Criterion
from compression.objectives.base import Objective, check_positive


def with_fields(criterion: Criterion, *names: str) -> Any:
    """The `score` of a config: `criterion` with these fields of the config as arguments."""
    return property(lambda self: functools.partial(criterion, **{name: getattr(self, name) for name in names}))


class CriterionConfig:
    """The settings of a criterion: each subclass is a frozen dataclass."""

    label: ClassVar[str]
    """name in tables"""
    rounds: int = 1
    """usual number of rounds of scoring and pruning"""
    score: Any
    """function (model, batches, objective) -> scores, with a parameter `masks` if it scores a pruned network itself"""

    def num_batches(self, objective: Objective) -> int:
        """How many training batches `score` takes."""
        return 1


@dataclass(frozen=True, kw_only=True)
class GradientCriterionConfig(CriterionConfig):
    """The settings of a criterion that averages or sums gradients over batches."""

    batches: int = 1
    """number of training batches over which the gradient is averaged"""
    chunk_size: int | None = added(None)
    """images scored at once, to save memory; None: a whole batch"""

    def __post_init__(self) -> None:
        check_positive(batches=self.batches, rounds=self.rounds)
        check_num_images(chunk_size=self.chunk_size)

    def num_batches(self, objective: Objective) -> int:
        return self.batches
