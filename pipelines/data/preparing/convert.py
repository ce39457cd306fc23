"""Writes a source as train.beton, test.beton and manifest.json, which the ffcv backend reads."""

import fcntl
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from rich.console import Console

from cluster.atomic import publish_files
from pipelines.data.ffcv.fields import WithBoxes
from pipelines.data.ffcv.installed import require_installed
from pipelines.data.ffcv.part_writer import Job, check, write_part
from pipelines.data.preparing import manifest
from pipelines.data.preparing.display import Display
from pipelines.data.preparing.manifest import Manifest, PartFile


def prepare(job: Job, out: Path, workers: int, overwrite: bool = False, report: Display | None = None) -> Manifest:
    """Write `job` into `out` with `workers` processes (0: in this one), unless it is already there.

    ValueError, OSError: wrong source, options or `out`; RuntimeError: a worker process died or failed. After an error
    `out` is unchanged.
    """
    report, out = report or Display(Console(quiet=True)), out.expanduser().resolve()
    if not overwrite and (found := _found(job, out)):
        report.say(f"{out} is already prepared from this source with these options: nothing to do")
        return found
    require_installed()
    most_objects = check(job.source)
    with workspace(out, report.say) as folder:
        if not overwrite and (found := _found(job, out)):  # while this process waited
            report.say(f"{out} was prepared by another process")
            return found
        parts = {name: write_part(job, name, folder, most_objects, workers, report) for name in job.source.parts}
        manifest.write(_manifest(job, parts, _versions()), folder)
        publish_files(folder, out, manifest.FILE)
    return manifest.read(out)


def _found(job: Job, out: Path) -> Manifest | None:
    """What is already prepared in `out`. ValueError, FileNotFoundError: it is something else, or damaged."""
    if not (out / manifest.FILE).exists():
        return None
    found = manifest.parse(out)
    compared = _compared(found, _manifest(job, {}, {}))
    differences = [f"{name}: was {before}, now {now}" for name, before, now in compared if before != now]
    if differences:
        raise ValueError(
            f"{out} is already prepared, but from another source or with other options ({'; '.join(differences)}): "
            "use another --out, or --overwrite"
        )
    found.check_files()
    odd = [name for name, part in found.parts.items() if part.converted or part.left_out]
    if job.strict and odd:
        raise ValueError(
            f"{out} is already prepared, but without --strict: images of {' and '.join(odd)} were converted or left "
            "out; correct them and use --overwrite"
        )
    return found


def _compared(before: Manifest, now: Manifest) -> list[tuple[str, Any, Any]]:
    """(name, before, now) of everything that determines what is written."""
    names = ("set", "name", "task", "source_fingerprint", "missing")
    options = sorted({*before.options, *now.options})
    return [
        *((name, getattr(before, name), getattr(now, name)) for name in names),
        ("classes", len(before.classes), len(now.classes)),
        *((name, before.options.get(name), now.options.get(name)) for name in options),
    ]


def _manifest(job: Job, parts: Mapping[str, PartFile], versions: Mapping[str, str]) -> Manifest:
    source = job.source
    has_boxes = any(isinstance(part, WithBoxes) for part in source.parts.values())
    return Manifest(
        set=job.set,
        name=source.name,
        task="detection" if has_boxes else "classification",
        classes=source.classes,
        mean=source.mean,
        std=source.std,
        missing=source.missing,
        source_fingerprint=source.fingerprint,
        options=asdict(job.storage),
        image_size=job.storage.image_size,
        parts=parts,
        versions=versions,
    )


def _versions() -> dict[str, str]:
    import cv2  # pyright: ignore[reportMissingImports]

    packages = {"pillow": PIL.__version__, "numpy": np.__version__, "opencv": cv2.__version__}
    return {"python": platform.python_version(), "ffcv": version("ffcv"), **packages}


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
