"""Pickles of CIFAR's form, read without running anything that they name.

A pickle can ask for any function of any module. Those of CIFAR ask for numpy's arrays of bytes alone, and even these
are built here from checked values, as numpy's own functions trust what a pickle tells them of types and memory.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np


def load(data: bytes, name: str) -> Any:
    """The dicts, lists, tuples, str, bytes, numbers and arrays of uint8 in a pickle; str of Python 2 as latin-1.

    ValueError: it is damaged, or asks for anything else; `name` is that of the file.
    """
    unpickler = _Unpickler(io.BytesIO(data), encoding="latin1")
    try:
        return _plain(unpickler.load())
    except Exception as error:  # a damaged pickle can raise anything
        if unpickler.refused:
            raise ValueError(
                f"{name} asks for {unpickler.refused}, which no official pickle does: it was not loaded; remove it"
            ) from error
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is no pickle of the official form ({reason}): fetch it again") from error


class _Unpickler(pickle.Unpickler):
    refused = ""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            self.refused = f"{module}.{name}"
            raise pickle.UnpicklingError(f"{self.refused} is refused")
        return known


class _Bytes:
    """Stands for numpy's dtype of bytes, the only one of official pickles."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("u1", "|u1"):
            raise ValueError(f"an array of {code!r}, where official pickles hold bytes")

    def __setstate__(self, state: object) -> None:
        """What a pickle says of the order of bytes in a byte is nothing."""


class _Array:
    """Stands for numpy's array; `value` is it, (...) uint8."""

    value: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, str | bytes]) -> None:
        _, shape, _, fortran, raw = state
        values = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(values, bytes) or math.prod(shape) != len(values):
            raise ValueError(f"an array of shape {shape} from {len(values)} bytes")
        self.value = np.frombuffer(values, np.uint8).reshape(shape, order="F" if fortran else "C")


class _ArrayType:
    """Stands for the name numpy.ndarray."""


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _ArrayType:
        raise ValueError("an array that is not numpy's own")
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How Python 3 writes b"" for Python 2."""
    return b""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Bytes,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}


def _plain(value: Any) -> Any:
    """Arrays in the place of what stands for them, in a dict's values."""
    if isinstance(value, dict):
        return {key: entry.value if isinstance(entry, _Array) else entry for key, entry in value.items()}
    return value
