"""Tiny-ImageNet (200 classes, 64 pixels) from its official zip, read in place, or from the unpacked folder."""

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from pipelines.data.readers import checks
from pipelines.data.readers.checks import Whole
from pipelines.data.source import MOST_BYTES, RGB, Files, Source, ZipMembers

ARCHIVE, FOLDER = "tiny-imagenet-200.zip", "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
WHOLE = Whole(classes=200, train=100_000, test=10_000, train_each=500, test_each=50)
# As in the code of Prune-then-Distill.
MEAN: RGB = (0.480, 0.448, 0.397)
STD: RGB = (0.276, 0.269, 0.282)

_ANNOTATIONS = "val/val_annotations.txt"
# Of a zip's members: a flag bit, and the compression types that ZipMembers reads.
_ENCRYPTED, _READABLE = 1, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

Sample = tuple[str, str, str]
"""wnid, file name, path below the data set's folder. Sorted, they have the order of the rearranged folder."""


def read(root: str | Path) -> Source:
    """tiny-imagenet-200.zip or tiny-imagenet-200/ in `root`, or the latter's content in `root` itself.

    The official layout with val/val_annotations.txt, or the usual rearranged one, val/<wnid>/*.JPEG. Order and
    fingerprint are the same in each form. Classes are numbered by sorted wnid, as torchvision's ImageFolder does. The
    official validation part is "test"; the official test part has no labels and is not used.

    FileNotFoundError, ValueError: files are missing or damaged.
    """
    tree = _find(Path(root))
    train = _by_class(tree, "train")
    classes = sorted({wnid for wnid, _, _ in train})
    is_official = any(name.startswith("val/images/") and _is_image(name) for name in tree.names)
    test = _annotated(tree, classes) if is_official else _by_class(tree, "val")
    checks.check_known((wnid for wnid, _, _ in test), classes, f"{tree.where('val/')} has classes", "train/")
    if (wnids := tree.text("wnids.txt")) is not None:
        where = tree.where("wnids.txt")
        listed = (words[0] for _, words in checks.rows(wnids, where, columns=1))
        checks.check_known(classes, listed, "train/ has folders", where, ": remove them")
    parts = {
        part: tree.part([name for _, _, name in found], checks.labels(found, classes))
        for part, found in (("train", train), ("test", test))
    }
    as_rearranged = checks.as_folders({"train": train, "val": test})
    identity = checks.fingerprint(as_rearranged, tree.sizes([name for _, _, name in (*train, *test)]))
    return Source("tiny-imagenet", tuple(classes), parts, MEAN, STD, identity, WHOLE.missing(len(classes), parts))


@dataclass(frozen=True)
class _Folder:
    """names: of all files in train/ and val/, and of their folders, with a slash at the end."""

    root: Path
    names: Sequence[str]

    def where(self, name: str) -> str:
        return str(self.root / name)

    def text(self, name: str) -> bytes | None:
        """None: it is missing."""
        return (self.root / name).read_bytes() if (self.root / name).is_file() else None

    def sizes(self, names: Sequence[str]) -> list[int]:
        return checks.sizes([self.root / name for name in names])

    def part(self, names: Sequence[str], labels: Tensor) -> Files:
        return Files(self.root, np.array([os.fsencode(name) for name in names]), labels)


@dataclass(frozen=True)
class _Zip:
    """members: all of the archive, by their names below `prefix`, which have the form of _Folder's."""

    path: Path
    prefix: str
    members: Mapping[str, zipfile.ZipInfo]

    @property
    def names(self) -> Sequence[str]:
        return [*self.members]

    def where(self, name: str) -> str:
        return f"{self.path}:{self.prefix}{name}"

    def text(self, name: str) -> bytes | None:
        with zipfile.ZipFile(self.path) as archive:
            try:
                self._check(archive.getinfo(self.prefix + name))
                return archive.read(self.prefix + name)
            except KeyError:
                return None
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError) as error:
                raise ValueError(f"{self.where(name)} cannot be read ({error}): download {URL} again") from error

    def sizes(self, names: Sequence[str]) -> list[int]:
        return [self.members[name].file_size for name in names]

    def _check(self, member: zipfile.ZipInfo) -> None:
        """ValueError: a member lies beyond the end of the archive, or is too large to be what it is named."""
        if member.header_offset + member.compress_size > self.path.stat().st_size or member.file_size > MOST_BYTES:
            raise ValueError(
                f"{self.path}:{member.filename} has {member.compress_size} bytes at {member.header_offset}, unpacked "
                f"{member.file_size}: it is damaged, download {URL} again"
            )

    def part(self, names: Sequence[str], labels: Tensor) -> ZipMembers:
        found = [self.members[name] for name in names]
        for member in found:
            self._check(member)
            if member.flag_bits & _ENCRYPTED or member.compress_type not in _READABLE:
                raise ValueError(
                    f"{self.path}:{member.filename} is encrypted or not compressed by deflate: download {URL} again"
                )
        return ZipMembers(
            self.path,
            np.array([os.fsencode(member.filename) for member in found]),
            np.array([member.header_offset for member in found], np.int64),
            np.array([member.compress_size for member in found], np.int64),
            labels,
            np.array([member.compress_type == zipfile.ZIP_DEFLATED for member in found]),
            np.array([member.CRC for member in found], np.uint32),
        )


def _find(root: Path) -> _Folder | _Zip:
    if (root / ARCHIVE).is_file():
        return _zip(root / ARCHIVE)
    for folder in (root / FOLDER, root):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return _Folder(folder, [name for part in ("train", "val") for name in _walk(folder, part)])
    raise FileNotFoundError(
        f"{root} holds neither {ARCHIVE} nor {FOLDER}/ with train/ and val/: download {URL} into it, or give "
        "--data.root the folder that holds one of them"
    )


def _walk(root: Path, part: str) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root / part):
        below = Path(folder).relative_to(root).as_posix()
        found += [f"{below}/{name}/" for name in folders] + [f"{below}/{name}" for name in files]
    return found


def _zip(path: Path) -> _Zip:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
    except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable zip archive ({error}): remove it and download {URL} again"
        ) from error
    prefix = f"{FOLDER}/" if any(name.startswith(f"{FOLDER}/") for name in members) else ""
    tree = _Zip(path, prefix, {name.removeprefix(prefix): member for name, member in members.items()})
    for part in ("train/", "val/"):
        if not any(name.startswith(part) for name in tree.names):
            raise ValueError(f"{tree.where(part)} is missing: remove {path} and download {URL} again")
    return tree


def _by_class(tree: _Folder | _Zip, part: str) -> list[Sample]:
    """<part>/<wnid>/*.JPEG or <part>/<wnid>/images/*.JPEG. FileNotFoundError: a class has no image."""
    folders, samples = set(), []
    for name in tree.names:
        # Rearranging leaves an empty folder val/images/.
        top, *below = PurePosixPath(name).parts
        if top != part or not below or (len(below) == 1 and not name.endswith("/")) or name.startswith("val/images/"):
            continue
        folders.add(below[0])
        if _is_image(name):
            samples.append((below[0], below[-1], name))
    empty = [tree.where(f"{part}/{wnid}") for wnid in sorted(folders - {wnid for wnid, _, _ in samples})]
    if empty:
        raise FileNotFoundError(f"no image in {checks.some(empty)}: put images there or remove the folder")
    if not samples:
        raise FileNotFoundError(f"no image in {tree.where(part)}: download {URL} again")
    return sorted(samples)


def _annotated(tree: _Folder | _Zip, classes: Sequence[str]) -> list[Sample]:
    """val/images/* with the labels of val/val_annotations.txt."""
    where, text = tree.where(_ANNOTATIONS), tree.text(_ANNOTATIONS)
    if text is None:
        raise FileNotFoundError(f"{where} is missing, which has the labels of val/images: unpack {ARCHIVE} again")
    images = {PurePosixPath(name).name for name in tree.names if name.startswith("val/images/") and _is_image(name)}
    samples: dict[str, Sample] = {}
    for number, (file, wnid, *_) in checks.rows(text, where, columns=2):
        if wnid not in classes:
            raise ValueError(f"{where}, line {number}: the class {wnid} is missing from train/: unpack {ARCHIVE} again")
        if file not in images:
            raise FileNotFoundError(f"{where}, line {number}: {tree.where(f'val/images/{file}')} is missing")
        if file in samples:
            raise ValueError(f"{where}, line {number}: {file} occurs twice: unpack {ARCHIVE} again")
        samples[file] = (wnid, file, f"val/images/{file}")
    unnamed = sorted(images - samples.keys())
    if unnamed:
        raise ValueError(f"{where} has no labels for {checks.some(unnamed)}: remove them or unpack {ARCHIVE} again")
    return sorted(samples.values())


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)
