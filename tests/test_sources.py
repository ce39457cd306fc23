"""The readers of official data sets, on small archives in the same formats and on damaged ones."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import io
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from pipelines.data.config import CIFAR10, CIFAR100, CUB, ImageNet, Images, TinyImageNet
from pipelines.data.readers import cifar, cub, image_folders, imagenet, pickles, source, tiny_imagenet, voc
from pipelines.data.readers.checks import Whole, fingerprint_of_files
from pipelines.data.readers.voc_parts import CLASSES, parse
from pipelines.data.source import Part, Pixels, Source, ZipMembers

WNIDS = ("n01440764", "n02102040", "n03000684")
Entries = dict[str, Any]


def jpeg(number: int, size: tuple[int, int] = (20, 16)) -> bytes:
    """Noise, so that each number has its own bytes."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tar_of(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # pyright: ignore
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def assert_same_samples(one: Source, other: Source) -> None:
    assert one.classes == other.classes
    assert one.fingerprint == other.fingerprint
    for part in ("train", "test"):
        a, b = one.parts[part], other.parts[part]
        assert a.labels.tolist() == b.labels.tolist()
        assert [a.encoded(row) for row in range(len(a))] == [b.encoded(row) for row in range(len(b))]


def assert_survives_pickling(part: Part) -> None:
    copy = pickle.loads(pickle.dumps(part))
    assert copy.name(1) == part.name(1)
    assert np.array_equal(np.asarray(copy.image(1)), np.asarray(part.image(1)))


# ---- counts


def test_missing_lists_differences_from_the_official_counts() -> None:
    def parts(train: list[int], test: list[int]) -> dict[str, Part]:
        made = {"train": torch.tensor(train), "test": torch.tensor(test)}
        return {name: Pixels(np.zeros((len(y), 1, 1, 3), np.uint8), y, "x") for name, y in made.items()}

    whole = Whole(classes=2, train=4, test=2, train_each=2)
    assert whole.missing(2, parts([0, 1, 0, 1], [0, 0])) == ()
    assert whole.missing(1, parts([0], [0, 0, 0])) == (
        *("1 of 2 classes", "1 of 4 training images", "3 test images instead of 2"),
    )
    assert whole.missing(2, parts([0, 1, 1, 1], [0, 0])) == ("2 classes do not have 2 training images",)
    big = dataclasses.replace(whole, train=100_000)
    assert big.missing(2, parts([0] * 50_000, [0, 1])) == ("50,000 of 100,000 training images",)


def test_official_numbers() -> None:
    assert dataclasses.astuple(imagenet.WHOLE) == (1000, 1_281_167, 50_000, None, 50)
    assert dataclasses.astuple(tiny_imagenet.WHOLE) == (200, 100_000, 10_000, 500, 50)
    assert dataclasses.astuple(cub.WHOLE) == (200, 5_994, 5_794, None, None)
    assert len(set(cifar.CIFAR10_CLASSES)) == 10
    assert len(set(cifar.CIFAR100_CLASSES)) == 100
    assert list(cifar.CIFAR100_CLASSES) == sorted(cifar.CIFAR100_CLASSES)
    assert (CLASSES[0], CLASSES[1:], len(CLASSES)) == ("background", tuple(sorted(CLASSES[1:])), 21)
    wnids = importlib.resources.files("timm").joinpath("data/_info/imagenet_synsets.txt").read_text().split()
    assert hashlib.sha256("\n".join(wnids).encode()).hexdigest().startswith(imagenet.CLASSES_SHA256)


# ---- CIFAR


def cifar_entries(name: str, num: int = 12) -> dict[str, Entries]:
    """Batches as in the official archives; image k of batch b is filled with 20 b + k."""
    archive = cifar.ARCHIVES[name]
    found: dict[str, Entries] = {}
    for place, (file, _) in enumerate((*archive.train, *archive.test)):
        pixels = np.repeat(np.arange(num, dtype=np.uint8)[:, None] + np.uint8(20 * place), 3072, axis=1)
        found[file] = {"data": pixels, archive.labels_key: [k % 10 for k in range(num)], "filenames": ["x"] * num}
    found[archive.meta["filename"]] = {archive.meta["key"]: list(archive.classes)}
    return found


def write_cifar(root: Path, name: str, entries: Mapping[str, Entries], protocol: int = 2) -> Path:
    archive = cifar.ARCHIVES[name]
    files = {f"{archive.folder}/{file}": pickle.dumps(entry, protocol) for file, entry in entries.items()}
    return write(root / archive.file, tar_of(files, "w:gz"))


def declare_official(monkeypatch: pytest.MonkeyPatch, name: str, path: Path, entries: Mapping[str, Entries]) -> None:
    """Make the md5 sums of this small archive and its members the official ones."""
    known, md5 = cifar.ARCHIVES[name], hashlib.md5
    sums = {file: md5(pickle.dumps(entry, 2)).hexdigest() for file, entry in entries.items()}
    official = dataclasses.replace(
        known,
        md5=md5(path.read_bytes()).hexdigest(),
        train=[(file, sums[file]) for file, _ in known.train],
        test=[(file, sums[file]) for file, _ in known.test],
    )
    monkeypatch.setitem(cifar.ARCHIVES, name, official)


@pytest.mark.parametrize(("config", "num_train"), [(CIFAR10(), 60), (CIFAR100(), 12)])
def test_cifar_complete_in_archive_and_folder(
    config: CIFAR10 | CIFAR100, num_train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, root=str(tmp_path))
    entries = cifar_entries(config.label)
    path = write_cifar(tmp_path, config.label, entries)
    declare_official(monkeypatch, config.label, path, entries)
    archived = source(config)
    train = archived.parts["train"]
    assert isinstance(train, Pixels)
    assert (train.pixels.shape, train.pixels.dtype) == ((num_train, 32, 32, 3), np.uint8)
    assert train.pixels[:, 3, 4, 1].tolist() == [20 * (k // 12) + k % 12 for k in range(num_train)]
    assert train.labels.tolist() == [k % 12 % 10 for k in range(num_train)]
    assert (archived.missing, archived.fingerprint) == ((), cifar.ARCHIVES[config.label].md5[:16])
    assert archived.classes[1] in ("automobile", "aquarium_fish")
    assert train.encoded(0) is None
    assert_survives_pickling(train)
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path, filter="data")
    path.unlink()
    unpacked = source(config)
    assert_same_samples(archived, unpacked)
    assert unpacked.missing == ()
    with pytest.raises(ValueError, match="is complete, not a subset"):
        source(dataclasses.replace(config, subset=True))


def test_cifar_planes_become_pixels(tmp_path: Path) -> None:
    entries = cifar_entries("cifar10")
    entries["data_batch_1"]["data"] = np.random.default_rng(0).integers(0, 256, (12, 3072), np.uint8)
    red, green, blue = entries["data_batch_1"]["data"][5].reshape(3, 32, 32)
    write_cifar(tmp_path, "cifar10", entries)
    found = cifar.read("cifar10", tmp_path).parts["train"].image(5)
    assert np.array_equal(np.asarray(found), np.stack([red, green, blue], axis=-1))


def test_incomplete_cifar_must_be_declared_as_subset(tmp_path: Path) -> None:
    path = write_cifar(tmp_path, "cifar10", cifar_entries("cifar10"))
    with pytest.raises(ValueError, match=f"{path} has md5 .*official.* c58f30.*incomplete or altered.*--data.subset"):
        source(CIFAR10(root=str(tmp_path)))
    part = source(CIFAR10(root=str(tmp_path), subset=True))
    assert len(part.parts["train"]) == 60
    assert part.missing[1:] == ("60 of 50,000 training images", "12 of 10,000 test images")
    other = cifar_entries("cifar10")
    other["data_batch_2"]["labels"][0] = 7
    write_cifar(tmp_path, "cifar10", other)
    assert cifar.read("cifar10", tmp_path).fingerprint != part.fingerprint


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_each_protocol_are_read(protocol: int) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for array in (pixels, np.asfortranarray(pixels), pixels[:0]):
        found = pickles.load(pickle.dumps({"data": array, "labels": [1, 2]}, protocol), "x")
        assert np.array_equal(found["data"], array)
        assert found["labels"] == [1, 2]


def test_python_2_pickles_are_read() -> None:
    """Byte for byte as Python 2 wrote them: str for keys and for the array's bytes, numpy's old module names."""
    written = (
        b"\x80\x02}(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x03\x00\x80\xfftbU\x06labels](K\x07eu."
    )
    found = pickles.load(written, "x")
    assert found["data"].tolist() == [[0, 128, 255]]
    assert found["labels"] == [7]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    for member in ("data_batch_3", "batches.meta"):
        entries = cifar_entries("cifar10")
        entries[member]["more"] = Malicious(marker)
        path = write_cifar(tmp_path, "cifar10", entries)
        with pytest.raises(ValueError, match=rf"{path}:cifar-10-batches-py/{member} refers to \w+.mkdir.*not loaded"):
            cifar.read("cifar10", tmp_path)
        assert not marker.exists()
    declare_official(monkeypatch, "cifar10", path, entries)  # also with the official md5
    with pytest.raises(ValueError, match=r"refers to \w+.mkdir"):
        cifar.read("cifar10", tmp_path)
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()  # the unrestricted unpickler would have called it


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.zeros(3, np.float32),
        np.zeros(2, [("a", np.uint8)]),
        np.dtype("V8"),
        re.compile("x"),
        bytearray(b"x"),
        len,
    ],
)
def test_other_values_in_pickles_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^batch "):
        pickles.load(pickle.dumps({"data": value}, 2), "batch")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", None, "must hold a dict with 'data' and 'labels'"),
        ("labels", None, "must hold a dict with 'data' and 'labels'"),
        ("data", np.zeros((12, 3071), np.uint8), "must hold N x 3072 bytes"),
        ("data", np.zeros((0, 3072), np.uint8), "must hold N x 3072 bytes"),
        ("data", b"x" * 3072, "must hold N x 3072 bytes"),
        ("labels", [0] * 11, "must hold a list of 12 labels"),
        ("labels", [0] * 11 + [10], "has the label 10: labels must be integers from 0 to 9"),
        ("labels", [-1] * 12, "has the label -1"),
        ("labels", ["0"] * 12, "has the label '0'"),
    ],
)
def test_errors_in_cifar_batches(key: str, value: Any, message: str, tmp_path: Path) -> None:
    entries = cifar_entries("cifar10")
    if value is None:
        del entries["data_batch_2"][key]
    else:
        entries["data_batch_2"][key] = value
    path = write_cifar(tmp_path, "cifar10", entries)
    with pytest.raises(ValueError, match=f"{path}:cifar-10-batches-py/data_batch_2 {message}.*md5.*download https://"):
        cifar.read("cifar10", tmp_path)


def test_errors_in_cifar_archives(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither cifar-10-python.tar.gz nor cifar-10-batches-py.*https://"):
        cifar.read("cifar10", tmp_path)
    entries = cifar_entries("cifar10")
    path = write_cifar(tmp_path, "cifar10", entries)
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:5], b"", b"not a gzip" * 100, whole[:200] + b"\0" * 50 + whole[250:]):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=f"{path} (cannot be read|has no) .*official file has c58f.*altered.*https://"
        ):
            cifar.read("cifar10", tmp_path)
    fewer = {name: entry for name, entry in entries.items() if name != "data_batch_4"}
    write_cifar(tmp_path, "cifar10", fewer)
    with pytest.raises(ValueError, match=f"{path} has no cifar-10-batches-py/data_batch_4"):
        cifar.read("cifar10", tmp_path)
    entries["batches.meta"]["label_names"].reverse()
    write_cifar(tmp_path, "cifar10", entries)
    with pytest.raises(ValueError, match=r"batches.meta does not list the official classes in their order"):
        cifar.read("cifar10", tmp_path)


def test_errors_in_cifar_folders(tmp_path: Path) -> None:
    with tarfile.open(write_cifar(tmp_path / "archive", "cifar10", cifar_entries("cifar10"))) as tar:
        tar.extractall(tmp_path, filter="data")
    member = tmp_path / "cifar-10-batches-py" / "test_batch"
    member.write_bytes(member.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{member} is not a pickle of the official form .*{member} has md5 "):
        cifar.read("cifar10", tmp_path)
    member.unlink()
    with pytest.raises(FileNotFoundError, match=f"{member} is missing"):
        cifar.read("cifar10", tmp_path)


# ---- Tiny-ImageNet


def tiny_files() -> dict[str, bytes]:
    """The official layout: three classes of four training and two validation images, and an unlabelled test part."""
    files = {"wnids.txt": "\n".join(reversed(WNIDS)).encode(), "test/images/test_0.JPEG": jpeg(0)}
    lines = []
    for label, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"0 0 1 1"
        files |= {f"train/{wnid}/images/{wnid}_{n}.JPEG": jpeg(10 * label + n) for n in range(4)}
    for n in range(6):
        files[f"val/images/val_{n}.JPEG"] = jpeg(50 + n)
        lines.append(f"val_{n}.JPEG\t{WNIDS[2 - n % 3]}\t0\t0\t9\t9\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files


def write_tiny(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        write(root / "tiny-imagenet-200" / name, content)
    return root


def write_tiny_zip(root: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w", method) as archive:
        archive.mkdir("tiny-imagenet-200/train")
        for name, content in files.items():
            member = zipfile.ZipInfo(f"tiny-imagenet-200/{name}")
            member.extra = b"UT\5\0\1\0\0\0\0"  # a time, as Info-ZIP writes it between header and data
            archive.writestr(member, content, method)
    return root


def rearranged(files: Mapping[str, bytes]) -> dict[str, bytes]:
    found = {re.sub("images/", "", name): content for name, content in files.items() if name.startswith("train/")}
    for line in files["val/val_annotations.txt"].decode().splitlines():
        name, wnid, *_ = line.split()
        found[f"val/{wnid}/{name}"] = files[f"val/images/{name}"]
    return found


def test_tiny_imagenet_is_the_same_in_each_form(tmp_path: Path) -> None:
    files = tiny_files()
    folder = tiny_imagenet.read(write_tiny(tmp_path / "folder", files))
    assert folder.classes == WNIDS  # sorted, not as in wnids.txt
    assert folder.parts["train"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert folder.parts["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert folder.parts["test"].encoded(0) == files["val/images/val_2.JPEG"]
    assert folder.parts["train"].encoded(6) == files[f"train/{WNIDS[1]}/images/{WNIDS[1]}_2.JPEG"]
    assert folder.missing == ("3 of 200 classes", "12 of 100,000 training images", "6 of 10,000 test images")
    itself = tiny_imagenet.read(tmp_path / "folder" / "tiny-imagenet-200")
    zipped = tiny_imagenet.read(write_tiny_zip(tmp_path / "zip", files))
    stored = tiny_imagenet.read(write_tiny_zip(tmp_path / "stored", rearranged(files), zipfile.ZIP_STORED))
    usual = write_tiny(tmp_path / "usual", rearranged(files)) / "tiny-imagenet-200"
    (usual / "val" / "images").mkdir()  # an empty folder remains after rearranging
    for other in (itself, zipped, stored, tiny_imagenet.read(usual)):
        assert_same_samples(folder, other)
        assert_survives_pickling(other.parts["test"])
    assert [path.name for path in (tmp_path / "zip").iterdir()] == ["tiny-imagenet-200.zip"]
    assert "tiny-imagenet-200.zip:tiny-imagenet-200/train/" in zipped.parts["train"].name(0)
    (usual / "val" / "images").rmdir()
    _, *parts = image_folders.scan(usual, ("val",))
    assert folder.fingerprint == fingerprint_of_files(*parts)


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name not in names}


@pytest.mark.parametrize("write_it", [write_tiny, write_tiny_zip])
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda f: without(f, "val/images/val_3.JPEG"),
            FileNotFoundError,
            r"val_annotations.txt, line 4: .*val/images/val_3.JPEG is missing",
        ),
        (
            lambda f: f | {"val/val_annotations.txt": f["val/val_annotations.txt"].replace(b"n02102040", b"n0", 1)},
            ValueError,
            r"val_annotations.txt, line 2: the class n0 is missing from train/",
        ),
        (
            lambda f: f | {"val/val_annotations.txt": f["val/val_annotations.txt"] + b"val_9.JPEG\n"},
            ValueError,
            r"val_annotations.txt, line 7: 2 columns are needed, not 1",
        ),
        (
            lambda f: f | {"val/val_annotations.txt": f["val/val_annotations.txt"] + f"val_0.JPEG {WNIDS[0]}".encode()},
            ValueError,
            r"line 7: val_0.JPEG occurs twice",
        ),
        (lambda f: f | {"val/val_annotations.txt": b"\xff\xfe\x00"}, ValueError, r"annotations.txt is not a text file"),
        (lambda f: f | {"val/images/val_7.JPEG": jpeg(1)}, ValueError, r"has no labels for val_7.JPEG"),
        (lambda f: without(f, "val/val_annotations.txt"), FileNotFoundError, r"val_annotations.txt is missing"),
        (lambda f: f | {f"train/n09/{n}": b"" for n in ("boxes.txt",)}, FileNotFoundError, r"no image in .*train/n09"),
        (lambda f: f | {"train/n09/a.JPEG": jpeg(1)}, ValueError, r"folders that are missing from .*wnids.txt: n09"),
        (
            lambda f: rearranged(f) | {"val/n09/a.JPEG": jpeg(1)},
            ValueError,
            r"has classes that are missing from train/: n09",
        ),
        (
            lambda f: (
                {n: c for n, c in f.items() if not n.endswith("JPEG") and n.startswith("val")} | {"train/x.txt": b""}
            ),
            FileNotFoundError,
            r"no image in .*train",
        ),
    ],
)
def test_errors_in_tiny_imagenet(
    write_it: Callable[[Path, Mapping[str, bytes]], Path],
    spoil: Callable[[dict[str, bytes]], dict[str, bytes]],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    write_it(tmp_path, spoil(tiny_files()))
    with pytest.raises(error, match=message):
        tiny_imagenet.read(tmp_path)


def test_empty_class_folder(tmp_path: Path) -> None:
    empty = write_tiny(tmp_path, tiny_files()) / "tiny-imagenet-200" / "train" / "n09"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=f"no image in {empty}"):
        tiny_imagenet.read(tmp_path)


def test_errors_in_tiny_imagenet_zips(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither tiny-imagenet-200.zip nor tiny-imagenet-200/.*http://"):
        tiny_imagenet.read(tmp_path)
    path = write_tiny_zip(tmp_path, tiny_files()) / "tiny-imagenet-200.zip"
    whole = path.read_bytes()
    for damaged in (whole[:-500], b"", b"\0" * 5000):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path} is not a readable zip archive .*download http://"):
            tiny_imagenet.read(tmp_path)
    for method, message in ((zipfile.ZIP_STORED, "is damaged"), (zipfile.ZIP_DEFLATED, "(is damaged|cannot be read)")):
        whole = (write_tiny_zip(tmp_path, tiny_files(), method) / path.name).read_bytes()
        part = tiny_imagenet.read(tmp_path).parts["train"]
        assert isinstance(part, ZipMembers)
        at = int(part.start[1] + part.size[1])  # near the end of the image's data
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        assert part.encoded(0) == tiny_files()[f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"]
        with pytest.raises(ValueError, match=f"{path}:.*{WNIDS[0]}_1.JPEG {message}.*download the archive again"):
            part.image(1)
    write_tiny_zip(tmp_path, tiny_files(), zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="encrypted or not compressed by deflate"):
        tiny_imagenet.read(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/train/a.JPEG", jpeg(1))
    with pytest.raises(ValueError, match=f"{path}:train/ is missing"):
        tiny_imagenet.read(tmp_path)


# ---- ImageNet

SYNSET = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
# By ILSVRC2012_ID, from 1; the last one is not a class, but the parent of two of them.
SYNSETS = (WNIDS[2], WNIDS[0], WNIDS[1], "n00001740")
TRUTH = (2, 3, 1, 1, 2, 3)


def meta_mat() -> bytes:
    table = np.empty((len(SYNSETS), 1), [(name, object) for name in SYNSET])
    for row, wnid in enumerate(SYNSETS):
        children = np.array([2.0, 3.0]) if row == 3 else np.zeros(0)
        table[row, 0] = (row + 1.0, wnid, "words", "gloss", float(len(children)), children, 0.0, 1300.0)
    stream = io.BytesIO()
    savemat(stream, {"synsets": table})
    return stream.getvalue()


def devkit(truth: tuple[int, ...] = TRUTH, meta: bytes | None = None) -> bytes:
    folder = "ILSVRC2012_devkit_t12/data"
    lines = "".join(f"{synset}\n" for synset in truth).encode()
    files = {f"{folder}/ILSVRC2012_validation_ground_truth.txt": lines, f"{folder}/meta.mat": meta or meta_mat()}
    return tar_of({"ILSVRC2012_devkit_t12/readme.txt": b"x", **files}, "w:gz")


def train_images(wnid: str) -> dict[str, bytes]:
    # Not in sorted order, as in the official archives.
    return {f"{wnid}_{n}.JPEG": jpeg(100 * WNIDS.index(wnid) + n) for n in (7, 10, 2)}


def val_images() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_0000000{n}.JPEG": jpeg(1000 + n) for n in (3, 1, 2, 6, 5, 4)}


def write_tars(root: Path) -> Path:
    inner = {f"{wnid}.tar": tar_of(train_images(wnid)) for wnid in reversed(WNIDS)}
    write(root / "ILSVRC2012_img_train.tar", tar_of(inner))
    write(root / "ILSVRC2012_img_val.tar", tar_of(val_images()))
    write(root / "ILSVRC2012_devkit_t12.tar.gz", devkit())
    return root


def write_folders(root: Path) -> Path:
    for wnid in WNIDS:
        for name, content in train_images(wnid).items():
            write(root / "train" / wnid / name, content)
    for (name, content), synset in zip(sorted(val_images().items()), TRUTH, strict=True):
        write(root / "val" / SYNSETS[synset - 1] / name, content)
    return root


def test_imagenet_tars_equal_their_folders(tmp_path: Path) -> None:
    tars = imagenet.read(write_tars(tmp_path / "tars"))
    folders = imagenet.read(write_folders(tmp_path / "folders"))
    assert tars.classes == WNIDS
    assert tars.parts["train"].labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert tars.parts["train"].encoded(3) == train_images(WNIDS[1])[f"{WNIDS[1]}_10.JPEG"]
    assert tars.parts["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert tars.parts["test"].encoded(1) == val_images()["ILSVRC2012_val_00000005.JPEG"]
    assert tars.parts["train"].name(0).endswith("train.tar:n01440764.tar/n01440764_10.JPEG")
    assert_same_samples(tars, folders)
    assert np.array_equal(np.asarray(tars.parts["test"].image(4)), np.asarray(folders.parts["test"].image(4)))
    for part in tars.parts.values():
        assert_survives_pickling(part)
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == [
        *("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
    ]
    assert tars.missing == ("3 of 1,000 classes", "9 of 1,281,167 training images", "6 of 50,000 test images")


def test_another_set_in_imagenets_layout(tmp_path: Path) -> None:
    root = str(write_folders(tmp_path))
    assert source(ImageNet(root=root, name="dogs")).missing == ()
    with pytest.raises(ValueError, match="dogs is complete, not a subset"):
        source(ImageNet(root=root, name="dogs", subset=True))


def test_another_thousand_classes_are_not_imagenet(tmp_path: Path) -> None:
    picture = jpeg(0, (1, 1))
    for number in range(1000):
        for part in ("train", "val"):
            write(tmp_path / part / f"n{number:08d}" / "a.JPEG", picture)
    assert "its classes are not the official 1,000" in imagenet.read(tmp_path).missing


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ILSVRC2012_devkit_t12.tar.gz", "download the development kit .*labels of the validation images"),
        ("ILSVRC2012_img_train.tar", "download the training images"),
        ("ILSVRC2012_img_val.tar", "download the validation images"),
    ],
)
def test_missing_imagenet_files(name: str, remedy: str, tmp_path: Path) -> None:
    path = write_tars(tmp_path) / name
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing: {remedy}.*https://image-net.org"):
        imagenet.read(tmp_path)


def without_end(whole: bytes) -> bytes:
    """The last inner tar without its end marker; the zeros that follow belong to the outer tar."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        last = tar.getmembers()[-1]
        images = train_images(last.name.removesuffix(".tar")).values()
        length = sum(512 + -(-len(image) // 512) * 512 for image in images)
        return tar_of({last.name: whole[last.offset_data : last.offset_data + length]})


def spoil_an_inner_header(whole: bytes) -> bytes:
    """An unreadable header of the second image in an inner tar."""
    at = whole.index(b"n02102040_10.JPEG")
    return whole[:at] + b"\xff" * 300 + whole[at + 300 :]


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("img_train.tar", lambda b: b"\0" * 100, "img_train.tar is not a readable tar archive"),
        ("img_train.tar", lambda b: b"", "img_train.tar is not a readable tar archive"),
        ("img_train.tar", lambda b: tar_of({}), "img_train.tar is empty"),
        ("img_train.tar", lambda b: b[: len(b) // 2], "img_train.tar is (not a readable|damaged)"),
        ("img_train.tar", lambda b: b[: b.rindex(b"ustar") - 257], "img_train.tar is (not a readable|damaged)"),
        ("img_train.tar", without_end, "img_train.tar:n01440764.tar is damaged or truncated after 3 files"),
        ("img_train.tar", spoil_an_inner_header, "img_train.tar:n02102040.tar is damaged or truncated after 1 files"),
        (
            "img_train.tar",
            lambda b: tar_of({"n01440764.tar": b"x" * 600}),
            "train.tar:n01440764.tar is damaged or truncated after 0",
        ),
        ("img_train.tar", lambda b: tar_of({"n01440764.tar": tar_of({})}), "no image in .*train.tar:n01440764.tar"),
        ("img_train.tar", lambda b: tar_of({"a.JPEG": jpeg(1)}), "holds a.JPEG, but official members are <wnid>.tar"),
        (
            "img_train.tar",
            lambda b: tar_of({"n09.tar": tar_of({"a.JPEG": jpeg(1)})}),
            "img_train.tar has classes that are missing from .*devkit_t12.tar.gz: n09",
        ),
        (
            "img_train.tar",
            lambda b: tar_of({"n01440764.tar": tar_of({"a.JPEG": jpeg(1)})}),
            "img_val.tar has images of classes that are missing from .*img_train.tar: n02102040, n03000684",
        ),
        ("img_val.tar", lambda b: b[:3000], "img_val.tar is (not a readable|damaged)"),
        ("img_val.tar", lambda b: tar_of({"a.JPEG": jpeg(1)}), "img_val.tar holds 1 images, but .*truth.txt has 6"),
        ("devkit_t12.tar.gz", lambda b: b[:-30], "devkit_t12.tar.gz cannot be read"),
        ("devkit_t12.tar.gz", lambda b: tar_of({"a/b": b""}, "w:gz"), "devkit_t12.tar.gz has no data/meta.mat"),
        ("devkit_t12.tar.gz", lambda b: devkit(TRUTH[1:]), "img_val.tar holds 6 images, but .*truth.txt has 5 lines"),
        ("devkit_t12.tar.gz", lambda b: devkit((1, 2, 0, 1, 1, 1)), "truth.txt, line 3: 0 is not the ILSVRC2012_ID"),
        ("devkit_t12.tar.gz", lambda b: devkit((1, 2, 4, 1, 1, 1)), r"line 3: 4 is not the ILSVRC2012_ID.*\(1 to 3\)"),
        ("devkit_t12.tar.gz", lambda b: devkit(meta=b"x" * 500), "meta.mat is not the official table of synsets"),
        ("devkit_t12.tar.gz", lambda b: devkit(meta=meta_mat()[:300]), "meta.mat is not the official table"),
    ],
)
def test_damaged_imagenet_archives(file: str, spoil: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = write_tars(tmp_path) / f"ILSVRC2012_{file}"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        imagenet.read(tmp_path)


def test_errors_in_imagenet_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold train/<class>/\* and val/<class>/\*, or ILSVRC2012_img_tr"):
        imagenet.read(tmp_path)
    root = write_folders(tmp_path / "set")
    (root / "train" / "n09").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no image in {root / 'train' / 'n09'}"):
        imagenet.read(root)
    (root / "train" / "n09").rmdir()
    broken = root / "train" / WNIDS[0] / f"{WNIDS[0]}_2.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{broken} is not a readable image"):
        imagenet.read(root).parts["train"].image(1)
    shutil.rmtree(root / "val")
    write(root / "val" / "ILSVRC2012_val_00000001.JPEG", jpeg(1))
    with pytest.raises(FileNotFoundError, match=f"{root / 'val'} has no class folders: sort"):
        imagenet.read(root)


def test_any_folder_of_images(tmp_path: Path) -> None:
    root = write_folders(tmp_path)
    found = source(Images(root=str(root), name="birds"))
    assert (found.name, found.missing, found.classes) == ("birds", (), WNIDS)
    assert_same_samples(found, image_folders.read(root, "birds"))
    assert_same_samples(found, imagenet.read(root))


# ---- CUB


def write_cub(root: Path) -> Path:
    """Classes 1, 2 and 10 with two training images and a test image each."""
    names = {1: "001.Albatross", 2: "002.Auk", 10: "010.Blackbird"}
    lines: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    for number in range(1, 10):
        class_id = list(names)[(number - 1) // 3]
        write(root / "CUB_200_2011" / "images" / names[class_id] / f"{number}.jpg", jpeg(number))
        lines["images"].append(f"{number} {names[class_id]}/{number}.jpg")
        lines["image_class_labels"].append(f"{number} {class_id}")
        lines["train_test_split"].append(f"{number} {int(number % 3 != 0)}")
    lines["classes"] = [f"{class_id} {name}" for class_id, name in names.items()]
    for name, content in lines.items():
        write(root / "CUB_200_2011" / f"{name}.txt", "\n".join(content) + "\n")
    return root


def test_cub_by_hand(tmp_path: Path) -> None:
    found = cub.read(write_cub(tmp_path))
    assert found.classes == ("001.Albatross", "002.Auk", "010.Blackbird")
    assert found.parts["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.parts["test"].labels.tolist() == [0, 1, 2]
    assert found.parts["train"].encoded(3) == jpeg(5)
    assert found.parts["test"].encoded(1) == jpeg(6)
    assert_survives_pickling(found.parts["test"])
    assert found.missing == ("3 of 200 classes", "6 of 5,994 training images", "3 of 5,794 test images")
    assert_same_samples(found, cub.read(tmp_path / "CUB_200_2011"))
    change(tmp_path / "CUB_200_2011" / "image_class_labels.txt", "4 2", "4 1")
    assert cub.read(tmp_path).fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("file", "old", "new", "error", "message"),
    [
        (
            "image_class_labels.txt",
            "4 2",
            "4 3",
            ValueError,
            "line 4: the class 3 is not in .*has 3 classes from 1 to 10",
        ),
        ("image_class_labels.txt", "4 2", "4 0", ValueError, "labels.txt, line 4: the class 0 is not in classes.txt"),
        ("image_class_labels.txt", "4 2", "4 x", ValueError, "labels.txt, line 4: 'x' is not an integer"),
        ("image_class_labels.txt", "4 2", "4", ValueError, "labels.txt, line 4: 2 columns are needed, not 1"),
        ("image_class_labels.txt", "4 2\n", "", ValueError, "images.txt has ids that are missing from .*labels.txt: 4"),
        (
            "train_test_split.txt",
            "9 0",
            "9 0\n11 1",
            ValueError,
            "split.txt has ids that are missing from .*images.txt: 11",
        ),
        ("train_test_split.txt", "4 1", "4 2", ValueError, r"split.txt, line 4: must be 1 .* not '2'"),
        ("train_test_split.txt", "4 1", "5 1", ValueError, "split.txt, line 5: the id 5 occurs twice"),
        ("images.txt", "/4.jpg", "/44.jpg", FileNotFoundError, "1 of 9 files are missing: .*002.Auk/44.jpg"),
        ("classes.txt", "10 010.Blackbird", "10 010.Blackbird\n11 x", ValueError, "without a training image: x"),
    ],
)
def test_errors_in_cub_files(
    file: str, old: str, new: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    change(write_cub(tmp_path) / "CUB_200_2011" / file, old, new)
    with pytest.raises(error, match=message):
        cub.read(tmp_path)


def test_missing_cub_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no CUB_200_2011/ with images.txt: download https://"):
        cub.read(tmp_path)
    write(tmp_path / "CUB_200_2011.tgz", b"")
    with pytest.raises(FileNotFoundError, match=r"holds only CUB_200_2011.tgz, which is compressed.*tar -xzf"):
        cub.read(tmp_path)
    path = write_cub(tmp_path) / "CUB_200_2011" / "classes.txt"
    path.write_text("\n")
    with pytest.raises(ValueError, match=f"{path} is empty"):
        cub.read(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing: unpack"):
        cub.read(tmp_path)


# ---- subsets


@pytest.mark.parametrize(
    ("write_it", "config", "message"),
    [
        (
            lambda root: write_tiny(root, tiny_files()),
            TinyImageNet,
            "tiny-imagenet is .*3 of 200 classes; 12 of",
        ),
        (lambda root: write_folders(root), ImageNet, "imagenet is .*3 of 1,000 classes; 9 of 1,281,167 training"),
        (write_cub, CUB, "cub200 is .*3 of 200 classes; 6 of 5,994"),
    ],
)
def test_an_incomplete_set_must_be_declared_as_subset(
    write_it: Callable[[Path], Path], config: Callable[..., Any], message: str, tmp_path: Path
) -> None:
    root = str(write_it(tmp_path))
    with pytest.raises(ValueError, match=message.replace(" is .*", r" is incomplete \(")):
        source(config(root=root))
    assert source(config(root=root, subset=True)).missing[0].startswith("3 of ")


# ---- Pascal VOC


def voc_object(name: str, box: tuple[object, ...], more: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmax", "xmin", "ymax", "ymin"), box, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox>{more}</object>"


def voc_xml(*objects: str, size: tuple[int, int] = (20, 16)) -> str:
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        f"{''.join(objects)}</annotation>"
    )


DOG = voc_object("dog", (20, 1, 16, 1), "<difficult>1</difficult>")
PERSON = voc_object(
    *("person", (10, 3, 9.5, 5)),
    "<difficult>0</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>",
)
LISTS = {"2007": {"trainval": ["000005", "000007"], "test": ["000001"]}}
LISTS["2012"] = {"train": ["2008_000008", "2008_000015"], "val": ["2008_000002"]}
LISTS["2012"]["trainval"] = ["2008_000002", "2008_000008", "2008_000015"]


def write_voc(root: Path) -> Path:
    for year, lists in LISTS.items():
        folder = root / "VOCdevkit" / f"VOC{year}"
        for name, ids in lists.items():
            for kind in ("Main", "Segmentation"):
                write(folder / "ImageSets" / kind / f"{name}.txt", "".join(f"{i}\n" for i in ids))
            for place, each in enumerate(ids if (year, name) != ("2012", "trainval") else []):
                write(folder / "JPEGImages" / f"{each}.jpg", jpeg(int(each[-3:])))
                write(folder / "Annotations" / f"{each}.xml", voc_xml(*[DOG, PERSON][place:]))
                mask = Image.fromarray(np.full((16, 20), 15, np.uint8))
                mask.putpalette(bytes(range(256)) * 3)
                mask.putpixel((3, 2), 255)
                (folder / "SegmentationClass").mkdir(exist_ok=True)
                mask.save(folder / "SegmentationClass" / f"{each}.png")
    return root


def test_boxes_by_hand() -> None:
    found = parse(voc_xml(DOG, PERSON).encode(), "x", 20, 16)
    assert found.boxes.tolist() == [[0, 0, 20, 16], [2, 4, 10, 9.5]]  # the first is the whole image
    assert found.labels.tolist() == [12, 15] == [CLASSES.index("dog"), CLASSES.index("person")]
    assert found.difficult.tolist() == [True, False]
    assert (found.boxes.dtype, found.labels.dtype, found.difficult.dtype) == (torch.float32, torch.int64, torch.bool)
    none = parse(voc_xml().encode(), "x", 20, 16)
    assert (none.boxes.shape, len(none)) == ((0, 4), 0)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (voc_xml(DOG)[:-5], "is not readable XML"),
        ("", "is not readable XML"),
        (voc_xml(DOG).encode("utf-16"), "is not readable XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + voc_xml(DOG), "has a document type or entities"),
        (voc_xml(DOG, size=(16, 20)), "is for an image of 16 x 20 pixels, but the image has 20 x 16"),
        ("<annotation/>", "<size><width> must hold a number, not None"),
        (
            voc_xml(PERSON, voc_object("wolf", (9, 1, 9, 1))),
            "object 2 has the unknown class 'wolf': the classes are aeroplane",
        ),
        (voc_xml(voc_object("background", (9, 1, 9, 1))), "unknown class 'background'"),
        (voc_xml("<object><name>dog</name></object>"), "object 1: <bndbox><xmin> must hold a number, not None"),
        (voc_xml(voc_object("dog", (9, "nan", 9, 1))), "<bndbox><xmin> must hold a number, not 'nan'"),
        (voc_xml(voc_object("dog", (21, 1, 9, 1))), r"object 1: the box from \(1, 1\) to \(21, 9\) lies outside"),
        (voc_xml(voc_object("dog", (9, 1, 17, 1))), r"object 1: the box from \(1, 1\) to \(9, 17\) lies outside"),
        (voc_xml(voc_object("dog", (9, 0, 9, 1))), "lies outside its image of 20 x 16 pixels, counted from 1"),
        (voc_xml(voc_object("dog", (9, 1, 9, 0))), "lies outside its image"),
        (voc_xml(voc_object("dog", (4, 5, 9, 1))), "or has no area"),
        (voc_xml(voc_object("dog", (9, 1, 4, 5))), "or has no area"),
        (voc_xml(voc_object("dog", (9, 1, 9, 1), "<difficult>2</difficult>")), "<difficult> must be 0 or 1, not '2'"),
    ],
)
def test_errors_in_annotations(xml: str | bytes, message: str, tmp_path: Path) -> None:
    path = write_voc(tmp_path) / "VOCdevkit" / "VOC2012" / "Annotations" / "2008_000015.xml"
    write(path, xml)
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        voc.read(tmp_path, ["2012"], "detection")


def test_voc_detection_splits(tmp_path: Path) -> None:
    late = voc.read(write_voc(tmp_path), ["2012"], "detection")
    train = late.parts["train"]
    assert [train.name(row)[-15:-4] for row in range(2)] == LISTS["2012"]["train"]
    assert [train.boxes(row).labels.tolist() for row in range(2)] == [[12, 15], [15]]
    assert train.boxes(1).boxes.tolist() == [[2, 4, 10, 9.5]]
    assert train.encoded(1) == jpeg(15)
    assert train.image(0).size == (20, 16)
    assert len(late.parts["test"]) == 1
    assert late.missing == ("2 of 5,717 images of VOC2012 train", "1 of 5,823 images of VOC2012 val")
    assert pickle.loads(pickle.dumps(train)).boxes(0).labels.tolist() == [12, 15]
    both = voc.read(tmp_path / "VOCdevkit", ["2007", "2012"], "detection")
    assert [both.parts["train"].path(row).stem for row in range(5)] == [
        *LISTS["2007"]["trainval"],
        *LISTS["2012"]["trainval"],
    ]
    assert [both.parts["train"].boxes(row).labels.tolist() for row in (1, 2)] == [[15], [12, 15]]
    assert both.parts["test"].path(0).stem == "000001"
    assert both.name == "voc2007+2012-detection"
    assert both.missing == (
        "2 of 5,011 images of VOC2007 trainval",
        "3 of 11,540 images of VOC2012 trainval",
        "1 of 4,952 images of VOC2007 test",
    )
    with pytest.raises(ValueError, match="voc2012-detection is incomplete"):
        late.check_complete(subset=False)
    early = voc.read(tmp_path, ["2007"], "detection")
    assert [len(early.parts[part]) for part in ("train", "test")] == [2, 1]


def test_fingerprint_includes_boxes(tmp_path: Path) -> None:
    before = voc.read(write_voc(tmp_path), ["2012"], "detection").fingerprint
    assert voc.read(tmp_path / "VOCdevkit", ["2012"], "detection").fingerprint == before
    change(tmp_path / "VOCdevkit/VOC2012/Annotations/2008_000008.xml", "<xmin>3<", "<xmin>4<")
    assert voc.read(tmp_path, ["2012"], "detection").fingerprint != before


def test_voc_segmentation(tmp_path: Path) -> None:
    found = voc.read(write_voc(tmp_path), ["2012"], "segmentation")
    mask = found.parts["train"].mask(1)
    assert (mask.shape, mask.dtype, mask[2, 3]) == ((16, 20), np.uint8, 255)
    assert np.unique(mask).tolist() == [15, 255]
    assert found.missing == ("2 of 1,464 images of VOC2012 train", "1 of 1,449 images of VOC2012 val")
    assert pickle.loads(pickle.dumps(found.parts["test"])).mask(0).shape == (16, 20)
    early = voc.read(tmp_path, ["2007"], "segmentation")
    assert early.missing == ("2 of 422 images of VOC2007 trainval", "1 of 210 images of VOC2007 test")
    with pytest.raises(ValueError, match=r"contains VOC2007's test images, as 2007_...: give one year"):
        voc.read(tmp_path, ["2007", "2012"], "segmentation")


def save_mask(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (save_mask(np.zeros((20, 16), np.uint8)), r"has 16 x 20 pixels, but .*2008_000015.jpg has 20 x 16"),
        (save_mask(np.full((16, 20), 21, np.uint8)), "has pixels of class 21: classes are 0 to 20 and 255"),
        (save_mask(np.zeros((16, 20, 3), np.uint8)), r"has the mode RGB instead of palette numbers"),
        (save_mask(np.zeros((16, 20), np.uint8))[:45], "is not a readable mask"),
        (b"", "is not a readable mask"),
    ],
    ids=["size", "class", "colours", "cut", "empty"],
)
def test_errors_in_masks(mask: bytes, message: str, tmp_path: Path) -> None:
    path = write(write_voc(tmp_path) / "VOCdevkit/VOC2012/SegmentationClass/2008_000015.png", mask)
    part = voc.read(tmp_path, ["2012"], "segmentation").parts["train"]
    assert part.mask(0).shape == (16, 20)
    with pytest.raises(ValueError, match=f"{path} {message}"):
        part.mask(1)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("JPEGImages/2008_000015.jpg", "detection"),
        ("JPEGImages/2008_000015.jpg", "segmentation"),
        ("Annotations/2008_000015.xml", "detection"),
        ("SegmentationClass/2008_000015.png", "segmentation"),
        ("ImageSets/Main/val.txt", "detection"),
        ("ImageSets/Segmentation/train.txt", "segmentation"),
    ],
)
def test_missing_voc_files(name: str, task: Any, tmp_path: Path) -> None:
    path = write_voc(tmp_path) / "VOCdevkit" / "VOC2012" / name
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"missing: {path}|{path} is missing"):
        voc.read(tmp_path, ["2012"], task)


def test_errors_in_voc_lists_and_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no VOCdevkit/VOC2007: download http://.*VOCtrainval_06-Nov"):
        voc.read(tmp_path, ["2007"], "detection")
    folder = write_voc(tmp_path) / "VOCdevkit" / "VOC2012"
    with pytest.raises(ValueError, match="years must be"):
        voc.read(tmp_path, ["2010"], "detection")
    with pytest.raises(ValueError, match="years must be"):
        voc.read(tmp_path, ["2012", "2012"], "detection")
    with pytest.raises(ValueError, match="task must be detection or segmentation, not 'layout'"):
        voc.read(tmp_path, ["2012"], "layout")  # pyright: ignore
    train = folder / "ImageSets" / "Main" / "train.txt"
    for text, message in (
        ("2008_000008\n2008_000008\n", "line 2: 2008_000008 is already in line 1"),
        ("\n", "is empty"),
    ):
        train.write_text(text)
        with pytest.raises(ValueError, match=f"{train}.*{message}"):
            voc.read(tmp_path, ["2012"], "detection")
    train.write_text("2008_000008\n2008_000002\n")
    with pytest.raises(ValueError, match=r"images are in both training and test: .*2008_000002"):
        voc.read(tmp_path, ["2012"], "detection")
    train.write_text("2008_000008\n")
    broken = write(folder / "JPEGImages" / "2008_000008.jpg", jpeg(1)[:10])
    with pytest.raises(ValueError, match=f"{broken} is not a readable image"):
        voc.read(tmp_path, ["2012"], "detection")
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"Main/test.txt is missing: download http://.*VOCtest_06-Nov-2007.tar"):
        voc.read(tmp_path, ["2007"], "detection")
