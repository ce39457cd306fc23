"""Scratch: temporary folders of which a killed process leaves none for long. The next process removes them."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.lock import lock

LOCK = "orchard.lock"
"""A file in each folder, locked by its process: the kernel frees the lock when that dies."""

DAY = 86_400
"""Seconds after which a folder without a lock is taken for left behind."""


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A new folder in the system's temporary folder, for the block. Those that killed processes left are removed."""
    temporary = Path(tempfile.gettempdir())
    for left in [*temporary.glob(f"{prefix}*"), *temporary.glob(f".{prefix}*")]:
        if _is_left(left):
            shutil.rmtree(left, ignore_errors=True)
    # It gets its name when its lock is held: under that name, a free lock means that its process is dead.
    hidden = Path(tempfile.mkdtemp(prefix=f".{prefix}"))
    folder = hidden.with_name(hidden.name[1:])
    with lock(hidden / LOCK):
        os.rename(hidden, folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether this user's process that made the folder is surely dead."""
    with suppress(OSError):
        found = folder.lstat()
        if not folder.is_dir() or folder.is_symlink() or found.st_uid != os.getuid():
            return False
        if not (folder / LOCK).exists() or folder.name.startswith("."):
            ours = all(path.is_dir() or path.name in (LOCK, "store") for path in folder.rglob("*"))
            return ours and time.time() - found.st_mtime > DAY
        descriptor = os.open(folder / LOCK, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(descriptor)
    return False
