"""Checks of arguments: a choice by name, and a list of widths."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def choose(kind: str, name: str, among: Mapping[str, T]) -> T:
    """among[name]; ValueError that says what there is, the nearest first."""
    if name not in among:
        near = difflib.get_close_matches(name, among, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no {kind} {name!r}; {hint}There are: {', '.join(among)}")
    return among[name]


def check_widths(argument: str, part: str, widths: Sequence[int], num: int) -> list[int]:
    """`widths` as a list of `num` positive ints, one for each `part` ("convolution", "stage").

    ValueError that names the first part with a width that is not a positive integer, or the required length.
    """
    if isinstance(widths, str) or len(widths) != num:
        raise ValueError(f"{argument} must give one width for each of the {num} {part}s, not {list(widths)}")
    for place, width in enumerate(widths, 1):
        if not isinstance(width, int) or width < 1:
            raise ValueError(
                f"{argument}: {part} {place} of {num} has width {width!r}; it must be an integer, 1 or more"
            )
    return list(widths)
