"""What the readers of official forms share: counts against the whole, text files by lines, sizes and fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import Tensor

from pipelines.data.source import Files, Part

# What is in flight while files are looked at: stat and read release Python's lock, and file systems like a queue.
THREADS = 8
_AT_ONCE = 256
_NAMED = 5


@dataclass(frozen=True)
class Whole:
    """How much a data set is, officially.

    classes, train, test: how many. train_each, test_each: images in every class; None: they differ.
    """

    classes: int
    train: int
    test: int
    train_each: int | None = None
    test_each: int | None = None

    def missing(self, num_classes: int, parts: Mapping[str, Part]) -> tuple[str, ...]:
        """In what `parts` ("train" and "test") are not this, for readers; empty: in nothing."""
        return (
            *unlike(num_classes, self.classes, "classes"),
            *unlike(len(parts["train"]), self.train, "training images"),
            *unlike(len(parts["test"]), self.test, "test images"),
            *self._uneven(parts["train"].labels, self.train, self.train_each, "training images"),
            *self._uneven(parts["test"].labels, self.test, self.test_each, "test images"),
        )

    def _uneven(self, labels: Tensor, whole: int, each: int | None, what: str) -> tuple[str, ...]:
        if each is None or len(labels) != whole:  # another total is said already
            return ()
        others = int((labels.bincount(minlength=self.classes) != each).sum())
        return (f"{others} classes with another number than {each} {what}",) if others else ()


def unlike(found: int, whole: int, what: str) -> tuple[str, ...]:
    """() where a count is the official one, or else what to say of it, such as "100 of 200 classes"."""
    if found == whole:
        return ()
    return (f"{found:,} of {whole:,} {what}",) if found < whole else (f"{found:,} {what} instead of {whole:,}",)


def some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def content(path: Path, remedy: str) -> bytes:
    """What a file holds; FileNotFoundError: it is absent, and `remedy` says what to do."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    return path.read_bytes()


def rows(text: bytes, name: str, columns: int) -> list[tuple[int, list[str]]]:
    """(number of the line from 1, its words) of each line that is not blank.

    ValueError: the text is not UTF-8, or a line has fewer words than `columns`; `name` is that of the file.
    """
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a text file ({error}): fetch it again") from error
    found = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, words in found:
        if len(words) < columns:
            raise ValueError(f"{name}, line {number}: {columns} columns are needed, not {len(words)}: fetch it again")
    return found


def integer(word: str, name: str, number: int) -> int:
    """`word` in line `number` of the file `name` as an integer, or a ValueError that says where it stands."""
    try:
        return int(word)
    except ValueError as error:
        raise ValueError(f"{name}, line {number}: {word!r} is not an integer: fetch the file again") from error


def sizes(paths: Sequence[Path]) -> list[int]:
    """Bytes of each file; FileNotFoundError names those that are absent."""

    def look(start: int) -> list[int | None]:
        return [_size(path) for path in paths[start : start + _AT_ONCE]]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(chain.from_iterable(pool.map(look, range(0, len(paths), _AT_ONCE))))
    absent = [str(path) for path, size in zip(paths, found, strict=True) if size is None]
    if absent:
        raise FileNotFoundError(f"{len(absent)} of {len(paths)} files are missing: {some(absent)}: unpack them again")
    return [size for size in found if size is not None]


def fingerprint(names: Iterable[bytes], lengths: Iterable[int]) -> str:
    """16 hexadecimal digits over names and sizes. Archives give the names that their folders would have."""
    digest = hashlib.sha256()
    for name, length in zip(names, lengths, strict=True):
        digest.update(name + b"\0%d\0" % length)
    return digest.hexdigest()[:16]


def fingerprint_of_files(*parts: Files) -> str:
    """`fingerprint` of all files of `parts`, in order. FileNotFoundError names those that are absent."""
    lengths = (sizes([part.path(row) for row in range(len(part))]) for part in parts)
    return fingerprint(chain.from_iterable(part.names.tolist() for part in parts), chain.from_iterable(lengths))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
