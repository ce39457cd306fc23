"""The checkpoints of a run in one folder; tensor files; the storage folder, which every worker must see."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from cluster.atomic import hidden_name, publish_folder, remove_folder, remove_leftovers, write_atomically
from cluster.records import as_record, check_bytes, read_json, sha256, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the storage's layout; no other can be read."""

SECONDS_TO_APPEAR = 10.0
"""How long a network filesystem may take to show a new file on another machine."""

SEEN = ".seen-by-all-"
"""Begin of the name of a file that every worker looks for."""

OLD_SECONDS = 3600.0
"""Age of files beside which nobody holds a lock, after which their writer is taken for dead."""

_STEP = re.compile(r"(\.replaced-)?step-(\d{8,})")
_FILE_NAME = re.compile(r"\w[\w.-]*")


def file_name(name: str) -> str:
    """`name` if it is a plain file name. ValueError if it could lead out of its folder."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no plain file name: letters, digits, '_', '-' and '.' are, '/' is not")
    return name


@dataclass(frozen=True)
class Checkpoint:
    """The arguments of `CheckpointStore.save`, with all tensors on the CPU."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointStore:
    """The newest `keep` checkpoints of one run, in one folder; one writer at a time (see `cluster.lock`)."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        assert keep >= 1, f"keep must be at least 1, not {keep}"
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> None:
        """Write the latest checkpoint; it is on the disk on return.

        tensors: group name ("model", "objective.rank0") -> name -> tensor; any device, strides and dtype.
        state: plain JSON. Checkpoints of higher steps are removed: the run resumed from an earlier one.
        OSError (a full disk) leaves the earlier checkpoints as they were.
        """
        assert step >= 0
        for group in tensors:
            file_name(group)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        temporary = hidden_name(self.folder)
        try:
            temporary.mkdir()
            files: dict[str, str] = {}
            for group, mapping in tensors.items():
                data = _tensor_bytes(mapping)
                files[f"{group}.safetensors"] = sha256(data)
                (temporary / f"{group}.safetensors").write_bytes(data)
            record = {"groups": list(tensors), "state": state, "files": files}
            (temporary / "state.json").write_bytes(as_record(record))
            publish_folder(temporary, self.folder / f"step-{step:08d}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.remove_others(step)

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint, or None. A broken one is skipped with a warning, ValueError if all are."""
        paths = self._paths()
        for step in sorted(paths, reverse=True):
            try:
                return _read(step, paths[step])
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                if self._paths() != paths:  # meanwhile a writer has removed what was being read
                    return self.latest()
                if step == min(paths):
                    raise ValueError(
                        f"checkpoint {paths[step]} is broken ({error}) and there is no older one: "
                        f"delete {self.folder} to start this run from its beginning"
                    ) from error
                warnings.warn(f"checkpoint {paths[step]} is broken ({error}): using an older one", stacklevel=2)
        return None

    def _paths(self) -> dict[int, Path]:
        """step -> folder. A `.replaced-` folder counts if a kill prevented its replacement."""
        if not self.folder.is_dir():
            return {}
        found = [(match, path) for path in self.folder.iterdir() if (match := _STEP.fullmatch(path.name))]
        replaced_first = sorted(found, key=lambda item: item[0][1] is None)
        return {int(match[2]): path for match, path in replaced_first}

    def remove_others(self, step: int) -> None:
        """Keep the newest up to `step`. Also for a start after a kill that came between a checkpoint and this."""
        paths = self._paths()
        kept = sorted((s for s in paths if s <= step), reverse=True)[: self.keep]
        for other in set(paths) - set(kept):
            remove_folder(paths[other])


def _read(step: int, folder: Path) -> Checkpoint:
    record = read_json(folder / "state.json")
    files = record.get("files", {})  # checkpoints of earlier versions have none
    names = {group: f"{file_name(group)}.safetensors" for group in record["groups"]}
    tensors = {group: load_tensors(folder / name, files.get(name)) for group, name in names.items()}
    return Checkpoint(step, tensors, record["state"])


def save_tensors(path: Path, mapping: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically; tensors of any device and strides. Returns its sha256."""
    data = _tensor_bytes(mapping)
    write_atomically(path, data)
    return sha256(data)


def load_tensors(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. expected: its sha256, if that was recorded.

    ValueError with the file's name if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # Not the memory-mapped load_file: `keep` may remove the file while the tensors are in use.
        return load(check_bytes(path, path.read_bytes(), expected))
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error


def open_storage(root: str | Path) -> Path:
    """The storage folder as an absolute path; made if missing.

    ValueError if it is no local folder, cannot be written, or has another format version.
    """
    folder = _local_folder(str(root))
    if reason := _not_writable(folder):
        raise ValueError(f"storage {folder} cannot be written: {reason}; choose another with --storage")
    for left in [*folder.glob(".tmp-orchard.json-*"), *folder.glob(f"{SEEN}*")]:
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > OLD_SECONDS:
                left.unlink()
    marker = folder / "orchard.json"
    if not marker.exists():
        write_json(marker, {"format": FORMAT})
    content = read_json(marker)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"storage {folder} has format {found!r}, this Orchard reads format {FORMAT}: choose another folder with "
            f"--storage, or use the version of Orchard that wrote it"
        )
    return folder


def _not_writable(folder: Path) -> str | None:
    """Why nothing can be written into the folder, which is made if missing; None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions are not enough: root ignores them on read-only mounts, and network file systems have their own.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"orchard")
            probe.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _local_folder(root: str) -> Path:
    # One slash: a round trip through Path turns s3://bucket into s3:/bucket.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", root):
        parts = urlsplit(root)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise ValueError(f"storage {root!r} is not a local folder: mount it, and give its path with --storage")
        root = unquote(parts.path)
    if not root:
        raise ValueError("storage is empty: give a folder with --storage")
    return Path(os.path.abspath(os.path.expanduser(root)))


@dataclass(frozen=True)
class Marker:
    """A file that the driver writes into the storage, and its content: every worker looks for it."""

    path: str
    content: str


@contextmanager
def storage_marker(storage: str) -> Iterator[Marker]:
    """A marker with random content in the storage, inside the block."""
    marker = Marker(os.path.join(storage, f"{SEEN}{secrets.token_hex(8)}"), secrets.token_hex(16))
    Path(marker.path).parent.mkdir(parents=True, exist_ok=True)
    Path(marker.path).write_text(marker.content)
    try:
        yield marker
    finally:
        Path(marker.path).unlink(missing_ok=True)


def storage_error(marker: Marker, address: str, timeout: float = SECONDS_TO_APPEAR) -> str | None:
    """What is wrong with the storage on this machine, and what to do; None if it is the driver's and writable.

    address: under which Ray knows this machine.
    """
    folder = os.path.dirname(marker.path)
    node = f"node {socket.gethostname()} ({address})"
    if not _appears(marker, timeout):
        return (
            f"{node} does not see the storage {folder} that the driver sees: there is another folder, or none. Mount "
            f"the same shared folder (NFS, Lustre, EFS...) at {folder} on every node, or give one that every node has "
            "with --storage"
        )
    if reason := _not_writable(Path(folder)):
        return (
            f"{node} sees the storage {folder} but cannot write there ({reason}): mount it writable, or give another "
            "folder with --storage"
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


def _tensor_bytes(mapping: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in mapping.items():
        copied = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory (tied weights).
        if copied.untyped_storage().data_ptr() in storages:
            copied = copied.clone()
        storages.add(copied.untyped_storage().data_ptr())
        plain[name] = copied
    return save(plain)
