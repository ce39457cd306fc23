"""A lock on a file that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path


class Lock:
    """One process at a time holds the lock of a file: `with Lock(path).acquire(print): ...`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, on_wait: Callable[[str], None] = lambda text: print(text, file=sys.stderr)) -> Lock:
        """Take the lock. If another process holds it, tell `on_wait` once which, and wait."""
        assert self._descriptor is None, f"{self.path} is already held here"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
                on_wait(f"waiting for {holder}, which holds {self.path}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _HELD.add(descriptor)
        return self

    def release(self) -> None:
        if self._descriptor is not None and self._descriptor in _HELD:
            _HELD.remove(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Lock:
        return self if self._descriptor is not None else self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _drop_inherited_locks() -> None:
    """A forked child shares its parent's locks and would still hold them after the parent's death."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


_HELD: set[int] = set()
os.register_at_fork(after_in_child=_drop_inherited_locks)
