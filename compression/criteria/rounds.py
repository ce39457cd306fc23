"""What a criterion that is made for several rounds declares about them; `allocation.iterate` goes by it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from torch import Tensor

Criterion: TypeAlias = Callable[..., dict[str, Tensor]]
"""(model, batches, objective) -> scores; one with a parameter `masks` scores a pruned network itself."""

F = TypeVar("F", bound=Criterion)


@dataclass(frozen=True)
class Rounds:
    """How the rounds of a criterion go where it says nothing else.

    pruned_return: whether a weight pruned in one round may be kept in the next.
    num_kept: from N * density, a real number, to the count kept by a round before the last. The last round keeps
        what the asked sparsity says.
    """

    pruned_return: bool = False
    num_kept: Callable[[float], int] = math.ceil


def in_rounds(rounds: Rounds) -> Callable[[F], F]:
    """Decorator of a criterion whose rounds differ from the usual."""

    def declare(criterion: F) -> F:
        vars(criterion)["rounds"] = rounds
        return criterion

    return declare


def rounds_of(criterion: Criterion) -> Rounds:
    """What `criterion`, or the function behind a functools.partial, declared."""
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    return getattr(criterion, "rounds", Rounds())
