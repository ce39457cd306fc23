"""A lock on a file that the kernel releases when its holder dies."""

import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(path: Path, on_wait: Callable[[str], None] = lambda text: print(text, file=sys.stderr)) -> Iterator[None]:
    """Hold the lock of a file inside the block. If another process holds it, tell `on_wait` once which, and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _open.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
            on_wait(f"waiting for {holder}, which holds {path}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        if descriptor in _open:  # not in a forked child
            _open.remove(descriptor)
            os.close(descriptor)


def _close_in_child() -> None:
    """A forked child shares its parent's locks and would still hold them after the parent's death."""
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


_open: set[int] = set()
os.register_at_fork(after_in_child=_close_in_child)
