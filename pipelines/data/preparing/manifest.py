"""manifest.json: what `pipelines/prepare.py` wrote beside it. Written last, so where it is, everything is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.config import CIFAR10, CIFAR100, CUB, ImageNet, Images, TinyImageNet
from pipelines.data.ffcv.format import HEADER, VERSION
from pipelines.data.source import RGB, check_complete

FILE = "manifest.json"
FORMAT = 1

SETS: dict[type, str] = {
    CIFAR10: "cifar10",
    CIFAR100: "cifar100",
    TinyImageNet: "tiny_imagenet",
    Images: "images",
    ImageNet: "imagenet",
    CUB: "cub",
}
"""Which set of prepare an experiment's data config means."""

Value = str | int | float | bool | None


@dataclass(frozen=True)
class LeftOut:
    """A sample that could not be read. name: of its file."""

    name: str
    why: str


@dataclass(frozen=True)
class PartFile:
    """A .beton file.

    file: its name. samples: how many. bytes, sha256: of the file. raw, jpeg: how many images are stored as pixels and
    as JPEG. converted: how many were not RGB, or no JPEG under the name of one. left_out: what could not be read.
    """

    file: str
    samples: int
    bytes: int
    sha256: str
    raw: int
    jpeg: int
    converted: int
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A prepared data set in `folder`.

    set: as prepare calls it. name: as in tables. task: "classification" or "detection". mean, std: per channel, of
    pixel values / 255. missing: in what it is less than the official whole; empty: it is whole. source_fingerprint:
    which data it was made of. options: how images are stored. image_size: height and width of all images; None: they
    differ. versions: of the software that wrote it.
    """

    set: str
    name: str
    task: str
    classes: tuple[str, ...]
    mean: RGB
    std: RGB
    missing: tuple[str, ...]
    source_fingerprint: str
    options: Mapping[str, Value]
    image_size: int | None
    parts: Mapping[str, PartFile]
    versions: Mapping[str, str]
    folder: Path = Path()

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that say which data this is."""
        text = "".join(f"{name} {part.sha256}\n" for name, part in sorted(self.parts.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def path(self, part: str) -> Path:
        """The .beton file of "train" or "test"."""
        return self.folder / self.parts[part].file

    def check(self, config: Any, image_size: int | None) -> None:
        """ValueError where this is not the data that an experiment's config means.

        image_size: at which all images must be stored; None: they must have sizes of their own.
        """
        wanted = replace(config, subset=False).label if hasattr(config, "subset") else config.label
        if (self.set, self.name) != (SETS[type(config)], wanted):
            raise ValueError(
                f"{self.folder} holds {self.name} (prepared as {self.set}), not {wanted}: give --data.root the folder "
                f"that prepare wrote for {SETS[type(config)]}"
            )
        subset = getattr(config, "subset", False)
        check_complete(f"{self.name} in {self.folder}", self.missing, subset)
        if self.image_size != image_size:
            found, needed = (f"{size} pixels" if size else "their own size" for size in (self.image_size, image_size))
            raise ValueError(
                f"{self.folder} holds images of {found}, but {needed} is needed: prepare it again with other options "
                "and --overwrite"
            )

    def check_files(self) -> None:
        """FileNotFoundError, ValueError: a file is missing, was cut short or is none of FFCV's."""
        for name, part in self.parts.items():
            path = self.path(name)
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {_again(self.folder)}")
            if (size := path.stat().st_size) != part.bytes:
                raise ValueError(f"{path} has {size:,} bytes instead of {part.bytes:,}: {_again(self.folder)}")
            with path.open("rb") as file:
                start = file.read(HEADER.itemsize)
            [header] = np.frombuffer(start.ljust(HEADER.itemsize, b"\0"), HEADER)
            if (header["version"], header["num_samples"]) != (VERSION, part.samples):
                raise ValueError(
                    f"{path} is damaged: its header says version {header['version']} and {header['num_samples']:,} "
                    f"samples instead of {VERSION} and {part.samples:,}: {_again(self.folder)}"
                )


def read(folder: str | Path) -> Manifest:
    """The manifest in `folder`, its files checked by their sizes and headers.

    FileNotFoundError: nothing was prepared there, or a file is gone. ValueError: something is damaged. The message says
    what to do.
    """
    found = parse(folder)
    found.check_files()
    return found


def parse(folder: str | Path) -> Manifest:
    """The manifest in `folder` alone; errors as `read`."""
    path = Path(folder) / FILE
    try:
        stored = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{path} is missing, so nothing is prepared there: run python pipelines/prepare.py SET --source DIR --out "
            f"{folder}, or give --data.root the folder that it wrote"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {_again(folder)}") from error
    try:
        return _manifest(stored, Path(folder))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no manifest of format {FORMAT} ({error!r}): {_again(folder)}") from error


def write(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json into `folder`."""
    stored = {"format": FORMAT, **asdict(manifest)}
    del stored["folder"]
    (folder / FILE).write_text(json.dumps(stored, indent=1) + "\n")


def _manifest(stored: dict[str, Any], folder: Path) -> Manifest:
    values = dict(stored)
    if values.pop("format") != FORMAT:
        raise ValueError(f"format {stored['format']!r}")
    for name in ("classes", "mean", "std", "missing"):
        values[name] = tuple(values[name])
    if not all(isinstance(name, str) for name in values["classes"]) or not values["classes"]:
        raise ValueError("classes must be names")
    _check_numbers(values["mean"], values["std"])
    values["parts"] = {name: _part(name, part) for name, part in values["parts"].items()}
    if set(values["parts"]) != {"train", "test"}:
        raise ValueError("parts must be train and test")
    return Manifest(**values, folder=folder)


def _part(name: str, stored: dict[str, Any]) -> PartFile:
    part = PartFile(**{**stored, "left_out": tuple(LeftOut(**each) for each in stored["left_out"])})
    if part.file != f"{name}.beton":
        raise ValueError(f"the file of {name} is called {part.file!r}")
    if not re.fullmatch("[0-9a-f]{64}", part.sha256):
        raise ValueError(f"the sha256 of {name} is {part.sha256!r}")
    if any(type(value) is not int or value < 0 for value in (part.samples, part.bytes)):
        raise ValueError(f"{name} counts {part.samples!r} samples in {part.bytes!r} bytes")
    return part


def _check_numbers(*triples: Sequence[Any]) -> None:
    if any(len(triple) != 3 or any(type(value) is not float for value in triple) for triple in triples):
        raise ValueError("mean and std must be three numbers each")


def _again(folder: str | Path) -> str:
    return f"prepare {folder} again with --overwrite"
