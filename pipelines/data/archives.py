"""CIFAR-10 and CIFAR-100 from their official archives of pickles, each checked against its published sum first."""

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
from torchvision import datasets

from pipelines.data.sources import RGB, Arrays


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


def read_archive(name: str, root: str | Path) -> Arrays:
    """CIFAR-10 or CIFAR-100 from the archive in `root`, or else from the folder unpacked from it.

    FileNotFoundError: neither is there. ValueError: a file's md5 is not the official one.
    """
    archive, root = ARCHIVES[name], Path(root)
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
