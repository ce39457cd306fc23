"""manifest.json, which describes the files of `pipelines/prepare.py`. It is written last: with it, all files exist."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.config import Official
from pipelines.data.ffcv.format import HEADER, VERSION
from pipelines.data.preparing.sets import SETS
from pipelines.data.source import RGB, check_complete

FILE = "manifest.json"
FORMAT = 1

Value = str | int | float | bool | None


@dataclass(frozen=True)
class LeftOut:
    """A sample that could not be read. name: its file."""

    name: str
    why: str


@dataclass(frozen=True)
class PartFile:
    """A .beton file.

    raw, jpeg: number of images stored as pixels and as JPEG. converted: number of images that were not RGB, or had a
    JPEG's name and another format. left_out: what could not be read.
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

    set: name in prepare.py. name: in tables. task: "classification" or "detection". mean, std: per channel, of pixel
    values / 255. missing: how it differs from the official data set; empty: it is complete. source_fingerprint: of the
    source. options: how images are stored. image_size: height and width of all images; None: they differ. versions: of
    the software that wrote it.
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
        """16 hexadecimal digits that identify the data."""
        text = "".join(f"{name} {part.sha256}\n" for name, part in sorted(self.parts.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def path(self, part: str) -> Path:
        return self.folder / self.parts[part].file

    def check(self, config: Official, image_size: int | None) -> None:
        """ValueError: this is not the data of an experiment's config.

        image_size: required size of all images; None: images must have different sizes.
        """
        years = getattr(config, "years", None)
        [kind] = [
            kind
            for kind, each in SETS.items()
            if type(each.config) is type(config) and getattr(each.config, "years", None) == years
        ]
        wanted = f"voc{years}-detection" if years else getattr(config, "name", None) or config.name_in_tables
        if (self.set, self.name) != (kind, wanted):
            raise ValueError(
                f"{self.folder} holds {self.name} (prepared as {self.set}), not {wanted}: give --data.root the folder "
                f"that prepare.py wrote for {kind}"
            )
        check_complete(f"{self.name} in {self.folder}", self.missing, getattr(config, "subset", False))
        if self.image_size != image_size:
            found, needed = (f"{size} pixels" if size else "different sizes" for size in (self.image_size, image_size))
            raise ValueError(
                f"{self.folder} holds images of {found}, but {needed} are needed: prepare it again with other options "
                "and --overwrite"
            )

    def check_files(self) -> None:
        """FileNotFoundError, ValueError: a file is missing, truncated or not in FFCV's format."""
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
    """The manifest in `folder`, with the sizes and headers of its files checked.

    FileNotFoundError: nothing was prepared there, or a file is missing. ValueError: something is damaged.
    """
    found = parse(folder)
    found.check_files()
    return found


def parse(folder: str | Path) -> Manifest:
    """As `read`, without a check of the files."""
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
        raise ValueError(f"{path} is not a manifest of format {FORMAT} ({error!r}): {_again(folder)}") from error


def write(manifest: Manifest, folder: Path) -> None:
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
    for name in ("mean", "std"):
        if len(values[name]) != 3 or any(type(value) is not float for value in values[name]):
            raise ValueError(f"{name} must be three numbers")
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


def _again(folder: str | Path) -> str:
    return f"prepare {folder} again with --overwrite"
