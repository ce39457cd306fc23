"""Folders of images, <part>/<class>/*, and the centre crop of an image."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import functional as F

from pipelines.data.readers import checks
from pipelines.data.source import IMAGENET_MEAN, IMAGENET_STD, Files, Source, Upright


def read(root: str | Path, name: str) -> Source:
    """train/<class>/* and test/<class>/* or val/<class>/* below `root`; no official counts. Errors as `scan`.

    Images are turned as their EXIF orientation says; those of official sets are not, as in all published results.
    """
    classes, *files = scan(root, ("test", "val"))
    train, test = (Upright(part.root, part.names, part.labels) for part in files)
    identity = checks.fingerprint_of_files(train, test)
    return Source(name, tuple(classes), {"train": train, "test": test}, IMAGENET_MEAN, IMAGENET_STD, identity)


def scan(root: str | Path, test_names: tuple[str, ...]) -> tuple[list[str], Files, Files]:
    """Class names, training part and test part of `root`; the test part is the first of `test_names` that exists.

    FileNotFoundError: `root`, train/ or the test part is missing, or a class folder holds no image.
    ValueError: the test part has classes that are missing from train/.
    """
    root = Path(root)
    wanted = " or ".join(f"{name}/<class>/*" for name in test_names)
    test_name = next((name for name in test_names if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_name is None:
        raise FileNotFoundError(f"{root} must hold train/<class>/* and {wanted}: give --data.root the folder that does")
    train, test = _Part(root, "train"), _Part(root, test_name)
    where, remedy = root / test_name, ": use the same names of class folders in both"
    checks.check_known(test.classes, train.classes, f"{where} has classes", root / "train", remedy)
    to_train = torch.tensor([train.class_to_idx[name] for name in test.classes])
    test_labels = to_train[torch.tensor(test.targets)]
    return train.classes, _files(root, train, torch.tensor(train.targets)), _files(root, test, test_labels)


def centre(image: Image.Image, resize: int, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the centre of `image` after its short side was resized to `resize`."""
    resized = F.resize(image, [resize])  # pyright: ignore[reportArgumentType] (its hint says Tensor; it takes both)
    return np.asarray(F.center_crop(resized, [size]))


UNREAD = (".avif", ".dng", ".exr", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".tga")
"""Endings of pictures that are not read."""


class _Part(datasets.ImageFolder):
    """One folder per class. Hidden folders and files, and those that systems leave (__MACOSX), are left out."""

    def __init__(self, root: Path, name: str) -> None:
        self._unread: list[str] = []
        super().__init__(str(root / name), is_valid_file=self._is_read, allow_empty=True)
        if self._unread:
            raise ValueError(
                f"{checks.some(self._unread)} cannot be read, only {', '.join(datasets.folder.IMG_EXTENSIONS)}: "
                "convert or remove them"
            )
        used = set(self.targets)
        empty = [str(root / name / self.classes[i]) for i in range(len(self.classes)) if i not in used]
        if empty:
            raise FileNotFoundError(f"no image in {checks.some(empty)}: put images there or remove the folder")

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not _is_hidden(entry.name))
        return classes, {name: number for number, name in enumerate(classes)}

    def _is_read(self, path: str) -> bool:
        if any(map(_is_hidden, Path(path).relative_to(self.root).parts)):
            return False
        if path.lower().endswith(UNREAD):
            self._unread.append(path)
        return path.lower().endswith(datasets.folder.IMG_EXTENSIONS)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _files(root: Path, part: datasets.ImageFolder, labels: Tensor) -> Files:
    return Files(root, np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in part.samples]), labels)
