"""Programs that test_prepare.py runs in processes of their own, so that they cannot stop or hang the tests.

python -m tests.prepare_bodies NAME ARGUMENTS...
"""

# FFCV is optional, so its imports may be missing.
# pyright: reportMissingImports=false

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import time
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
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
"""The first row at which an Odd part misbehaves."""


@dataclass(frozen=True)
class Odd:
    """96 images of one colour each, two classes. kind: what happens at ODD_ROW. marks: folder for process ids."""

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
            time.sleep(0.5)
        elif self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "wrong":
            raise KeyError("wrong on purpose")


def odd(kind: str, marks: Path) -> Source:
    part = Odd(kind, marks)
    return Source("odd", ("a", "b"), {"train": part, "test": part}, HALF, HALF, "0" * 16)


def command(kind: str, out: Path, marks: Path) -> int:
    """The exit status of the command line on an Odd source."""
    if kind == "limited":  # as a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))
    object.__setattr__(SETS["imagenet"], "read", lambda root, name: odd(kind, marks))
    return prepare.main(["imagenet", "--source", ".", "--out", str(out), "--preset", "raw", "--workers", "2"])


def stopped(folder: str) -> int:
    """Commands that are stopped from outside, one after the other. Prints the exit status of each."""
    for name in ("terminated", "interrupted", "killed"):
        marks = Path(folder) / f"{name}-marks"
        marks.mkdir()
        try:
            status = command("slow", Path(folder) / name / "out", marks)
        except SystemExit as end:
            status = end.code
        print(status, flush=True)
    return 0


def pools(folder: str) -> int:
    """Process pools one after the other in this process. Prints as JSON what each did."""
    found: dict[str, Any] = {"order": _ordered()}
    for kind in ("fine", "killed", "wrong", "limited"):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
            status = command(kind, Path(folder) / kind, Path(folder))
        found[kind] = [status, errors.getvalue()]
    print(json.dumps(found))
    return 0


def read(fixed: str, sizes: str, boxes: str, out: str) -> int:
    """Save what FFCV's own Loader reads from two folders for classification and one for detection."""
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

    Compiler.set_enabled(False)  # the same functions, not compiled
    decoders = {"image": SimpleRGBImageDecoder, "label": IntDecoder}
    loader = Loader(
        str(path),
        batch_size=4,
        num_workers=1,
        os_cache=os_cache,  # False: by pages
        order=OrderOption.SEQUENTIAL,
        pipelines={field: [decoders.get(field, NDArrayDecoder)(), ToTensor()] for field in fields},
    )
    batches = [[values.clone() for values in batch] for batch in loader]
    # FFCV returns the fields in the file's order.
    names = list(loader.reader.field_names)
    return {name: torch.cat(values).numpy() for name, values in zip(names, zip(*batches, strict=True), strict=True)}


def _slow_at_first(item: int) -> tuple[int, int]:
    if item == 0:
        time.sleep(0.5)
    if item == 30 or item == 33:
        time.sleep(0.3 if item == 30 else 0)
        raise ValueError(f"wrong: {item}")
    return item, os.getpid()


def _ordered() -> dict[str, Any]:
    """The results of `in_order`, the number of processes, the error, and the processes that are left."""
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
    return {"came": came, "pids": len(pids), "error": error, "left": left}


if __name__ == "__main__":
    # A shell in the background starts its children with Ctrl-C ignored, and Python keeps that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bodies: dict[str, Any] = {"stopped": stopped, "pools": pools, "read": read}
    sys.exit(bodies[sys.argv[1]](*sys.argv[2:]))
