"""One part of a data set into one .beton file: encoded by processes, written in order, counted and summed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch

from pipelines.data.ffcv.fields import Encoded, Encoder, LeftOut, Storage, WithBoxes
from pipelines.data.ffcv.format import CLASSIFICATION, detection
from pipelines.data.ffcv.writer import BetonWriter
from pipelines.data.preparing import manifest
from pipelines.data.preparing.manifest import PartFile
from pipelines.data.preparing.process_pool import WorkerDied, in_order
from pipelines.data.source import Pixels, Source

AT_ONCE = 16
"""Images that a worker process is given at a time."""

_CHUNK = 1 << 22
_MB = 1_000_000


class Report(Protocol):
    """Who is told how it goes."""

    def say(self, text: str) -> None: ...

    def step(self, what: str, done: int, total: int) -> None:
        """So much of `what` is done."""
        ...


@dataclass(frozen=True)
class Job:
    """What is to be prepared: a set of prepare.py, its images, and how they are stored.

    strict: an image that cannot be read or has to be converted is an error.
    """

    set: str
    source: Source
    storage: Storage
    strict: bool = False


def check(source: Source) -> int:
    """The largest number of boxes in an image; 0 for classification. ValueError: labels do not fit the classes."""
    num_classes, most = len(source.classes), 0
    for name, part in source.parts.items():
        if not len(part):
            raise ValueError(f"the {name} part of {source.name} has no images")
        if isinstance(part, WithBoxes):
            # 0 is the background: it fills up the boxes of images that have fewer than others.
            found, least = [part.boxes(row).labels for row in range(len(part))], 1
            most = max(most, *map(len, found))
            wrong = [row for row, labels in enumerate(found) if ((labels < 1) | (labels >= num_classes)).any()]
        else:
            assert len(part.labels) == len(part), f"{name} has {len(part)} images and {len(part.labels)} labels"
            least = 0
            wrong = torch.nonzero((part.labels < 0) | (part.labels >= num_classes))[:, 0].tolist()
        if wrong:
            raise ValueError(
                f"{part.name(wrong[0])} has a label outside {least} to {num_classes - 1}, as have {len(wrong) - 1} "
                f"others: {source.name} has {num_classes} classes"
            )
    return most


def write_part(job: Job, name: str, folder: Path, most_objects: int, workers: int, report: Report) -> PartFile:
    """Write `name`.beton into `folder`, by `workers` processes (0: here). most_objects: as `check` found.

    ValueError, OSError: images, labels or the disk; RuntimeError: a worker process died or failed.
    """
    part, path = job.source.parts[name], folder / f"{name}.beton"
    # Pixels lie in this process: to copy them to others takes longer than to write them.
    workers = 0 if isinstance(part, Pixels) else workers
    encoder = Encoder(part, job.storage, most_objects, job.strict)
    chunks = [range(start, min(start + AT_ONCE, len(part))) for start in range(0, len(part), AT_ONCE)]
    fields = detection(most_objects) if isinstance(part, WithBoxes) else CLASSIFICATION
    tally = _Tally()
    try:
        with (
            BetonWriter(path, fields, len(part), job.storage.most_bytes + 32 * most_objects) as writer,
            closing(in_order(encoder, chunks, workers, encoder.preloaded)) as results,
        ):
            for done, sample in enumerate(chain.from_iterable(results), 1):
                if isinstance(sample, Encoded):
                    writer.add(sample, part.name(sample.row))
                tally.count(sample)
                report.step(f"{name}: images", done, len(part))
            tally.check(job.source, name)
            writer.finish()
    except WorkerDied as error:
        raise RuntimeError(_died(error, part, chunks)) from error
    return PartFile(
        file=path.name,
        samples=writer.count,
        bytes=path.stat().st_size,
        sha256=_sha256(path, f"{name}: MB of its checksum", report),
        raw=tally.raw,
        jpeg=tally.jpeg,
        converted=tally.converted,
        left_out=tuple(manifest.LeftOut(each.name, each.why) for each in tally.left_out),
    )


class _Tally:
    """What became of the samples."""

    def __init__(self) -> None:
        self.raw = self.jpeg = self.converted = 0
        self.left_out: list[LeftOut] = []
        self._labels: set[int | None] = set()

    def count(self, sample: Encoded | LeftOut) -> None:
        if isinstance(sample, LeftOut):
            self.left_out.append(sample)
            return
        self.jpeg += sample.is_jpeg
        self.raw += not sample.is_jpeg
        self.converted += sample.converted
        self._labels.add(sample.label)

    def check(self, source: Source, name: str) -> None:
        """ValueError: nothing of the part, or nothing of one of its classes, can be read."""
        if not self.left_out:
            return
        first = f"such as {self.left_out[0].name} ({self.left_out[0].why})"
        if not self._labels:
            raise ValueError(f"no image of the {name} part of {source.name} can be read, {first}")
        part = source.parts[name]
        if isinstance(part, WithBoxes):
            return
        for sample in self.left_out:
            label = int(part.labels[sample.row])
            if label not in self._labels:
                raise ValueError(
                    f"no image of the class {source.classes[label]} in the {name} part of {source.name} can be read, "
                    f"such as {sample.name} ({sample.why})"
                )


def _died(error: WorkerDied, part: Any, chunks: Sequence[range]) -> str:
    """The message for a worker process that died."""
    first, last = part.name(chunks[error.items[0]][0]), part.name(chunks[error.items[-1]][-1])
    return (
        f"{error}. It worked on one of the images from {first} to {last}. If memory ran out, use fewer --workers. "
        "Nothing was kept"
    )


def _sha256(path: Path, what: str, report: Report) -> str:
    """Of a file; its table stands in front of the data and is written after it, so this comes at the end."""
    digest, total, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report.step(what, done // _MB, total // _MB)
    return digest.hexdigest()
