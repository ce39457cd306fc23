"""CUB-200-2011 from its official folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
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
    """CUB_200_2011/ in `root`, or `root` itself. Under another name it is another set in this layout, without official
    counts. Labels are the official class numbers less one.

    Where classes.txt names a part of the classes, these are numbered from 0 in the order of their official numbers.
    Images have the order of images.txt.

    FileNotFoundError, ValueError: files are absent or do not fit each other; the message names them.
    """
    folder = _find(Path(root))
    names, labels, split = (_table(folder / f"{n}.txt") for n in ("images", "image_class_labels", "train_test_split"))
    classes = _table(folder / "classes.txt")
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
        raise ValueError(f"{folder / 'classes.txt'} names classes without a training image: {checks.some(empty)}")
    # Label and part stand in files of their own here, so the names alone would not tell them.
    identity = checks.fingerprint(
        (b"%s/%d/%s" % (part.encode(), label, name) for part, files in parts.items() for label, name in _rows(files)),
        checks.sizes([files.path(row) for files in parts.values() for row in range(len(files))]),
    )
    class_names = tuple(classes[class_id][1] for class_id in class_ids)
    missing = WHOLE.missing(len(class_names), parts) if name == "cub200" else ()
    return Source(name, class_names, parts, IMAGENET_MEAN, IMAGENET_STD, identity, missing)


Table = Mapping[int, tuple[int, str]]
"""id -> (number of its line, the second word there)"""


def _rows(files: Files) -> Iterable[tuple[int, bytes]]:
    return zip(files.labels.tolist(), files.names.tolist(), strict=True)


def _find(root: Path) -> Path:
    for folder in (root / FOLDER, root):
        if (folder / "images.txt").is_file():
            return folder
    if (root / ARCHIVE).is_file():
        raise FileNotFoundError(
            f"{root} holds {ARCHIVE} alone, which is compressed and cannot be read in place: unpack it by "
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
            raise ValueError(f"{path}, line {number}: the id {row} is there twice: {_UNPACK}")
        found[row] = (number, value)
    if not found:
        raise ValueError(f"{path} is empty: {_UNPACK}")
    return found


def _check_same(folder: Path, names: Table, file: str, table: Table) -> None:
    for more, less, has, lacks in ((names, table, "images.txt", file), (table, names, file, "images.txt")):
        ids = [str(i) for i in sorted(more.keys() - less.keys())]
        if ids:
            raise ValueError(f"{folder / has} has ids that {folder / lacks} has not: {checks.some(ids)}: {_UNPACK}")


def _labels(folder: Path, labels: Table, number: Mapping[int, int]) -> dict[int, int]:
    found, path = {}, folder / "image_class_labels.txt"
    for image, (line, word) in labels.items():
        class_id = checks.integer(word, str(path), line)
        if class_id not in number:
            raise ValueError(
                f"{path}, line {line}: {class_id} is no class of classes.txt, which has {len(number)} from "
                f"{min(number)} to {max(number)}: {_UNPACK}"
            )
        found[image] = number[class_id]
    return found


def _flags(folder: Path, split: Table) -> dict[int, bool]:
    """image -> whether it is for training."""
    path = folder / "train_test_split.txt"
    for line, word in split.values():
        if word not in ("0", "1"):
            raise ValueError(f"{path}, line {line}: must be 1 (training) or 0 (test), not {word!r}: {_UNPACK}")
    return {image: word == "1" for image, (_, word) in split.items()}
