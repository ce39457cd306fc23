"""The real formats of small data sets, read into uint8 arrays."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from pipelines.data import draws, image_folders, splits
from pipelines.data.config import CIFAR10, CIFAR100, Digits, Images

RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
# Mean and population standard deviation of all pixels / 255 of the training part (validation not yet held out).
DIGITS_MEAN: RGB = (0.3052, 0.3052, 0.3052)
DIGITS_STD: RGB = (0.3758, 0.3758, 0.3758)


@dataclass(frozen=True)
class Arrays:
    """A data set in memory.

    images: "train" and "test" -> (N, H, W, 3) uint8.
    labels: "train" and "test" -> (N,) int64 on the CPU.
    mean, std: per channel, of pixel values / 255.
    fingerprint: a short hash of what the data is.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, Tensor]
    num_classes: int
    mean: RGB
    std: RGB
    fingerprint: str


@dataclass(frozen=True)
class Archive:
    """An official archive of pickled batches: what it is called, where it comes from, and what its bytes must be.

    train, test: (file name, md5) of the members below `folder`.
    """

    file: str
    url: str
    md5: str
    folder: str
    train: Sequence[Sequence[str]]
    test: Sequence[Sequence[str]]
    labels_key: str
    num_classes: int
    mean: RGB
    std: RGB


def _archive(known: type[datasets.CIFAR10], **others: Any) -> Archive:
    """torchvision knows names, address and sums of both archives."""
    return Archive(
        file=known.filename,
        url=known.url,
        md5=known.tgz_md5,
        folder=known.base_folder,
        train=known.train_list,
        test=known.test_list,
        **others,
    )


ARCHIVES: dict[str, Archive] = {
    "cifar10": _archive(
        datasets.CIFAR10,
        labels_key="labels",
        num_classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _archive(
        datasets.CIFAR100,
        labels_key="fine_labels",
        num_classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


def read(config: Digits | CIFAR10 | CIFAR100 | Images) -> Arrays:
    """The data set that `config` describes; FileNotFoundError or ValueError says what is wrong with its files."""
    if isinstance(config, Digits):
        return read_digits()
    if isinstance(config, Images):
        return read_images(config)
    return read_archive(ARCHIVES[config.label], Path(config.root))


def read_digits() -> Arrays:
    """scikit-learn's digits, 8 x 8 grey levels 0..16 stretched to 0..255; a fixed fifth of each class is for test."""
    # Imported here: scikit-learn takes a second, and only the digits need it.
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    labels = torch.from_numpy(digits.target).long()
    # The key is fixed: the test part is the same in every experiment, whatever its seed.
    rows = dict(zip(("train", "test"), splits.hold_out(labels, 0.2, draws.stream("digits", "test")), strict=True))
    images = {part: pixels[at.numpy()] for part, at in rows.items()}
    targets = {part: labels[at] for part, at in rows.items()}
    return Arrays(images, targets, 10, DIGITS_MEAN, DIGITS_STD, fingerprint(images, targets))


def read_images(config: Images) -> Arrays:
    """A folder of images, resized and cropped to `config.image_size`. Errors as `image_folders.scan` and `.read`."""
    classes, *folders = image_folders.scan(config.root, ("test", "val"))
    parts = dict(zip(("train", "test"), folders, strict=True))
    images = {part: image_folders.read(folder, config.image_size) for part, folder in parts.items()}
    labels = {part: folder.labels for part, folder in parts.items()}
    return Arrays(images, labels, len(classes), IMAGENET_MEAN, IMAGENET_STD, fingerprint(images, labels))


def read_archive(archive: Archive, root: Path) -> Arrays:
    """CIFAR-10 or CIFAR-100 from the archive in `root`, or else from the folder unpacked from it.

    FileNotFoundError: neither is there. ValueError: a file's md5 is not the official one.
    """
    members = (
        _members_of_archive(archive, root) if (root / archive.file).exists() else _members_of_folder(archive, root)
    )
    images, labels = {}, {}
    for part, names in (("train", archive.train), ("test", archive.test)):
        # The official files are pickles; each was checked against its published sum before it gets here.
        entries = [pickle.loads(members[name], encoding="latin1") for name, _ in names]
        planes = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        images[part] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        labels[part] = torch.tensor([label for entry in entries for label in entry[archive.labels_key]])
    return Arrays(images, labels, archive.num_classes, archive.mean, archive.std, archive.md5[:16])


def fingerprint(images: dict[str, np.ndarray], labels: dict[str, Tensor]) -> str:
    """16 hexadecimal digits over labels, shapes and pixels of both parts."""
    digest = hashlib.sha256()
    for part in ("train", "test"):
        digest.update(repr(images[part].shape).encode())
        digest.update(labels[part].numpy().tobytes())
        digest.update(np.ascontiguousarray(images[part]).data)
    return digest.hexdigest()[:16]


def _members_of_archive(archive: Archive, root: Path) -> dict[str, bytes]:
    """Read in place: nothing is unpacked, so nothing half unpacked is ever left behind."""
    _check_md5(root / archive.file, archive.md5, archive)
    wanted = {f"{archive.folder}/{name}": name for name, _ in (*archive.train, *archive.test)}
    members = {}
    with tarfile.open(root / archive.file, "r:gz") as tar:
        for member in tar:
            if member.name in wanted:
                file = tar.extractfile(member)
                assert file is not None, f"{member.name} is not a file in an archive whose sum is right"
                members[wanted[member.name]] = file.read()
    return members


def _members_of_folder(archive: Archive, root: Path) -> dict[str, bytes]:
    folder = root / archive.folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{root} holds neither {archive.file} nor {archive.folder}/: download {archive.url} (md5 {archive.md5}) "
            "into it, or give --data.root the folder that holds one of them"
        )
    for name, md5 in (*archive.train, *archive.test):
        _check_md5(folder / name, md5, archive)
    return {name: (folder / name).read_bytes() for name, _ in (*archive.train, *archive.test)}


def _check_md5(path: Path, expected: str, archive: Archive) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing (md5 {expected}): unpack {archive.url} again")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} has md5 {found}, but the official file has {expected}: it is incomplete or altered; "
            f"remove it and download {archive.url} again"
        )
