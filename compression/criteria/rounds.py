"""What a criterion declares about pruning in rounds; `allocation.iterate` uses it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from torch import Tensor

Criterion: TypeAlias = Callable[..., dict[str, Tensor]]
"""(model, batches, objective) -> scores. A criterion with a parameter `masks` scores a pruned network itself."""

F = TypeVar("F", bound=Criterion)


@dataclass(frozen=True)
class Rounds:
    """Rounds of pruning, with the values of a criterion that declares nothing.

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
