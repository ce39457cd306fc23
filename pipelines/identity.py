"""Identity of an experiment: a hash over every value that can change a result."""

import dataclasses
import hashlib
import json
from typing import Any

from compression.config import ADDED

PLACE = {"identity": False}
"""Metadata of a field that names a place and cannot change a result: left out of the identity."""


def canonical(value: Any) -> Any:
    """`value` as plain JSON; a dataclass becomes {"kind": class name, field: value...} of the fields that count."""
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
    if rule == ADDED["identity"]:
        return getattr(value, field.name) != field.default
    return bool(rule)
