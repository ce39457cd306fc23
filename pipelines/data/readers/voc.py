"""Pascal VOC 2007 and 2012 from the official folder VOCdevkit: detection and segmentation."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Generic, Literal, TypeVar, overload

import numpy as np

from pipelines.data.readers import checks
from pipelines.data.readers.voc_parts import (
    BORDER,
    CLASSES,
    Detections,
    Photos,
    Segmentations,
    detections,
    segmentations,
)
from pipelines.data.source import IMAGENET_MEAN, IMAGENET_STD, Boxes, Source

__all__ = ["BORDER", "CLASSES", "VOC", "Boxes", "Detections", "Segmentations", "read"]

Task = Literal["detection", "segmentation"]
List = tuple[str, str]
"""Year and name of an image list, such as ("2007", "trainval")."""

P = TypeVar("P", Detections, Segmentations)

_FOLDERS: dict[Task, str] = {"detection": "ImageSets/Main", "segmentation": "ImageSets/Segmentation"}
# Number of images in each official list.
_WHOLE: dict[Task, dict[List, int]] = {
    "detection": {
        ("2007", "trainval"): 5_011,
        ("2007", "test"): 4_952,
        ("2012", "trainval"): 11_540,
        ("2012", "train"): 5_717,
        ("2012", "val"): 5_823,
    },
    "segmentation": {
        ("2007", "trainval"): 422,
        ("2007", "test"): 210,
        ("2012", "train"): 1_464,
        ("2012", "val"): 1_449,
    },
}
_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC"
_ARCHIVES: dict[List, str] = {
    ("2007", "trainval"): f"{_PAGE}/voc2007/VOCtrainval_06-Nov-2007.tar",
    ("2007", "test"): f"{_PAGE}/voc2007/VOCtest_06-Nov-2007.tar",
    ("2012", "trainval"): f"{_PAGE}/voc2012/VOCtrainval_11-May-2012.tar",
}


@dataclass(frozen=True)
class VOC(Source, Generic[P]):
    """A source whose parts have boxes or masks instead of labels. classes: by label; 0 is the background."""

    parts: Mapping[str, P]  # pyright: ignore[reportIncompatibleVariableOverride]


@overload
def read(root: str | Path, years: Sequence[str], task: Literal["detection"]) -> VOC[Detections]: ...
@overload
def read(root: str | Path, years: Sequence[str], task: Literal["segmentation"]) -> VOC[Segmentations]: ...
def read(root: str | Path, years: Sequence[str], task: Task) -> VOC[Detections] | VOC[Segmentations]:
    """VOCdevkit in `root`, or `root` itself; years of "2007" and "2012".

    With 2007, "train" is trainval of all years, and "test" is VOC2007's test list. VOC2012 has no public test list:
    alone, "train" is its train list and "test" its val list. Segmentation takes one year: VOC2012's segmentation
    contains test images of VOC2007 under other names ("2007_000068" is "000068").

    All annotations are read and checked here; masks only on access.
    FileNotFoundError, ValueError: files are missing or wrong.
    """
    lists = _lists(years, task)
    devkit = _find(Path(root), lists)
    names = {one: _listed(devkit, one, task) for of in lists.values() for one in of}
    photos = {part: Photos(devkit, np.array([n for one in of for n in names[one]])) for part, of in lists.items()}
    both = sorted(set(photos["train"].names.tolist()) & set(photos["test"].names.tolist()))
    if both:
        raise ValueError(f"{devkit}: images are in both training and test: {checks.some([*map(str, both)])}")
    counts = [checks.unlike(len(names[one]), _WHOLE[task][one], f"images of VOC{' '.join(one)}") for one in names]
    missing = tuple(chain.from_iterable(counts))
    label = f"voc{'+'.join(sorted(years))}-{task}"
    if task == "detection":
        boxed = {part: detections(each) for part, each in photos.items()}
        return VOC(label, CLASSES, boxed, IMAGENET_MEAN, IMAGENET_STD, _of_boxes(boxed), missing)
    masked = {part: segmentations(each) for part, each in photos.items()}
    return VOC(label, CLASSES, masked, IMAGENET_MEAN, IMAGENET_STD, _of_masks(masked), missing)


def _lists(years: Sequence[str], task: Task) -> dict[str, list[List]]:
    """The lists of "train" and of "test"."""
    if task not in _FOLDERS:
        raise ValueError(f"task must be {' or '.join(_FOLDERS)}, not {task!r}")
    if sorted(years) not in (["2007"], ["2012"], ["2007", "2012"]):
        raise ValueError(f'years must be "2007", "2012" or both, not {list(years)}')
    if task == "segmentation" and len(years) > 1:
        raise ValueError(
            "VOC2012's segmentation contains VOC2007's test images, as 2007_...: give one year for segmentation"
        )
    if "2007" in years:
        return {"train": [(year, "trainval") for year in sorted(years)], "test": [("2007", "test")]}
    return {"train": [("2012", "train")], "test": [("2012", "val")]}


def _find(root: Path, lists: Mapping[str, Sequence[List]]) -> Path:
    """The folder that holds VOC2007 and VOC2012."""
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    for one in chain.from_iterable(lists.values()):
        if not (devkit / f"VOC{one[0]}").is_dir():
            raise FileNotFoundError(
                f"{root} holds no VOCdevkit/VOC{one[0]}: download {_archive(one)} and unpack it there, or give the "
                "folder that holds VOCdevkit"
            )
    return devkit


def _listed(devkit: Path, one: List, task: Task) -> list[bytes]:
    """Paths below `devkit` of the images in a list, in its order."""
    year, name = one
    path = devkit / f"VOC{year}" / _FOLDERS[task] / f"{name}.txt"
    remedy = f"download {_archive(one)} and unpack it into the folder that holds VOCdevkit"
    found: dict[str, int] = {}
    for number, (word, *_) in checks.rows(checks.content(path, remedy), str(path), columns=1):
        if word in found:
            raise ValueError(f"{path}, line {number}: {word} is already in line {found[word]}: {remedy}")
        found[word] = number
    if not found:
        raise ValueError(f"{path} is empty: {remedy}")
    return [os.fsencode(f"VOC{year}/JPEGImages/{word}.jpg") for word in found]


def _archive(one: List) -> str:
    return _ARCHIVES.get(one, _ARCHIVES["2012", "trainval"])


def _of_boxes(parts: Mapping[str, Detections]) -> str:
    """Fingerprint that includes the boxes: an XML file can keep its size when a box moves."""
    digest = hashlib.sha256(_of_files(parts).encode())
    for part in parts.values():
        for tensor in (part.ends, part.objects.boxes, part.objects.labels, part.objects.difficult):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_masks(parts: Mapping[str, Segmentations]) -> str:
    masks = [each.mask_path(row) for each in parts.values() for row in range(len(each))]
    names = (name for each in parts.values() for name in each.masks.tolist())
    return hashlib.sha256((_of_files(parts) + checks.fingerprint(names, checks.sizes(masks))).encode()).hexdigest()[:16]


def _of_files(parts: Mapping[str, Photos]) -> str:
    names = [part.encode() + b"/" + name for part, each in parts.items() for name in each.names.tolist()]
    paths = [each.path(row) for each in parts.values() for row in range(len(each))]
    return checks.fingerprint(names, checks.sizes(paths))
