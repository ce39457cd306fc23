"""The contents of a data set's files: which files they are, and a fingerprint where the loader's covers no contents."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from cluster.records import sha256_of
from pipelines.data.config import CIFAR10, CIFAR100, CUB, TinyImageNet
from pipelines.data.source import Part

# hashlib and read release the GIL.
_THREADS = 8
_AT_ONCE = 64

NAMES: dict[type, tuple[str, ...]] = {
    CIFAR10: ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    CIFAR100: ("cifar-100-python.tar.gz", "cifar-100-python"),
    TinyImageNet: ("tiny-imagenet-200.zip", "tiny-imagenet-200"),
    CUB: ("CUB_200_2011",),
}
"""What a data set is called in a root that may hold others too. Of all others the whole root belongs to them."""


def files(config: Any) -> Iterator[Path]:
    """All files that the data may be read from, sorted; none: the data come with a package."""
    if not hasattr(config, "root"):
        return
    root = Path(config.root)
    named = [] if _backend(config) == "ffcv" else [root / name for name in NAMES.get(type(config), ())]
    for top in [path for path in named if path.exists()] or [root]:
        if top.is_file():
            yield top
        for folder, folders, names in os.walk(top, followlinks=True):
            folders.sort()
            yield from (Path(folder, name) for name in sorted(names))


def fingerprint(config: Any) -> str:
    """16 hexadecimal digits over the contents of all images and their labels; "": the loader's fingerprint covers them.

    Reads every file once. FileNotFoundError, ValueError: a file is missing, damaged, or not what prepare.py wrote.
    """
    if _backend(config) == "ffcv":
        _check_prepared(config)
    if _backend(config) != "folder":
        return ""
    from pipelines.data import readers  # imports torchvision, which takes seconds

    source = readers.source(config)
    digest = hashlib.sha256()
    for name in ("train", "test"):
        digest.update(source.parts[name].labels.numpy().tobytes())
        for image in _images(source.parts[name]):
            digest.update(image)
    return digest.hexdigest()[:16]


def _images(part: Part) -> Iterator[bytes]:
    """The sha256 of each image file, in order."""

    def hashes(start: int) -> list[bytes]:
        rows = range(start, min(start + _AT_ONCE, len(part)))
        return [hashlib.sha256(part.encoded(row) or part.image(row).tobytes()).digest() for row in rows]

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from chain.from_iterable(pool.map(hashes, range(0, len(part), _AT_ONCE)))


def _check_prepared(config: Any) -> None:
    """ValueError: a prepared file is not the one that its manifest describes."""
    from pipelines.data.preparing import manifest

    found = manifest.read(config.root)
    for name, part in found.parts.items():
        if sha256_of(found.path(name)) != part.sha256:
            raise ValueError(
                f"{found.path(name)} is damaged: it does not have the sha256 in its manifest: prepare {config.root} "
                "again with --overwrite"
            )


def _backend(config: Any) -> str:
    """How its files are read; data of a package are held in memory."""
    return getattr(config, "backend", "memory")
