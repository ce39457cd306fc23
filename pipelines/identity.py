"""What makes two experiments the same: a hash over every value that can change a result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

PLACE = {"identity": False}
"""Field metadata: says where something lies or runs, not what comes out; left out of the identity."""

ADDED = {"identity": "added"}
"""Field metadata: came later, and its default means "as before"; left out of the identity while it has its default."""


def canonical(value: Any) -> Any:
    """`value` as plain JSON: dataclasses become {"kind": class name, field: value...} without the fields left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value) if _counts(value, f)}
        version = getattr(type(value), "VERSION", 1)
        return {"kind": type(value).__name__, **({"version": version} if version != 1 else {}), **fields}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be part of an experiment: use plain values")


def identity(value: Any) -> str:
    """16 hexadecimal digits that are equal for equal canonical values."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _counts(value: Any, field: dataclasses.Field[Any]) -> bool:
    rule = field.metadata.get("identity", True)
    if rule == "added":
        return getattr(value, field.name) != field.default
    return bool(rule)
