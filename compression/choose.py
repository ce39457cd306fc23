"""Choosing one of several things by its name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def choose(kind: str, name: str, among: Mapping[str, T]) -> T:
    """among[name]; ValueError that says what there is, the nearest first."""
    if name not in among:
        near = difflib.get_close_matches(name, among, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no {kind} {name!r}; {hint}There are: {', '.join(among)}")
    return among[name]
