"""What the configs of methods and criteria share."""

from __future__ import annotations

from dataclasses import field
from typing import Any

ADDED = {"identity": "added"}
"""Field metadata: came later, and its default means "as before", so that older runs keep their identity."""


def added(default: Any) -> Any:
    """A dataclass field that came later; `default` gives what there was before it."""
    return field(default=default, metadata=ADDED)
