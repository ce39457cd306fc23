"""Write one part of a data set into one .beton file: encode in processes, write in order, count, compute sha256."""

import hashlib
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from pipelines.data.ffcv.fields import Encoded, Encoder, LeftOut, Storage, WithBoxes
from pipelines.data.ffcv.format import CLASSIFICATION, detection
from pipelines.data.ffcv.writer import BetonWriter
from pipelines.data.preparing import manifest
from pipelines.data.preparing.display import Display
from pipelines.data.preparing.manifest import PartFile
from pipelines.data.preparing.process_pool import WorkerDied, in_order
from pipelines.data.source import Pixels, Source

AT_ONCE = 16
"""Images per task of a worker process."""

_CHUNK = 1 << 22
_MB = 1_000_000


@dataclass(frozen=True)
class Job:
    """What to prepare: a set of prepare.py, its images, and how they are stored.

    strict: an image that cannot be read or has to be converted is an error.
    """

    set: str
    source: Source
    storage: Storage
    strict: bool = False


def check(source: Source) -> int:
    """The largest number of boxes in an image; 0 for classification. ValueError: no images; a label is out of range."""
    num_classes, most = len(source.classes), 0
    for name, part in source.parts.items():
        if not len(part):
            raise ValueError(f"the {name} part of {source.name} has no images")
        if isinstance(part, WithBoxes):
            # 0 is the background, and marks padding in images with fewer boxes.
            found, least = [part.boxes(row).labels for row in range(len(part))], 1
            most = max(most, *map(len, found))
            wrong = [row for row, labels in enumerate(found) if ((labels < 1) | (labels >= num_classes)).any()]
        else:
            assert len(part.labels) == len(part), f"{name} has {len(part)} images and {len(part.labels)} labels"
            least = 0
            wrong = torch.nonzero((part.labels < 0) | (part.labels >= num_classes))[:, 0].tolist()
        if wrong:
            raise ValueError(
                f"{part.name(wrong[0])} has a label outside {least} to {num_classes - 1} (and {len(wrong) - 1} other "
                f"images): {source.name} has {num_classes} classes, so correct these labels"
            )
    return most


def write_part(job: Job, name: str, folder: Path, most_objects: int, workers: int, report: Display) -> PartFile:
    """Write `name`.beton into `folder` with `workers` processes (0: this one). most_objects: the result of `check`.

    ValueError: images or labels are wrong. OSError: a file or the disk. RuntimeError: a worker process died or failed.
    """
    part, path = job.source.parts[name], folder / f"{name}.beton"
    # Pixels are in this process: copying them to others takes longer than writing them.
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
        first, last = part.name(chunks[error.items[0]][0]), part.name(chunks[error.items[-1]][-1])
        raise RuntimeError(
            f"{error} at one of the images from {first} to {last}. If memory ran out, use fewer --workers. "
            "Incomplete files were deleted"
        ) from error
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
    """Counts of written and left-out samples."""

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
        """ValueError: no image of the part, or of one of its classes, can be read."""
        if not self.left_out:
            return
        first = f"for example {self.left_out[0].name} ({self.left_out[0].why})"
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
                    f"for example {sample.name} ({sample.why})"
                )


def _sha256(path: Path, what: str, report: Display) -> str:
    """The hash of a finished file: its first bytes are written last, so it cannot be computed during writing."""
    digest, total, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report.step(what, done // _MB, total // _MB)
    return digest.hexdigest()
