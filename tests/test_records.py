"""Records: what is finished answers only for what it was made of, and damage to any file is noticed."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from cluster.checkpoints import open_storage
from cluster.group import Group
from cluster.launch import launch
from cluster.records import read_json, write_json
from cluster.worker import Outcome
from compression.methods import Dense, Pretrained
from compression.models import build
from compression.objectives import KDConfig
from pipelines import reuse
from pipelines.data import contents
from pipelines.data.config import Augmentation, Images
from pipelines.driver import Ended, run_experiments
from pipelines.execute import execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD
from pipelines.run_folder import RunFolder
from tests.kill_bodies import work_in
from tests.test_data import make_images

TRAINING = Training(epochs=1, batch_size=4, optimizer=SGD(lr=0.01))


@pytest.fixture(autouse=True)
def one_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.costs.LATENCY_BATCHES", (1,))


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return images_in(make_images(tmp_path / "images"))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return open_storage(tmp_path / "storage")


def images_in(root: Path, **others: Any) -> Images:
    return Images(root=str(root), image_size=8, augmentation=Augmentation(1, flip=False), val_fraction=0, **others)


def dense(images: Images, objective: Any = None) -> Experiment:
    return Experiment(Dense(objective) if objective else Dense(), "vgg3", images, TRAINING)


def run(storage: Path, *experiments: Experiment) -> tuple[list[Ended], str]:
    """As a command does; how each ended, and what was printed."""
    console = Console(file=io.StringIO(), width=500)
    ended = run_experiments(experiments, Placement(storage=str(storage)), "suite", "recipe", console)
    assert isinstance(console.file, io.StringIO)
    return ended, console.file.getvalue()


def execute_here(storage: Path, experiment: Experiment, tags: dict[str, str] | None = None) -> Outcome:
    work = replace(work_in(storage, experiment), tags=tags or {})
    [outcome] = launch(execute, [work], Group(storage=str(storage)), lambda *_: None)
    return outcome


def paint(path: Path, red: int) -> None:
    """Another image under the same name, with as many pixels."""
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[..., 0] = red
    Image.fromarray(pixels).save(path)


# A finished run answers only for its data


@pytest.mark.parametrize("backend", ["memory", "folder"])
def test_a_finished_run_does_not_answer_for_other_data(images: Images, storage: Path, tmp_path: Path, backend: Any):
    experiment = dense(replace(images, backend=backend))
    [first], _ = run(storage, experiment)
    assert first.result is not None
    copied = shutil.copytree(images.root, tmp_path / "copied")
    [again], text = run(storage, replace(experiment, data=images_in(copied, backend=backend)))
    assert again.before
    assert again.result == first.result
    assert "already finished" in text

    paint(copied / "train/bee/2.png", 200)
    with pytest.raises(ValueError, match=r"other data of the same name.*--data.name.*--storage") as caught:
        run(storage, replace(experiment, data=images_in(copied, backend=backend)))
    assert str(first.folder) in str(caught.value)
    assert first.result["inputs"]["data"] in str(caught.value)
    [same], _ = run(storage, experiment)
    assert same.before


def test_a_file_of_the_same_size_and_name_is_other_data(images: Images, storage: Path):
    experiment = dense(replace(images, backend="folder"))
    one, other = (Path(images.root, "train/bee", name) for name in ("1.png", "2.png"))
    longer = max(one.stat().st_size, other.stat().st_size)
    for path in (one, other):  # bytes after the image's end are not read
        path.write_bytes(path.read_bytes().ljust(longer, b"\0"))
    run(storage, experiment)
    times = one.stat()
    one.write_bytes(other.read_bytes())
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match="other data"):
        run(storage, experiment)


def test_a_finished_run_whose_data_are_gone_says_so(images: Images, storage: Path, tmp_path: Path):
    experiment = dense(images)
    [first], _ = run(storage, experiment)
    for gone in (tmp_path / "nothing", Path(images.root)):
        shutil.rmtree(images.root, ignore_errors=gone == Path(images.root))
        with pytest.raises(ValueError, match=rf"is finished in {first.folder}.*cannot be told: {gone} must hold train"):
            run(storage, replace(experiment, data=images_in(gone)))


def test_an_unchanged_set_is_not_read_again(images: Images, storage: Path, monkeypatch: pytest.MonkeyPatch):
    experiment = dense(replace(images, backend="folder"))
    monkeypatch.setattr(reuse, "SETTLED_SECONDS", -10.0)
    run(storage, experiment)

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the data are read")

    monkeypatch.setattr(reuse, "open_loader", read)
    monkeypatch.setattr(contents, "fingerprint", read)
    [again], _ = run(storage, experiment)
    assert again.before
    Path(images.root, "train/bee/2.png").touch()
    with pytest.raises(AssertionError, match="the data are read"):
        run(storage, experiment)


def test_files_that_have_just_changed_are_not_trusted(images: Images, storage: Path):
    """They may change again without a change of their times."""
    run(storage, dense(replace(images, backend="folder")))
    recorded = [read_json(path)["what"] for path in (storage / "fingerprints").glob("*.json")]
    Path(images.root, "train/bee/2.png").touch()
    for path in (storage / "fingerprints").glob("*.json"):
        path.unlink()
    run(storage, dense(replace(images, backend="folder")))
    assert not list((storage / "fingerprints").glob("*.json"))
    assert all(images.root in what for what in recorded)


def test_a_student_does_not_take_a_finished_teacher_of_other_data(images: Images, storage: Path, tmp_path: Path):
    run(storage, dense(images))
    other = Path(shutil.copytree(images.root, tmp_path / "other"))
    paint(other / "val/bee/2.png", 200)
    student = dense(images_in(other), KDConfig())
    outcome = execute_here(storage, student)
    assert "the teacher" in (outcome.error or "")
    assert "other data of the same name" in (outcome.error or "")
    shutil.rmtree(RunFolder(storage, student.identity).path)
    assert execute_here(storage, replace(student, data=images)).error is None


# Weights that are given


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "given.safetensors"
    save_file(build("vgg3", 3).state_dict(), path)
    return path


def change(weights: Path) -> None:
    state = load_file(weights)
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    save_file({**state, name: state[name] + 1}, weights)


@pytest.mark.parametrize("place", ["own", "teacher"])
def test_weights_that_were_replaced_do_not_give_the_old_result(
    images: Images, storage: Path, weights: Path, place: str
):
    loaded = replace(dense(images), method=Pretrained(str(weights)))
    experiment = loaded if place == "own" else dense(images, KDConfig(loaded))
    [first], _ = run(storage, experiment)
    assert first.error is None, first.error
    [again], _ = run(storage, experiment)
    assert again.before
    change(weights)
    with pytest.raises(ValueError, match=rf"another {weights} \(fingerprint .*--storage"):
        run(storage, experiment)
    # A finished teacher is not taken either.
    outcome = execute_here(storage, dense(images, KDConfig(loaded, temperature=2.0)))
    assert f"another {weights}" in (outcome.error or "")
    weights.unlink()
    with pytest.raises(ValueError, match=f"cannot be told: there is no file {weights}"):
        run(storage, experiment)


def test_the_folder_of_a_run_is_a_file_that_is_read(images: Images, storage: Path, tmp_path: Path):
    run(storage, dense(images))
    folder = RunFolder(storage, dense(images).identity).path
    given = Path(shutil.copytree(folder, tmp_path / "given"))
    experiment = replace(dense(images), method=Pretrained(str(given)))
    run(storage, experiment)
    other = replace(dense(images), seed=1)
    run(storage, other)
    for name in ("model.safetensors", "arch.json"):
        shutil.copy(RunFolder(storage, other.identity).path / name, given)
    with pytest.raises(ValueError, match=rf"another {given}/arch.json"):
        run(storage, experiment)


def test_a_stage_is_not_used_for_other_weights(
    images: Images, storage: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
):
    experiment = replace(dense(images), method=Pretrained(str(weights)))

    def stopped(*_: Any) -> None:
        raise RuntimeError("stopped")

    monkeypatch.setattr("pipelines.execute._finish", stopped)
    assert "stopped" in (execute_here(storage, experiment).error or "")
    assert (RunFolder(storage, experiment.identity).stage("load") / "stage.json").exists()
    monkeypatch.undo()
    change(weights)
    assert f"another {weights}" in (execute_here(storage, experiment).error or "")


# Old storages, and files that are damaged


def as_before(folder: RunFolder) -> None:
    """A finished run as earlier versions wrote it."""
    result = read_json(folder.result)
    for name in ("inputs", "files"):
        del result[name]
    write_json(folder.result, result)


def test_an_old_run_is_completed_and_that_is_said_once(images: Images, storage: Path):
    experiment = dense(images)
    [first], _ = run(storage, experiment)
    as_before(RunFolder(storage, experiment.identity))
    [again], text = run(storage, experiment)
    assert "recorded without checksums" in text
    assert again.before
    assert again.result == first.result
    assert RunFolder(storage, experiment.identity).read_result() == first.result
    _, text = run(storage, experiment)
    assert "recorded without checksums" not in text


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path) -> None:
    path.write_text(re.sub(r"0\.(?=\d)|0(?=,)", "7", path.read_text(), count=1))


def empty(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", flip, r"model.safetensors is damaged.*cluster.verify.*delete \S+result.json"),
        ("arch.json", flip, r"arch.json is damaged"),
        ("model.safetensors", Path.unlink, r"model.safetensors is missing.*cluster.verify.*delete \S+result.json"),
        ("result.json", edit, r"result.json is damaged or was edited.*delete it"),
        ("result.json", empty, r"result.json is not the result of a finished run: delete it"),
    ],
)
def test_damage_to_a_finished_run_is_named(
    images: Images, storage: Path, name: str, damage: Callable[[Path], None], said: str
):
    experiment = dense(images)
    [first], _ = run(storage, experiment)
    folder = RunFolder(storage, experiment.identity)
    before = {name: (folder.path / name).read_bytes() for name in ("model.safetensors", "arch.json")}
    damage(folder.path / name)
    with pytest.raises(ValueError, match=said):
        run(storage, experiment)
    taught = execute_here(storage, dense(images, KDConfig()))
    assert name in (taught.error or "")
    # What the message says helps: the run is made again from its checkpoints.
    folder.result.unlink()
    shutil.rmtree(folder.path.parent / dense(images, KDConfig()).identity, ignore_errors=True)
    [again], _ = run(storage, experiment)
    assert not again.before
    assert {name: (folder.path / name).read_bytes() for name in before} == before
    assert again.result is not None
    assert first.result is not None
    assert again.result["metrics"]["test/accuracy"] == first.result["metrics"]["test/accuracy"]


def test_deleted_checkpoints_of_a_finished_run_are_not_missed(images: Images, storage: Path):
    [first], _ = run(storage, dense(images))
    shutil.rmtree(first.folder / "stages")
    [again], _ = run(storage, dense(images))
    assert again.before


@pytest.mark.parametrize(
    ("name", "content"), [("run.json", None), ("run.json", "{}"), ("stages/load/stage.json", "{}")]
)
def test_an_unfinished_run_with_a_file_missing_or_empty_says_what_to_do(
    images: Images, storage: Path, weights: Path, name: str, content: str | None
):
    experiment = replace(dense(images), method=Pretrained(str(weights)))
    run(storage, experiment)
    folder = RunFolder(storage, experiment.identity)
    folder.result.unlink()
    path = folder.path / name
    path.unlink() if content is None else path.write_text(content)
    try:
        [end], _ = run(storage, experiment)
        text = str(end.error)
    except ValueError as error:
        text = str(error)
    assert f"{path}" in text
    assert f"delete {path.parent}" in text
