"""The axis of one setting in a figure: where a value lies on it, and its ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compression.spaces import Choices, IntRange, LogRange, Range, Space
from pipelines.search.words import value_text

NEAR = 0.09
"""Share of an axis within which a tick would touch the tick at the axis' end."""


def covering(space: Space | None, values: Sequence[Any]) -> Space:
    """The space, wider if a value lies outside of it: a sweep may start at settings of its own.

    space: None: what the values, at least one, span.
    """
    numbers: list[Any] = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if space is None:
        if len(numbers) < len(values) or min(numbers) == max(numbers):
            return Choices(tuple(dict.fromkeys(values)))
        whole = all(isinstance(value, int) for value in numbers)
        return (IntRange if whole else Range)(min(numbers), max(numbers))
    if isinstance(space, Choices):
        return Choices((*space.values, *(value for value in dict.fromkeys(values) if value not in space.values)))
    low: Any = min(space.low, *numbers)
    high: Any = max(space.high, *numbers)
    if isinstance(space, LogRange) and low <= 0:
        return Range(low, high)
    return type(space)(low, high)


@dataclass(frozen=True)
class Axis:
    """A setting's values from 0 (bottom) to 1 (top): evenly, by their logarithm, or one place for each choice."""

    space: Space

    def place(self, value: Any) -> float:
        """Where a value of the space lies."""
        if isinstance(self.space, Choices):
            last = len(self.space.values) - 1
            return self.space.values.index(value) / last if last else 0.5
        low, high = self.space.low, self.space.high
        if isinstance(self.space, LogRange):
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """(place, text) of each tick: all choices; of a range both ends, and round numbers between them."""
        if isinstance(self.space, Choices):
            return [(self.place(value), value_text(value)) for value in self.space.values]
        low, high = self.space.low, self.space.high
        inner = [value for value in self._round() if NEAR < self.place(value) < 1 - NEAR]
        return [(self.place(value), value_text(value)) for value in (low, *inner, high)]

    def _round(self) -> list[float]:
        """Round numbers of a range, some of them outside of it."""
        from matplotlib.ticker import MaxNLocator

        assert not isinstance(self.space, Choices)
        low, high = self.space.low, self.space.high
        if isinstance(self.space, LogRange):
            decades = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
            return [value for value in decades if low < value < high]
        whole = isinstance(self.space, IntRange)
        found = MaxNLocator(5, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
        return [int(value) if whole else float(value) for value in found]
