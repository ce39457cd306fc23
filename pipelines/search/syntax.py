"""The text of a space on the command line: 0.8,0.9,0.95 or 1..20 or log(0.01,0.5), read for the type of a field."""

import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from compression.spaces import Choices, IntRange, LogRange, Range, Space

HOW = "write a list like A,B,C, a range like 1..20 or a log range like log(0.01,0.5)"

NAMES = {float: "a number", int: "a whole number", bool: "True or False", str: "a text", NoneType: "None"}
"""Types of fields that can be searched, beside Literal, and how a message calls their values."""


def parse(text: str, hint: Any) -> Space:
    """The space that `text` means for a field whose type is `hint`. ValueError for a text that means none.

    A range of a field of whole numbers is an IntRange, of another number a Range.
    """
    kinds = _kinds(hint)
    if text.startswith("log("):
        return _log_range(text, kinds)
    if ".." in text:
        low, *rest = text.split("..")
        numbers = _numbers(text, kinds)
        if len(rest) != 1:
            raise ValueError(f"{text!r} is no range: {HOW}")
        ends = [_value(end.strip(), numbers) for end in (low, *rest)]
        return Range(*ends) if float in numbers else IntRange(*ends)
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise ValueError(f"{text!r} lacks a value: {HOW}" if text.strip() else f"there are no values: {HOW}")
    return Choices(tuple(_value(part, kinds) for part in parts))


def can_be_searched(hint: Any) -> bool:
    """Whether the values of a field of this type can be written in a space."""
    return all(kind in NAMES or get_origin(kind) is Literal for kind in _kinds(hint))


def example(hint: Any) -> str:
    """A space for a field of this type, to show how one is written."""
    kinds = _kinds(hint)
    listed = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if listed or bool in kinds:
        return ",".join(listed or ["True", "False"])
    return "0.1,0.2,0.5" if float in kinds else "1,2,5" if int in kinds else "A,B"


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a value of `hint` may have."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _numbers(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of numbers among `kinds`. ValueError if there is none: a range has no meaning."""
    found = tuple(kind for kind in kinds if kind in (int, float))
    if not found:
        raise ValueError(f"{text!r} is a range, but the value is {_names(kinds)}: list its values, separated by commas")
    return found


def _log_range(text: str, kinds: tuple[Any, ...]) -> LogRange:
    numbers = _numbers(text, kinds)
    if float not in numbers:
        raise ValueError(f"{text!r} would give broken numbers: write whole ones, like 1..20 or 1,10,100")
    ends = re.fullmatch(r"log\(([^,()]+),([^,()]+)\)", text)
    if ends is None:
        raise ValueError(f"{text!r} is no log range: write it as log(0.01,0.5)")
    low, high = (_value(end.strip(), numbers) for end in ends.groups())
    return LogRange(low, high)


def _value(text: str, kinds: tuple[Any, ...]) -> Any:
    """The value that a word means for one of these types."""
    known = {"None": None} if NoneType in kinds else {}
    if bool in kinds:
        known |= {"True": True, "False": False}
    for kind in kinds:
        if get_origin(kind) is Literal:
            known |= {str(value): value for value in get_args(kind)}
    if text in known:
        return known[text]
    for kind in kinds:
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    if str in kinds:
        return text
    raise ValueError(f"{text!r} is not {_names(kinds)}")


def _names(kinds: tuple[Any, ...]) -> str:
    """What a value of these types is called."""
    known = [NAMES.get(kind) or f"one of {', '.join(map(str, get_args(kind)))}" for kind in kinds]
    return " or ".join(known)
