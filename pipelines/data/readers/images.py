"""Any folder of images: train/<class>/* with test/<class>/* or val/<class>/*. It has no official counts."""

from pathlib import Path

from pipelines.data.readers import checks, image_folders
from pipelines.data.source import IMAGENET_MEAN, IMAGENET_STD, Source


def read(root: str | Path, name: str) -> Source:
    """The images below `root`. name: in tables. Errors as `image_folders.scan`."""
    classes, train, test = image_folders.scan(root, ("test", "val"))
    identity = checks.fingerprint_of_files(train, test)
    return Source(name, tuple(classes), {"train": train, "test": test}, IMAGENET_MEAN, IMAGENET_STD, identity)
