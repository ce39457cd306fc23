"""Checks before cost: what would end a run in its middle ends the command before it starts, with one message."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks import suite
from cluster.checkpoints import open_storage, write_json
from cluster.group import Group
from cluster.launch import launch
from compression.methods import EPSD, PDD, Dense, IterativeMagnitude, PruneThenDistill
from compression.objectives import CrossEntropyConfig, KDConfig
from pipelines import cli
from pipelines.checks import check_before_workers
from pipelines.data.config import CIFAR10, Augmentation, Images
from pipelines.driver import Ended
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.recipes import cifar10_pdd, digits_epsd
from pipelines.run_folder import RunFolder
from pipelines.teachers import needed
from tests.test_data import make_images

SHORT = Training(1, 32)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return open_storage(tmp_path / "storage")


def refused(experiment: Experiment, storage: Path) -> str:
    """The error of an experiment that must fail before it scores or trains anything."""
    events: list[dict[str, Any]] = []
    work = Work(experiment, Placement(storage=str(storage)), storage, {})
    [outcome] = launch(execute, [work], Group(storage=str(storage)), lambda _, event: events.append(event))
    assert outcome.error is not None
    assert events == []
    return outcome.error


# Before workers start


def test_a_batch_that_workers_cannot_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["--workers", "3", "--storage", str(tmp_path), "--seeds", "0", "1"]
    assert cli.main(digits_epsd, argv) == 2
    said = capsys.readouterr().err
    assert said.count("batch_size 128 does not divide by 3 workers") == 1
    assert not (tmp_path / "runs").exists()


def test_every_training_of_a_run_and_its_teachers_counts(storage: Path):
    odd, teacher = Training(1, 30), Experiment(Dense(), training=SHORT)
    for experiment in (
        Experiment(PDD(teacher, gating=odd), training=SHORT),
        Experiment(PDD(Experiment(Dense(), training=odd)), training=SHORT),
        Experiment(Dense(KDConfig(Experiment(Dense(), training=odd))), training=SHORT),
        Experiment(PruneThenDistill(teacher, retraining=odd), training=SHORT),
    ):
        with pytest.raises(ValueError, match="batch_size 30 does not divide by 4 workers"):
            check_before_workers([experiment], storage, 4)
    check_before_workers([Experiment(PDD(teacher, distill=False), training=SHORT)], storage, 4)


def test_what_is_finished_is_not_checked(storage: Path):
    teacher = Experiment(Dense(), training=Training(1, 30))
    folder = RunFolder(storage, teacher.identity)
    folder.path.mkdir(parents=True)
    write_json(folder.result, {})
    check_before_workers([teacher, Experiment(PDD(teacher), training=SHORT)], storage, 4)


def test_an_absent_folder_of_data_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["--data.root", str(tmp_path / "none"), "--storage", str(tmp_path), "--seeds", "0", "1"]
    assert cli.main(cifar10_pdd, argv) == 2
    assert capsys.readouterr().err.count("none holds neither cifar-10-python.tar.gz") == 1
    teacher = Experiment(Dense(), data=CIFAR10(root="nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere holds neither"):
        check_before_workers([Experiment(PDD(teacher))], tmp_path, 1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [("--seeds -1", "seed must be a whole number from 0"), ("--seeds 0", "nowhere must hold train/<class>/*")],
)
def test_a_suite_says_it_in_one_line(
    argv: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert suite.main(["every_method", "--data.root", "nowhere", "--storage", "storage", *argv.split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


# Before anything is scored


def test_a_batch_above_the_training_images(storage: Path):
    large, teacher = Training(1, 5000), Experiment(Dense(), training=SHORT)
    few = "batch_size is 5000, but there are 1295 training samples"
    assert few in refused(Experiment(Dense(), training=large), storage)
    assert few in refused(Experiment(PDD(teacher, gating=large), training=SHORT), storage)
    assert f"the teacher {Experiment(Dense(), training=large).name}: {few}" in refused(
        Experiment(PDD(Experiment(Dense(), training=large)), training=SHORT), storage
    )
    assert few in refused(Experiment(PruneThenDistill(teacher, retraining=large), training=SHORT), storage)
    scored = Experiment(EPSD(scoring_batch_size=5000), training=SHORT)
    assert "scoring_batch_size is 5000, but there are 1295 training images" in refused(scored, storage)


def test_a_network_that_does_not_take_the_images(storage: Path):
    fixed = "timm/vit_tiny_patch16_224 cannot take images of 3 x 8 x 8"
    assert fixed in refused(Experiment(EPSD(), "timm/vit_tiny_patch16_224", training=SHORT), storage)
    too_small = Experiment(Dense(), "torchvision/alexnet", training=SHORT)
    assert "torchvision/alexnet cannot take images of 3 x 8 x 8" in refused(too_small, storage)
    assert f"the teacher {too_small.name}: torchvision/alexnet cannot" in refused(
        Experiment(Dense(KDConfig(too_small)), training=SHORT), storage
    )


def test_a_batch_of_one_image_for_a_network_that_ends_in_one_pixel(storage: Path):
    """BatchNorm has no variance of a single value per channel, and would say so after scoring."""
    one = dataclasses.replace(SHORT, batch_size=1)
    text = "vgg11 cannot take images of 3 x 8 x 8 (channels x height x width), one at a time in training,"
    assert text in refused(Experiment(EPSD(), "vgg11", training=one), storage)


def test_precisions_that_do_not_fit_together(storage: Path):
    exact = dataclasses.replace(SHORT, precision="float64")
    teacher = Experiment(Dense(), training=SHORT)
    assert "one of the trainings has precision float32, another float64" in refused(
        Experiment(PDD(teacher, gating=SHORT), training=exact), storage
    )


def test_a_teacher_of_other_classes(storage: Path, tmp_path: Path):
    images = Images(root=str(make_images(tmp_path / "images")), image_size=8, augmentation=Augmentation(1, flip=False))
    student = Experiment(PDD(Experiment(Dense(), data=images, training=SHORT)), training=SHORT)
    assert "knows 3 classes, the student's data have 10: give a teacher of the same data" in refused(student, storage)


# Progress inside a long epoch


def test_slow_steps_are_reported_inside_the_epoch(storage: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.training.LOG_SECONDS", 0.0)
    events: list[dict[str, Any]] = []
    experiment = Experiment(Dense(), "vgg3", training=Training(1, 256))
    work = Work(experiment, Placement(storage=str(storage)), storage, {})
    launch(execute, [work], Group(storage=str(storage)), lambda _, event: events.append(event))
    assert [(event["step"], event["loss"]) for event in events if event["kind"] == "progress"] == [
        (step, None) for step in range(1, 5)
    ]


# The runs that a run needs


def test_needed_runs():
    teacher, own = Experiment(Dense(), "resnet56"), Experiment(Dense())
    pruning = PruneThenDistill(teacher, student="given")
    pruned = dataclasses.replace(teacher, method=pruning.pruning)
    assert needed(own) == []
    assert needed(Experiment(Dense(KDConfig()))) == [own]
    assert needed(Experiment(PDD())) == [own]
    assert needed(Experiment(PDD(distill=False))) == []
    assert needed(Experiment(pruning)) == [teacher, pruned]
    assert needed(Experiment(PDD(Experiment(Dense(KDConfig(teacher)))))) == [
        teacher,
        Experiment(Dense(KDConfig(teacher))),
    ]
    assert needed(Experiment(IterativeMagnitude(rewind="weights"))) == []
    assert needed(Experiment(IterativeMagnitude(rewind="restart"))) == [own]


# One failure, one message


def test_one_error_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [Experiment(Dense(CrossEntropyConfig()), seed=seed) for seed in range(3)]
    errors = ["ValueError: x", "OSError: y", "ValueError: x"]
    ended = [Ended(run, tmp_path, error=error) for run, error in zip(runs, errors, strict=True)]
    assert cli.report(ended, cli.Console()) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"failed: {runs[0].name}: ValueError: x",
        f"  the same error: {runs[2].name}",
        f"failed: {runs[1].name}: OSError: y",
    ]


def test_a_network_that_masks_cannot_reach_is_refused_before_scoring(storage: Path):
    experiment = Experiment(method=EPSD(), model="timm/nf_resnet26", training=SHORT)
    assert "weight standardisation" in refused(experiment, storage)
