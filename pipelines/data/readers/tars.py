"""What is in an uncompressed tar, also in one that lies inside another."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, order=True)
class Member:
    """A file in a tar: its name, and where its `size` bytes start in the file on disk."""

    name: str
    start: int
    size: int


def members(file: BinaryIO, name: str, start: int = 0, end: int | None = None) -> list[Member]:
    """The files of the tar that reaches from byte `start` to byte `end` of `file` (to its end).

    ValueError: it is damaged or cut short; `name` is that of the tar.
    """
    end = file.seek(0, os.SEEK_END) if end is None else end
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:  # goes on from where the file stands
            found = [Member(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
            stopped = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{name} is no readable tar archive ({error}): fetch it again") from error
    # tarfile takes a damaged header for the end. The real end is a block of zeros.
    file.seek(stopped)
    if stopped + tarfile.BLOCKSIZE > end or any(file.read(tarfile.BLOCKSIZE)):
        raise ValueError(f"{name} is damaged or cut short after {len(found)} files: fetch it again")
    return found
