"""Reuse: what is finished answers only for the data and the files that it was made of.

Fingerprints of their contents are in run.json and result.json. They are compared before a finished run, a teacher or a
stage is used again. Contents are read once: storage/fingerprints/ remembers each fingerprint with the names, sizes and
times of its files, and it is taken again as soon as one of these differs.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.atomic import remove_leftovers
from cluster.lock import lock
from cluster.records import as_json, damaged, read_json, sha256, sha256_of, write_record
from compression.artifact import FILES
from compression.models import own
from pipelines.data import contents
from pipelines.data.config import Data
from pipelines.data.loader import Loader, open_loader
from pipelines.experiment import Experiment
from pipelines.identity import canonical
from pipelines.run_folder import RunFolder
from pipelines.teachers import needed

SETTLED_SECONDS = 1.0
"""A file that was changed so shortly before may change again within the same tick of the file system's clock."""

Fingerprints = dict[str, str]
"""What was read ("data", "images", the path of a file of weights, "code of package.module:function") -> fingerprint of
its content."""


def fingerprints(experiment: Experiment, storage: Path, loader: Loader | None = None) -> Fingerprints:
    """Of everything that the experiment and its teachers read.

    loader: the experiment's own, if it is open. Errors as `open_loader`, and FileNotFoundError for weights.
    """
    readers = [experiment, *needed(experiment)]
    others = {_text(reader.data): reader for reader in readers if reader.data != experiment.data}
    found = _of_data(experiment, "", storage, loader)
    for text, reader in others.items():
        found |= _of_data(reader, f" of {reader.data.label} ({sha256(text.encode())[:8]})", storage, None)
    for path in sorted({path for reader in readers for path in reader.method.files}):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        found[str(path)] = _Memory(storage, [path]).get(f"sha256 of {path.absolute()}", partial(sha256_of, path))
    for name in sorted({reader.model for reader in readers if own.is_own(reader.model)}):
        if path := own.source(name):
            found[f"code of {name}"] = sha256_of(path)
    return found


def read_finished(
    experiment: Experiment, folder: RunFolder, note: Callable[[str], None], loader: Loader | None = None
) -> dict[str, Any] | None:
    """The result of a finished run that may be used again; None: it is not finished.

    note: is told what a run of an earlier version lacks; it is filled in. ValueError: the run was made of something
    else, what it was made of cannot be read any more, or its own files are missing or damaged.
    """
    result = folder.read_result()
    if result is None:
        return None
    try:
        now = fingerprints(experiment, folder.storage, loader)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{experiment.name} is finished in {folder.path}, but whether these are still the data and files that it "
            f"was made of cannot be told: {error}. Its numbers are in {folder.result}"
        ) from error
    check(experiment, folder, result, now)
    wrong = damaged(folder.path, result.get("files", {}))
    if not result.get("files"):
        wrong = [f"{folder.path / name} is missing" for name in FILES if not (folder.path / name).is_file()]
    if wrong:
        raise ValueError(
            f"{experiment.name} is finished, but {'; '.join(wrong)}: get it back with python -m cluster.verify "
            f"{folder.storage} --repair, or delete {folder.result} and start the same command again: then it is made "
            "again from the run's checkpoints"
        )
    if "inputs" not in result or "files" not in result:
        note(
            f"{folder.path} was recorded without checksums of its files or of what it was made of: both are added as "
            "they are now"
        )
        files = {name: sha256_of(folder.path / name) for name in FILES}
        result = {**result, "inputs": result.get("inputs", now), "files": result.get("files", files)}
        write_record(folder.result, result)
    return result


def check(experiment: Experiment, folder: RunFolder, record: Mapping[str, Any], now: Fingerprints) -> None:
    """ValueError: a run was made of other data or files than those of `now`. record: its run.json or result.json.

    A record of an earlier version has the fingerprint of the data only.
    """
    before: Fingerprints = record.get("inputs") or {"data": record["data"]}
    for what in [*now, *(what for what in before if what not in now)]:
        old, new = before.get(what), now.get(what)
        if old == new or (old is None and "inputs" not in record):
            continue
        kind, *_ = what.split(" of ")
        if kind in ("data", "images"):
            name = ", or give these data another --data.name" if hasattr(experiment.data, "name") else ""
            text, remedy = "other data of the same name", f"restore those files{name}, or use another --storage"
        else:
            text, remedy = f"another {what}", "restore that file, give another name, or use another --storage"
        old, new = (value[:16] if value else "none" for value in (old, new))
        raise ValueError(
            f"the run in {folder.path} ({experiment.name}) was started on {text} (fingerprint {old}, now {new}): "
            f"{remedy}. To run it anew, delete that folder"
        )


def remember_images(experiments: Sequence[Experiment], storage: Path, note: Callable[[str], None]) -> None:
    """Fingerprint the image files that this machine sees: workers would wait for each other while one reads them.

    Errors as `contents.fingerprint`.
    """
    for data in (experiment.data for experiment in experiments):
        if getattr(data, "backend", "memory") != "memory" and Path(getattr(data, "root", "")).exists():
            files = list(contents.files(data))
            memory = _Memory(storage, files)
            if memory.read(_images(data)) is None:
                note(f"{data.label}: fingerprint of the contents of {len(files):,} files, once...")
                memory.get(_images(data), partial(contents.fingerprint, data))


def _of_data(experiment: Experiment, name: str, storage: Path, loader: Loader | None) -> Fingerprints:
    data = experiment.data
    memory, what = _Memory(storage, list(contents.files(data))), f"data of {_where(data)}"

    def of_loader() -> str:
        with contextlib.closing(open_loader(data, experiment.seed, "cpu")) as opened:
            return opened.fingerprint

    if loader is not None:
        memory.keep(what, loader.fingerprint, loader.since)
    found = {
        "data": loader.fingerprint if loader else memory.get(what, of_loader),
        "images": memory.get(_images(data), partial(contents.fingerprint, data)),
    }
    return {key + name: value for key, value in found.items() if value}


def _images(data: Data) -> str:
    return f"images of {_where(data)}"


def _text(data: Data) -> str:
    return as_json(canonical(data)).decode()


def _where(data: Data) -> str:
    return f"{_text(data)} in {Path(getattr(data, 'root', '')).absolute()}"


class _Memory:
    """The fingerprints of `files`, remembered in the storage together with the files' sizes and times."""

    def __init__(self, storage: Path, files: Sequence[Path]) -> None:
        self._folder = storage / "fingerprints"
        self._any = bool(files)
        digest, self._newest = hashlib.sha256(), 0.0
        for path in files:
            with contextlib.suppress(OSError):  # a dangling link
                found = path.stat()
                digest.update(f"{path}\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode())
                self._newest = max(self._newest, found.st_mtime, found.st_ctime)
        self._stamp = digest.hexdigest()

    def get(self, what: str, compute: Callable[[], str]) -> str:
        known = self.read(what)
        if known is None:
            since = time.time()
            known = compute()
            self.keep(what, known, since)
        return known

    def keep(self, what: str, fingerprint: str, since: float) -> None:
        """since: when the reading of the files began, in seconds since 1970."""
        settled = self._newest < since - SETTLED_SECONDS
        if self._any and settled and self.read(what) != fingerprint:
            with lock(self._folder / "lock"):
                remove_leftovers(self._folder)
                write_record(self._path(what), {"what": what, "files": self._stamp, "fingerprint": fingerprint})

    def read(self, what: str) -> str | None:
        path = self._path(what)
        try:
            found = read_json(path) if self._any and path.exists() else {}
            return found["fingerprint"] if found["files"] == self._stamp else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # it is read again

    def _path(self, what: str) -> Path:
        return self._folder / f"{sha256(what.encode())[:32]}.json"
