"""Spaces: the values that a search may give to one field of a config. `searched` puts one beside its field.

`str` of a space is its text on the command line: 0.8,0.9,0.95 or 1..20 or log(0.01,0.5).
"""

import math
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

DIGITS = 12
"""Significant digits of computed values on a log scale: the last ones depend on the machine's exp and pow, and a run's
identity on every digit."""


@dataclass(frozen=True)
class _Interval:
    """What ranges of real numbers share."""

    low: float
    high: float

    @property
    def size(self) -> None:
        """Number of values; None: they are continuous."""

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Range(_Interval):
    """All real numbers from low to high, uniformly."""

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high, f"{number(self.low)}..{number(self.high)}")

    def grid(self, num: int) -> list[float]:
        """`num` values at equal distances, with both ends. ValueError if num is below 2."""
        _check_num(num)
        # Exact for decimals: the third of five values from 0.1 to 0.5 is 0.3, as people write it.
        low, high = Fraction(repr(float(self.low))), Fraction(repr(float(self.high)))
        return [float(low + (high - low) * place / (num - 1)) for place in range(num)]

    def sample(self, draw: random.Random) -> float:
        return min(max(draw.uniform(self.low, self.high), float(self.low)), float(self.high))

    def __str__(self) -> str:
        return f"{number(self.low)}..{number(self.high)}"


@dataclass(frozen=True)
class LogRange(_Interval):
    """All real numbers from low to high, uniformly in their logarithm."""

    def __post_init__(self) -> None:
        text = f"log({number(self.low)},{number(self.high)})"
        if self.low <= 0:
            raise ValueError(f"a log range cannot contain 0: let {text} start above it, e.g. at 0.001")
        _check_ends(self.low, self.high, text)

    def grid(self, num: int) -> list[float]:
        """`num` values at equal ratios, with both ends. ValueError if num is below 2."""
        _check_num(num)
        inner = [self._at(place / (num - 1)) for place in range(1, num - 1)]
        return [float(self.low), *inner, float(self.high)]

    def sample(self, draw: random.Random) -> float:
        return self._at(draw.random())

    def _at(self, share: float) -> float:
        """The value at this share of the way from low (0) to high (1)."""
        value = math.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), float(self.low)), float(self.high))

    def __str__(self) -> str:
        return f"log({number(self.low)},{number(self.high)})"


@dataclass(frozen=True)
class IntRange:
    """All whole numbers from low to high, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if not isinstance(end, int) or isinstance(end, bool):
                raise ValueError(f"a range of whole numbers cannot end at {end}: write e.g. 1..20")
        _check_order(self.low, self.high, f"{self.low}..{self.high}")

    @property
    def size(self) -> int:
        """Number of values."""
        return self.high - self.low + 1

    def grid(self, num: int) -> list[int]:
        """All values, whatever `num` is."""
        return list(range(self.low, self.high + 1))

    def sample(self, draw: random.Random) -> int:
        return draw.randint(self.low, self.high)

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


@dataclass(frozen=True)
class Choices:
    """The values of a list, each as likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("there are no values to choose from: write e.g. 0.8,0.9,0.95")
        for place, value in enumerate(self.values):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is not finite: write numbers like 0.8,0.9,0.95")
            if value in self.values[:place]:
                raise ValueError(f"{self} has {word(value)} twice: write each value once")

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.values)

    def grid(self, num: int) -> list[Any]:
        """All values, whatever `num` is."""
        return list(self.values)

    def sample(self, draw: random.Random) -> Any:
        return draw.choice(self.values)

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ",".join(map(word, self.values))


Space: TypeAlias = Range | LogRange | IntRange | Choices
"""What a search may choose from."""


def number(value: float) -> str:
    """The shortest usual text of a number that reads back as the same number: 1 for 1.0, 0.0001 for 1e-4."""
    if isinstance(value, int):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def word(value: Any) -> str:
    """The text of one value on the command line."""
    return number(value) if isinstance(value, float) else str(value)


def _check_ends(low: float, high: float, text: str) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{text} has no end: both must be finite, e.g. 1..20")
    _check_order(low, high, text)


def _check_order(low: float, high: float, text: str) -> None:
    if low == high:
        raise ValueError(f"{text} is one value and no range: write {number(low)}, or let the second number be larger")
    if low > high:
        raise ValueError(f"{text} is reversed: write the smaller number first")


def _check_num(num: int) -> None:
    if num < 2:
        raise ValueError(f"a grid needs both ends of a range: take 2 or more values of it, not {num}")
