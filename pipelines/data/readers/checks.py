"""Shared by the readers: official counts, classes, lines of text files, archives, file sizes and fingerprints."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.data.source import MOST_BYTES, Files, Part, in_threads

Sample = tuple[str, str, Any]
"""(wnid, file name, where the image is). Sorted, they have the order of folders of classes."""


@dataclass(frozen=True)
class Whole:
    """Official counts of a data set. train_each, test_each: images per class; None: classes differ."""

    classes: int
    train: int
    test: int
    train_each: int | None = None
    test_each: int | None = None

    def missing(self, num_classes: int, parts: Mapping[str, Part]) -> tuple[str, ...]:
        """How `parts` ("train" and "test") differ from these counts, as text; empty: they do not."""
        return (
            *unlike(num_classes, self.classes, "classes"),
            *unlike(len(parts["train"]), self.train, "training images"),
            *unlike(len(parts["test"]), self.test, "test images"),
            *self._uneven(parts["train"].labels, self.train, self.train_each, "training images"),
            *self._uneven(parts["test"].labels, self.test, self.test_each, "test images"),
        )

    def _uneven(self, labels: Tensor, total: int, each: int | None, what: str) -> tuple[str, ...]:
        if each is None or len(labels) != total:  # a wrong total is already reported
            return ()
        others = int((labels.bincount(minlength=self.classes) != each).sum())
        return (f"{others} classes do not have {each} {what}",) if others else ()


def unlike(found: int, official: int, what: str) -> tuple[str, ...]:
    """The difference from the official count as text, such as "100 of 200 classes"; (): there is none."""
    if found > official:
        return (f"{found:,} {what} instead of {official:,}",)
    return (f"{found:,} of {official:,} {what}",) if found < official else ()


def some(names: Sequence[str]) -> str:
    """The first five of `names` and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_known(classes: Iterable[str], known: Iterable[str], what: str, where: str | Path, remedy: str = "") -> None:
    """ValueError: some of `classes` are not `known`; it says "`what` that are missing from `where`"."""
    unknown = sorted(set(classes) - set(known))
    if unknown:
        raise ValueError(f"{what} that are missing from {where}: {some(unknown)}{remedy}")


def labels(samples: Sequence[Sample], classes: Sequence[str]) -> Tensor:
    """(N,) int64, positions of the samples' wnids in `classes`."""
    number = {wnid: label for label, wnid in enumerate(classes)}
    return torch.tensor([number[wnid] for wnid, _, _ in samples], dtype=torch.int64)


def as_folders(parts: Mapping[str, Sequence[Sample]]) -> Iterator[bytes]:
    """The names that the samples have in the usual folders, <part>/<wnid>/<file>."""
    return (os.fsencode(f"{part}/{wnid}/{file}") for part, found in parts.items() for wnid, file, _ in found)


def content(path: Path, remedy: str) -> bytes:
    """The bytes of a file. FileNotFoundError: it is missing; `remedy` says what to do."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    return path.read_bytes()


def unpacked(path: Path, wanted: Callable[[str], str | None], remedy: str = "") -> dict[str, bytes]:
    """The files of a compressed tar for whose name `wanted` gives a key. ValueError: the tar cannot be read."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if not 0 <= member.size <= MOST_BYTES:
                    raise tarfile.ReadError(
                        f"{member.name} has {member.size} bytes, more than any file of this archive"
                    )
                key = wanted(member.name)
                file = tar.extractfile(member) if key is not None else None
                if key is not None and file:
                    found[key] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read ({error}){remedy}") from error
    return found


def rows(text: bytes, name: str, columns: int) -> list[tuple[int, list[str]]]:
    """(line number from 1, words) of each line that is not blank; `name`: of the file.

    ValueError: the text is not UTF-8, or a line has fewer words than `columns`.
    """
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a text file ({error}): download it again") from error
    found = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, words in found:
        if len(words) < columns:
            raise ValueError(
                f"{name}, line {number}: {columns} columns are needed, not {len(words)}: download it again"
            )
    return found


def integer(word: str, name: str, number: int) -> int:
    """`word` in line `number` of the file `name` as an integer. ValueError: it is none."""
    try:
        return int(word)
    except ValueError as error:
        raise ValueError(f"{name}, line {number}: {word!r} is not an integer: download the file again") from error


def sizes(paths: Sequence[Path]) -> list[int]:
    """Bytes of each file. FileNotFoundError names the missing ones."""

    def size(row: int) -> int | None:
        try:
            return paths[row].stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    found = in_threads(size, len(paths))
    missing = [str(path) for path, size in zip(paths, found, strict=True) if size is None]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} files are missing: {some(missing)}: unpack them again")
    return [size for size in found if size is not None]


def fingerprint(names: Iterable[bytes], lengths: Iterable[int]) -> str:
    """16 hexadecimal digits over names and sizes. Archives use the names of the unpacked files."""
    digest = hashlib.sha256()
    for name, length in zip(names, lengths, strict=True):
        digest.update(name + b"\0%d\0" % length)
    return digest.hexdigest()[:16]


def fingerprint_of_files(*parts: Files) -> str:
    """`fingerprint` of all files of `parts`, in order. FileNotFoundError names the missing ones."""
    lengths = (sizes([part.path(row) for row in range(len(part))]) for part in parts)
    return fingerprint(chain.from_iterable(part.names.tolist() for part in parts), chain.from_iterable(lengths))
