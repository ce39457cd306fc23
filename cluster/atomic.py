"""Atomic writes: a file or folder is there completely or not at all, also after a kill or a power failure.

The content is written under a hidden name in the same file system and synced to the disk. A rename publishes it.
"""

import os
import shutil
import uuid
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that has either its old or its new content; it is on the disk on return. Makes its folder.

    OSError (a full disk) leaves an earlier file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_folder(folder: Path, target: Path) -> None:
    """Sync a complete folder of files to the disk and rename it to `target`, in place of an earlier `target`.

    A folder cannot be renamed over another one. So an earlier one is first renamed to `.replaced-NAME`: a kill between
    the two renames leaves it there. OSError (a full disk) leaves it as it was.
    """
    sync_contents(folder)
    replaced = target.with_name(f".replaced-{target.name}")
    if target.exists():
        remove_folder(replaced)
        os.rename(target, replaced)
    os.rename(folder, target)
    sync(target.parent)
    remove_folder(replaced)


def publish_files(folder: Path, target: Path, last: str) -> None:
    """Move the files of a complete folder to the folder `target`: all at once if it does not exist, else one by one.

    The file called `last` comes last, and an older one is removed first: it never describes files of another version.
    """
    if not target.exists():
        publish_folder(folder, target)
        return
    sync_contents(folder)
    (target / last).unlink(missing_ok=True)
    sync(target)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        path.replace(target / path.name)
        sync(target)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder and below it. The caller holds the lock that they all must hold."""
    for path in [found for pattern in (".tmp-*", ".partial-*") for found in folder.rglob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder if it exists. It gets a hidden name first, so that a kill leaves no part of it under its name."""
    if folder.exists():
        hidden = hidden_name(folder.parent)
        os.rename(folder, hidden)
        shutil.rmtree(hidden)


def hidden_name(parent: Path) -> Path:
    """A new name for an incomplete folder."""
    return parent / f".partial-{uuid.uuid4().hex}"


def sync_contents(folder: Path) -> None:
    """Wait until all files of a folder are on the disk."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
