"""Open a .beton file of FFCV and check its tables before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.ffcv.format import FIELD, HEADER, JPEG, RAW, REGION, TYPES, VERSION, Field, entry, parsed
from pipelines.data.ffcv.installed import require_ffcv

MOST_PIXELS = 89_478_485
"""Of an image: PIL's limit."""

AGAIN = "write it again with pipelines/prepare.py"


@dataclass(frozen=True)
class Regions:
    """The data regions of a file. starts: (M,) uint64, ascending. lengths: (M,) uint64, bytes. end: size of file."""

    starts: np.ndarray
    lengths: np.ndarray
    end: int

    def sizes(self, path: Path, pointers: np.ndarray, name: str) -> np.ndarray:
        """(N,) int64, bytes of the regions at `pointers`, (N,) uint64. ValueError: one is missing or incomplete."""
        at = np.searchsorted(self.starts, pointers).clip(max=max(0, len(self.starts) - 1))
        listed = len(self.starts) > 0 and bool((self.starts[at] == pointers).all())
        _require(path, listed, f'data of "{name}" is missing')
        lengths = self.lengths[at]
        # In this order nothing overflows, whatever the numbers are.
        inside = (lengths <= self.end) & (pointers <= self.end - np.minimum(lengths, self.end))
        _require(path, bool(inside.all()), f'data of "{name}" lies beyond the end of the file')
        return lengths.astype(np.int64)


@dataclass(frozen=True)
class Beton:
    """An open file with the field "image" and others.

    mapped: the bytes of the file, mapped read-only and shared by all readers.
    images: (N, 5) int64, for each image: first byte, number of bytes, JPEG or RAW, height and width in pixels.
    """

    path: Path
    mapped: np.ndarray
    images: np.ndarray
    _columns: Mapping[str, tuple[Field, np.ndarray]]
    _regions: Regions

    @staticmethod
    def open(path: str | Path, num_classes: int | None = None) -> Beton:
        """Open the file at `path` for reading.

        num_classes: for a file with labels, whose range is then checked.
        FileNotFoundError: the file does not exist. ValueError: FFCV is not installed; the file has another format, is
        incomplete or has no images; a label is out of range.
        """
        require_ffcv()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: {AGAIN}")
        mapped = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        columns, regions = _read(path, mapped)
        beton = Beton(path, mapped, _images(path, columns, regions), columns, regions)
        if num_classes is not None:
            labels = beton.labels
            for row in ((labels < 0) | (labels >= num_classes)).nonzero()[:1, 0].tolist():
                raise ValueError(
                    f"{path}: image {row} has the label {labels[row]}, outside 0 to {num_classes - 1}: {AGAIN}"
                )
        return beton

    @property
    def labels(self) -> Tensor:
        """(N,) int64 on the CPU. ValueError: the file has none."""
        return torch.from_numpy(self.field("label").astype(np.int64))

    @property
    def sizes(self) -> Tensor:
        """(N, 2) int64, heights and widths as stored."""
        return torch.from_numpy(self.images[:, 3:])

    def field(self, name: str) -> np.ndarray:
        """All values of a numeric field, (N,) or (N, *shape), in its own type. ValueError: there is no such field."""
        field, values = _column(self.path, self._columns, name, "IntField", "FloatField", "NDArrayField")
        if field.array is None:
            return np.array(values)
        starts, size = values.astype(np.int64), field.array.itemsize
        sizes = self._regions.sizes(self.path, values, name)
        _require(self.path, bool((sizes == size).all()), f'the field "{name}" has values of a wrong size')
        stored = np.stack([self.mapped[start : start + size] for start in starts.tolist()])
        return stored.view(field.array.base).reshape(len(starts), *field.array.shape)


def _read(path: Path, mapped: np.ndarray) -> tuple[dict[str, tuple[Field, np.ndarray]], Regions]:
    """The tables: header, fields, one row per sample, and regions."""
    header = np.frombuffer(mapped, HEADER, 1)[0] if len(mapped) >= HEADER.itemsize else None
    if header is None or header["version"] != VERSION:
        raise ValueError(f"{path} is not an FFCV file of version {VERSION}: {AGAIN}")
    rows = _table(path, mapped, HEADER.itemsize, FIELD, int(header["num_fields"]), "list of fields")
    try:
        fields = [parsed(row) for row in rows]
    except (LookupError, ValueError, TypeError) as error:
        raise ValueError(f"{path} has fields that FFCV does not know ({error}): {AGAIN}") from error
    start, count = HEADER.itemsize + rows.nbytes, int(header["num_samples"])
    samples = _table(path, mapped, start, entry(fields), count, "table of samples")
    _require(path, count > 0, "it has no samples")
    columns = {field.name: (field, samples[f"f{n}"]) for n, field in enumerate(fields)}
    start = int(header["alloc_table_ptr"])  # 0 until the file is finished
    count, rest = divmod(len(mapped) - start, REGION.itemsize)
    _require(path, start > 0 and count > 0 and rest == 0, "its table of regions is missing or incomplete")
    regions = _table(path, mapped, start, REGION, count, "table of regions")
    regions = regions[np.argsort(regions["ptr"], kind="stable")]
    return columns, Regions(regions["ptr"].copy(), regions["size"].copy(), len(mapped))


def _table(path: Path, mapped: np.ndarray, start: int, dtype: np.dtype, count: int, what: str) -> np.ndarray:
    """A copy of the `count` rows that start at byte `start`."""
    _require(path, start + count * dtype.itemsize <= len(mapped), f"its {what} is missing or incomplete")
    return np.frombuffer(mapped, dtype, count, start).copy()


def _images(path: Path, columns: Mapping[str, tuple[Field, np.ndarray]], regions: Regions) -> np.ndarray:
    _, values = _column(path, columns, "image", "RGBImageField")
    sizes = regions.sizes(path, values["data_ptr"], "image")
    numbers = [values["data_ptr"], sizes, values["mode"], values["height"], values["width"]]
    images = np.stack([number.astype(np.int64) for number in numbers], 1)
    mode, height, width = images[:, 2:].T
    # PIL's limit too: a few bytes of JPEG may claim any size, for which memory would be taken.
    sized = (height > 0) & (width > 0) & (height * width <= MOST_PIXELS)
    valid = sized & ((mode == JPEG) | ((mode == RAW) & (sizes == height * width * 3)))
    if not valid.all():
        raise ValueError(f"{path}: image {np.argmin(valid)} has an invalid size or storage mode: {AGAIN}")
    return images


def _column(
    path: Path, columns: Mapping[str, tuple[Field, np.ndarray]], name: str, *wanted: str
) -> tuple[Field, np.ndarray]:
    if name not in columns:
        raise ValueError(f'{path} has no field "{name}", only {", ".join(sorted(columns))}: {AGAIN}')
    kind, _ = TYPES[columns[name][0].type_id]
    if kind not in wanted:
        raise ValueError(f'{path}: the field "{name}" is {kind}, not {" or ".join(wanted)}: {AGAIN}')
    return columns[name]


def _require(path: Path, holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"{path} is incomplete or damaged ({otherwise}): {AGAIN}")
