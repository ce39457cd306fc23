"""Fields that a config got later."""

from dataclasses import field
from typing import Any

ADDED = {"identity": "added"}
"""Metadata of a field that was added later. Its default means "as before" and is left out of the identity of a run."""


def added(default: Any) -> Any:
    """A dataclass field that was added later; with `default`, runs are what they were before."""
    return field(default=default, metadata=ADDED)
