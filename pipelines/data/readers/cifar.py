"""CIFAR-10 and CIFAR-100 from their official archives of pickles."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from pipelines.data.readers import checks, pickles
from pipelines.data.readers.checks import Whole
from pipelines.data.source import RGB, Pixels, Source, pixel_fingerprint

# In the order of their labels, as in the archives' meta files; CIFAR-100's fine classes.
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR10_CLASSES, CIFAR100_CLASSES = tuple(_CIFAR10.split()), tuple(_CIFAR100.split())


@dataclass(frozen=True)
class Archive:
    """An official archive of pickled batches.

    train, test: (file name, md5) of the members in `folder`; meta: the member that names the classes.
    """

    file: str
    url: str
    md5: str
    folder: str
    train: Sequence[Sequence[str]]
    test: Sequence[Sequence[str]]
    meta: Mapping[str, str]
    labels_key: str
    classes: tuple[str, ...]
    mean: RGB
    std: RGB


def _archive(known: type[datasets.CIFAR10], **others: Any) -> Archive:
    """With torchvision's names, address and md5 sums."""
    files, folder = (known.train_list, known.test_list, known.meta), known.base_folder
    return Archive(known.filename, known.url, known.tgz_md5, folder, *files, **others)


ARCHIVES: dict[str, Archive] = {
    "cifar10": _archive(
        datasets.CIFAR10,
        labels_key="labels",
        classes=CIFAR10_CLASSES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _archive(
        datasets.CIFAR100,
        labels_key="fine_labels",
        classes=CIFAR100_CLASSES,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


@dataclass(frozen=True)
class _Found:
    """members: name -> bytes. folder: where they are, for messages. altered: files without the official md5."""

    members: dict[str, bytes]
    folder: str
    altered: tuple[str, ...]


def read(name: str, root: str | Path) -> Source:
    """ "cifar10" or "cifar100" from the archive in `root`, otherwise from the unpacked folder.

    With the official md5 it is complete; otherwise `Source.missing` says what differs.
    FileNotFoundError: a file is missing. ValueError: a file is damaged or in another format.
    """
    archive, root = ARCHIVES[name], Path(root)
    found = _in_archive(archive, root) if (root / archive.file).exists() else _in_folder(archive, root)
    try:
        _check_meta(archive, found)
        parts = {part: _part(archive, found, part) for part in ("train", "test")}
    except ValueError as error:
        raise ValueError("; ".join([str(error), *found.altered])) from error
    missing, fingerprint = found.altered, archive.md5[:16]
    if found.altered:
        num_classes = len(archive.classes)
        missing += Whole(num_classes, train=50_000, test=10_000).missing(num_classes, parts)
        pixels = {part: found.pixels for part, found in parts.items()}
        fingerprint = pixel_fingerprint(pixels, {part: found.labels for part, found in parts.items()})
    return Source(name, archive.classes, parts, archive.mean, archive.std, fingerprint, missing)


def _in_archive(archive: Archive, root: Path) -> _Found:
    path = root / archive.file
    altered = _altered(path, archive.md5, archive)
    prefix, needed = f"{archive.folder}/", {name for name, _ in (*archive.train, *archive.test)}

    def wanted(member: str) -> str | None:
        name = member.removeprefix("./").removeprefix(prefix)
        return name if name in needed or name == archive.meta["filename"] else None

    remedy = "".join(f"; {each}" for each in altered)
    members = checks.unpacked(path, wanted, remedy)
    if missing := sorted(needed - members.keys()):
        raise ValueError(f"{path} has no {', '.join(prefix + name for name in missing)}{remedy}")
    return _Found(members, f"{path}:{archive.folder}", altered)


def _in_folder(archive: Archive, root: Path) -> _Found:
    folder = root / archive.folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{root} holds neither {archive.file} nor {archive.folder}/: download {archive.url} (md5 {archive.md5}) "
            "into it, or give --data.root the folder that holds one of them"
        )
    altered: list[str] = []
    for name, md5 in (*archive.train, *archive.test):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing (md5 {md5}): unpack {archive.url} again")
        altered += _altered(folder / name, md5, archive)
    meta = archive.meta["filename"]
    members = {name: (folder / name).read_bytes() for name, _ in (*archive.train, *archive.test)}
    if (folder / meta).is_file():
        members[meta] = (folder / meta).read_bytes()
    return _Found(members, str(folder), tuple(altered))


def _altered(path: Path, md5: str, archive: Archive) -> tuple[str, ...]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found == md5:
        return ()
    return (
        f"{path} has md5 {found}, but the official file has {md5}: it is incomplete or altered; remove it and "
        f"download {archive.url} again",
    )


def _check_meta(archive: Archive, found: _Found) -> None:
    """The official class names, where the member that lists them is present."""
    name, key = archive.meta["filename"], archive.meta["key"]
    if name not in found.members:
        return
    where = f"{found.folder}/{name}"
    entry = pickles.load(found.members[name], where)
    if not isinstance(entry, dict) or entry.get(key) != list(archive.classes):
        raise ValueError(f"{where} does not list the official classes in their order under {key!r}")


def _part(archive: Archive, found: _Found, part: str) -> Pixels:
    names = [name for name, _ in (archive.train if part == "train" else archive.test)]
    batches = [_batch(archive, found.members[name], f"{found.folder}/{name}") for name in names]
    images, labels = zip(*batches, strict=True)
    return Pixels(np.concatenate(images), torch.cat(labels), f"{part} part of {found.folder}")


def _batch(archive: Archive, content: bytes, where: str) -> tuple[np.ndarray, Tensor]:
    """(N, 32, 32, 3) uint8 and (N,) int64 of one pickle. ValueError: it is in another format."""
    entry = pickles.load(content, where)
    if not isinstance(entry, dict) or not {"data", archive.labels_key} <= entry.keys():
        raise ValueError(f"{where} must hold a dict with 'data' and {archive.labels_key!r}")
    data, labels = entry["data"], entry[archive.labels_key]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or not len(data):
        raise ValueError(f"{where} must hold N x 3072 bytes under 'data', one image per row")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(f"{where} must hold a list of {len(data)} labels, one per image")
    num_classes = len(archive.classes)
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < num_classes]
    if wrong:
        raise ValueError(f"{where} has the label {wrong[0]!r}: labels must be integers from 0 to {num_classes - 1}")
    images = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, torch.tensor(labels, dtype=torch.int64)
