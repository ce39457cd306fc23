"""Pictures as people have them: read as they are meant, or refused by name; and archives that are meant to do harm."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data.config import Images
from pipelines.data.ffcv import beton, format
from pipelines.data.loader import open_loader
from pipelines.data.readers import checks, image_folders, imagenet_tars, tiny_imagenet
from pipelines.data.source import decoded

COLOURS = np.arange(12 * 8 * 3, dtype=np.uint8).reshape(12, 8, 3)


def folder(root: Path, size: int = 8) -> Path:
    """Two classes with two training images and a test image each."""
    for part, num in (("train", 2), ("test", 1)):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for number in range(num):
                Image.new("RGB", (size, size), (10 * number, 50, 90)).save(root / part / label / f"{number}.png")
    return root


def test_16_bits_are_scaled(tmp_path: Path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    assert np.asarray(decoded(tmp_path / "grey.png", "grey"))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (Image.fromarray(np.ones((4, 4), np.float32)), "has pixels of mode F, whose range is not known"),
        (Image.fromarray(np.ones((4, 4), np.int32)), "has pixels of mode I, whose range is not known"),
        (Image.new("RGBA", (4, 4), (9, 9, 9, 100)), "has transparent pixels"),
        (Image.new("LA", (4, 4), (9, 0)), "has transparent pixels"),
    ],
    ids=["float", "int", "RGBA", "LA"],
)
def test_colours_that_nothing_says_are_refused(image: Image.Image, named: str, tmp_path: Path):
    image.save(tmp_path / "image.tiff")
    with pytest.raises(ValueError, match=f"image.tiff {named}"):
        decoded(tmp_path / "image.tiff", str(tmp_path / "image.tiff"))


@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_files_of_several_pictures_are_refused(ending: str, tmp_path: Path):
    path, frames = tmp_path / f"moving.{ending}", [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 99)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=rf"moving\.{ending} has 2 pictures"):
        decoded(path, str(path))


def test_opaque_images_with_alpha_are_read(tmp_path: Path):
    Image.fromarray(COLOURS).convert("RGBA").save(tmp_path / "opaque.png")
    assert np.array_equal(np.asarray(decoded(tmp_path / "opaque.png", "opaque")), COLOURS)


def test_a_turned_photograph_of_a_folder_is_upright(tmp_path: Path):
    folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(COLOURS).save(tmp_path / "train" / "cat" / "2.png", exif=exif)
    part = image_folders.read(tmp_path, "mine").parts["train"]
    assert np.array_equal(np.asarray(part.image(2)), np.rot90(COLOURS, -1))
    assert part.encoded(2) is None, "the file holds other pixels than the image"
    assert part.encoded(0) == (tmp_path / "train" / "cat" / "0.png").read_bytes()
    assert np.array_equal(np.asarray(decoded(tmp_path / "train" / "cat" / "2.png", "")), COLOURS), "official sets"


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path: Path):
    folder(tmp_path)
    for hidden in (".ipynb_checkpoints", "__MACOSX", "cat/.ipynb_checkpoints", "dog/@eaDir"):
        (tmp_path / "train" / hidden).mkdir()
        (tmp_path / "train" / hidden / "copy.png").write_bytes(b"x")
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    source = image_folders.read(tmp_path, "mine")
    assert source.classes == ("cat", "dog")
    assert [len(part) for part in source.parts.values()] == [4, 2]


@pytest.mark.parametrize("ending", ["gif", "HEIC", "avif"])
def test_pictures_that_cannot_be_read_are_named(ending: str, tmp_path: Path):
    (folder(tmp_path) / "train" / "dog" / f"7.{ending}").write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"dog/7\.{ending} cannot be read, only \.jpg.*: convert or remove"):
        image_folders.read(tmp_path, "mine")


@pytest.mark.parametrize("backend", ["memory", "folder"])
def test_a_user_is_told_that_images_are_enlarged(backend, tmp_path: Path):
    data = Images(root=str(folder(tmp_path)), image_size=16, backend=backend, val_fraction=0)
    loader = open_loader(data, 0, "cpu")
    assert loader.note == "images of 8 pixels are enlarged to 16: --data.image-size 8 costs 25% as much"
    assert open_loader(Images(root=str(tmp_path), image_size=8, val_fraction=0), 0, "cpu").note == ""


# ---- archives


def test_a_tar_whose_member_claims_more_than_the_archive_has(tmp_path: Path):
    path = tmp_path / "a.tar"
    for size in (1 << 40, -1024):
        member = tarfile.TarInfo("a.jpg")
        member.size = size
        path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
        with path.open("rb") as file, pytest.raises(ValueError, match=r"a\.tar is not a readable tar archive"):
            imagenet_tars.members(file, str(path))


def test_a_compressed_tar_that_unpacks_to_much_more(tmp_path: Path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("big")
        member.size = (1 << 28) + 1
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(ValueError, match=r"big has 268435457 bytes, more than any file"):
        checks.unpacked(path, lambda name: name)


def test_a_zip_whose_members_lie_or_explode(tmp_path: Path):
    path = tmp_path / tiny_imagenet.ARCHIVE

    def write(content: bytes) -> bytes:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for part in ("train", "val"):
                archive.writestr(f"tiny-imagenet-200/{part}/n01/images/a.JPEG", content)
        return path.read_bytes()

    write(bytes((1 << 28) + 1))
    with pytest.raises(ValueError, match=r"a\.JPEG has \d+ bytes at 0, unpacked 268435457: it is damaged"):
        tiny_imagenet.read(tmp_path)
    data = bytearray(write(b"12345"))
    entry = data.index(b"PK\x01\x02")
    data[entry + 42 : entry + 46] = struct.pack("<I", 0xFFFFFF00)  # where the member starts
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.JPEG has 7 bytes at \d+|is not a readable zip"):
        tiny_imagenet.read(tmp_path)


def test_a_beton_whose_few_bytes_claim_a_huge_image():
    values = np.zeros(1, format.IMAGE)
    values["width"], values["height"], values["data_ptr"] = 65535, 65535, 4096
    regions = beton.Regions(np.array([4096], np.uint64), np.array([100], np.uint64), 8192)
    with pytest.raises(ValueError, match="image 0 has an invalid size"):
        beton._images(Path("a.beton"), {"image": (format.IMAGES, values)}, regions)


def test_a_beton_with_an_array_of_python_objects():
    row = np.frombuffer(format.described([format.Field("boxes", 4, np.dtype(("<f8", (4,))))]), format.FIELD)[0].copy()
    row["arguments"][:] = np.frombuffer(row["arguments"].tobytes().replace(b"<f8", b"|O8"), np.uint8)
    with pytest.raises(ValueError, match="an array of"):
        format.parsed(row)


def test_both_backends_read_the_same_pixels(tmp_path: Path):
    """memory and folder."""
    root = str(folder(tmp_path))
    memory, files = (
        open_loader(Images(root=root, image_size=8, val_fraction=0, backend=backend), 0, "cpu")
        for backend in ("memory", "folder")
    )
    one, other = (next(iter(loader.evaluation("test", 2))) for loader in (memory, files))
    assert torch.equal(one.images, other.images)
