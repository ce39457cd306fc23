"""Data: sources, splits, random draws, geometry, and the Loader with each backend."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from torchvision.transforms import functional as F

from compression.batch import Batch
from pipelines import prepare
from pipelines.data import readers as official
from pipelines.data import source as parts
from pipelines.data.config import (
    CIFAR10,
    CIFAR100,
    CUB,
    VOC,
    Augmentation,
    DetectionAugmentation,
    Digits,
    ImageNet,
    Images,
    Resolution,
    TinyImageNet,
)
from pipelines.data.ffcv.installed import has_ffcv
from pipelines.data.loader import NEEDS, Loader, open_loader
from pipelines.data.loading import draws, geometry
from pipelines.data.loading.arrays import Arrays, read_digits, read_whole
from pipelines.data.loading.memory import MemoryStore, windows
from pipelines.data.loading.views import CROP, FLIP, View
from pipelines.data.preparing.digits_folder import write_digits_as_imagenet
from pipelines.data.readers import image_folders
from pipelines.identity import identity

NOTHING: frozenset[str] = frozenset()
CPU = torch.device("cpu")


# ---- draws


def test_splitmix_agrees_with_plain_integers() -> None:
    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    def expected(key: int, index: int, draw: int) -> int:
        return mix((mix((index * 0x9E3779B97F4A7C15 + key) % 2**64) + draw * 0x9E3779B97F4A7C15) % 2**64) % 2**63

    key, index = 2**63 - 5, [0, 1, 2, 49_999]
    for draw in (0, 1, 7):
        found = draws.sample_hash(key, torch.tensor(index), draw)
        assert found.tolist() == [expected(key, i, draw) for i in index]
        assert torch.equal(draws.sample_hash(key, torch.tensor(index), torch.tensor([[draw]]))[0], found)


def test_draws_are_uniform_and_independent() -> None:
    index = torch.arange(90_000)
    by_draw = [draws.below(draws.stream(0, "train", 3, "view", 0), index, draw, 9) for draw in range(3)]
    by_key = [draws.below(draws.stream(0, "train", epoch), index, 0, 9) for epoch in range(3)]
    for a, b in itertools.combinations([*by_draw, *by_key[1:]], 2):
        assert a.bincount(minlength=9).sub(10_000).abs().max() < 500  # 5 standard deviations of 94
        assert (a * 9 + b).bincount(minlength=81).sub(90_000 / 81).abs().max() < 170  # 5 of 33
    neighbours = torch.stack([by_draw[0][:-1], by_draw[0][1:]]).double()
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.017
    numbers = draws.uniform(5, index, 0)
    assert 0 <= numbers.min() < 0.001 < 0.999 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.005


def test_draws_do_not_depend_on_the_batch() -> None:
    index = draws.permutation(7, 1000)
    whole = draws.sample_hash(11, index, 2)
    assert torch.equal(torch.cat([draws.sample_hash(11, part, 2) for part in index.split(33)]), whole)
    assert whole.min() >= 0
    assert len(whole.unique()) == 1000


def test_streams_and_permutations_are_fixed() -> None:
    assert draws.stream(0, "train", 1) == draws.stream(0, "train", 1)
    keys = {
        draws.stream(*parts)
        for parts in [(0, "train", 1), (0, "train", 11), (0, "train1"), ("0", "train", 1), (0, "train", 1, 0)]
    }
    assert len(keys) == 5
    assert all(0 <= key < 2**63 for key in keys)
    assert sorted(draws.permutation(3, 100).tolist()) == list(range(100))
    assert draws.permutation(3, 100).tolist() != draws.permutation(4, 100).tolist()


# ---- splits and configs


def test_hold_out_counts_by_hand() -> None:
    labels = torch.tensor([0] * 10 + [1] * 25 + [2] * 2)
    kept, held = draws.hold_out(labels, 0.1, key=5)
    assert labels[held].bincount().tolist() == [1, 2, 1]  # round(1.0), round(2.5) to even, at least one
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(37))
    assert held.tolist() == draws.hold_out(labels, 0.1, key=5)[1].tolist()
    assert held.tolist() != draws.hold_out(labels, 0.1, key=6)[1].tolist()
    assert len(draws.hold_out(labels, 0, key=5)[1]) == 0
    with pytest.raises(ValueError, match="class 3 has 1 training images"):
        draws.hold_out(torch.tensor([0, 0, 3]), 0.1, key=0)


def test_configs_are_options_and_root_is_not_part_of_the_identity() -> None:
    given = tyro.cli(Images, args=["--root", "/x", "--augmentation.crop-padding", "2", "--augmentation.no-flip"])
    assert given == Images(root="/x", augmentation=Augmentation(2, False))
    assert [c.label for c in (Digits(), CIFAR10(), CIFAR100(), Images(name="tiny"), ImageNet())] == [
        *("digits", "cifar10", "cifar100", "tiny", "imagenet")
    ]
    assert identity(CIFAR10(root="/a")) == identity(CIFAR10(root="/b")) != identity(CIFAR10(val_fraction=0))
    with pytest.raises(ValueError, match="val_fraction must be at least 0 and below 1, not 1"):
        Digits(val_fraction=1)
    with pytest.raises(ValueError, match=r"resize must be at least image_size \(224\), not 200"):
        ImageNet(resize=200)


# ---- sources


def test_digits_have_known_sizes_and_statistics() -> None:
    arrays = read_digits()
    train, test = arrays.images["train"], arrays.images["test"]
    assert (train.shape, test.shape, train.dtype) == ((1438, 8, 8, 3), (359, 8, 8, 3), np.uint8)
    assert (train.min(), train.max()) == (0, 255)
    assert (train[..., :1] == train).all()
    assert arrays.labels["test"].bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert round(float((train / 255).mean()), 4) == arrays.mean[0]
    assert round(float((train / 255).std()), 4) == arrays.std[0]


def read(config: Images) -> Arrays:
    return read_whole(official.source(config), config.image_size)


def make_images(root: Path, parts: tuple[str, ...] = ("train", "val"), size: tuple[int, int] = (12, 10)) -> Path:
    """Three classes of five random PNGs in each part; class and part can be told from the red channel's mean."""
    generator = np.random.default_rng(1)
    for place, part in enumerate(parts):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / part / name).mkdir(parents=True)
            for number in range(5):
                pixels = generator.integers(0, 20, (size[1], size[0], 3), np.uint8)
                pixels[..., 0] += np.uint8(80 * label + 20 * place)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


def test_images_are_resized_and_cropped(tmp_path: Path) -> None:
    root = make_images(tmp_path / "set", ("train", "val", "test"))
    arrays = read(Images(root=str(root), image_size=8))
    assert arrays.images["train"].shape == (15, 8, 8, 3)
    assert arrays.labels["train"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    with Image.open(root / "train" / "bee" / "2.png") as image:
        resized = image.resize((9, 8), Image.Resampling.BILINEAR)  # 12 x 10 with the short side at 8
    assert (arrays.images["train"][7] == np.asarray(resized.crop((0, 0, 8, 8)))).all()
    assert abs(arrays.images["test"][0][..., 0].mean() - 50) < 4  # test/, not val/
    shutil.rmtree(root / "test")
    from_val = read(Images(root=str(root), image_size=8))
    assert abs(from_val.images["test"][0][..., 0].mean() - 30) < 4
    assert from_val.fingerprint != arrays.fingerprint
    assert read(Images(root=str(root), image_size=8)).fingerprint == from_val.fingerprint


def test_test_labels_follow_the_training_classes(tmp_path: Path) -> None:
    root = make_images(tmp_path / "set")
    shutil.rmtree(root / "val" / "ant")
    assert read(Images(root=str(root))).labels["test"].tolist() == [1] * 5 + [2] * 5


def test_errors_name_bad_image_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent must hold train/<class>/\* and test/<class>/\* or val/"):
        open_loader(Images(root=str(tmp_path / "absent")), 0, "cpu")
    with pytest.raises(FileNotFoundError, match=r"absent must hold train/<class>/\* and val/"):
        open_loader(ImageNet(root=str(tmp_path / "absent")), 0, "cpu")
    root = make_images(tmp_path / "set")
    (root / "train" / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no image in {root / 'train' / 'dog'}"):
        open_loader(Images(root=str(root)), 0, "cpu")
    shutil.rmtree(root / "train" / "dog")
    (root / "val" / "cat").rename(root / "val" / "eel")
    with pytest.raises(ValueError, match=r"has classes that are missing from .*train: eel"):
        open_loader(Images(root=str(root)), 0, "cpu")
    (root / "val" / "eel").rename(root / "val" / "cat")
    broken = root / "train" / "bee" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{broken} is not a readable image"):
        open_loader(Images(root=str(root)), 0, "cpu")
    for workers in (0, 1):
        config = ImageNet(root=str(root), name="insects", image_size=8, resize=8, val_fraction=0)
        with pytest.raises(ValueError, match=f"{broken} is not a readable image"):
            list(open_loader(config, 0, "cpu", workers=workers).epoch("train", 0, 15, NOTHING))


# ---- the memory backend's pixels


def test_windows_by_hand() -> None:
    image = torch.arange(1, 5, dtype=torch.uint8).reshape(1, 2, 2, 1)
    crops = windows(image.numpy(), 1, CPU)
    assert crops.shape == (1, 3, 3, 2, 2, 1)
    assert crops[0, 1, 1, ..., 0].tolist() == [[1, 2], [3, 4]]
    assert crops[0, 0, 0, ..., 0].tolist() == [[0, 0], [0, 1]]
    assert crops[0, 2, 1, ..., 0].tolist() == [[3, 4], [0, 0]]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_equal_torchvision(flip: bool, dtype: torch.dtype) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (20, 7, 9, 3), np.uint8)
    # A mean of 0 and a standard deviation of 1 / 255 keep the pixel values, so the comparison is exact.
    labels = torch.zeros(20, dtype=torch.int64)
    parts = {"train": pixels, "test": pixels}
    arrays = Arrays(parts, {"train": labels, "test": labels}, 1, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255), "")
    store = MemoryStore(arrays, Augmentation(2, flip), CPU, dtype)
    rows, owner, key = torch.arange(19, -1, -1), torch.arange(100, 120), 77
    found = store._view("train", View(rows, owner, key))
    assert found.dtype == dtype
    assert found.shape == (20, 3, 7, 9)
    assert found.is_contiguous(memory_format=torch.channels_last)
    flips = draws.below(key, owner, FLIP, 2).tolist()
    tops, lefts = (draws.below(key, owner, CROP + axis, 5).tolist() for axis in (0, 1))
    assert {0, 4} <= set(tops)
    assert set(flips) == {0, 1}
    for at in range(20):
        image = F.pad(torch.from_numpy(pixels[rows[at]]).permute(2, 0, 1), [2, 2, 2, 2])
        image = F.crop(image, tops[at], lefts[at], 7, 9)
        expected = F.hflip(image) if flip and flips[at] else image
        assert torch.equal(found[at], expected.to(dtype))
    for part in ("train", "test"):
        assert torch.equal(
            store._view(part, View(rows, owner, None))[0], torch.from_numpy(pixels[19]).permute(2, 0, 1).to(dtype)
        )


def test_normalisation_equals_torchvision() -> None:
    loader = open_loader(Digits(), 0, "cpu", torch.float64)
    arrays = read_digits()
    batch = next(loader.evaluation("test", 50))
    plain = torch.from_numpy(arrays.images["test"][:50]).permute(0, 3, 1, 2).double() / 255
    expected = F.normalize(plain, list(arrays.mean), list(arrays.std))
    torch.testing.assert_close(batch.images, expected, rtol=0, atol=1e-12)
    assert torch.equal(batch.labels, arrays.labels["test"][:50])


# ---- the Loader with each backend


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> ImageNet:
    """A tenth of the digits in ImageNet's layout: 20 training and 5 test images per class."""
    whole = write_digits_as_imagenet(tmp_path_factory.mktemp("whole") / "digits", size=24)
    root = tmp_path_factory.mktemp("imagenet")
    for part, num in (("train", 20), ("val", 5)):
        for wnid in sorted((whole / part).iterdir()):
            (root / part / wnid.name).mkdir(parents=True)
            for path in sorted(wnid.iterdir())[:num]:
                shutil.copy(path, root / part / wnid.name)
    return ImageNet(root=str(root), name="digits", image_size=16, resize=20, val_fraction=0.1)


@pytest.fixture(scope="module")
def prepared(imagenet: ImageNet, tmp_path_factory: pytest.TempPathFactory) -> ImageNet:
    """`imagenet` as .beton files."""
    if not has_ffcv():
        pytest.skip("FFCV is optional: make ffcv")
    out = str(tmp_path_factory.mktemp("prepared") / "out")
    options = ["--name", imagenet.name, "--workers", "0", "--preset", "raw"]
    assert prepare.main(["imagenet", "--source", imagenet.root, "--out", out, *options]) == 0
    return dataclasses.replace(imagenet, root=out, backend="ffcv")


@pytest.fixture(params=["memory", "folder", "ffcv"])
def loader(request: pytest.FixtureRequest) -> Iterator[Loader]:
    fixtures = {"folder": "imagenet", "ffcv": "prepared"}
    config = request.getfixturevalue(fixtures[request.param]) if request.param in fixtures else Digits()
    loader = open_loader(config, seed=3, device="cpu")
    yield loader
    loader.close()


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {f.name: v for f in dataclasses.fields(batch) if isinstance(v := getattr(batch, f.name), torch.Tensor)}


def assert_same(a: Batch, b: Batch) -> None:
    assert tensors(a).keys() == tensors(b).keys()
    for name, value in tensors(a).items():
        assert torch.equal(value, tensors(b)[name]), name


def joined(parts: list[Batch]) -> Batch:
    return Batch(**{name: torch.cat([tensors(part)[name] for part in parts]) for name in tensors(parts[0])})


def test_an_epoch_is_a_new_order_of_the_training_split(loader: Loader) -> None:
    train = loader.info.sizes["train"]
    epochs = [list(loader.epoch("train", epoch, 32, NOTHING)) for epoch in (0, 1)]
    orders = [torch.cat([batch.index for batch in batches]) for batches in epochs]
    for batches, order in zip(epochs, orders, strict=True):
        assert len(batches) == loader.steps_per_epoch(32) == train // 32
        assert len(order.unique()) == len(order)
        assert order.min() >= 0
        assert order.max() < train
        assert all(len(batch) == 32 and batch.paired is None and batch.second_view is None for batch in batches)
    assert not torch.equal(orders[0], orders[1])
    other = next(loader.epoch("retrain", 0, 32, NOTHING))
    assert not torch.equal(other.index, epochs[0][0].index)
    assert epochs[0][0].images.is_contiguous(memory_format=torch.channels_last)


def test_shares_concatenate_to_the_global_batch(loader: Loader) -> None:
    whole = list(itertools.islice(loader.epoch("train", 1, 30, NEEDS), 3))
    for world_size in (2, 3):
        workers = [loader.epoch("train", 1, 30, NEEDS, rank, world_size) for rank in range(world_size)]
        for batch in whole:
            assert_same(joined([next(worker) for worker in workers]), batch)


def test_start_equals_skipping(loader: Loader) -> None:
    whole = list(loader.epoch("train", 2, 30, NEEDS))
    resumed = list(loader.epoch("train", 2, 30, NEEDS, start=len(whole) - 2))
    assert len(resumed) == 2
    for a, b in zip(resumed, whole[-2:], strict=True):
        assert_same(a, b)
    assert list(loader.epoch("train", 2, 30, NEEDS, start=len(whole))) == []


def test_batch_at_draws_the_same_again(loader: Loader) -> None:
    first, second = itertools.islice(loader.epoch("train", 4, 40, NEEDS), 2)
    chosen = torch.tensor([5, 71, 0, 33])
    both = joined([first, second])
    expected = Batch(**{name: value[chosen] for name, value in tensors(both).items()})
    assert_same(loader.batch_at("train", 4, both.index[chosen], NEEDS), expected)
    assert not torch.equal(loader.batch_at("train", 5, both.index[chosen], NEEDS).images, expected.images)


def test_partners_have_the_same_class_and_views_differ(loader: Loader) -> None:
    batch = next(loader.epoch("train", 0, 150, NEEDS))
    assert batch.second_view is not None
    assert batch.paired is not None
    for a, b in itertools.combinations((batch.images, batch.second_view, batch.paired), 2):
        same = (a == b).flatten(1).all(1)
        assert same.float().mean() < 0.3  # the memory backend draws equal crops in one of nine cases
    # The rows of the partners are known from the request.
    request = loader._request("train", 0, batch.index, NEEDS)
    partners = request.views["paired"].rows
    _, rows, labels = loader._splits["train"]
    label_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    assert [label_of[row] for row in partners.tolist()] == batch.labels.tolist()  # KeyError: not a training sample
    assert (partners != request.views["images"].rows).float().mean() > 0.8
    assert len(partners.unique()) > 75
    # The draws of a partner depend on the sample: two samples may share a partner, but not its crop.
    assert torch.equal(request.views["paired"].owner, batch.index)
    later = loader._request("train", 1, batch.index, NEEDS).views["paired"].rows
    assert not torch.equal(later, partners)


def test_partner_images_are_training_images_of_the_class() -> None:
    """Without augmentation each partner equals a training image of the same class."""
    loader = open_loader(Digits(augmentation=Augmentation(0, False)), 0, "cpu")
    everything = loader.batch_at("train", 0, torch.arange(loader.info.sizes["train"]), frozenset({"paired"}))
    assert everything.paired is not None
    by_pixels = {
        image.numpy().tobytes(): label
        for image, label in zip(everything.images, everything.labels.tolist(), strict=True)
    }
    assert [by_pixels[image.numpy().tobytes()] for image in everything.paired] == everything.labels.tolist()


def test_batches_continue_in_the_next_epoch(loader: Loader) -> None:
    size = loader.info.sizes["train"] // 2
    got = loader.batches("score", 3, size, frozenset({"paired"}))
    expected = [
        *loader.epoch("score", 0, size, frozenset({"paired"})),
        next(loader.epoch("score", 1, size, frozenset({"paired"}))),
    ]
    assert len(got) == 3
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)


def test_validation_is_held_out_by_the_seed(loader: Loader) -> None:
    train, val = loader._splits["train"][1], loader._splits["val"][1]
    sizes = loader.info.sizes
    assert (len(train), len(val)) == (sizes["train"], sizes["val"])
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(sizes["train"] + sizes["val"]))
    kept, held = (loader._splits[name][2].bincount(minlength=10) for name in ("train", "val"))
    assert torch.equal(held, (0.1 * (kept + held)).round().long())


def test_seed_decides_split_and_order() -> None:
    a, b, again = (open_loader(Digits(), seed, "cpu") for seed in (0, 1, 0))
    assert a.fingerprint == b.fingerprint
    assert not torch.equal(a._splits["val"][1], b._splits["val"][1])
    assert not torch.equal(next(a.epoch("train", 0, 32, NOTHING)).index, next(b.epoch("train", 0, 32, NOTHING)).index)
    assert_same(next(a.epoch("train", 0, 32, NEEDS)), next(again.epoch("train", 0, 32, NEEDS)))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_covers_each_sample_once(loader: Loader, split: str) -> None:
    size = loader.info.sizes[split]
    whole = joined(list(loader.evaluation(split, size)))
    assert whole.index.tolist() == list(range(size))
    for world_size in (1, 2, 3):
        parts = [list(loader.evaluation(split, 7, rank, world_size)) for rank in range(world_size)]
        got = joined([batch for part in parts for batch in part])
        order = got.index.argsort()
        assert torch.equal(got.index[order], whole.index)
        assert torch.equal(got.labels[order], whole.labels)
        assert torch.equal(got.images[order], whole.images)


def test_invalid_arguments_are_errors(loader: Loader) -> None:
    train = loader.info.sizes["train"]
    with pytest.raises(ValueError, match=f"batch_size is {train + 1}, but there are {train} training samples"):
        loader.steps_per_epoch(train + 1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        loader.batches("score", 1, 0, NOTHING)
    with pytest.raises(ValueError, match="batch_size 32 does not divide by 3 workers"):
        loader.epoch("train", 0, 32, NOTHING, world_size=3)
    with pytest.raises(ValueError, match=r"unknown needs \['pair'\]"):
        loader.epoch("train", 0, 32, frozenset({"pair"}))
    with pytest.raises(ValueError, match="not 'train'"):
        loader.evaluation("train", 32)


def test_no_validation_split() -> None:
    loader = open_loader(Digits(val_fraction=0), 0, "cpu")
    assert dict(loader.info.sizes) == {"train": 1438, "val": 0, "test": 359}
    with pytest.raises(ValueError, match=r'"val" is empty: set --data.val-fraction'):
        loader.evaluation("val", 32)


def test_the_global_generator_is_unchanged(loader: Loader) -> None:
    before = torch.get_rng_state()
    loader.batches("train", 2, 20, NEEDS)
    list(loader.evaluation("val", 20))
    assert torch.equal(torch.get_rng_state(), before)


# ---- the folder backend


def test_workers_change_no_bit_and_end_with_their_iterator(imagenet: ImageNet) -> None:
    alone, helped = (open_loader(imagenet, 0, "cpu", torch.float64, workers) for workers in (0, 2))
    before = torch.get_rng_state()
    batches = helped.epoch("train", 0, 30, NEEDS)
    for expected in itertools.islice(alone.epoch("train", 0, 30, NEEDS), 2):
        assert_same(next(batches), expected)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []
    assert torch.equal(torch.get_rng_state(), before)


def test_folder_images_by_hand(imagenet: ImageNet) -> None:
    """Evaluation: resize and centre crop. Training: a random box, resized and flipped."""
    loader = open_loader(imagenet, 0, "cpu", torch.float64)
    _, train, test = image_folders.scan(imagenet.root, ("val",))
    mean, std = list(parts.IMAGENET_MEAN), list(parts.IMAGENET_STD)

    def expected(pixels: np.ndarray) -> torch.Tensor:
        return F.normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1).double() / 255, mean, std)

    plain = next(loader.evaluation("test", 3)).images[2]
    with Image.open(test.path(2)) as image:
        resized = image.convert("RGB").resize((20, 20), Image.Resampling.BILINEAR).crop((2, 2, 18, 18))
    torch.testing.assert_close(plain, expected(np.asarray(resized)), rtol=0, atol=1e-12)

    index = torch.arange(40)
    view = loader._request("train", 0, index, NOTHING).views["images"]
    assert view.key is not None
    flips = draws.below(view.key, index, FLIP, 2).tolist()
    assert set(flips) == {0, 1}
    batch = loader.batch_at("train", 0, index, NOTHING)
    drawn = draws.uniform(view.key, index[:, None], CROP + torch.arange(40)).view(40, 10, 4)
    boxes = geometry.random_boxes(torch.tensor([[24, 24]]).expand(40, 2), drawn)
    for at, (top, left, height, width) in enumerate(boxes.tolist()):
        with Image.open(train.path(int(view.rows[at]))) as image:
            box = image.convert("RGB").crop((left, top, left + width, top + height))
        pixels = np.asarray(box.resize((16, 16), Image.Resampling.BILINEAR))
        torch.testing.assert_close(
            batch.images[at], expected(pixels[:, ::-1] if flips[at] else pixels), rtol=0, atol=1e-12
        )


# ---- geometry


def test_random_boxes_have_the_given_areas_and_ratios() -> None:
    attempts = draws.uniform(1, torch.arange(2000)[:, None], torch.arange(40)).view(-1, 10, 4)
    boxes = geometry.random_boxes(torch.tensor([[300, 400]]).expand(2000, 2), attempts).double()
    top, left, height, width = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert (left + width).max() <= 400
    assert (top + height).max() <= 300
    assert (left + width).max() > 390
    area, ratio = width * height / 120_000, width / height
    assert 0.079 < area.min() < 0.1
    assert 0.9 < area.max() <= 1.001
    assert 0.74 < ratio.min() < 0.78
    assert 1.29 < ratio.max() < 1.35
    assert abs(ratio.log().mean()) < 0.05


TOO_WIDE, TOO_HIGH, QUARTER = (1.0, 1.0, 0.5, 0.5), (1.0, 0.0, 0.5, 0.5), ((0.25 - 0.08) / 0.92, 0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("size", "attempts", "box"),
    [
        ([100, 100], [TOO_WIDE, QUARTER], [25, 25, 50, 50]),  # the first that fits
        ([10, 100], [TOO_WIDE], [0, 43, 10, 13]),  # none fits: the largest central box
        ([100, 10], [TOO_HIGH], [43, 0, 13, 10]),
    ],
)
def test_random_boxes_by_hand(size: list[int], attempts: list[tuple[float, ...]], box: list[int]) -> None:
    found = geometry.random_boxes(torch.tensor([size]), torch.tensor([attempts], dtype=torch.float64))
    assert found.tolist() == [box]


def test_images_are_centred_as_torchvision_does() -> None:
    """Images whose short side equals `resize` keep their size; the crop is the one of torchvision."""
    sizes = torch.tensor([[256, 256], [256, 341], [500, 256]])
    found = geometry.centred(sizes, 224, 256).tolist()
    assert found == [[-16, -16, 256, 256], [-16, -58, 256, 341], [-138, -16, 500, 256]]
    assert geometry.centred(torch.tensor([[100, 201]]), 224, 256).tolist() == [[-16, -145, 256, 514]]


def test_padded_crops_by_hand() -> None:
    """Sources and targets for each shift with a padding of 1."""
    view = View(torch.arange(500), torch.arange(500), 7)
    sizes = torch.tensor([[4, 4]]).expand(500, 2)
    plan = geometry.PadCrop(4, 1, flip=True).plan(view, sizes)
    rows = {(s[0], s[2], t[0], t[2]) for s, t in zip(plan.sources.tolist(), plan.targets.tolist(), strict=True)}
    assert rows == {(0, 3, 1, 3), (0, 4, 0, 4), (1, 3, 0, 3)}
    assert plan.flips is not None
    assert 200 < plan.flips.sum() < 300
    still = geometry.PadCrop(4, 1, flip=False).plan(
        View(view.rows, view.owner, None), torch.tensor([[4, 4]]).expand(500, 2)
    )
    assert still.flips is None
    assert still.sources.unique(dim=0).tolist() == [[0, 0, 4, 4]] == still.targets.unique(dim=0).tolist()


def test_images_grow_in_steps_of_32() -> None:
    resolution = Resolution(low=128, high=192, start=0.25, end=0.75)
    assert [resolution.at(epoch / 8) for epoch in range(9)] == [128] * 4 + [160] + [192] * 4
    assert resolution.at(0.3) == 128
    assert [Resolution().at(progress) for progress in (0.0, 0.5, 1.0)] == [None] * 3
    with pytest.raises(ValueError, match=r"low must lie between 1 and high \(64\)"):
        Resolution(low=65, high=64)
    with pytest.raises(ValueError, match="ascending shares"):
        Resolution(start=0.9, end=0.8)


def test_only_training_images_grow(imagenet: ImageNet) -> None:
    growing = dataclasses.replace(imagenet, resolution=Resolution(low=8, high=32, start=0.5, end=0.5))
    loader = open_loader(growing, 0, "cpu")
    sizes = [next(loader.epoch("train", 0, 4, NEEDS, progress=at)).images.shape[-1] for at in (0.0, 0.5, 0.51, 1.0)]
    assert sizes == [8, 8, 32, 32]
    assert next(loader.evaluation("test", 4)).images.shape[-1] == 16
    assert loader.batches("score", 1, 4, NOTHING)[0].images.shape[-1] == 32
    assert loader.batch_at("train", 0, torch.arange(3), NOTHING, 0.2).images.shape[-1] == 8
    same = next(open_loader(imagenet, 0, "cpu").epoch("train", 0, 4, NOTHING))
    assert torch.equal(same.index, next(loader.epoch("train", 0, 4, NOTHING)).index)


def test_folder_fingerprint_sees_names_and_sizes(imagenet: ImageNet, tmp_path: Path) -> None:
    before = open_loader(imagenet, 0, "cpu").fingerprint
    moved = shutil.copytree(imagenet.root, tmp_path / "moved")
    config = dataclasses.replace(imagenet, root=str(moved))
    assert open_loader(config, 0, "cpu").fingerprint == before
    path = next((moved / "train" / "n00000003").iterdir())
    path.write_bytes(path.read_bytes() + b" ")
    assert open_loader(config, 0, "cpu").fingerprint != before


def test_digits_folder_is_complete_and_written_once(tmp_path: Path) -> None:
    root = write_digits_as_imagenet(tmp_path / "digits", size=12)
    files = sorted(root.rglob("*.JPEG"))
    assert len(files) == 1797
    assert len(list((root / "val").rglob("*.JPEG"))) == 359
    with Image.open(files[0]) as image:
        assert (image.size, image.mode) == ((12, 12), "RGB")
    times = [path.stat().st_mtime_ns for path in files]
    assert write_digits_as_imagenet(root, size=12) == root
    assert [path.stat().st_mtime_ns for path in files] == times
    assert list(tmp_path.iterdir()) == [root]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="other does not hold digits"):
        write_digits_as_imagenet(tmp_path / "other")


IDENTITIES = {
    "7b80bc2b97d3e9ed": Digits(),
    "1e011fa9a0daf9c5": Digits(augmentation=Augmentation(crop_padding=2, flip=False), val_fraction=0.2),
    "9d7db623f5c2e1cf": CIFAR10(),
    "49d8914f61537ac4": CIFAR10(
        root="x", augmentation=Augmentation(crop_padding=2, flip=False), backend="ffcv", subset=True
    ),
    "13657ef06aac074e": CIFAR100(),
    "bda59706cf0c00cc": CIFAR100(backend="folder"),
    "33c84179da3a04df": TinyImageNet(),
    "95d4fd5c3a4dd3b2": TinyImageNet(backend="ffcv", subset=True),
    "ab1c498181fc24b2": Images(),
    "a7f76d2319817aff": Images(name="f", image_size=32, backend="folder"),
    "7d81b7cd055473c2": ImageNet(),
    "90e9942ff8976846": ImageNet(
        name="n",
        image_size=16,
        resize=20,
        backend="ffcv",
        subset=True,
        resolution=Resolution(low=160, high=192, start=0.1, end=0.5),
    ),
    "b814022edcf683e1": CUB(),
    "e6763b864f08b1cb": CUB(name="n", image_size=16, resize=20, backend="ffcv", subset=True, val_fraction=0.0),
    "9c3b17608d8a508a": VOC(),
    "d47c98483ce308e5": VOC(
        years="2012",
        image_size=64,
        augmentation=DetectionAugmentation(crop=False),
        backend="ffcv",
        subset=True,
    ),
}


def test_stored_runs_keep_the_identity_of_their_data() -> None:
    assert {identity(config): config for config in IDENTITIES.values()} == IDENTITIES
