"""A temporary folder beside a result, in which it is made before it is published."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def workspace(out: Path, on_wait: Callable[[str], None]) -> Iterator[Path]:
    """A new hidden folder on the file system of `out`, removed at the end.

    One process at a time has it; the others call `on_wait` with a message and wait. What a killed process left there is
    removed first. `out`: absolute, without symbolic links.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not a folder: use another --out")
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
    """Beside `out`; in it, if it is a mount point or its parent is read-only."""
    name = f".{out.name}-prepare"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        return out.parent / name
    same = out.stat().st_dev == out.parent.stat().st_dev and os.access(out.parent, os.W_OK)
    return (out.parent if same else out) / name


@contextmanager
def _held(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """A lock on a file that exists only while the lock is held; the kernel releases it when the process dies."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait(f"waiting for another process that holds {path}")
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
    """False: the previous holder of the lock has removed the file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
