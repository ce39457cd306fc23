"""Writes a source as train.beton, test.beton and manifest.json, which the ffcv backend reads."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from cluster.atomic import publish_files
from pipelines.data.ffcv.fields import WithBoxes
from pipelines.data.ffcv.installed import require_installed
from pipelines.data.ffcv.part_writer import Job, Report, check, write_part
from pipelines.data.preparing import manifest
from pipelines.data.preparing.manifest import Manifest, PartFile
from pipelines.data.preparing.workspace import workspace


class Silent:
    """A Report that shows nothing."""

    def say(self, text: str) -> None: ...

    def step(self, what: str, done: int, total: int) -> None: ...


def prepare(job: Job, out: Path, workers: int, overwrite: bool = False, report: Report | None = None) -> Manifest:
    """Write `job` into `out` with `workers` processes (0: in this one), unless it is already there.

    ValueError, OSError: wrong source, options or `out`; RuntimeError: a worker process died or failed. After an error
    `out` is unchanged.
    """
    report, out = report or Silent(), out.expanduser().resolve()
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
