"""The form of FFCV's .beton files, version 2, described without FFCV, whose import takes seconds. A test compares both.

A file is: HEADER; one FIELD for each field; for each sample an entry of the fields' values, aligned as C does it; pages
of data, from a multiple of the page's size on, none of whose regions lies across two pages; a REGION for each region.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VERSION = 2

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "S16"), ("arguments", "<u1", 1024)])
REGION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

JPEG, RAW = 0, 1
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])

PAGE_BYTES = 1 << 23
"""FFCV's default."""

_DIMENSIONS = 32


@dataclass(frozen=True)
class Field:
    """What a file says of one of its fields. value: what stands in a sample's entry."""

    name: str
    type_id: int
    value: np.dtype
    arguments: bytes = b""


def image() -> Field:
    """FFCV's RGBImageField: an entry is an IMAGE."""
    return Field("image", 2, IMAGE)


def integer(name: str) -> Field:
    """FFCV's IntField: the number stands in the entry itself."""
    return Field(name, 1, np.dtype("<i8"))


def numbers(name: str, dtype: str, *shape: int) -> Field:
    """FFCV's NDArrayField: an array of the same shape for each sample; an entry says where it lies."""
    lengths = np.zeros(_DIMENSIONS + 1, "<u8")
    kind = json.dumps(np.dtype(dtype).descr).encode()
    lengths[: len(shape)], lengths[-1] = shape, len(kind)
    return Field(name, 4, np.dtype("<u8"), lengths.tobytes() + kind)


CLASSIFICATION = (image(), integer("label"))


def detection(most_objects: int) -> tuple[Field, ...]:
    """The fields of a sample with so many boxes; those of class 0 are none, only there to fill up."""
    return (
        image(),
        numbers("boxes", "<f4", most_objects, 4),
        numbers("classes", "<i8", most_objects),
        numbers("difficult", "|u1", most_objects),
    )


def entry(fields: Sequence[Field]) -> np.dtype:
    """Of a sample, in the table."""
    return np.dtype([("", field.value) for field in fields], align=True)


def described(fields: Sequence[Field]) -> bytes:
    """The list of fields."""
    found = np.zeros(len(fields), FIELD)
    for row, field in zip(found, fields, strict=True):
        row["type_id"], row["name"] = field.type_id, field.name.encode("ascii")
        row["arguments"][: len(field.arguments)] = np.frombuffer(field.arguments, np.uint8)
    return found.tobytes()


def aligned(address: int, page: int) -> int:
    """The first multiple of `page` from `address` on."""
    return -(-address // page) * page
