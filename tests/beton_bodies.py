"""Files and functions for test_beton_store.py, run in a separate process so that a crash or hang cannot end the tests.

python -m tests.beton_bodies FOLDER: prints one line of JSON.
"""

# FFCV is optional, so its imports may be missing.
# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.ffcv.beton import Beton
from pipelines.data.ffcv.store import BetonStore
from pipelines.data.loader import Loader
from pipelines.data.loading.folder import FolderStore
from pipelines.data.loading.geometry import Geometry, PadCrop, ResizedCrop
from pipelines.data.loading.views import Finish, Opened, Request, Store, View
from pipelines.data.source import Pixels

CPU = torch.device("cpu")
NOTHING: frozenset[str] = frozenset()
PLAIN = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
"""Mean and standard deviation that leave pixel values unchanged."""


def photos(num: int, seed: int = 0, low: int = 60, high: int = 150) -> list[np.ndarray]:
    """Smooth random images (H, W, 3) of many sizes."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        height, width = generator.integers(low, high, 2).tolist()
        coarse = torch.from_numpy(generator.random((1, 3, 6, 6)))
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        found.append((smooth[0].permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy())
    return found


def write(path: Path, images: list[np.ndarray] | np.ndarray, labels: list[int], **options: Any) -> Path:
    """Write a file with FFCV's own writer. options: of its RGBImageField."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields: Mapping[str, Any] = {"image": RGBImageField(**options), "label": IntField()}
    rows = list(zip(images, labels, strict=True))
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(rows)
    return path


def store(files: Mapping[str, Path], geometry: Geometry, workers: int = 2, **other: Any) -> BetonStore:
    opened = {name: Beton.open(path) for name, path in files.items()}
    mean, std = other.get("normal", PLAIN)
    finish = Finish(mean, std, other.get("device", CPU), other.get("dtype", torch.float32))
    return BetonStore(opened, geometry, finish, workers)


def loader(store: Store, labels: Mapping[str, Tensor], size: int, val_fraction: float = 0.0) -> Loader:
    num_classes = int(max(part.max() for part in labels.values())) + 1
    return Loader(Opened(store, labels, num_classes, (3, size, size), "x"), val_fraction, 3)


def request(rows: list[int], key: int | None = None, size: int | None = None) -> Request:
    index = torch.tensor(rows)
    return Request("train", index, index, {"images": View(index, index, key, size)})


def error_of(path: Path, rows: list[int], geometry: Geometry | None = None, num_classes: int | None = None) -> str:
    """The error of reading `rows`; "nothing" if there is none."""
    try:
        opened = Beton.open(path, num_classes)
        reader = BetonStore({"train": opened}, geometry or ResizedCrop(32, 32), Finish(*PLAIN, CPU, torch.float32), 2)
        list(reader.read([request([0, 1]), request(rows), request([2])]))
    except (ValueError, FileNotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def errors(folder: Path) -> dict[str, str]:
    """The errors of reading jpg.beton, damaged in different ways."""
    whole = (folder / "jpg.beton").read_bytes()
    images = Beton.open(folder / "jpg.beton").images

    def damaged(name: str, content: bytes) -> Path:
        path = folder / f"{name}.beton"
        path.write_bytes(content)
        return path

    def zeroed(row: int, first: float, last: float) -> bytes:
        """The file with a range of the bytes of an image set to zero. first, last: as shares of these bytes."""
        start, size = images[row, :2].tolist()
        found = bytearray(whole)
        found[start + int(first * size) : start + int(last * size)] = bytes(int(last * size) - int(first * size))
        return bytes(found)

    cuts = {"0": 0, "10": 10, "100": 100, "3000": 3000, "half": len(whole) // 2, "24": -24, "1": -1}
    found = {f"cut {name}": error_of(damaged(f"cut-{name}", whole[:at]), [1]) for name, at in cuts.items()}
    for name, (first, last) in {"image": (0, 1), "end": (0.9, 1), "middle": (0.4, 0.6)}.items():
        found[f"zeros {name}"] = error_of(damaged(f"zeros-{name}", zeroed(5, first, last)), [4, 5, 6])
    found["version"] = error_of(damaged("version", b"\x03\x00" + whole[2:]), [1])
    found["other"] = error_of(damaged("other", b"RIFF" * 1000), [1])
    found["whole"] = error_of(folder / "jpg.beton", [5])
    found["label"] = error_of(folder / "jpg.beton", [1], num_classes=4)
    found["above"] = error_of(folder / "jpg.beton", [1, len(images)])
    found["below"] = error_of(folder / "jpg.beton", [-1])
    found["small"] = error_of(folder / "jpg.beton", [1], PadCrop(200, 4, True))
    found["absent"] = error_of(folder / "absent.beton", [1])
    return found


def _status() -> dict[str, int]:
    gc.collect()
    time.sleep(0.2)  # the system removes a thread slightly later than Python joins it
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"threads": int(words["Threads"]), "memory": int(words["VmRSS"].split()[0]) >> 10}


def flat(folder: Path) -> dict[str, dict[str, int]]:
    """Threads and MB after a few epochs, after 50 more, and after 50 iterators that were abandoned."""
    reader = store({"train": folder / "jpg.beton", "test": folder / "raw.beton"}, ResizedCrop(160, 180))
    labels = {"train": Beton.open(folder / "jpg.beton").labels, "test": Beton.open(folder / "raw.beton").labels}
    data = loader(reader, labels, 160)

    def epochs(num: int) -> None:
        for epoch in range(num):
            assert len(list(data.epoch("train", epoch, 4, NOTHING))) == len(labels["train"]) // 4
            list(data.evaluation("test", 8))

    def abandoned(num: int) -> None:
        for epoch in range(num):
            batches = data.epoch("train", epoch, 2, NOTHING)
            next(batches)
            if epoch % 3 == 0:
                batches.close()  # pyright: ignore[reportAttributeAccessIssue] (it is a generator)
            if epoch % 3 == 1:  # only the garbage collector can delete it
                cycle: list[Any] = [batches]
                cycle.append(cycle)
                del batches, cycle
                gc.collect()

    epochs(5)
    abandoned(5)
    found = {"before": _status()}
    epochs(50)
    found["epochs"] = _status()
    abandoned(50)
    found["abandoned"] = _status()
    reader.close()
    found["closed"] = {"threads": _status()["threads"]}
    return found


def forks(folder: Path) -> dict[str, Any]:
    """Fork processes after using the store: workers of the folder backend, and a child that reads from the store."""
    reader = store({"train": folder / "raw.beton"}, ResizedCrop(32, 32))
    first = next(reader.read([request([0, 1])]))
    pixels = np.zeros((8, 32, 32, 3), np.uint8)
    part = Pixels(pixels, torch.zeros(8, dtype=torch.int64), "zeros")
    files = FolderStore({"train": part}, ResizedCrop(32, 32), Finish(*PLAIN, CPU, torch.float32), 2)
    found = {"folder": [len(batch) for batch in files.read([request([0, 1, 2], 1), request([3], 1)])]}
    if not (child := os.fork()):
        os._exit(0 if torch.equal(next(reader.read([request([0, 1])])).images, first.images) else 1)
    found["child"] = [os.waitpid(child, 0)[1]]
    return found


def left_open(folder: Path) -> dict[str, str]:
    """Leave an iterator open when the process ends."""
    global kept
    kept = store({"train": folder / "jpg.beton"}, ResizedCrop(256, 256)).read(
        request([0, 1, 2], 1) for _ in range(10**6)
    )
    next(kept)
    return {"left": "open"}


def imported(folder: Path) -> dict[str, int]:
    """torch's number of threads after the first use, and the threads that are left after closing the store."""
    torch.set_num_threads(2)
    reader = store({"train": folder / "raw.beton"}, ResizedCrop(512, 512))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = _status()["threads"]
    next(reader.read([request([0, 1, 2, 3])]))
    reader.close()
    return {"torch": num_threads, "more": _status()["threads"] - before}


if __name__ == "__main__":
    where, found = Path(sys.argv[1]), {}
    for body in (imported, errors, flat, forks, left_open):  # the last leaves its iterator open
        began = time.perf_counter()
        found[body.__name__] = body(where)
        print(f"{body.__name__}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    print(json.dumps(found))
