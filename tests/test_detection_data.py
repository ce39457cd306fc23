"""Detection: boxes are compared with pictures of rectangles, through both backends and real files."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compression.batch import Batch
from pipelines import prepare
from pipelines.data.config import VOC, DetectionAugmentation
from pipelines.data.detection import boxes as detection
from pipelines.data.detection.boxes import PaddedBoxes, draw_crops, padded, unletterboxed
from pipelines.data.loader import NEEDS, Loader, open_loader
from pipelines.data.loading import draws
from pipelines.data.loading.geometry import Letterbox, letterboxes
from pipelines.data.loading.views import View
from pipelines.data.readers import voc
from pipelines.data.readers.voc_parts import CLASSES
from pipelines.data.source import IMAGENET_MEAN, IMAGENET_STD

NOTHING: frozenset[str] = frozenset()
SIZE = 64
WATCHDOG_SECONDS = 60

Box = tuple[int, int, int, int]


@pytest.fixture(autouse=True)
def _watchdog() -> Iterator[None]:
    """A timeout: SIGALRM interrupts a test that waits for a process or thread."""

    def timeout(number: int, frame: Any) -> None:
        raise TimeoutError(f"the test hung for {WATCHDOG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, timeout)
    signal.alarm(WATCHDOG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---- a devkit of black images; the box of class c is a rectangle in colour channel c - 1

PHOTOS: list[tuple[tuple[int, int], list[Box]]] = [  # width and height; left, top, right, bottom of classes 1, 2, 3
    ((160, 100), [(40, 20, 90, 70)]),
    ((90, 150), [(10, 100, 60, 140)]),
    ((128, 128), [(0, 0, 64, 32)]),
    ((200, 120), [(10, 10, 60, 110), (100, 30, 190, 80)]),
    ((96, 64), []),
    ((100, 180), [(5, 5, 95, 60), (20, 70, 70, 120), (40, 130, 100, 180)]),
    ((300, 70), [(120, 8, 260, 66)]),
    ((131, 97), [(30, 40, 131, 97), (2, 3, 25, 90)]),
]
TRAIN, TEST = PHOTOS, PHOTOS[:7]


def xml(size: tuple[int, int], boxes: list[Box]) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><difficult>{int(label == 2)}</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for label, (left, top, right, bottom) in enumerate(boxes, 1)
    )
    width, height = size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def photo(size: tuple[int, int], boxes: list[Box]) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for channel, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right, channel] = 255
    return Image.fromarray(pixels)


def write_devkit(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    for part, photos in (("train", TRAIN), ("val", TEST)):
        for number, (size, boxes) in enumerate(photos):
            photo(size, boxes).save(base / "JPEGImages" / f"{part}_{number}.jpg", quality=98, subsampling=0)
            (base / "Annotations" / f"{part}_{number}.xml").write_text(xml(size, boxes))
        names = "".join(f"{part}_{number}\n" for number in range(len(photos)))
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text(names)


@dataclass(frozen=True)
class Roots:
    """The same data as official files ("folder"), prepared ("ffcv"), and prepared with smaller images ("shrunken")."""

    folder: Path

    def config(self, backend: str, **changes: Any) -> VOC:
        root = self.folder / backend
        if backend != "folder":
            pytest.importorskip("ffcv", reason="FFCV is not installed")
            side = "512" if backend == "ffcv" else "100"
            arguments = ["--source", str(self.folder / "folder"), "--out", str(root), "--subset", "--workers", "0"]
            assert prepare.main(["voc2012", *arguments, "--write", "raw", "--max-side", side]) == 0
        config = VOC(root=str(root), years="2012", image_size=SIZE, val_fraction=0, subset=True)
        return replace(config, backend="folder" if backend == "folder" else "ffcv", **changes)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    folder = tmp_path_factory.mktemp("voc")
    write_devkit(folder / "folder")
    return Roots(folder)


Open = Callable[..., Loader]


@pytest.fixture(params=["folder", "ffcv", "shrunken"])
def opened(request: pytest.FixtureRequest, roots: Roots) -> Iterator[Open]:
    loaders: list[Loader] = []

    def opening(crop: bool = True, flip: bool = True, workers: int = 0, **changes: Any) -> Loader:
        config = roots.config(request.param, augmentation=DetectionAugmentation(crop, flip), **changes)
        loaders.append(open_loader(config, 3, "cpu", workers=workers))
        return loaders[-1]

    yield opening
    for loader in loaders:
        loader.close()


def levels(images: Tensor) -> Tensor:
    """(N, 3, S, S) in 0 to 1: the pixels before normalisation."""
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return images * std + mean


def drawn(image: Tensor) -> dict[int, list[int]]:
    """Class -> left, top, right, bottom of the bright rectangle in its channel of a picture, (3, S, S)."""
    found = {}
    for channel, plane in enumerate(levels(image[None])[0] > 0.5):
        if plane.any():
            rows, columns = plane.any(1).nonzero().flatten(), plane.any(0).nonzero().flatten()
            found[channel + 1] = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    return found


def check_fits(batch: Batch) -> int:
    """Check that each box of a batch is within a pixel of its rectangle; returns the number of boxes."""
    count = 0
    for image, target in zip(batch.images, batch.labels, strict=True):
        lit = drawn(image)
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            assert (box - torch.tensor(lit[label])).abs().max() <= 1, (box, lit[label])
            assert target["difficult"][target["labels"] == label].tolist() == [label == 2]
            count += 1
    return count


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.images, b.images), (a.index, b.index)]
    for one, other in zip(a.labels, b.labels, strict=True):
        assert one.keys() == other.keys()
        pairs += [(one[name], other[name]) for name in one]
    return all(torch.equal(one, other) for one, other in pairs)


# ---- geometry by hand


def test_letterboxes_are_centred_and_keep_at_least_a_pixel() -> None:
    sizes = torch.tensor([[50, 100], [100, 50], [64, 64], [1000, 3], [30, 50]])
    expected = [[16, 0, 32, 64], [0, 16, 64, 32], [0, 0, 64, 64], [0, 31, 64, 1], [13, 0, 38, 64]]
    assert letterboxes(sizes, 64).tolist() == expected
    plan = Letterbox(64).plan(View(torch.arange(5), torch.arange(5), key=7), sizes)
    assert plan.sources.tolist() == [[0, 0, *size] for size in sizes.tolist()]
    assert plan.targets.tolist() == expected
    assert plan.flips is None
    assert plan.size == 64


def objects(*boxes: tuple[float, float, float, float]) -> voc.Boxes:
    labels = torch.arange(1, len(boxes) + 1)
    return voc.Boxes(torch.tensor(boxes).float().reshape(-1, 4), labels, labels == 2)


def test_boxes_are_letterboxed_and_flipped_by_hand() -> None:
    sizes = torch.tensor([[50, 100], [100, 50], [9, 9]])
    found = padded([objects((10, 0, 100, 50), (1, 2, 3, 4)), objects((0, 25, 50, 100)), objects()])
    assert found.counts.tolist() == [2, 1, 0]
    assert found.boxes.shape == (3, 2, 4)
    placed = found.letterboxed(sizes, 200)
    nothing = [0.0] * 4
    assert placed.boxes.tolist() == [
        [[20, 50, 200, 150], [2, 54, 6, 58]],
        [[50, 50, 150, 200], nothing],
        [nothing, nothing],
    ]
    flipped = placed.flipped(torch.tensor([True, False, True]), 200)
    assert flipped.boxes.tolist() == [
        [[0, 50, 180, 150], [194, 54, 198, 58]],
        [[50, 50, 150, 200], nothing],
        [nothing, nothing],
    ]
    assert flipped.labels.tolist() == [[1, 2], [1, 0], [0, 0]]
    assert flipped.difficult.tolist() == [[False, True], [False, False], [False, False]]
    back = unletterboxed(placed.boxes[0], sizes[0], 200)
    assert torch.equal(back, found.boxes[0])
    assert unletterboxed(torch.tensor([[-5.0, 0, 210, 200]]), sizes[0], 200).tolist() == [[0, 0, 100, 50]]


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 9, 8, 5), (-1, 0, 4, 4), (0, 0, 51, 4), (0, 0, 4, 41)])
def test_boxes_outside_their_image_or_without_area_are_errors(box: Box) -> None:
    with pytest.raises(ValueError, match=r"image 1: box .* image of 50 x 40 pixels or has no area"):
        padded([objects((0, 0, 50, 40)), objects((0, 0, 1, 1), box)]).letterboxed(torch.tensor([[40, 50]] * 2), 64)


def crops(*windows: tuple[float, float, float, float], size: int) -> detection.Crops:
    found = torch.tensor(windows).double()
    return detection.Crops(found, (found != torch.tensor([0, 0, size, size])).any(1), size)


def test_crops_move_cut_and_drop_boxes_by_hand() -> None:
    inside, cut, beside, above = (40, 20, 60, 40), (10, 30, 90, 50), (0, 0, 30, 90), (50, 5, 60, 34)
    table = padded([objects(beside, inside, above, cut), objects(inside)])
    # The window is enlarged to 100 x 80, with 10 black rows above it. It contains the centres of two boxes.
    found = crops((40, 20, 90, 60), (0, 0, 100, 100), size=100).boxes(table)
    assert found.counts.tolist() == [2, 1]
    assert found.boxes[0].tolist() == [[0, 10, 40, 50], [0, 30, 100, 70], [0] * 4, [0] * 4]
    assert found.labels.tolist() == [[2, 4, 0, 0], [1, 0, 0, 0]]
    assert found.difficult.tolist() == [[True, False, False, False], [False] * 4]
    assert torch.equal(found.boxes[1], table.boxes[1])


def test_boxes_without_area_are_dropped_by_a_crop() -> None:
    table = padded([objects((50, 30, 50, 40), (45, 30, 55, 40), (60, 50, 70, 50))])
    found = crops((40, 20, 90, 60), size=100).boxes(table)
    assert found.labels[0].tolist() == [2, 0, 0]
    assert found.counts.tolist() == [1]


def test_crops_move_pixels_by_hand() -> None:
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).float()
    black = torch.tensor([-1.0, -2.0, -3.0]).view(1, 3, 1, 1)
    whole, part = crops((0, 0, 8, 8), (2, 4, 6, 6), size=8).images(images, black)
    assert torch.equal(whole, images[0])
    assert torch.equal(part[:, :2], black[0].expand(3, 2, 8))
    assert torch.equal(part[:, 6:], black[0].expand(3, 2, 8))
    # Enlarged by two: centres of new pixels are a quarter of a pixel from those of old ones. Values grow by 1 to the
    # right and by 8 downwards.
    x, y = torch.arange(8) / 2 - 0.25 + 2, torch.arange(4) / 2 - 0.25 + 4
    expected = images[1, :, 0, 0, None, None] + 8 * y[:, None] + x
    assert torch.allclose(part[:, 2:6], expected, atol=1e-4)
    # A window at the edge is not mixed with values outside the picture.
    (corner,) = crops((0, 0, 4, 4), size=8).images(torch.ones(1, 3, 8, 8), black)
    assert torch.equal(corner, torch.ones(3, 8, 8))


def test_drawn_crops_have_the_given_areas_and_ratios_and_contain_a_box() -> None:
    num, size = 4000, 300
    sizes = torch.tensor([[100, 200], [200, 100], [128, 128], [90, 160]]).repeat(num // 4, 1)
    table = padded([objects((10, 10, 40, 60), (60, 20, 85, 85))] * num).letterboxed(sizes, size)
    owner = torch.arange(num)
    key = draws.stream(0, "train", 0, "view", 0)
    drawn_crops = draw_crops(table, sizes, size, key, owner)
    left, top, right, bottom = drawn_crops.windows.unbind(1)
    y, x, height, width = letterboxes(sizes, size).double().unbind(1)
    taken = drawn_crops.taken
    assert taken.float().mean() > 0.95
    assert torch.equal(drawn_crops.windows[~taken], torch.tensor([[0, 0, size, size]] * int((~taken).sum())).double())
    inside = (left >= x) & (top >= y) & (right <= x + width) & (bottom <= y + height)
    assert inside[taken].all()
    area, ratio = (right - left) * (bottom - top) / (height * width), (right - left) / (bottom - top)
    assert 0.29 < area[taken].min() < 0.35
    assert 0.8 < area[taken].max() < 1.01
    assert 0.49 < ratio[taken].min() < 0.6
    assert 1.7 < ratio[taken].max() < 2.02
    kept = drawn_crops.boxes(table)
    assert kept.counts.min() == 1
    assert kept.counts.unique().tolist() == [1, 2]
    assert (kept.boxes >= 0).all()
    assert (kept.boxes <= size).all()
    # Another key gives other crops, and crops do not depend on the other images of the batch.
    assert not torch.equal(draw_crops(table, sizes, size, key + 1, owner).windows, drawn_crops.windows)
    few = torch.tensor([17, 3, 2049])
    alone = draw_crops(table[few], sizes[few], size, key, owner[few])
    assert torch.equal(alone.windows, drawn_crops.windows[few])
    assert torch.equal(alone.taken, drawn_crops.taken[few])


def test_an_image_without_boxes_is_not_cropped() -> None:
    table = padded([objects(), objects()])
    assert table.boxes.shape == (2, 0, 4)
    sizes = torch.tensor([[50, 100], [64, 64]])
    found = draw_crops(table.letterboxed(sizes, 64), sizes, 64, 1, torch.arange(2))
    assert not found.taken.any()
    assert found.boxes(table).flipped(torch.tensor([True, False]), 64).counts.tolist() == [0, 0]
    # Padding is not a box in the corner.
    beside = padded([objects()] * 200 + [objects((30, 30, 34, 34))])
    taken = draw_crops(beside, torch.full((201, 2), 64), 64, 1, torch.arange(201)).taken
    assert taken.nonzero().tolist() == [[200]]


# ---- through the files


def test_the_label_of_the_data_set_has_years_and_subset() -> None:
    assert VOC().label == "voc07+12"
    assert VOC(years="2012", subset=True).label == "voc12-subset"
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        VOC(image_size=0)


def test_boxes_match_rectangles_in_evaluation(opened: Open) -> None:
    loader = opened()
    assert loader.info.sizes == {"train": 8, "val": 0, "test": 7}
    assert loader.info.num_classes == 21
    assert loader.info.input_shape == (3, SIZE, SIZE)
    (batch,) = loader.evaluation("test", 7)
    assert batch.images.shape == (7, 3, SIZE, SIZE)
    assert [len(target["boxes"]) for target in batch.labels] == [len(boxes) for _, boxes in TEST]
    assert check_fits(batch) == sum(len(boxes) for _, boxes in TEST)
    assert [target["image_id"].tolist() for target in batch.labels] == [[i] for i in range(7)]
    empty = batch.labels[4]
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].shape == (0,) == empty["difficult"].shape
    assert (empty["boxes"].dtype, empty["labels"].dtype) == (torch.float32, torch.int64)
    # The border of the letterbox is as black as the images.
    assert levels(batch.images[6:])[0, :, :20].abs().max() < 1e-6


def test_letterboxes_can_be_undone(opened: Open) -> None:
    (batch,) = opened().evaluation("test", 7)
    for target, ((width, height), boxes) in zip(batch.labels, TEST, strict=True):
        stored = target["orig_size"].flip(0)
        back = unletterboxed(target["boxes"], target["orig_size"], SIZE)
        expected = torch.tensor(boxes).view(-1, 4) * (stored / torch.tensor([width, height])).repeat(2)
        assert torch.allclose(back, expected, atol=1e-3)


@pytest.mark.parametrize(("crop", "flip"), [(False, True), (True, False), (True, True), (False, False)])
def test_boxes_match_rectangles_in_training(opened: Open, crop: bool, flip: bool) -> None:
    loader = opened(crop, flip)
    index = torch.arange(8)
    count = sum(check_fits(loader.batch_at("train", epoch, index, NOTHING)) for epoch in range(12))
    every = 12 * sum(len(boxes) for _, boxes in TRAIN)
    assert (count < every) == crop
    assert count > every / 2
    views = [loader.batch_at("train", epoch, index, NOTHING).images[0] for epoch in range(12)]
    different = {view.numpy().tobytes() for view in views}
    assert len(different) == {(False, False): 1, (False, True): 2}.get((crop, flip), len(different))
    assert not crop or len(different) > 6


def test_epochs_resume_and_split_over_workers(opened: Open) -> None:
    loader = opened()
    whole = list(loader.epoch("train", 2, 4, frozenset({"index"})))
    assert len(whole) == 2
    assert sorted(torch.cat([batch.index for batch in whole]).tolist()) == list(range(8))
    (resumed,) = loader.epoch("train", 2, 4, NOTHING, start=1)
    assert same(resumed, whole[1])
    assert same(loader.batch_at("train", 2, whole[0].index, NOTHING), whole[0])
    mixed = torch.tensor([int(whole[1].index[2]), int(whole[0].index[1]), int(whole[1].index[0])])
    found = loader.batch_at("train", 2, mixed, NOTHING)
    for at, (batch, row) in enumerate([(whole[1], 2), (whole[0], 1), (whole[1], 0)]):
        assert torch.equal(found.images[at], batch.images[row])
        assert all(torch.equal(found.labels[at][name], value) for name, value in batch.labels[row].items())
    shares = [list(loader.epoch("train", 2, 4, NOTHING, rank, 2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([share[step].images for share in shares]), batch.images)
        joined = [target for share in shares for target in share[step].labels]
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(joined, batch.labels, strict=True))
    first, *_ = loader.batches("score", 3, 8, NOTHING)
    assert not same(first, loader.batch_at("train", 0, first.index, NOTHING))


def test_evaluation_counts_each_image_once_for_any_number_of_workers(opened: Open) -> None:
    loader = opened()
    (whole,) = loader.evaluation("test", 7)
    for world_size, batch_size in itertools.product((1, 2, 3), (1, 3, 7)):
        batches = [b for rank in range(world_size) for b in loader.evaluation("test", batch_size, rank, world_size)]
        index = torch.cat([batch.index for batch in batches])
        assert sorted(index.tolist()) == list(range(7))
        for batch in batches:
            for at, row in enumerate(batch.index.tolist()):
                assert torch.equal(batch.images[at], whole.images[row])
                assert torch.equal(batch.labels[at]["boxes"], whole.labels[row]["boxes"])


def test_workers_and_abandoned_iterators_change_no_bit(opened: Open) -> None:
    alone, beside = opened(), opened(workers=2)
    expected = list(alone.epoch("train", 1, 2, NOTHING))
    assert all(map(same, beside.epoch("train", 1, 2, NOTHING), expected))
    threads = threading.active_count()
    for _ in range(3):
        next(iter(beside.epoch("train", 0, 2, NOTHING)))
    while threading.active_count() > threads:  # the threads of a process queue end slightly later
        time.sleep(0.01)
    assert all(map(same, beside.epoch("train", 1, 2, NOTHING), expected))


def test_validation_is_held_out_of_training(opened: Open) -> None:
    loader = opened(val_fraction=0.25)
    assert loader.info.sizes == {"train": 6, "val": 2, "test": 7}
    (val,) = loader.evaluation("val", 2)
    (train,) = loader.epoch("train", 0, 6, NOTHING)
    assert train.images.is_contiguous(memory_format=torch.channels_last)
    assert same(train.to("cpu"), train)
    assert check_fits(val) + check_fits(train) > 4
    assert [target["image_id"].item() for target in val.labels] == [0, 1]


@pytest.mark.parametrize("need", ["paired", "second_view"])
def test_other_needs_are_errors(opened: Open, need: str) -> None:
    assert need in NEEDS
    loader, needs = opened(), frozenset({need, "index"})
    message = rf"unknown needs \['{need}'\]: this data offers \['index'\]"
    with pytest.raises(ValueError, match=message):
        loader.epoch("train", 0, 4, needs)
    with pytest.raises(ValueError, match=message):
        loader.batch_at("train", 0, torch.arange(2), needs)


def test_backends_agree(roots: Roots) -> None:
    folder, ffcv = (open_loader(roots.config(backend), 3, "cpu") for backend in ("folder", "ffcv"))
    pairs = [
        *zip(folder.evaluation("test", 3), ffcv.evaluation("test", 3), strict=True),
        *zip(folder.epoch("train", 0, 4, NOTHING), ffcv.epoch("train", 0, 4, NOTHING), strict=True),
    ]
    assert len(pairs) == 5
    for a, b in pairs:
        assert (levels(a.images) - levels(b.images)).abs().mean() < 3 / 255
        assert same(replace(a, images=b.images), b)
    folder.close()
    ffcv.close()


def test_crops_do_not_depend_on_the_dtype(roots: Roots) -> None:
    half, double = (open_loader(roots.config("folder"), 3, "cpu", dtype) for dtype in (torch.bfloat16, torch.float64))
    a, b = (next(iter(loader.epoch("train", 0, 8, NOTHING))) for loader in (half, double))
    assert (a.images.dtype, b.images.dtype) == (torch.bfloat16, torch.float64)
    assert (a.images.double() - b.images).abs().max() < 0.05
    assert all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a.labels, b.labels, strict=True))


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("folder", {"subset": False}, "is incomplete"),
        ("ffcv", {"subset": False}, "is incomplete"),
        ("ffcv", {"years": "2007"}, "holds .*, not voc2007-detection"),
        ("folder", {"root": "empty"}, "VOC2012"),
        ("ffcv", {"root": "empty"}, r"manifest\.json"),
    ],
)
def test_errors_say_what_is_wrong_with_the_files(
    roots: Roots, backend: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_loader(replace(roots.config(backend), **changes), 0, "cpu")


def test_padding_is_never_kept_as_a_box() -> None:
    table = PaddedBoxes(
        torch.ones(1, 2, 4), torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([1])
    )
    left = table.only(torch.tensor([[True, True]]))
    assert left.labels.tolist() == [[3, 0]]
    assert left.counts.tolist() == [1]
    assert not left.difficult[0, 1]
    assert left.to("cpu").boxes[0, 1].tolist() == [0] * 4
