"""ImageNet's official archives, read in place: a tar with one tar per class, a tar of images, and the labels."""

import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from pipelines.data.readers import checks
from pipelines.data.source import Members

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
FILES = (TRAIN, VAL, DEVKIT)

_PAGE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
_WHAT = {
    TRAIN: "the training images (Task 1 & 2)",
    VAL: "the validation images (all tasks)",
    DEVKIT: "the development kit (Task 1 & 2), which has the labels of the validation images",
}
_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True, order=True)
class TarMember:
    """A file in a tar. start, size: its first byte in the file on disk, and its length."""

    name: str
    start: int
    size: int


Sample = tuple[str, str, TarMember]


def are_in(root: Path) -> bool:
    return any((root / name).is_file() for name in FILES)


def read(root: Path) -> tuple[list[str], Members, Members, str]:
    """Sorted wnids, training part, validation part and fingerprint.

    FileNotFoundError: one of the three files is missing. ValueError: they are damaged or inconsistent.
    """
    for name in FILES:
        if not (root / name).is_file():
            raise FileNotFoundError(f"{root / name} is missing: download {_WHAT[name]} from {_PAGE} and put it there")
    wnid_of, truth = _devkit(root / DEVKIT)
    train = _train(root / TRAIN)
    classes = sorted({wnid for wnid, _, _ in train})
    checks.check_known(classes, wnid_of.values(), f"{root / TRAIN} has classes", root / DEVKIT)
    val = _val(root / VAL, root / DEVKIT, wnid_of, truth)
    checks.check_known((wnid for wnid, _, _ in val), classes, f"{root / VAL} has images of classes", root / TRAIN)
    names = checks.as_folders({"train": train, "val": val})
    identity = checks.fingerprint(names, [member.size for _, _, member in (*train, *val)])
    return classes, _part(root / TRAIN, train, classes), _part(root / VAL, val, classes), identity


def _train(path: Path) -> list[Sample]:
    found: dict[str, list[Sample]] = {}
    with path.open("rb") as file:
        for archive in members(file, str(path)):
            wnid, suffix = os.path.splitext(PurePosixPath(archive.name).name)
            if suffix != ".tar":
                raise ValueError(f"{path} holds {archive.name}, but official members are <wnid>.tar: download it again")
            if wnid in found:
                raise ValueError(f"{path} holds {archive.name} twice: download it again")
            inside = members(file, f"{path}:{archive.name}", archive.start, archive.start + archive.size)
            named = [TarMember(f"{archive.name}/{member.name}", member.start, member.size) for member in inside]
            found[wnid] = [(wnid, PurePosixPath(member.name).name, member) for member in named if _is_image(member)]
            if not found[wnid]:
                raise ValueError(f"no image in {path}:{archive.name}: download {path} again")
    if not found:
        raise ValueError(f"{path} is empty: download it again")
    return sorted(sample for samples in found.values() for sample in samples)


def _val(path: Path, devkit: Path, wnid_of: dict[int, str], truth: Sequence[tuple[int, int]]) -> list[Sample]:
    """Line k of the ground truth is the class of the k-th image by name."""
    with path.open("rb") as file:
        images = [(PurePosixPath(member.name).name, member) for member in members(file, str(path)) if _is_image(member)]
    if len(images) != len(truth):
        raise ValueError(
            f"{path} holds {len(images)} images, but {devkit}:{_TRUTH} has {len(truth)} lines: one of them is "
            "incomplete, download both again"
        )
    if not images:
        raise ValueError(f"no image in {path}: download it again")
    found = []
    for (number, synset), (name, member) in zip(truth, sorted(images), strict=True):
        if synset not in wnid_of:
            raise ValueError(
                f"{devkit}:{_TRUTH}, line {number}: {synset} is not the ILSVRC2012_ID of a class in {_META} "
                f"({min(wnid_of)} to {max(wnid_of)}): download it again"
            )
        found.append((wnid_of[synset], name, member))
    return sorted(found)


def _devkit(path: Path) -> tuple[dict[int, str], list[tuple[int, int]]]:
    """ILSVRC2012_ID -> wnid, and (line, ILSVRC2012_ID) of each validation image."""

    def wanted(member: str) -> str | None:
        return next((name for name in (_META, _TRUTH) if member.endswith(f"/{name}")), None)

    found = checks.unpacked(path, wanted, f": download it again from {_PAGE}")
    for name in (_META, _TRUTH):
        if name not in found:
            raise ValueError(f"{path} has no {name}: download it again from {_PAGE}")
    where = f"{path}:{_TRUTH}"
    lines = checks.rows(found[_TRUTH], where, columns=1)
    return _synsets(found[_META], f"{path}:{_META}"), [
        (number, checks.integer(words[0], where, number)) for number, words in lines
    ]


def _synsets(data: bytes, name: str) -> dict[int, str]:
    """ILSVRC2012_ID -> wnid of the leaves, which are the classes."""
    from scipy.io import loadmat

    try:
        synsets: Any = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        found = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets) if int(s["num_children"]) == 0}
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{name} is not the official table of synsets ({error}): get it from {_PAGE}") from error
    if not found:
        raise ValueError(f"{name} lists no class: download it again from {_PAGE}")
    return found


def _part(path: Path, samples: Sequence[Sample], classes: Sequence[str]) -> Members:
    return Members(
        path,
        np.array([os.fsencode(member.name) for _, _, member in samples]),
        np.array([member.start for _, _, member in samples], np.int64),
        np.array([member.size for _, _, member in samples], np.int64),
        checks.labels(samples, classes),
    )


def members(file: BinaryIO, name: str, start: int = 0, end: int | None = None) -> list[TarMember]:
    """The files of the tar in bytes `start` to `end` (None: the end) of `file`; `name`: of the tar.

    ValueError: it is damaged or truncated.
    """
    end = file.seek(0, os.SEEK_END) if end is None else end
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:  # starts at the current position
            found = []
            for member in tar:
                if not 0 <= member.size <= end - member.offset_data:
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes, beyond the end of the archive")
                if member.isfile():
                    found.append(TarMember(member.name, member.offset_data, member.size))
            stopped = tar.offset
    except (tarfile.TarError, OverflowError, MemoryError) as error:
        raise ValueError(f"{name} is not a readable tar archive ({error}): download it again") from error
    # tarfile stops silently at a damaged header. The real end is a block of zeros.
    file.seek(stopped)
    if stopped + tarfile.BLOCKSIZE > end or any(file.read(tarfile.BLOCKSIZE)):
        raise ValueError(f"{name} is damaged or truncated after {len(found)} files: download it again")
    return found


def _is_image(member: TarMember) -> bool:
    return member.name.lower().endswith(IMG_EXTENSIONS)
