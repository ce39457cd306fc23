"""CUB-200-2011 from its official folder."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from pipelines.data.readers import checks
from pipelines.data.readers.checks import Whole
from pipelines.data.source import IMAGENET_MEAN, IMAGENET_STD, Files, Source

ARCHIVE, FOLDER = "CUB_200_2011.tgz", "CUB_200_2011"
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
WHOLE = Whole(classes=200, train=5_994, test=5_794)

_UNPACK = f"unpack {ARCHIVE} ({URL}) again"


def read(root: str | Path, name: str = "cub200") -> Source:
    """CUB_200_2011/ in `root`, or `root` itself. Another `name`: another set in this layout, without official counts.

    Classes are numbered from 0 in the order of their official numbers. Images have the order of images.txt.
    FileNotFoundError, ValueError: files are missing or inconsistent.
    """
    folder = _find(Path(root))
    tables = ("images", "image_class_labels", "train_test_split", "classes")
    names, labels, split, classes = (_table(folder / f"{table}.txt") for table in tables)
    for file, table in (("image_class_labels.txt", labels), ("train_test_split.txt", split)):
        _check_same(folder, names, file, table)
    class_ids = sorted(classes)
    number = {class_id: label for label, class_id in enumerate(class_ids)}
    label_of, in_train = _labels(folder, labels, number), _flags(folder, split)
    parts = {}
    for part, wanted in (("train", True), ("test", False)):
        ids = [image for image in names if in_train[image] == wanted]
        if not ids:
            raise ValueError(f"{folder / 'train_test_split.txt'} leaves the {part} part empty: {_UNPACK}")
        files = np.array([os.fsencode(f"images/{names[image][1]}") for image in ids])
        parts[part] = Files(folder, files, torch.tensor([label_of[image] for image in ids]))
    empty = [classes[i][1] for i in class_ids if not (parts["train"].labels == number[i]).any()]
    if empty:
        raise ValueError(f"{folder / 'classes.txt'} lists classes without a training image: {checks.some(empty)}")
    # Label and part are included: unlike in other sets, the file names do not contain them.
    labelled = [
        b"%s/%d/%s" % (part.encode(), label, image)
        for part, files in parts.items()
        for label, image in zip(files.labels.tolist(), files.names.tolist(), strict=True)
    ]
    paths = [files.path(row) for files in parts.values() for row in range(len(files))]
    identity = checks.fingerprint(labelled, checks.sizes(paths))
    class_names = tuple(classes[class_id][1] for class_id in class_ids)
    missing = WHOLE.missing(len(class_names), parts) if name == "cub200" else ()
    return Source(name, class_names, parts, IMAGENET_MEAN, IMAGENET_STD, identity, missing)


Table = Mapping[int, tuple[int, str]]
"""id -> (line number, second word of the line)"""


def _find(root: Path) -> Path:
    for folder in (root / FOLDER, root):
        if (folder / "images.txt").is_file():
            return folder
    if (root / ARCHIVE).is_file():
        raise FileNotFoundError(
            f"{root} holds only {ARCHIVE}, which is compressed and cannot be read in place: unpack it with "
            f"`tar -xzf {root / ARCHIVE} -C {root}`"
        )
    raise FileNotFoundError(
        f"{root} holds no {FOLDER}/ with images.txt: download {URL} and unpack it there, or give --data.root the "
        f"folder that holds {FOLDER}"
    )


def _table(path: Path) -> Table:
    found: dict[int, tuple[int, str]] = {}
    for number, (key, value, *_) in checks.rows(checks.content(path, _UNPACK), str(path), columns=2):
        row = checks.integer(key, str(path), number)
        if row in found:
            raise ValueError(f"{path}, line {number}: the id {row} occurs twice: {_UNPACK}")
        found[row] = (number, value)
    if not found:
        raise ValueError(f"{path} is empty: {_UNPACK}")
    return found


def _check_same(folder: Path, names: Table, file: str, table: Table) -> None:
    for more, less, has, lacks in ((names, table, "images.txt", file), (table, names, file, "images.txt")):
        ids = [str(i) for i in sorted(more.keys() - less.keys())]
        if ids:
            raise ValueError(
                f"{folder / has} has ids that are missing from {folder / lacks}: {checks.some(ids)}: {_UNPACK}"
            )


def _labels(folder: Path, labels: Table, number: Mapping[int, int]) -> dict[int, int]:
    """image -> label."""
    found, path = {}, folder / "image_class_labels.txt"
    for image, (line, word) in labels.items():
        class_id = checks.integer(word, str(path), line)
        if class_id not in number:
            raise ValueError(
                f"{path}, line {line}: the class {class_id} is not in classes.txt, which has {len(number)} "
                f"classes from {min(number)} to {max(number)}: {_UNPACK}"
            )
        found[image] = number[class_id]
    return found


def _flags(folder: Path, split: Table) -> dict[int, bool]:
    """image -> whether it is a training image."""
    path = folder / "train_test_split.txt"
    for line, word in split.values():
        if word not in ("0", "1"):
            raise ValueError(f"{path}, line {line}: must be 1 (training) or 0 (test), not {word!r}: {_UNPACK}")
    return {image: word == "1" for image, (_, word) in split.items()}
