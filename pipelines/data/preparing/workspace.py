"""A folder beside a result, in which the result is made before it appears whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def workspace(out: Path, on_wait: Callable[[str], None]) -> Iterator[Path]:
    """A new, empty, hidden folder on the file system of `out`; it is gone at the end, whatever happens.

    One process at a time has it: others wait, after `on_wait` was told why. What a killed process left there is removed
    first. `out`: absolute, without links.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder: give --out another one")
    folder = _beside(out)
    with _held(folder.with_name(f"{folder.name}.lock"), on_wait):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _beside(out: Path) -> Path:
    """Beside `out`; or in it, where it is a mounted file system or its parent cannot be written."""
    name = f".{out.name}-prepare"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        return out.parent / name
    same = out.stat().st_dev == out.parent.stat().st_dev and os.access(out.parent, os.W_OK)
    return (out.parent if same else out) / name


@contextmanager
def _held(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """A lock on a file that is there only while somebody holds it; the kernel releases it when the process dies."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait(f"waiting for another process, which holds {path}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                try:
                    yield
                finally:
                    path.unlink()
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Not so where the one that held the lock before has removed the file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
