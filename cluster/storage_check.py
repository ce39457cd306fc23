"""Checks that each worker sees the storage: the driver writes a marker file there, and every worker looks for it."""

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_APPEAR = 10.0
"""How long a network filesystem may take to show a new file on another machine."""


@dataclass(frozen=True)
class Marker:
    """A file in the storage, and its content."""

    path: str
    content: str


@contextmanager
def storage_marker(storage: str) -> Iterator[Marker]:
    """A marker with random content in the storage, inside the block."""
    marker = Marker(os.path.join(storage, f".seen-by-all-{secrets.token_hex(8)}"), secrets.token_hex(16))
    Path(marker.path).parent.mkdir(parents=True, exist_ok=True)
    Path(marker.path).write_text(marker.content)
    try:
        yield marker
    finally:
        Path(marker.path).unlink(missing_ok=True)


def storage_error(marker: Marker, timeout: float = SECONDS_TO_APPEAR) -> str | None:
    """What is wrong with the storage on this machine, and what to do; None if it is the driver's and writable."""
    folder = os.path.dirname(marker.path)
    node = f"node {socket.gethostname()} ({_address()})"
    if not _appears(marker, timeout):
        return (
            f"{node} does not see the storage {folder} that the driver sees: there is another folder, or none. Mount "
            f"the same shared folder (NFS, Lustre, EFS...) at {folder} on every node, or give one that every node has "
            "with --storage"
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"orchard")
            probe.flush()
    except OSError as error:
        return (
            f"{node} sees the storage {folder} but cannot write there ({error.strerror or error}): mount it "
            "writable, or give another folder with --storage"
        )
    return None


def _appears(marker: Marker, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return Path(marker.path).read_text() == marker.content
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)


def _address() -> str:
    """The address under which Ray knows this machine."""
    import ray

    return ray.util.get_node_ip_address() if ray.is_initialized() else "this machine"
