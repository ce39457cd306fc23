"""Checking a list of widths before a network is built of it."""

from __future__ import annotations

from collections.abc import Sequence


def check_widths(argument: str, part: str, widths: Sequence[int], num: int) -> list[int]:
    """`widths` as a list of `num` positive ints, one for each `part` ("convolution", "stage").

    Errors: ValueError that names the first part whose width is not a positive whole number, or the length asked for.
    """
    if isinstance(widths, str) or len(widths) != num:
        raise ValueError(f"{argument} gives one width for each of the {num} {part}s, not {list(widths)}")
    for place, width in enumerate(widths, 1):
        if not isinstance(width, int) or width < 1:
            raise ValueError(
                f"{argument}: {part} {place} of {num} has width {width!r}; a width is a whole number from 1"
            )
    return list(widths)
