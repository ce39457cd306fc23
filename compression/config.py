"""Parts of configs: fields that they got later, and functions that take fields as arguments."""

import functools
from collections.abc import Callable
from dataclasses import field
from typing import Any

ADDED = {"identity": "added"}
"""Metadata of a field that was added later. Its default means "as before" and is left out of the identity of a run."""


def added(default: Any) -> Any:
    """A dataclass field that was added later; with `default`, runs are what they were before."""
    return field(default=default, metadata=ADDED)


def with_fields(make: Callable[..., Any], *names: str, **constants: Any) -> Any:
    """A property of a config: `make` with these fields of the config, and constants, as arguments."""
    return property(lambda self: functools.partial(make, **{name: getattr(self, name) for name in names}, **constants))
