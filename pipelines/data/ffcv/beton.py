"""One .beton file of FFCV: what is in it, checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.ffcv.installed import require_ffcv
from pipelines.data.ffcv.kernels import JPEG, RAW

AGAIN = "write it again with pipelines/prepare.py"


@dataclass(frozen=True)
class Column:
    """A field's values as they stand in the file's table. handler: FFCV's own; it knows what the values mean."""

    values: np.ndarray
    handler: Any


@dataclass(frozen=True)
class Beton:
    """An open file with the field "image", and others.

    mapped: its bytes, in memory that all readers share; read only.
    images: (N, 5) int64 for each image: first byte, number of bytes, JPEG or RAW, height and width in pixels.
    """

    path: Path
    mapped: np.ndarray
    images: np.ndarray
    _columns: Mapping[str, Column]
    _blocks: Blocks

    @staticmethod
    def open(path: str | Path, num_classes: int | None = None) -> Beton:
        """The file at `path`, opened for reading.

        num_classes: of a file with labels, which are checked; None: what else is in the file does not matter yet.
        FileNotFoundError: there is none. ValueError: FFCV is not installed; the file is of another kind, cut short or
        without images; a label is outside its range.
        """
        require_ffcv()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: {AGAIN}")
        mapped = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        columns, blocks = _read(path, mapped)
        beton = Beton(path, mapped, _images(path, columns, blocks), columns, blocks)
        if num_classes is not None:
            beton.check_labels(num_classes)
        return beton

    def check_labels(self, num_classes: int) -> None:
        """ValueError: there are none, or one is not in 0 to num_classes - 1."""
        labels = self.labels
        for row in ((labels < 0) | (labels >= num_classes)).nonzero()[:1, 0].tolist():
            raise ValueError(
                f"{self.path}: image {row} has the label {labels[row]}, outside 0 to {num_classes - 1}: {AGAIN}"
            )

    @property
    def labels(self) -> Tensor:
        """(N,) int64 on the CPU. ValueError: the file has none."""
        return torch.from_numpy(self.field("label").astype(np.int64))

    @property
    def num_samples(self) -> int:
        return len(self.images)

    @property
    def modes(self) -> np.ndarray:
        """(N,) int64, JPEG or RAW."""
        return self.images[:, 2]

    @property
    def sizes(self) -> Tensor:
        """(N, 2) int64, heights and widths as stored."""
        return torch.from_numpy(self.images[:, 3:])

    def field(self, name: str) -> np.ndarray:
        """All values of a field of numbers or arrays: (N,) or (N, *shape), of its own type.

        ValueError: there is no such field, or it is of another kind.
        """
        from ffcv.fields import FloatField, IntField, NDArrayField  # pyright: ignore[reportAttributeAccessIssue] (optional)

        column = _column(self.path, self._columns, name, (IntField, FloatField, NDArrayField))
        if not isinstance(column.handler, NDArrayField):
            return np.array(column.values)
        shape, dtype = tuple(int(side) for side in column.handler.shape), column.handler.dtype
        starts, sizes = column.values.astype(np.int64), self._blocks.sizes(self.path, column.values, name)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        _require(self.path, bool((sizes == size).all()), f'its field "{name}" has values of another size')
        values = np.stack([self.mapped[start : start + size] for start in starts.tolist()])
        return values.view(dtype).reshape(len(starts), *shape)


@dataclass(frozen=True)
class Blocks:
    """Where a file's data lies. starts: (M,) uint64, ascending. lengths: (M,) uint64, bytes. end: of the file."""

    starts: np.ndarray
    lengths: np.ndarray
    end: int

    def sizes(self, path: Path, pointers: np.ndarray, name: str) -> np.ndarray:
        """(N,) int64 bytes at `pointers`, (N,) uint64. ValueError: nothing is said to lie there, or the file ends."""
        at = np.searchsorted(self.starts, pointers).clip(max=max(0, len(self.starts) - 1))
        listed = len(self.starts) > 0 and bool((self.starts[at] == pointers).all())
        _require(path, listed, f'data of "{name}" is missing')
        lengths = self.lengths[at]
        # In this order nothing overflows, whatever the numbers are.
        inside = (lengths <= self.end) & (pointers <= self.end - np.minimum(lengths, self.end))
        _require(path, bool(inside.all()), f'data of "{name}" lies behind its end')
        return lengths.astype(np.int64)


def _read(path: Path, mapped: np.ndarray) -> tuple[dict[str, Column], Blocks]:
    """The tables: header, fields, one row of metadata for each sample, and what lies where."""
    from ffcv.types import (  # pyright: ignore[reportMissingImports] (optional)
        ALLOC_TABLE_TYPE,
        CURRENT_VERSION,
        FieldDescType,
        HeaderType,
        get_handlers,
        get_metadata_type,
    )

    whole = len(mapped) >= HeaderType.itemsize
    header = np.frombuffer(mapped, HeaderType, 1)[0] if whole else None
    if header is None or header["version"] != CURRENT_VERSION:
        raise ValueError(f"{path} is no FFCV file of version {CURRENT_VERSION}: {AGAIN}")
    fields = _table(path, mapped, HeaderType.itemsize, FieldDescType, int(header["num_fields"]), "list of fields")
    names = [bytes(field["name"]).split(b"\0")[0].decode("ascii", "replace") for field in fields]
    try:
        handlers = get_handlers(fields)
        sample = get_metadata_type(handlers)
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} has fields that FFCV does not know ({error}): {AGAIN}") from error
    start = HeaderType.itemsize + fields.nbytes
    samples = _table(path, mapped, start, sample, int(header["num_samples"]), "table of samples")
    _require(path, len(samples) > 0, "it holds no sample")
    columns = {name: Column(samples[f"f{n}"], handlers[n]) for n, name in enumerate(names)}
    start = int(header["alloc_table_ptr"])  # 0 until the file is finished
    count, rest = divmod(len(mapped) - start, ALLOC_TABLE_TYPE.itemsize)
    _require(path, start > 0 and count > 0 and rest == 0, "its list of data is missing or incomplete")
    blocks = _table(path, mapped, start, ALLOC_TABLE_TYPE, count, "list of data")
    order = np.argsort(blocks["ptr"], kind="stable")
    return columns, Blocks(blocks["ptr"][order], blocks["size"][order], len(mapped))


def _table(path: Path, mapped: np.ndarray, start: int, dtype: np.dtype, count: int, what: str) -> np.ndarray:
    """`count` rows from byte `start` on, copied."""
    _require(path, start + count * dtype.itemsize <= len(mapped), f"its {what} is missing or incomplete")
    return np.frombuffer(mapped, dtype, count, start).copy()


def _images(path: Path, columns: Mapping[str, Column], blocks: Blocks) -> np.ndarray:
    from ffcv.fields import RGBImageField  # pyright: ignore[reportAttributeAccessIssue] (optional)

    values = _column(path, columns, "image", (RGBImageField,)).values
    sizes = blocks.sizes(path, values["data_ptr"], "image")
    numbers = [values["data_ptr"], sizes, values["mode"], values["height"], values["width"]]
    images = np.stack([number.astype(np.int64) for number in numbers], 1)
    mode, height, width = images[:, 2:].T
    sound = (height > 0) & (width > 0) & ((mode == JPEG) | ((mode == RAW) & (sizes == height * width * 3)))
    if not sound.all():
        raise ValueError(f"{path}: image {np.argmin(sound)} has neither pixels nor a JPEG of its size: {AGAIN}")
    return images


def _column(path: Path, columns: Mapping[str, Column], name: str, kinds: tuple[type, ...]) -> Column:
    if name not in columns:
        raise ValueError(f'{path} has no field "{name}", only {", ".join(sorted(columns))}: {AGAIN}')
    if not isinstance(columns[name].handler, kinds):
        kind, wanted = type(columns[name].handler).__name__, " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f'{path}: the field "{name}" is {kind}, not {wanted}: {AGAIN}')
    return columns[name]


def _require(path: Path, holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"{path} was cut short or is damaged ({otherwise}): {AGAIN}")
