"""Preparing for FFCV: the format and content of the files, and failures during the work."""

# FFCV is optional, so its imports may be missing.
# pyright: reportMissingImports=false

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pipelines import prepare
from pipelines.data.config import CIFAR10, CUB, ImageNet, Images
from pipelines.data.ffcv import format as beton_format
from pipelines.data.ffcv.beton import Beton
from pipelines.data.ffcv.fields import Storage, is_sound
from pipelines.data.ffcv.part_writer import Job
from pipelines.data.loading.arrays import read_whole
from pipelines.data.preparing import manifest
from pipelines.data.preparing.convert import prepare as prepare_job
from pipelines.data.preparing.convert import workspace
from pipelines.data.preparing.digits_folder import prepared, write_digits_as_cub, write_digits_as_imagenet
from pipelines.data.preparing.display import Display
from pipelines.data.preparing.sets import storage
from pipelines.data.readers import cub, image_folders, imagenet
from pipelines.data.source import Boxes, Files, Pixels, Source
from tests.prepare_bodies import HALF, odd

pytest.importorskip("ffcv", reason="FFCV is optional; make ffcv")

ROOT = Path(__file__).parent.parent
WATCHDOG = 60


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Smooth, so that JPEG changes it little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(root: Path, size: tuple[int, int] = (48, 40)) -> Path:
    """train/{a,b}: 8 JPEGs each; test/{a,b}: 3 each."""
    for part, each in (("train", 8), ("test", 3)):
        for label, name in enumerate("ab"):
            (root / part / name).mkdir(parents=True)
            for number in range(each):
                seed = 100 * label + number + 1000 * (part == "test")
                picture(seed, *size).save(root / part / name / f"{number}.jpg", quality=90)
    return root


def run(source: Path, out: Path, *options: str, kind: str = "images") -> int:
    return prepare.main([kind, "--source", str(source), "--out", str(out), "--workers", "0", *options])


def body(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.prepare_bodies", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def output(process: subprocess.Popen[str]) -> str:
    """Its standard output; the test fails if it fails or takes too long."""
    try:
        text, errors = process.communicate(timeout=WATCHDOG)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return text


@dataclass(frozen=True)
class Stored:
    """A sample as stored in a file."""

    mode: int
    width: int
    height: int
    data: bytes
    label: int

    def pixels(self) -> np.ndarray:
        if self.mode == 0:
            return np.asarray(Image.open(io.BytesIO(self.data)))
        return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, 3)


def parsed(path: Path) -> list[Stored]:
    """The samples of a file with an image and a label, read by the format's description."""
    whole = path.read_bytes()
    version, fields, page, samples, table = struct.unpack_from("<HHIQQ", whole)
    assert (version, fields) == (2, 2)
    assert page & (page - 1) == 0
    kinds = [(whole[24 + 1041 * n], whole[25 + 1041 * n :][:16].rstrip(b"\0")) for n in range(fields)]
    assert kinds == [(2, b"image"), (1, b"label")]
    regions = np.frombuffer(whole, "<u8", offset=table).reshape(-1, 3)
    sizes = {address: size for _, address, size in regions.tolist()}
    assert regions[:, 0].tolist() == list(range(samples))
    found = []
    for row in range(samples):
        mode, width, height, address, label = struct.unpack_from("<BxHHxxQq", whole, 24 + 2 * 1041 + 24 * row)
        # Aligned as in C: the image's 13 bytes are packed, and the label begins at 16.
        mode, width, height, address = struct.unpack_from("<BHHQ", whole, 24 + 2 * 1041 + 24 * row)
        assert address // page == (address + sizes[address] - 1) // page
        found.append(Stored(mode, width, height, whole[address : address + sizes[address]], label))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "source")


@pytest.fixture(scope="module")
def flowers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`folder`, prepared."""
    out = tmp_path_factory.mktemp("flowers") / "out"
    assert run(folder, out, "--name", "flowers") == 0
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in CUB's layout."""
    return write_digits_as_cub(tmp_path_factory.mktemp("cub") / "digits", size=8)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Commands with worker processes, run in one process: their folder, and status and standard error of each."""
    out = tmp_path_factory.mktemp("pools")
    return out, json.loads(output(body("pools", str(out))))


def test_the_format_is_ffcvs() -> None:
    from ffcv import fields, types

    assert types.CURRENT_VERSION == beton_format.VERSION
    for ours, theirs in (
        (beton_format.HEADER, types.HeaderType),
        (beton_format.FIELD, types.FieldDescType),
        (beton_format.REGION, types.ALLOC_TABLE_TYPE),
    ):
        offsets = [[field[1] for field in (dtype.fields or {}).values()] for dtype in (ours, theirs)]
        assert (ours.names, ours.itemsize, offsets[0]) == (theirs.names, theirs.itemsize, offsets[1])
    arrays = [
        fields.NDArrayField(np.dtype(kind), shape) for kind, shape in (("<f4", (7, 4)), ("<i8", (7,)), ("|u1", (7,)))
    ]
    for ours, theirs in (
        (beton_format.CLASSIFICATION, [fields.RGBImageField(), fields.IntField()]),
        (beton_format.detection(7), [fields.RGBImageField(), *arrays]),
    ):
        assert beton_format.entry(ours) == types.get_metadata_type(theirs)
        described = np.frombuffer(beton_format.described(ours), types.FieldDescType)
        for row, field in zip(described, theirs, strict=True):
            assert types.TYPE_ID_HANDLER[row["type_id"]] is type(field)
            assert row["arguments"].tobytes() == field.to_binary().tobytes()


class TestFiles:
    def test_raw_images_are_those_of_the_memory_backend(self, folder: Path, tmp_path: Path) -> None:
        assert run(folder, tmp_path / "out", "--name", "flowers", "--image-size", "32") == 0
        arrays = read_whole(image_folders.read(folder, "flowers"), 32)
        for part in ("train", "test"):
            stored = parsed(tmp_path / "out" / f"{part}.beton")
            assert [each.label for each in stored] == arrays.labels[part].tolist()
            assert all(each.mode == 1 for each in stored)
            assert np.array_equal(np.stack([each.pixels() for each in stored]), arrays.images[part])

    def test_the_manifest_describes_the_files(self, folder: Path, flowers: Path) -> None:
        found = manifest.read(flowers)
        assert (found.set, found.name, found.task, found.image_size) == ("images", "flowers", "classification", 64)
        assert (found.classes, found.missing) == (("a", "b"), ())
        assert found.source_fingerprint == image_folders.read(folder, "flowers").fingerprint
        train = found.parts["train"]
        assert (train.samples, train.raw, train.jpeg, train.converted) == (16, 16, 0, 0)
        done = subprocess.run(["sha256sum", found.path("train")], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == train.sha256
        assert train.bytes == found.path("train").stat().st_size
        assert {"python", "ffcv", "pillow", "numpy"} <= set(found.versions)
        assert sorted(path.name for path in flowers.iterdir()) == ["manifest.json", "test.beton", "train.beton"]

    def test_jpegs_that_fit_keep_their_bytes_and_larger_ones_are_shrunk(self, folder: Path, tmp_path: Path) -> None:
        source = imagenet.read(_as_imagenet(folder, tmp_path), "flowers")
        part = source.parts["train"]
        for side, (width, height) in ((48, (48, 40)), (24, (24, 20))):
            job = Job("imagenet", source, Storage(None, side, jpeg_share=1.0, quality=90))
            prepare_job(job, tmp_path / f"{side}", 0)
            stored = parsed(tmp_path / f"{side}" / "train.beton")
            assert {(each.mode, each.width, each.height) for each in stored} == {(0, width, height)}
            same = [each.data == part.encoded(row) for row, each in enumerate(stored)]
            assert same == [side == 48] * len(stored)
            for row, each in enumerate(stored):
                expected = np.asarray(part.image(row).resize((width, height), Image.Resampling.BOX), np.float64)
                assert abs(each.pixels() - expected).mean() < 8

    def test_a_mix_depends_only_on_the_rows(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 3), np.uint8)
        part = Pixels(pixels, torch.arange(1000) % 2, "noise")
        source = Source("noise", ("a", "b"), {"train": part, "test": part}, HALF, HALF, "1" * 16)
        modes = []
        for name in ("one", "two"):
            prepare_job(Job("images", source, Storage(8, None, 0.3, 90)), tmp_path / name, 0)
            modes.append([each.mode for each in parsed(tmp_path / name / "train.beton")])
        assert modes[0] == modes[1]
        assert 250 < modes[0].count(0) < 350
        assert manifest.read(tmp_path / "one").fingerprint == manifest.read(tmp_path / "two").fingerprint

    def test_no_sample_crosses_a_page(self, tmp_path: Path) -> None:
        pixels = np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(1000, 1).repeat(1000, 2).repeat(3, 3)
        part = Pixels(pixels, torch.zeros(7, dtype=torch.long), "grey")
        few = Pixels(pixels[:1], torch.zeros(1, dtype=torch.long), "grey")
        source = Source("grey", ("a",), {"train": part, "test": few}, HALF, HALF, "2" * 16)
        prepare_job(Job("images", source, Storage(None, 1000)), tmp_path / "out", 0)
        stored = parsed(tmp_path / "out" / "train.beton")  # asserts that none crosses a page
        assert [int(each.pixels().mean()) for each in stored] == list(range(7))
        large = Job("images", source, Storage(None, 4000))
        prepare_job(large, tmp_path / "large", 0)
        assert struct.unpack_from("<HHI", (tmp_path / "large" / "test.beton").read_bytes())[2] >= 3 * 4000**2

    def test_ffcvs_loader_reads_them(self, folder: Path, tmp_path: Path) -> None:
        # For detection: 16 images of 48 x 40 with 0 to 3 boxes, stored half as large.
        fixed, sizes, boxes = (tmp_path / name for name in ("fixed", "sizes", "boxes"))
        assert run(folder, fixed, "--image-size", "32") == 0
        source = image_folders.read(folder, "flowers")
        prepare_job(Job("images", source, Storage(None, 48, 0.5, 90)), sizes, 0)
        detection = replace(source, parts={name: _boxed(part) for name, part in source.parts.items()})
        prepare_job(Job("voc2012", detection, Storage(None, 24)), boxes, 0)
        output(body("read", str(fixed), str(sizes), str(boxes), str(tmp_path / "read.npz")))
        found = np.load(tmp_path / "read.npz")
        whole = read_whole(source, 32)
        assert np.array_equal(found["fixed/image"], whole.images["train"])
        labels = whole.labels["train"].numpy()
        assert np.array_equal(found["fixed/label"][:, 0], labels)
        assert np.array_equal(found["sizes/label"][:, 0], labels)
        originals = np.stack([np.asarray(source.parts["train"].image(row)) for row in range(16)])
        raw = np.array([each.mode == 1 for each in parsed(sizes / "train.beton")])
        assert 0 < raw.sum() < 16
        assert np.array_equal(found["sizes/image"][raw], originals[raw])
        assert abs(found["sizes/image"].astype(int) - originals).mean() < 1
        assert found["boxes/image"].shape == (16, 20, 24, 3)
        assert (found["boxes/boxes"].dtype, found["boxes/boxes"].shape) == (np.float32, (16, 3, 4))
        assert found["boxes/boxes"][2].tolist() == [[0, 0, 24, 20], [1, 1, 5, 3.5], [0, 0, 0, 0]]
        assert found["boxes/classes"][2].tolist() == [1, 1, 0]
        assert found["boxes/difficult"][2].tolist() == [0, 1, 0]
        assert not found["boxes/boxes"][0].any()

    def test_processes_write_the_same_bytes(self, pools: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        out, found = pools
        assert found["fine"][0] == 0, found
        assert "train: images: 96 of 96" in found["fine"][1]
        prepare_job(Job("imagenet", odd("fine", tmp_path), storage("imagenet", "raw")), tmp_path / "none", 0)
        assert manifest.read(out / "fine").parts == manifest.read(tmp_path / "none").parts


@dataclass(frozen=True)
class Boxed:
    """row % 4 boxes per image; the first one is the whole image. outside: the row with boxes outside the image."""

    files: Files
    outside: int = -1

    def __len__(self) -> int:
        return len(self.files)

    def name(self, row: int) -> str:
        return self.files.name(row)

    def encoded(self, row: int) -> bytes | None:
        return self.files.encoded(row)

    def image(self, row: int) -> Image.Image:
        return self.files.image(row)

    def boxes(self, row: int) -> Boxes:
        boxes = torch.tensor([[0.0, 0, 48, 40], [2, 2, 10, 7], [1, 1, 3, 3]])[: row % 4]
        if row == self.outside:
            boxes = boxes + 1
        return Boxes(boxes, torch.ones(len(boxes), dtype=torch.long), torch.tensor([False, True, False])[: row % 4])


def _boxed(part: object, outside: int = -1) -> Boxed:
    assert isinstance(part, Files)
    return Boxed(part, outside)


def _as_imagenet(folder: Path, tmp_path: Path) -> Path:
    root = tmp_path / "as-imagenet"
    root.mkdir()
    (root / "train").symlink_to(folder / "train")
    (root / "val").symlink_to(folder / "test")
    return root


class TestAgain:
    def test_a_second_run_does_nothing(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(folder, tmp_path / "out") == 0
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        capsys.readouterr()
        assert run(folder, tmp_path / "out") == 0
        assert "already prepared" in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
        assert run(folder, tmp_path / "out", "--overwrite") == 0
        assert all(path.stat().st_mtime_ns > before[path] for path in (tmp_path / "out").iterdir())

    def test_other_options_or_images_are_refused(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = shutil.copytree(folder, tmp_path / "source")
        assert run(source, tmp_path / "out", "--image-size", "16") == 0
        assert run(source, tmp_path / "out", "--image-size", "24", "--write", "jpg") == 2
        said = capsys.readouterr().err
        assert "image_size: was 16, now 24" in said
        assert "jpeg_share: was 0.0, now 1.0" in said
        assert "--overwrite" in said
        picture(1).save(source / "train" / "a" / "other.jpg")
        assert run(source, tmp_path / "out", "--image-size", "16") == 2
        assert "source_fingerprint" in capsys.readouterr().err
        assert run(source, tmp_path / "out", "--image-size", "16", "--overwrite") == 0
        assert manifest.read(tmp_path / "out").parts["train"].samples == 17

    def test_a_damaged_file_is_found(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "out"
        assert run(folder, out) == 0
        whole = (out / "train.beton").read_bytes()
        (out / "train.beton").write_bytes(whole[:-100])
        assert run(folder, out) == 2
        said = capsys.readouterr().err
        assert "train.beton has" in said
        assert "--overwrite" in said
        with pytest.raises(ValueError, match=r"train\.beton has .* bytes instead of"):
            manifest.read(out)
        (out / "train.beton").write_bytes(b"\3" + whole[1:])
        with pytest.raises(ValueError, match="header says version 3"):
            manifest.read(out)
        (out / "train.beton").unlink()
        with pytest.raises(FileNotFoundError, match="--overwrite"):
            manifest.read(out)
        assert run(folder, out, "--overwrite") == 0
        assert manifest.read(out).path("train").read_bytes() == whole

    def test_files_without_a_manifest_are_replaced(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert run(folder, out) == 0
        (out / "manifest.json").unlink()
        (out / "test.beton").write_bytes(b"half")
        with pytest.raises(FileNotFoundError, match=r"prepare\.py SET"):
            manifest.read(out)
        assert run(folder, out) == 0
        assert manifest.read(out).parts["test"].samples == 6

    def test_out_may_be_the_source(self, tmp_path: Path) -> None:
        source = write_folder(tmp_path / "source")
        before = sorted(source.rglob("*"))
        assert run(source, source) == 0
        assert sorted(source.rglob("*")) == sorted([*before, *(source / n for n in _FILES)])
        assert run(source, source) == 0  # its own files do not change the source
        assert sorted(tmp_path.iterdir()) == [source]

    def test_a_read_only_parent_is_not_used(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "closed" / "out"
        out.mkdir(parents=True)
        out.parent.chmod(0o500)
        # Root can write everywhere, so the answer is replaced.
        monkeypatch.setattr("pipelines.data.preparing.convert.os.access", lambda path, mode: path != out.parent)
        with workspace(out, print) as inside:
            assert inside.parent == out
        assert run(folder, out) == 0
        assert sorted(path.name for path in out.iterdir()) == sorted(_FILES)


_FILES = ("train.beton", "test.beton", "manifest.json")


class TestOddImages:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """train/a: 0 grey, 1 CMYK, 2 a PNG named .jpg, 3 truncated, 4 not an image, 5 empty; test/b: 0 RGBA."""
        root = write_folder(tmp_path / "source")
        a = root / "train" / "a"
        picture(0).convert("L").save(a / "0.jpg")
        picture(1).convert("CMYK").save(a / "1.jpg")
        picture(2).save(a / "2.jpg", format="PNG")
        (a / "3.jpg").write_bytes((a / "3.jpg").read_bytes()[:-200])
        (a / "4.jpg").write_bytes(b"no image at all")
        (a / "5.jpg").write_bytes(b"")
        picture(1003).convert("RGBA").save(root / "test" / "b" / "0.png")
        (root / "test" / "b" / "0.jpg").unlink()
        return root

    @pytest.mark.parametrize("write", ["raw", "jpg"])
    def test_they_are_converted_or_left_out(
        self, source: Path, tmp_path: Path, write: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert run(source, out, "--write", write) == 0
        said = capsys.readouterr().out
        found = manifest.read(out)
        train, test = found.parts["train"], found.parts["test"]
        assert (train.samples, train.converted, test.samples, test.converted) == (13, 3, 6, 1)
        names = [str(source / "train" / "a" / f"{number}.jpg") for number in (3, 4, 5)]
        assert [each.name for each in train.left_out] == names
        assert all(name in said for name in names)
        assert "3 could not be read" in said
        assert all(each.why for each in train.left_out)
        stored = parsed(out / "train.beton")
        assert [each.label for each in stored] == [0] * 5 + [1] * 8
        part = image_folders.read(source, "images").parts["train"]
        for row, each in zip([0, 1, 2, 6, 7, *range(8, 16)], stored, strict=True):
            [expected] = read_whole(_only(part, row), 64).images["train"]
            assert abs(each.pixels().astype(int) - expected).mean() < (0.01 if write == "raw" else 4)

    def test_strict_makes_them_errors(self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out, a = tmp_path / "out", source / "train" / "a"
        for number, why in ((0, "mode L"), (1, "mode CMYK"), (2, "named like a JPEG"), (3, "not a readable image")):
            assert run(source, out, "--strict") == 2
            said = capsys.readouterr().err
            assert str(a / f"{number}.jpg") in said
            assert why in said
            assert not out.exists()
            picture(number).save(a / f"{number}.jpg")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]

    def test_strict_refuses_files_prepared_without_it(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(source, tmp_path / "out") == 0
        assert run(source, tmp_path / "out", "--strict") == 2
        assert "train and test" in capsys.readouterr().err

    def test_a_class_without_readable_images_is_an_error(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for path in (source / "train" / "b").iterdir():
            path.write_bytes(b"\xff\xd8")
        assert run(source, tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert "no image of the class b" in said
        assert str(source / "train" / "b" / "0.jpg") in said
        assert not (tmp_path / "out").exists()

    def test_a_file_that_cannot_be_opened_is_an_error(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = image_folders.read(folder, "images")
        part = source.parts["train"]
        assert isinstance(part, Files)
        names = np.array([*part.names[:-1], b"train/b/gone.jpg"])
        gone = replace(source, parts={**source.parts, "train": replace(part, names=names)})
        with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
            prepare_job(Job("images", gone, storage("images")), tmp_path / "out", 0)
        assert sorted(tmp_path.iterdir()) == []


def _only(part: object, row: int) -> Source:
    assert isinstance(part, Files)
    one = Files(part.root, part.names[row : row + 1], part.labels[row : row + 1])
    return Source("one", ("a", "b"), {"train": one, "test": one}, HALF, HALF, "3" * 16)


class TestWrongSources:
    def test_labels_outside_the_classes(self, folder: Path, tmp_path: Path) -> None:
        source = image_folders.read(folder, "images")
        few = replace(source, classes=("a",))
        with pytest.raises(ValueError, match=r"b/0\.jpg has a label outside 0 to 0"):
            prepare_job(Job("images", few, storage("images")), tmp_path / "out", 0)

    def test_boxes_outside_the_image_and_labels_of_the_background(self, folder: Path, tmp_path: Path) -> None:
        source = image_folders.read(folder, "images")
        parts = {name: _boxed(part, outside=1) for name, part in source.parts.items()}
        with pytest.raises(ValueError, match=r"a/1\.jpg: a box .* outside the image of 48 x 40"):
            prepare_job(Job("voc", replace(source, parts=parts), storage("voc")), tmp_path / "out", 0)
        with pytest.raises(ValueError, match="a label outside 1 to 0"):
            prepare_job(Job("voc", replace(source, parts=parts, classes=("a",)), storage("voc")), tmp_path / "out", 0)
        assert sorted(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("kind", "options", "message"),
        [
            ("images", ["--subset"], "leave out --subset"),
            ("images", ["--max-side", "100"], "leave out --max-side"),
            ("images", ["--preset", "ffcv_imagenet"], "presets other than raw"),
            ("images", ["--image-size", "0"], "--image-size must be 1 to"),
            ("images", ["--quality", "90"], "nothing is stored as JPEG"),
            ("images", ["--write", "jpg", "--quality", "0"], "--quality must be 1 to 95, not 0"),
            ("images", ["--jpeg-share", "1.5"], "--jpeg-share must be 0 to 1"),
            ("images", ["--write", "raw", "--jpeg-share", "0.5"], "--jpeg-share is for --write mix"),
            ("images", ["--workers", "-1"], "--workers must be 0 or more"),
            ("cifar10", ["--image-size", "32"], "--image-size is only for images"),
            ("cifar10", ["--name", "other"], "--name is for images"),
            ("imagenet", ["--max-side", "0"], "--max-side must be 1 to"),
            ("imagenet", [], "must hold train/<class>"),
            ("cub", [], "CUB_200_2011"),
            ("voc", [], "VOCdevkit"),
            ("tiny_imagenet", [], "tiny-imagenet-200"),
        ],
    )
    def test_wrong_options_and_sources(
        self, folder: Path, tmp_path: Path, kind: str, options: list[str], message: str, capsys: pytest.CaptureFixture
    ) -> None:
        assert run(folder, tmp_path / "out", *options, kind=kind) == 2
        assert message in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == []

    def test_an_incomplete_set_must_be_declared_as_subset(
        self, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(digits, tmp_path / "out", kind="cub") == 2
        assert "10 of 200 classes" in capsys.readouterr().err

    def test_out_is_a_file(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "out").write_text("mine")
        assert run(folder, tmp_path / "out") == 2
        assert "is not a folder" in capsys.readouterr().err
        assert (tmp_path / "out").read_text() == "mine"

    def test_without_ffcv_the_error_explains_its_installation(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "ffcv", None)  # blocks the import
        assert run(folder, tmp_path / "out") == 2
        said = capsys.readouterr().err
        for words in ("FFCV is not installed", "make -B ffcv", "libopencv-dev", "libturbojpeg0-dev", "folder"):
            assert words in said

    def test_presets_are_those_of_ffcv_imagenet(self) -> None:
        assert storage("imagenet") == storage("imagenet", "ffcv_imagenet") == Storage(None, 500, 0.5, 90)
        assert storage("imagenet", "ffcv_imagenet_small") == Storage(None, 400, 0.1, 90)
        assert storage("imagenet", "raw") == Storage(None, 500)
        assert storage("cub") == Storage(None, 500)
        assert storage("cub", write="mix") == Storage(None, 500, 0.5, 90)
        assert storage("cifar10", "raw") == Storage(32, None)
        assert storage("imagenet", "ffcv_imagenet_small", quality=80, max_side=300) == Storage(None, 300, 0.1, 80)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(holds: object, seconds: float = 30.0) -> bool:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(holds())


class Heard(Display):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, what: str, done: int, total: int) -> None: ...


class TestFailures:
    def test_a_stopped_command_leaves_no_partial_files(self, tmp_path: Path) -> None:
        driver = body("stopped", str(tmp_path))
        assert driver.stdout is not None
        watchdog = threading.Timer(WATCHDOG, driver.kill)
        watchdog.start()
        try:
            for name, number, status in (
                ("terminated", signal.SIGTERM, "143\n"),
                ("interrupted", signal.SIGINT, "130\n"),
                ("killed", signal.SIGKILL, ""),
            ):
                out, marks = tmp_path / name / "out", tmp_path / f"{name}-marks"
                assert eventually(lambda marks=marks: len(list(marks.glob("*"))) == 2, WATCHDOG)
                workers = [int(path.name) for path in marks.iterdir()]
                driver.send_signal(number)
                assert driver.stdout.readline() == status
                assert eventually(lambda workers=workers: not any(map(alive, workers)), 5)
                left = sorted(path.name for path in out.parent.iterdir())
                assert left == ([".out-prepare", ".out-prepare.lock"] if number == signal.SIGKILL else [])
                prepare_job(Job("imagenet", odd("fine", marks), storage("imagenet", "raw")), out, 0)
                assert sorted(out.parent.iterdir()) == [out]
                assert manifest.read(out).parts["train"].samples == 96
            assert driver.wait() == -signal.SIGKILL
        finally:
            watchdog.cancel()
            driver.kill()
            driver.communicate()

    @pytest.mark.parametrize(
        ("kind", "status", "said"),
        [
            ("killed", 1, ["a worker process died", "one of the images from odd ", "fewer --workers"]),
            ("wrong", 1, ["wrong on purpose", "_misbehave"]),
            ("limited", 2, ["train.beton cannot be written beyond", "free space"]),
        ],
    )
    def test_an_error_ends_the_command(
        self, pools: tuple[Path, dict[str, Any]], kind: str, status: int, said: list[str]
    ) -> None:
        out, found = pools
        assert found[kind][0] == status, found
        assert all(words in found[kind][1] for words in said), found
        assert [path.name for path in out.iterdir()] == ["fine"]

    def test_results_come_in_order_and_no_process_is_left(self, pools: tuple[Path, dict[str, Any]]) -> None:
        found = pools[1]["order"]
        assert found["came"] == list(range(30))
        assert (found["error"], found["left"]) == ("wrong: 30", [])
        assert found["pids"] >= 3

    def test_two_at_once_write_one_result(self, tmp_path: Path) -> None:
        # In threads: the lock belongs to an open file, so it separates them as it does processes.
        out, reports = tmp_path / "out", (Heard(), Heard())
        job = Job("imagenet", odd("steady", tmp_path), storage("imagenet", "raw"))
        with ThreadPoolExecutor(2) as threads:
            one, two = threads.map(lambda report: prepare_job(job, out, 0, report=report), reports)
        assert one == two == manifest.read(out)
        said = " ".join([*reports[0].said, *reports[1].said])
        assert "waiting for another process that holds" in said
        assert "was prepared by another process" in said
        assert sorted(path.name for path in out.iterdir()) == sorted(_FILES)
        assert sorted(tmp_path.iterdir()) == [out]


class TestManifest:
    @pytest.fixture
    def found(self, flowers: Path, tmp_path: Path) -> manifest.Manifest:
        return manifest.read(shutil.copytree(flowers, tmp_path / "out"))

    def test_another_config_is_refused(self, found: manifest.Manifest) -> None:
        found.check(Images(name="flowers"), 64)
        for config, size, message in (
            (Images(name="trees"), 64, "holds flowers"),
            (CIFAR10(), 32, "holds flowers"),
            (Images(name="flowers"), 32, "images of 64 pixels, but 32 pixels"),
        ):
            with pytest.raises(ValueError, match=message):
                found.check(config, size)

    def test_subsets_and_complete_sets_are_distinguished(self, found: manifest.Manifest) -> None:
        some = replace(found, set="cub", name="cub200", missing=("10 of 200 classes",), image_size=None)
        some.check(CUB(subset=True), None)
        with pytest.raises(ValueError, match=r"10 of 200 classes.*--data\.subset"):
            some.check(CUB(), None)
        with pytest.raises(ValueError, match=r"leave out --subset or --data\.subset"):
            replace(some, missing=()).check(CUB(subset=True), None)
        with pytest.raises(ValueError, match="different sizes"):
            replace(some, image_size=64).check(CUB(subset=True), None)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            *(
                (lambda text, values=values: json.dumps({**json.loads(text), **values}), "manifest of format 1 .*")
                for values in (
                    {"format": 2},
                    {"classes": []},
                    {"mean": [0.5, 0.5]},
                    {"parts": {}},
                    {"unknown": 1},
                    {"name": None, "parts": [1]},
                )
            ),
            (lambda text: text.replace('"train.beton"', '"../train.beton"'), r"\.\./train\.beton.*"),
            (lambda text: text[:100], "is damaged .*"),
        ],
    )
    def test_a_damaged_manifest_is_refused(
        self, found: manifest.Manifest, change: Callable[[str], str], message: str
    ) -> None:
        path = found.folder / "manifest.json"
        path.write_text(change(path.read_text()))
        with pytest.raises(ValueError, match=f"{message}--overwrite"):
            manifest.read(found.folder)


class TestDigits:
    def test_cubs_reader_reads_its_layout(self, tmp_path: Path) -> None:
        root = write_digits_as_cub(tmp_path / "digits")
        assert write_digits_as_cub(tmp_path / "digits") == root
        source = cub.read(root)
        assert source.classes[0] == "001.zero"
        assert [len(part) for part in source.parts.values()] == [1438, 359]
        assert source.parts["test"].image(0).size == (40, 40)
        same = imagenet.read(write_digits_as_imagenet(tmp_path / "other"), "digits")
        for part in ("train", "test"):
            assert source.parts[part].labels.bincount().equal(same.parts[part].labels.bincount())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "other"]

    def test_other_files_are_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").touch()
        with pytest.raises(ValueError, match="does not hold digits"):
            write_digits_as_cub(tmp_path)

    def test_prepared_in_place_for_imagenet(self, tmp_path: Path) -> None:
        root = prepared(write_digits_as_imagenet(tmp_path / "digits", size=8), "imagenet", "digits")
        found = manifest.read(root)
        assert (found.parts["train"].samples, found.parts["test"].samples) == (1438, 359)
        assert sorted(path.name for path in root.iterdir()) == sorted([*_FILES, "train", "val"])
        found.check(ImageNet(name="digits"), None)

    def test_prepared_in_place_for_cub(self, digits: Path, tmp_path: Path) -> None:
        root = prepared(shutil.copytree(digits, tmp_path / "digits"), "cub")
        found = manifest.read(root)
        found.check(CUB(subset=True), None)
        assert len(found.classes) == 10
        before = found.path("train").stat().st_mtime_ns
        prepared(root, "cub")
        assert found.path("train").stat().st_mtime_ns == before


def test_display_is_a_bar_in_a_terminal_and_otherwise_lines() -> None:
    for lively in (True, False):
        console = Console(file=io.StringIO(), force_terminal=lively, force_interactive=lively, width=120)
        with Display(console) as display:
            for done in range(1, 1001):
                display.step("train: images", done, 1000)
            display.step("train: images", 1000, 1000)  # not shown again
            display.say("a word")
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "a word" in text
        if lively:
            assert "1000/1000" in text
        else:
            assert [line for line in text.splitlines() if "train" in line] == [
                line for line in text.splitlines() if line.startswith("train: images: 1,000 of 1,000")
            ]
            assert text.count("train") == 1


def test_a_file_that_the_decoder_refuses_is_compressed_again(tmp_path: Path):
    """PIL accepts zeros in the middle of a JPEG's data; FFCV's decoder does not, and ends a training."""
    root = write_folder(tmp_path / "images", (200, 160))
    odd = root / "train" / "a" / "3.jpg"
    data = bytearray(odd.read_bytes())
    data[-300:-2] = bytes(298)
    odd.write_bytes(data)
    with Image.open(odd) as image:
        accepted = np.asarray(image.convert("RGB")).astype(int)
    source = replace(image_folders.read(root, "images"), name="images")
    done = prepare_job(Job("imagenet", source, Storage(None, 500, 1.0, 95)), tmp_path / "out", workers=0)
    assert done.parts["train"].left_out == ()
    beton = Beton.open(done.path("train"), 2)
    start, num_bytes = beton.images[3, :2]
    stored = bytes(beton.mapped[start : start + num_bytes])
    assert stored != bytes(data)
    assert is_sound(stored, 160, 200)
    assert np.abs(np.asarray(Image.open(io.BytesIO(stored))).astype(int) - accepted).mean() < 3
    start, num_bytes = beton.images[4, :2]
    assert bytes(beton.mapped[start : start + num_bytes]) == (root / "train" / "a" / "4.jpg").read_bytes()
