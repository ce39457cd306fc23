"""Parts of configs: fields that they got later, and functions that take fields as arguments."""

import functools
from collections.abc import Callable
from dataclasses import field
from typing import Any

from compression.spaces import Space

ADDED = {"identity": "added"}
"""Metadata of a field that was added later. Its default means "as before" and is left out of the identity of a run."""


def searched(default: Any, space: Space) -> Any:
    """A dataclass field with the values that a search tries, around those of the papers; the default is one of them."""
    return field(default=default, metadata=_space(default, space))


def added(default: Any, space: Space | None = None) -> Any:
    """A dataclass field that was added later; with `default`, runs are what they were before.

    space: the values that a search tries, as in `searched`; None: a search leaves it as it is.
    """
    return field(default=default, metadata=ADDED if space is None else {**ADDED, **_space(default, space)})


def _space(default: Any, space: Space) -> dict[str, Any]:
    assert default in space, f"the default {default} is not in {space}"
    return {"space": space}


def with_fields(make: Callable[..., Any], *names: str, **constants: Any) -> Any:
    """A property of a config: `make` with these fields of the config, and constants, as arguments."""
    return property(lambda self: functools.partial(make, **{name: getattr(self, name) for name in names}, **constants))
