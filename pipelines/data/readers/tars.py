"""The members of an uncompressed tar, also of one inside another tar."""

import os
import tarfile
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, order=True)
class Member:
    """A file in a tar. start, size: its first byte in the file on disk, and its length."""

    name: str
    start: int
    size: int


def members(file: BinaryIO, name: str, start: int = 0, end: int | None = None) -> list[Member]:
    """The files of the tar in bytes `start` to `end` (None: the end) of `file`; `name`: of the tar.

    ValueError: it is damaged or truncated.
    """
    end = file.seek(0, os.SEEK_END) if end is None else end
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:  # starts at the current position
            found = [Member(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
            stopped = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{name} is not a readable tar archive ({error}): download it again") from error
    # tarfile stops silently at a damaged header. The real end is a block of zeros.
    file.seek(stopped)
    if stopped + tarfile.BLOCKSIZE > end or any(file.read(tarfile.BLOCKSIZE)):
        raise ValueError(f"{name} is damaged or truncated after {len(found)} files: download it again")
    return found
