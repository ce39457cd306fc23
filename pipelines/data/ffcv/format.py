"""The binary format of FFCV's .beton files, version 2, described without FFCV, whose import takes seconds.

A file consists of HEADER; one FIELD per field; one entry per sample with its values, aligned like a C struct; pages of
data, which start at a multiple of the page size (no region crosses a page boundary); one REGION per region.
A test compares this description with FFCV.
"""

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
"""Storage modes of an image."""

IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])

TYPES = {
    0: ("FloatField", np.dtype("<f8")),
    1: ("IntField", np.dtype("<i8")),
    2: ("RGBImageField", IMAGE),
    3: ("BytesField", _BYTES),
    4: ("NDArrayField", np.dtype("<u8")),
    5: ("JSONField", _BYTES),
    6: ("NDArrayField", np.dtype("<u8")),
}
"""type_id -> FFCV's class, and what the entry of a sample holds. 6 is TorchTensorField, stored like an NDArrayField."""

PAGE_BYTES = 1 << 23
"""FFCV's default."""

_DIMENSIONS = 32


@dataclass(frozen=True)
class Field:
    """One field of a file. array: type and shape of a sample's value; for an NDArrayField only."""

    name: str
    type_id: int
    array: np.dtype | None = None


IMAGES, LABELS = Field("image", 2), Field("label", 1)
CLASSIFICATION = (IMAGES, LABELS)


def detection(most_objects: int) -> tuple[Field, ...]:
    """The fields of a sample with up to `most_objects` boxes. Class 0 marks padding."""
    return (
        IMAGES,
        Field("boxes", 4, np.dtype(("<f4", (most_objects, 4)))),
        Field("classes", 4, np.dtype(("<i8", (most_objects,)))),
        Field("difficult", 4, np.dtype(("|u1", (most_objects,)))),
    )


def entry(fields: Sequence[Field]) -> np.dtype:
    """The type of a sample's row in the table."""
    return np.dtype([("", TYPES[field.type_id][1]) for field in fields], align=True)


def described(fields: Sequence[Field]) -> bytes:
    """The list of fields as it is stored."""
    found = np.zeros(len(fields), FIELD)
    for row, field in zip(found, fields, strict=True):
        row["type_id"], row["name"] = field.type_id, field.name.encode("ascii")
        if field.array is not None:
            lengths, kind = np.zeros(_DIMENSIONS + 1, "<u8"), json.dumps(field.array.base.descr).encode()
            lengths[: len(field.array.shape)], lengths[-1] = field.array.shape, len(kind)
            arguments = lengths.tobytes() + kind
            row["arguments"][: len(arguments)] = np.frombuffer(arguments, np.uint8)
    return found.tobytes()


def parsed(row: np.void) -> Field:
    """The field that a row of FIELD describes. LookupError, ValueError, TypeError: its type is unknown."""
    name, type_id, array = row["name"].split(b"\0")[0].decode("ascii", "replace"), int(row["type_id"]), None
    if TYPES[type_id][0] == "NDArrayField":
        arguments = row["arguments"].tobytes()
        lengths = np.frombuffer(arguments, "<u8", _DIMENSIONS + 1)
        [(_, kind)] = json.loads(arguments[lengths.nbytes :][: int(lengths[-1])])
        if np.dtype(kind).kind not in "biuf":
            raise ValueError(f"an array of {kind!r}")
        array = np.dtype((np.dtype(kind), tuple(np.trim_zeros(lengths[:-1], "b").tolist())))
    return Field(name, type_id, array)


def aligned(address: int, page: int) -> int:
    """The first multiple of `page` that is at least `address`."""
    return -(-address // page) * page
