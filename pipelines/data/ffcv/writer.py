"""Write a .beton file from one process in the order of the rows, for FFCV's readers and ours.

Unlike with FFCV's writer, the file is the same, byte for byte, for any number of encoding processes, so its sha256
identifies the data. Processes share no memory, so nothing is left behind when one dies.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from pipelines.data.ffcv.fields import Encoded
from pipelines.data.ffcv.format import FIELD, HEADER, JPEG, PAGE_BYTES, RAW, VERSION, Field, aligned, described, entry


class BetonWriter:
    """Writes samples one by one; a context manager. The file is valid after `finish`."""

    def __init__(self, path: Path, fields: Sequence[Field], capacity: int, most_bytes: int) -> None:
        """capacity: largest number of samples. most_bytes: approximate size of the largest sample; sets the page."""
        self.path = path
        self.count = 0
        self._fields = fields
        self._page = max(PAGE_BYTES, 1 << most_bytes.bit_length())
        self._entries = np.zeros(capacity, entry(fields))
        # Samples that are left out leave a gap after the table. Readers find regions by their addresses.
        table_at = HEADER.itemsize + len(fields) * FIELD.itemsize
        self._at = aligned(table_at + self._entries.nbytes, self._page)
        self._regions = array("Q")  # sample, address and size of each
        self._file = path.open("wb", buffering=1 << 20)
        self._file.seek(self._at)

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        try:
            self._file.close()
        except OSError:  # the buffer cannot be written
            if kind is None:
                raise

    def add(self, sample: Encoded, name: str) -> None:
        """Write a sample; errors call it `name`. ValueError: it does not fit into a page. OSError: the disk is full."""
        size = sum(map(len, sample.regions))
        if size > self._page:
            raise ValueError(
                f"{name} takes {size:,} bytes, but a page has {self._page:,}: use --write raw, or remove the metadata "
                "from the image file"
            )
        with self._disk_errors():
            if self._at % self._page + size > self._page:  # no sample crosses a page boundary
                self._at = aligned(self._at, self._page)
                self._file.seek(self._at)
            pointers = []
            for region in sample.regions:
                pointers.append(self._at)
                self._regions.extend((self.count, self._at, len(region)))
                self._file.write(region)
                self._at += len(region)
        image = JPEG if sample.is_jpeg else RAW, sample.width, sample.height, pointers[0]
        others = pointers[1:] if sample.label is None else [sample.label]
        self._entries[self.count] = (image, *others)
        self.count += 1

    def finish(self) -> None:
        """Write the tables and flush everything to the disk. OSError: as for `add`."""
        header = np.zeros((), HEADER)
        header["version"], header["num_fields"], header["num_samples"] = VERSION, len(self._fields), self.count
        header["page_size"], header["alloc_table_ptr"] = self._page, aligned(self._at, self._page)
        with self._disk_errors():
            self._file.seek(int(header["alloc_table_ptr"]))
            self._file.write(np.frombuffer(self._regions, np.uint64).astype("<u8").tobytes())
            self._file.seek(0)
            self._file.write(header.tobytes() + described(self._fields) + self._entries[: self.count].tobytes())
            self._file.flush()
            os.fsync(self._file.fileno())

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path} cannot be written beyond its first {self._at:,} bytes ({os.strerror(error.errno or 0)}) "
                "and is deleted: free space, use another disk for --out, or store less with --write jpg or a "
                "smaller --max-side",
            ) from error
