"""The backend for .beton files: files of FFCV's writer, agreement with the other backends, damaged files."""

# FFCV is optional, so its imports may be missing.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data.ffcv.installed import threads_kept

with threads_kept():
    pytest.importorskip("ffcv", reason="FFCV is optional: make ffcv")

from pipelines.data.config import Augmentation
from pipelines.data.ffcv.beton import Beton
from pipelines.data.ffcv.format import JPEG, RAW
from pipelines.data.ffcv.kernels import kernels
from pipelines.data.loader import Loader
from pipelines.data.loading.arrays import Arrays
from pipelines.data.loading.folder import FolderStore
from pipelines.data.loading.geometry import PadCrop, Plan, ResizedCrop
from pipelines.data.loading.memory import MemoryStore
from pipelines.data.loading.views import NEEDS, Finish, View
from pipelines.data.readers.image_folders import centre
from pipelines.data.source import Files
from tests.beton_bodies import CPU, NOTHING, PLAIN, loader, photos, request, store, write

NORMAL = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """jpg.beton, raw.beton and images/N.png: the same 26 images of different sizes, labels 0 to 4."""
    folder = tmp_path_factory.mktemp("beton")
    images, labels = photos(26), [n % 5 for n in range(26)]
    write(folder / "raw.beton", images, labels, write_mode="raw")
    write(folder / "jpg.beton", images, labels, write_mode="jpg", jpeg_quality=95)
    (folder / "images").mkdir()
    for n, image in enumerate(images):
        Image.fromarray(image).save(folder / "images" / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Any:
    """The results of beton_bodies.py, from a process with a timeout."""
    command = [sys.executable, "-m", "tests.beton_bodies", str(folder)]
    root, environment = Path(__file__).parent.parent, {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return json.loads(done.stdout)  # one line: FFCV and numba have printed nothing


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    generator = np.random.default_rng(5)
    images = {
        part: generator.integers(0, 256, (num, 32, 32, 3), np.uint8) for part, num in (("train", 37), ("test", 13))
    }
    labels = {part: torch.from_numpy(generator.integers(0, 4, len(pixels))) for part, pixels in images.items()}
    return Arrays(images, labels, 4, *NORMAL, "x")


@pytest.fixture(scope="module")
def small(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`arrays` as .beton files."""
    folder = tmp_path_factory.mktemp("small")
    return {
        part: write(folder / f"{part}.beton", images, arrays.labels[part].tolist(), write_mode="raw")
        for part, images in arrays.images.items()
    }


# ---- the file


def test_images_labels_and_sizes_are_read_from_the_file(folder: Path) -> None:
    images = photos(26)
    raw, jpg = Beton.open(folder / "raw.beton", 5), Beton.open(folder / "jpg.beton", 5)
    for beton, mode in ((raw, RAW), (jpg, JPEG)):
        assert len(beton.images) == 26
        assert beton.labels.dtype == torch.int64
        assert beton.labels.tolist() == [n % 5 for n in range(26)]
        assert beton.sizes.tolist() == [list(image.shape[:2]) for image in images]
        assert beton.images[:, 2].tolist() == [mode] * 26
    for image, (start, size, *_) in zip(images, raw.images.tolist(), strict=True):
        assert bytes(raw.mapped[start : start + size]) == image.tobytes()
    for start, size, *_ in jpg.images.tolist():
        assert bytes(jpg.mapped[start : start + 2]) == b"\xff\xd8"
        assert bytes(jpg.mapped[start + size - 2 : start + size]) == b"\xff\xd9"


def test_other_fields_are_read_as_arrays(tmp_path: Path) -> None:
    from ffcv.fields import BytesField, FloatField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    boxes = np.random.default_rng(0).random((5, 3, 4)).astype(np.float32)
    rows = [(np.full((2, 3, 3), n, np.uint8), boxes[n], n / 8, np.zeros(3, np.uint8)) for n in range(5)]
    fields: Any = {
        "image": RGBImageField(),
        "boxes": NDArrayField(np.dtype("<f4"), (3, 4)),
        "weight": FloatField(),
        "text": BytesField(),
    }
    DatasetWriter(str(tmp_path / "a.beton"), fields, num_workers=1).from_indexed_dataset(rows)
    beton = Beton.open(tmp_path / "a.beton")
    assert np.array_equal(beton.field("boxes"), boxes)
    assert beton.field("weight").tolist() == [n / 8 for n in range(5)]
    with pytest.raises(ValueError, match=r'a.beton has no field "label", only boxes, image, text, weight'):
        _ = beton.labels
    with pytest.raises(ValueError, match=r'the field "text" is BytesField, not IntField or'):
        beton.field("text")


def test_missing_ffcv_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(ValueError, match="FFCV is not installed"):
        Beton.open(folder / "raw.beton")


# ---- the kernels, by hand


def decoded(image: np.ndarray, source: list[int], target: list[int], size: int) -> np.ndarray:
    """One picture of one raw image."""
    pictures, room = np.full((1, size, size, 3), 77, np.uint8), np.empty(size * size * 3, np.uint8)
    stored = np.array([[0, image.size, RAW, *image.shape[:2]]])
    boxes = np.array([source]), np.array([target])
    assert kernels().decode(image.ctypes.data, stored, *boxes, np.empty(0, np.uint8), room, pictures) == -1
    return pictures[0]


def test_images_of_the_right_size_are_copied_onto_black() -> None:
    image = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3) + 100
    picture = decoded(image, [1, 2, 2, 1], [0, 1, 2, 1], 3)
    assert picture[..., 0].tolist() == [[0, 118, 0], [0, 130, 0], [0, 0, 0]]
    assert picture[0, 1].tolist() == [118, 119, 120]
    assert np.array_equal(decoded(image, [0, 1, 3, 3], [0, 0, 3, 3], 3), image[:, 1:])


def test_images_of_another_size_are_resized() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[:2, :2], image[:2, 2:4], image[2:, :2], image[2:, 2:4] = 10, 20, 30, 40
    image[0, 0] = 14  # the mean of its four pixels is 11
    whole = decoded(image, [0, 0, 4, 4], [0, 0, 2, 2], 2)
    assert whole[..., 2].tolist() == [[11, 20], [30, 40]]
    assert decoded(image, [0, 0, 4, 4], [0, -1, 2, 2], 1).tolist() == [[[20, 20, 20]]]  # what lies outside is cut off
    assert np.array_equal(decoded(image, [0, 0, 4, 6], [-1, -3, 4, 6], 2), image[1:3, 3:5])
    placed = decoded(image, [0, 0, 4, 4], [1, 0, 2, 2], 4)
    assert placed[..., 1].tolist() == [[0, 0, 0, 0], [11, 20, 0, 0], [30, 40, 0, 0], [0, 0, 0, 0]]


def test_values_are_looked_up_and_flipped() -> None:
    pictures = np.array([[[[0, 1, 2], [3, 0, 1]]]] * 2, np.uint8)
    table = np.arange(3 * 256, dtype=np.int32).reshape(3, 256)
    out = np.empty(pictures.shape, np.int32)
    kernels().look_up(pictures, np.array([False, True]), table, out)
    assert out[0, 0].tolist() == [[0, 257, 514], [3, 256, 513]]
    assert out[1, 0].tolist() == [[3, 256, 513], [0, 257, 514]]


# ---- agreement with the other backends


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workers", [0, 3])
def test_pixels_equal_the_memory_backend(
    arrays: Arrays, small: dict[str, Path], dtype: torch.dtype, workers: int
) -> None:
    augmentation = Augmentation(crop_padding=4, flip=True)
    expected = loader(MemoryStore(arrays, augmentation, CPU, dtype), arrays.labels, 32, 0.2)
    found = loader(store(small, PadCrop(32, 4, True), workers, dtype=dtype, normal=NORMAL), arrays.labels, 32, 0.2)
    pairs = [
        *_both(lambda data: data.epoch("train", 1, 7, NEEDS), found, expected),
        *_both(lambda data: data.evaluation("val", 3), found, expected),
        *_both(lambda data: data.evaluation("test", 5), found, expected),
    ]
    assert len(pairs) == 4 + 3 + 3
    for one, other in pairs:
        for name in ("images", "paired", "second_view", "labels", "index"):
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)), name
    assert pairs[0][0].second_view is not None
    found.close()


def _both(read: Any, found: Loader, expected: Loader) -> Iterator[Any]:
    return zip(read(found), read(expected), strict=True)


def test_crops_equal_the_folder_backend(folder: Path) -> None:
    names = np.array([f"{n}.png".encode() for n in range(26)])
    part = Files(folder / "images", names, torch.arange(26) % 5)
    shape = ResizedCrop(48, 56)
    files = FolderStore({"train": part}, shape, Finish(*PLAIN, CPU, torch.float32), 0)
    ours = store({"train": folder / "raw.beton"}, shape)
    asked = [request([3, 0, 9, 25], key, size) for key in (7, 8) for size in (None, 32)] + [request([5, 4])]
    for one, other in zip(ours.read(asked), files.read(asked), strict=True):
        assert one.images.shape == other.images.shape
        assert (one.labels.tolist(), one.index.tolist()) == (other.labels.tolist(), other.index.tolist())
        # FFCV resizes by area averaging, PIL with a triangle filter. A wrong crop or flip would differ by tens.
        assert (one.images - other.images).abs().mean() < 3


@pytest.mark.parametrize("name", ["raw", "jpg"])
def test_evaluation_images_agree_with_pil(folder: Path, name: str) -> None:
    ours = store({"train": folder / f"{name}.beton"}, ResizedCrop(48, 56))
    [batch] = ours.read([request(list(range(26)))])
    for image, pixels in zip(photos(26), batch.images, strict=True):
        expected = torch.from_numpy(centre(Image.fromarray(image), 56, 48).copy()).permute(2, 0, 1)
        assert (pixels - expected).abs().mean() < 3


def test_images_stored_at_evaluation_size_are_identical(tmp_path: Path) -> None:
    images = [image[: 56 + n, :56] if n % 2 else image[:56, : 56 + n] for n, image in enumerate(photos(9, 1, 70, 90))]
    write(tmp_path / "a.beton", images, [0] * 9, write_mode="raw")
    [batch] = store({"train": tmp_path / "a.beton"}, ResizedCrop(48, 56)).read([request(list(range(9)))])
    expected = np.stack([centre(Image.fromarray(np.ascontiguousarray(image)), 56, 48) for image in images])
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


def test_a_batch_may_mix_jpeg_and_pixels(tmp_path: Path, folder: Path) -> None:
    np.random.seed(0)  # FFCV's writer uses the global generator
    write(tmp_path / "mix.beton", photos(26), [0] * 26, write_mode="proportion", jpeg_quality=95)
    names = {"mix": tmp_path / "mix.beton", "raw": folder / "raw.beton", "jpg": folder / "jpg.beton"}
    mixed, raw, jpg = (
        next(store({"train": path}, ResizedCrop(48, 56)).read([request(list(range(26)), 4)])).images
        for path in names.values()
    )
    is_raw = torch.from_numpy(Beton.open(names["mix"]).images[:, 2] == RAW)
    assert 0 < is_raw.sum() < 26
    assert torch.equal(mixed, torch.where(is_raw[:, None, None, None], raw, jpg))
    assert (raw - jpg).abs().mean() < 3


def test_several_iterators_run_at_once(folder: Path) -> None:
    files = {"train": folder / "jpg.beton", "test": folder / "raw.beton"}
    labels = {name: Beton.open(path).labels for name, path in files.items()}
    data = loader(store(files, ResizedCrop(32, 36), 3), labels, 32)

    def iterators() -> list[Iterator[Any]]:
        return [data.epoch("a", 0, 2, NOTHING), data.epoch("b", 1, 2, NOTHING), data.evaluation("test", 2)]

    alone = [[batch.images for batch in iterator] for iterator in iterators()]
    for step, batches in enumerate(zip(*iterators(), strict=True)):
        for number, batch in enumerate(batches):
            assert torch.equal(batch.images, alone[number][step])
    data.close()


# ---- damage, threads, memory, processes


def test_damage_is_an_error_that_names_the_file(report: Any) -> None:
    found = report["errors"]
    assert found.pop("whole") == "nothing"
    missing = found.pop("absent")
    assert missing.startswith("FileNotFoundError:")
    assert "absent.beton does not exist" in missing
    for name, message in found.items():
        assert message.startswith("ValueError:"), (name, message)
        assert ".beton" in message
    for name in [name for name in found if name.startswith("cut")]:
        assert ("is not an FFCV file" if name in ("cut 0", "cut 10") else "is incomplete or damaged") in found[name]
        assert f"{name.replace(' ', '-')}.beton" in found[name]
    for name in ("image", "end", "middle"):
        assert f"zeros-{name}.beton: image 5 is a damaged JPEG" in found[f"zeros {name}"]
    assert "version.beton is not an FFCV file of version 2" in found["version"]
    assert "other.beton is not an FFCV file of version 2" in found["other"]
    assert "image 4 has the label 4, outside 0 to 3" in found["label"]
    assert "has images 0 to 25, not 26" in found["above"]
    assert "has images 0 to 25, not -1" in found["below"]
    height, width = photos(26)[0].shape[:2]
    assert f"image 0 has {height} x {width} pixels and is smaller than its crop" in found["small"]


def test_a_target_outside_the_picture_fails_an_assertion(folder: Path) -> None:
    class Wrong(ResizedCrop):
        def plan(self, view: View, sizes: torch.Tensor) -> Plan:
            right = super().plan(view, sizes)
            return Plan(right.sources, right.targets + torch.tensor([10**6, 0, 0, 0]), right.size, None)

    with pytest.raises(AssertionError, match="a target lies outside its picture"):
        next(store({"train": folder / "raw.beton"}, Wrong(32, 32)).read([request([0])]))


def test_threads_and_memory_do_not_grow(report: Any) -> None:
    found = report["flat"]
    for name in ("epochs", "abandoned"):
        assert found[name]["threads"] == found["before"]["threads"], found
        assert found[name]["memory"] < found["before"]["memory"] + 30, found
    assert found["closed"] == {"threads": found["before"]["threads"] - 2}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("imported", {"torch": 2, "more": 0}),
        ("forks", {"folder": [3, 1], "child": [0]}),
        ("left_open", {"left": "open"}),
    ],
)
def test_threads_forks_and_open_iterators(report: Any, body: str, expected: Any) -> None:
    """The first use keeps torch's threads; processes can fork afterwards, and end in the middle of an epoch."""
    assert report[body] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_gpu_batches_equal_cpu_batches(arrays: Arrays, small: dict[str, Path]) -> None:
    expected = loader(store(small, PadCrop(32, 4, True), normal=NORMAL), arrays.labels, 32)
    found = loader(store(small, PadCrop(32, 4, True), normal=NORMAL, device=torch.device("cuda")), arrays.labels, 32)
    for epoch in range(20):
        for one, other in _both(lambda data, e=epoch: data.epoch("train", e, 7, NEEDS), found, expected):
            assert one.images.is_cuda
            for name in ("images", "paired", "second_view", "labels", "index"):
                torch.testing.assert_close(getattr(one, name).cpu(), getattr(other, name))
