"""What criteria and their configs share."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

from torch import Tensor

from compression.config import added, searched
from compression.criteria.chunks import check_num_images
from compression.objectives.base import Objective, check_positive
from compression.spaces import Choices

Criterion: TypeAlias = Callable[..., dict[str, Tensor]]
"""(model, batches, objective) -> scores. A criterion with a parameter `masks` scores a pruned network itself."""

F = TypeVar("F", bound=Criterion)


@dataclass(frozen=True)
class Rounds:
    """What a criterion declares about pruning in rounds, with the values of a criterion that declares nothing.

    pruned_return: whether a weight pruned in one round may be kept in the next.
    num_kept: N * density, a real number -> number of weights kept by a round before the last. The last round keeps
        what the requested sparsity gives.
    """

    pruned_return: bool = False
    num_kept: Callable[[float], int] = math.ceil

    def __call__(self, criterion: F) -> F:
        """Decorator: declares these rounds for a criterion."""
        vars(criterion)["rounds"] = self
        return criterion


def rounds_of(criterion: Criterion) -> Rounds:
    """The declaration of `criterion`, or of the function in a functools.partial."""
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    return getattr(criterion, "rounds", Rounds())


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

    batches: int = searched(1, Choices((1, 2, 5, 10)))
    """number of training batches over which the gradient is averaged"""
    chunk_size: int | None = added(None)
    """images scored at once, to save memory; None: a whole batch"""

    def __post_init__(self) -> None:
        check_positive(batches=self.batches, rounds=self.rounds)
        check_num_images(chunk_size=self.chunk_size)

    def num_batches(self, objective: Objective) -> int:
        return self.batches
