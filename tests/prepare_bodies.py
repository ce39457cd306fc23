"""What test_prepare.py runs in processes of their own, so that nothing there can hang or end the tests.

python -m tests.prepare_bodies NAME ARGUMENTS...
"""

# FFCV is optional, so its imports may be missing.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines import prepare
from pipelines.data.preparing.process_pool import in_order
from pipelines.data.preparing.sets import SETS
from pipelines.data.source import Source

HALF = (0.5, 0.5, 0.5)
ODD_ROW = 40
"""From here on a part of Odd images does what it is there for."""


@dataclass(frozen=True)
class Odd:
    """96 images of one colour each, two classes. kind: what happens at ODD_ROW. marks: folder for the workers' ids."""

    kind: str
    marks: Path

    @property
    def labels(self) -> Tensor:
        return torch.arange(len(self)) % 2

    def __len__(self) -> int:
        return 96

    def name(self, row: int) -> str:
        return f"odd {row}"

    def encoded(self, row: int) -> None:
        return None

    def image(self, row: int) -> Image.Image:
        if row >= ODD_ROW:
            self._misbehave(row)
        return Image.fromarray(np.full((64, 64, 3), row, np.uint8))

    def _misbehave(self, row: int) -> None:
        if self.kind == "slow":
            (self.marks / f"{os.getpid()}").touch()
            time.sleep(30)
        elif self.kind == "steady" and row == ODD_ROW:
            time.sleep(2)
        elif self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "wrong":
            raise KeyError("wrong on purpose")


def odd(kind: str, marks: Path) -> Source:
    part = Odd(kind, marks)
    return Source("odd", ("a", "b"), {"train": part, "test": part}, HALF, HALF, "0" * 16)


def command(kind: str, out: str, marks: str, *options: str) -> int:
    """The command line on an Odd source."""
    if kind == "limited":  # as a full disk: what is beyond cannot be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))
    SETS["imagenet"] = replace(SETS["imagenet"], read=lambda root, name: odd(kind, Path(marks)))
    workers = options or ("--workers", "2")
    return prepare.main(["imagenet", "--source", ".", "--out", out, "--preset", "raw", *workers])


def without_ffcv(out: str) -> int:
    sys.modules["ffcv"] = None  # pyright: ignore[reportArgumentType] (Python's own way to block an import)
    return prepare.main(["images", "--source", ".", "--out", out])


def read(fixed: str, sizes: str, boxes: str, out: str) -> int:
    """With FFCV's own Loader: two folders for classification and one for detection, all of one size, to arrays."""
    found: dict[str, Any] = {}
    for name, folder, fields in (
        ("fixed", fixed, ("image", "label")),
        ("sizes", sizes, ("image", "label")),
        ("boxes", boxes, ("image", "boxes", "classes", "difficult")),
    ):
        for field, values in _loaded(Path(folder) / "train.beton", fields, os_cache=name == "fixed").items():
            found[f"{name}/{field}"] = values
    np.savez(out, **found)
    return 0


def _loaded(path: Path, fields: tuple[str, ...], os_cache: bool) -> dict[str, np.ndarray]:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.compiler import Compiler
    from ffcv.transforms import ToTensor

    Compiler.set_enabled(False)  # the same functions, without the time that compiling them takes
    decoders = {"image": SimpleRGBImageDecoder, "label": IntDecoder}
    loader = Loader(
        str(path),
        batch_size=4,
        num_workers=1,
        os_cache=os_cache,  # or else by pages
        order=OrderOption.SEQUENTIAL,
        pipelines={field: [decoders.get(field, NDArrayDecoder)(), ToTensor()] for field in fields},
    )
    batches = [[values.clone() for values in batch] for batch in loader]
    # FFCV gives the fields in the file's order, whatever is asked.
    names = list(loader.reader.field_names)
    return {name: torch.cat(values).numpy() for name, values in zip(names, zip(*batches, strict=True), strict=True)}


def _slow_at_first(item: int) -> tuple[int, int]:
    if item == 0:
        time.sleep(0.5)
    if item == 30 or item == 33:
        time.sleep(0.3 if item == 30 else 0)
        raise ValueError(f"wrong: {item}")
    return item, os.getpid()


def ordered() -> int:
    """Prints what came, how many processes did it, the error, and the processes that are left."""
    came, pids, error = [], set(), ""
    try:
        with closing(in_order(_slow_at_first, list(range(40)), 2, ["tests.prepare_bodies"])) as results:
            for item, pid in results:
                came.append(item)
                pids.add(pid)
    except ValueError as raised:
        error = str(raised)
    with closing(in_order(_slow_at_first, list(range(20)), 2, ["tests.prepare_bodies"])) as results:
        pids.add(next(results)[1])  # and the others are abandoned
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    print(json.dumps({"came": came, "pids": len(pids), "error": error, "left": left}))
    return 0


if __name__ == "__main__":
    # A shell in the background starts its children with Ctrl-C ignored, and Python then leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bodies: dict[str, Any] = {"command": command, "without_ffcv": without_ffcv, "read": read, "ordered": ordered}
    sys.exit(bodies[sys.argv[1]](*sys.argv[2:]))
