"""A restricted unpickler for CIFAR's batches: no function named in a pickle is called.

A pickle can call any function of any module. CIFAR's pickles only need numpy arrays of bytes. Even these are built here
from checked values, because numpy's own functions trust the types and sizes in a pickle.
"""

import io
import math
import pickle
from typing import Any

import numpy as np


def load(data: bytes, name: str) -> Any:
    """The dicts, lists, tuples, str, bytes, numbers and arrays of uint8 in a pickle; str of Python 2 as latin-1.

    name: of the file. ValueError: it is damaged, or contains anything else.
    """
    unpickler = _Unpickler(io.BytesIO(data), encoding="latin1")
    try:
        value = unpickler.load()
        if isinstance(value, dict):
            return {key: entry.value if isinstance(entry, _Array) else entry for key, entry in value.items()}
        return value
    except Exception as error:  # a damaged pickle can raise anything
        if unpickler.refused:
            raise ValueError(
                f"{name} refers to {unpickler.refused}, which no official pickle does: it was not loaded; remove it"
            ) from error
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is not a pickle of the official form ({reason}): download it again") from error


class _Unpickler(pickle.Unpickler):
    refused = ""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            self.refused = f"{module}.{name}"
            raise pickle.UnpicklingError(f"{self.refused} is refused")
        return _KNOWN[module, name]


class _Bytes:
    """Replaces numpy.dtype; official pickles only use uint8."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("u1", "|u1"):
            raise ValueError(f"an array of {code!r}, but official pickles hold bytes")

    def __setstate__(self, state: object) -> None:
        """Ignored: uint8 has no byte order."""


class _Array:
    """Replaces numpy.ndarray instances; value: the array, uint8."""

    value: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, str | bytes]) -> None:
        _, shape, _, fortran, raw = state
        values = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(values, bytes) or math.prod(shape) != len(values):
            raise ValueError(f"an array of shape {shape} from {len(values)} bytes")
        self.value = np.frombuffer(values, np.uint8).reshape(shape, order="F" if fortran else "C")


class _ArrayType:
    """Replaces the class numpy.ndarray."""


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _ArrayType:
        raise ValueError("an array of another class than numpy.ndarray")
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Bytes,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # how Python 3 writes b"" for Python 2
}
