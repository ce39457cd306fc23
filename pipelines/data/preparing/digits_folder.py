"""Writes scikit-learn's digits in the official layouts of larger sets, so that their readers run on a laptop."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.ffcv.installed import has_ffcv
from pipelines.data.loading.arrays import read_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_PARTS = {"train": "train", "test": "val"}
_CUB = "CUB_200_2011"
_CUB_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def write_digits_as_imagenet(root: str | Path, size: int = 40) -> Path:
    """Write train/n0000000<d>/*.JPEG and val/... of size x size pixels below `root`, unless they are there.

    The folder is published atomically, also when several processes write it at once.
    ValueError: `root` exists and holds something else.
    """
    folders = [f"{folder}/n{label:08d}" for folder in _PARTS.values() for label in range(10)]
    return _written(Path(root), "ImageNet's", folders, lambda new: _write_imagenet(new, size))


def write_digits_as_cub(root: str | Path, size: int = 40) -> Path:
    """Write CUB_200_2011/ with images/001.zero/*.jpg of size x size pixels below `root`, unless it is there.

    As `write_digits_as_imagenet` otherwise.
    """
    lists = [f"{_CUB}/{name}" for name in _CUB_LISTS]
    return _written(Path(root), "CUB's", lists, lambda new: _write_cub(new / _CUB, size))


def prepared(root: str | Path, kind: str, name: str | None = None) -> Path:
    """Prepare the images in `root` for FFCV, in the same folder, if FFCV is installed; returns `root`.

    kind: "imagenet" or "cub". name: in tables. Does nothing if it is done; several processes may call it at once.
    """
    root = Path(root)
    if not has_ffcv():
        return root
    from pipelines.data.ffcv.part_writer import Job
    from pipelines.data.preparing.convert import prepare
    from pipelines.data.preparing.sets import SETS

    source = SETS[kind].read(root, name)
    prepare(Job(kind, source, SETS[kind].storage), root, workers=0)  # starting processes would take longer
    return root


def _written(root: Path, layout: str, expected: list[str], write: Callable[[Path], None]) -> Path:
    """expected: paths below `root` that exist after it was written."""

    def is_there() -> bool:
        return all((root / path).exists() for path in expected)

    if is_there():
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} does not hold digits in {layout} layout: use another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        new = Path(temporary) / "new"
        write(new)
        try:
            new.rename(root)
        except OSError:
            if not is_there():  # otherwise another process wrote the same folder first
                raise
    return root


def _write_imagenet(root: Path, size: int) -> None:
    for part, number, pixels, label in _digits():
        _save(pixels, size, root / _PARTS[part] / f"n{label:08d}" / f"n{label:08d}_{number}.JPEG")


def _write_cub(folder: Path, size: int) -> None:
    lists: dict[str, list[str]] = {name: [] for name in _CUB_LISTS}
    lists["classes.txt"] = [f"{label} {label:03d}.{name}" for label, name in enumerate(NAMES, 1)]
    for image, (part, number, pixels, label) in enumerate(_digits(), 1):
        path = f"{label + 1:03d}.{NAMES[label]}/{part}_{number}.jpg"
        _save(pixels, size, folder / "images" / path)
        for name, value in zip(_CUB_LISTS, (path, label + 1, int(part == "train")), strict=False):
            lists[name].append(f"{image} {value}")
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")


def _digits() -> Iterator[tuple[str, int, np.ndarray, int]]:
    """(part, number in it, pixels, label) of each digit."""
    digits = read_digits()
    for part in _PARTS:
        for number, (pixels, label) in enumerate(zip(digits.images[part], digits.labels[part].tolist(), strict=True)):
            yield part, number, pixels, label


def _save(pixels: np.ndarray, size: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)
