"""ImageNet (ILSVRC-2012) from its official tars, read in place, or from the usual folders."""

import hashlib
from pathlib import Path

from pipelines.data.readers import checks, image_folders, imagenet_tars
from pipelines.data.readers.checks import Whole
from pipelines.data.source import IMAGENET_MEAN, IMAGENET_STD, Files, Source

WHOLE = Whole(classes=1000, train=1_281_167, test=50_000, test_each=50)
CLASSES_SHA256 = "385e0240499426c0"
"""Of the 1,000 sorted wnids, one per line."""


def read(root: str | Path, name: str = "imagenet") -> Source:
    """train/<wnid>/* and val/<wnid>/* in `root`, otherwise the two official tars with the devkit. val is "test".

    Classes are numbered by sorted wnid, as usual, not by the devkit's ILSVRC2012_ID. Order and fingerprint are the
    same in both forms. Another `name`: another set in this layout, without official counts.

    FileNotFoundError, ValueError: files are missing or damaged.
    """
    root = Path(root)
    if not (root / "train").is_dir() and imagenet_tars.are_in(root):
        classes, train, test, identity = imagenet_tars.read(root)
    else:
        classes, train, test = _folders(root)
        identity = checks.fingerprint_of_files(train, test)
    parts = {"train": train, "test": test}
    missing = ()
    if name == "imagenet":
        missing = (*WHOLE.missing(len(classes), parts), *_other_classes(classes))
    return Source(name, tuple(classes), parts, IMAGENET_MEAN, IMAGENET_STD, identity, missing)


def _folders(root: Path) -> tuple[list[str], Files, Files]:
    train, val = root / "train", root / "val"
    if not (train.is_dir() and val.is_dir()):
        raise FileNotFoundError(
            f"{root} must hold train/<class>/* and val/<class>/*, or {', '.join(imagenet_tars.FILES)}: give "
            "--data.root the folder that does"
        )
    if not any(path.is_dir() for path in val.iterdir()):
        raise FileNotFoundError(
            f"{val} has no class folders: sort its images into val/<wnid>/ by the devkit, or keep the official tars, "
            "which are read directly"
        )
    return image_folders.scan(root, ("val",))


def _other_classes(classes: list[str]) -> tuple[str, ...]:
    if len(classes) != WHOLE.classes:  # already reported
        return ()
    found = hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]
    return () if found == CLASSES_SHA256 else ("its classes are not the official 1,000",)
