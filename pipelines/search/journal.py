"""Journal: what happened in a sweep, in order, one checked line each. From it a killed sweep goes on where it was."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.atomic import sync
from cluster.records import CHECKSUM, as_json, as_record, sha256

Entry = dict[str, Any]

NUMBER = "line"
"""Key of a line's own number, counted from 1: a line that was removed, doubled or moved is noticed."""


class Journal:
    """A file of JSON lines that only grows; each line has its number and a checksum.

    The caller holds the sweep's lock, and reads what is there before it appends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_lines = 0

    def append(self, entry: Entry) -> None:
        """Add a line; it is on the disk on return."""
        new = not self.path.exists()
        with self.path.open("ab") as file:
            file.write(as_record({NUMBER: self._num_lines + 1, **entry}) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._num_lines += 1
        if new:
            sync(self.path.parent)

    def read(self) -> Iterator[Entry]:
        """All entries, the oldest first. The torn last line of a killed writer is cut off.

        ValueError names a line that is damaged.
        """
        if not self.path.exists():
            return
        whole, newline, torn = self.path.read_bytes().rpartition(b"\n")
        if torn:
            os.truncate(self.path, len(whole) + len(newline))
        lines = whole.split(b"\n") if newline else []
        self._num_lines = len(lines)
        for number, line in enumerate(lines, start=1):
            yield self._entry(line, number)

    def _entry(self, line: bytes, number: int) -> Entry:
        try:
            entry = json.loads(line)
            if entry.pop(CHECKSUM) != sha256(as_json(entry)) or entry.pop(NUMBER) != number:
                raise ValueError("its checksum or its number does not fit")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path}, line {number}, is damaged or was edited: what the search knew after it is lost. Delete "
                f"{self.path.parent} to search anew; finished trials stay in the storage and cost nothing again"
            ) from error
        return entry
