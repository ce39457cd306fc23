"""Teachers: other experiments that a run needs, run once, shared, tracked and counted. On a handful of small images."""

from __future__ import annotations

import dataclasses
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from torch import nn

from cluster.checkpoints import open_storage, write_json
from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Outcome
from compression import artifact, cost
from compression.methods import METHODS, Dense, IterativeMagnitude, MethodConfig, PruneThenDistill
from compression.objectives import KD, CrossEntropyConfig, KDConfig, TfKDSelfConfig
from compression.session import Session
from pipelines.data.config import Augmentation, Digits, Images
from pipelines.driver import run_experiments
from pipelines.execute import execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD
from pipelines.run_folder import RunFolder
from pipelines.teachers import closure, with_data_of
from tests.kill_bodies import Kill, execute_and_die, same_run, work_in
from tests.test_data import make_images

TRAINING = Training(epochs=2, batch_size=4, optimizer=SGD(lr=0.01))
STEPS = 6
"""Of one training: three in each of two epochs."""


@pytest.fixture(autouse=True)
def one_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.costs.LATENCY_BATCHES", (1,))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Images:
    """Fifteen images of three classes to train on."""
    root = make_images(tmp_path_factory.mktemp("images"))
    return Images(root=str(root), image_size=8, augmentation=Augmentation(1, flip=False), val_fraction=0)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return open_storage(tmp_path)


def student(images: Images, objective: Any = None, **others: Any) -> Experiment:
    return Experiment(Dense(objective or KDConfig()), data=images, training=TRAINING, **others)


def teacher_of(experiment: Experiment) -> Experiment:
    """What a method gets that names no teacher."""
    return dataclasses.replace(experiment, method=Dense())


def run_here(storage: Path, experiment: Experiment, events: list[dict[str, Any]] | None = None) -> Outcome:
    def keep(_: int, event: dict[str, Any]) -> None:
        if events is not None:
            events.append(event)

    [outcome] = launch(execute, [work_in(storage, experiment)], Group(storage=str(storage)), keep)
    return outcome


def finished(storage: Path, experiment: Experiment, events: list[dict[str, Any]] | None = None) -> RunFolder:
    outcome = run_here(storage, experiment, events)
    assert outcome.error is None, outcome.traceback
    return RunFolder(storage, experiment.identity)


def runs_in(storage: Path) -> set[str]:
    return {path.name for path in (storage / "runs").iterdir()}


# Run once, and shared


def test_a_teacher_runs_once_and_is_shared(images: Images, storage: Path):
    first, second = student(images), student(images, TfKDSelfConfig(multiplier=1))
    teacher = RunFolder(storage, teacher_of(first).identity)

    events: list[dict[str, Any]] = []
    run = finished(storage, first, events)
    assert [event["stage"] for event in events if event["kind"] == "epoch"] == ["teacher's train"] * 2 + ["train"] * 2
    [note] = [event["text"] for event in events if event["kind"] == "note"]
    assert re.fullmatch(rf"teacher {re.escape(teacher_of(first).name)}: test accuracy \d+\.\d\d%", note)
    assert [event["kind"] for event in events].count("finished") == 1

    before = {path: path.stat().st_mtime_ns for path in teacher.path.rglob("*") if path.name != "lock"}
    events.clear()
    finished(storage, second, events)
    assert {path: path.stat().st_mtime_ns for path in teacher.path.rglob("*") if path.name != "lock"} == before
    assert {event["stage"] for event in events if "stage" in event} == {"train", "test"}
    assert not [event for event in events if event["kind"] == "note"]
    assert runs_in(storage) == {first.identity, second.identity, teacher_of(first).identity}
    for experiment in (first, second):
        description = RunFolder(storage, experiment.identity).read_description()
        assert description is not None
        assert description["teachers"] == [teacher_of(first).identity]
    result = run.read_result()
    assert result is not None
    assert result["teachers"] == [teacher_of(first).identity]


def test_a_teacher_is_what_the_same_experiment_is_alone(images: Images, storage: Path, tmp_path: Path):
    taught = student(images)
    finished(storage, taught)
    alone = finished(open_storage(tmp_path / "alone"), teacher_of(taught))
    teacher = RunFolder(storage, teacher_of(taught).identity)
    assert teacher.path.parent != alone.path.parent
    same_run(teacher, alone)
    assert (teacher.path / "model.safetensors").read_bytes() == (alone.path / "model.safetensors").read_bytes()


def test_students_side_by_side_train_their_teacher_once(images: Images, storage: Path):
    students = [student(images), student(images, TfKDSelfConfig(multiplier=1))]
    waited = []
    outcomes = launch(
        execute_and_die,
        [(work_in(storage, experiment), None) for experiment in students],
        Group(storage=str(storage), workers=1, parallel=2),
        lambda number, event: waited.append(event["text"]) if event["kind"] == "waiting" else None,
    )
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert sum(outcome.value["train"] for outcome in outcomes) == 3 * STEPS
    # Where one was quicker to start, it may have been done before the other asked.
    assert all(teacher_of(students[0]).identity in text for text in waited)
    assert len(waited) <= 1


def test_a_killed_teacher_goes_on(images: Images, storage: Path, tmp_path: Path):
    taught = student(images)
    group = Group(storage=str(storage), workers=1)
    [killed] = launch(execute_and_die, [(work_in(storage, taught), Kill("train", 5))], group, lambda *_: None)
    assert "SIGKILL" in (killed.error or "")
    assert runs_in(storage) == {taught.identity, teacher_of(taught).identity}
    assert RunFolder(storage, taught.identity).checkpoints("train").latest() is None
    latest = RunFolder(storage, teacher_of(taught).identity).checkpoints("train").latest()
    assert latest is not None
    assert latest.step == 4

    [outcome] = launch(execute_and_die, [(work_in(storage, taught), None)], group, lambda *_: None)
    assert outcome.error is None, outcome.traceback
    assert outcome.value["train"] == (STEPS - 4) + STEPS
    other = open_storage(tmp_path / "undisturbed")
    finished(other, taught)
    for experiment in (taught, teacher_of(taught)):
        same_run(RunFolder(storage, experiment.identity), RunFolder(other, experiment.identity))


def test_a_student_of_two_workers_goes_on_in_the_middle(images: Images, storage: Path, tmp_path: Path):
    taught = student(images)
    folders = [storage, open_storage(tmp_path / "undisturbed")]
    kills = [Kill("train", STEPS + 5, rank=1), None, None]
    outcomes = [
        launch(
            execute_and_die,
            [(work_in(folder, taught), kill)],
            Group(storage=str(folder), workers=2),
            lambda *_: None,
        )[0]
        for folder, kill in zip([storage, *folders], kills, strict=True)
    ]
    assert "SIGKILL" in (outcomes[0].error or "")
    assert [outcome.error for outcome in outcomes[1:]] == [None, None]
    assert [outcome.value["train"] for outcome in outcomes[1:]] == [STEPS - 4, 2 * STEPS]
    for experiment in (taught, teacher_of(taught)):
        same_run(*(RunFolder(folder, experiment.identity) for folder in folders))


# What a method gets


@dataclass(frozen=True)
class Asking(MethodConfig):
    """Asks for a teacher and shows it."""

    teacher: Any = None
    objective: Any = field(default_factory=CrossEntropyConfig)
    label = "asking"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    networks: list[nn.Module] = []

    def run(self: Asking, session: Session) -> nn.Module:
        networks.append(session.teacher(self.teacher))
        return session.train("train", session.model(), KD(networks[-1]))

    monkeypatch.setitem(METHODS, "asking", Asking)
    monkeypatch.setattr(Asking, "run", run)
    return networks


def test_a_teacher_is_frozen_in_eval_mode_and_stays_as_it_is(images: Images, storage: Path, shown: list[nn.Module]):
    method: Any = Asking()
    experiment = Experiment(method, data=images, training=TRAINING)
    finished(storage, experiment)
    [network] = shown  # after a whole training with it
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    saved = artifact.load(RunFolder(storage, teacher_of(experiment).identity).path).state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())


def test_a_teacher_has_the_precision_of_its_student(images: Images, storage: Path, shown: list[nn.Module]):
    exact = dataclasses.replace(TRAINING, precision="float64", epochs=1)
    method: Any = Asking(student(images, CrossEntropyConfig()))
    finished(storage, Experiment(method, data=images, training=exact))
    assert {parameter.dtype for parameter in shown[0].parameters()} == {torch.float64}


# Where the data lie


def test_a_teacher_of_the_same_data_finds_them_where_the_student_does(images: Images, storage: Path):
    elsewhere = dataclasses.replace(images, root="/does/not/exist")
    teacher = student(elsewhere, CrossEntropyConfig(), seed=4)
    here = student(images)
    assert with_data_of(here, teacher).data == images
    assert with_data_of(here, teacher).identity == teacher.identity
    other = dataclasses.replace(teacher, data=dataclasses.replace(elsewhere, name="others"))
    assert with_data_of(here, other) is other

    # Of a teacher's teacher, too.
    pruned = dataclasses.replace(teacher, method=IterativeMagnitude(rounds=1, rewind="restart", dense=teacher))
    finished(storage, student(images, KDConfig(pruned)))


# Refused, or failed


def test_a_teacher_of_other_classes_is_refused_before_anything_is_trained(images: Images, storage: Path):
    teacher = Experiment(Dense(), data=Digits(), training=TRAINING)
    taught = student(images, KDConfig(teacher))
    events: list[dict[str, Any]] = []
    outcome = run_here(storage, taught, events)
    assert outcome.error == (
        f"ValueError: the teacher {teacher.name} knows 10 classes, the student's data have 3: give a teacher of the "
        "same data"
    )
    assert runs_in(storage) == {taught.identity}
    assert not (storage / "runs" / taught.identity / "stages").exists()
    assert not [event for event in events if "stage" in event]


def test_the_error_of_a_teacher_names_it(images: Images, storage: Path):
    wild = dataclasses.replace(
        student(images, CrossEntropyConfig()), training=dataclasses.replace(TRAINING, optimizer=SGD(lr=1e30))
    )
    outcome = run_here(storage, student(images, KDConfig(wild)))
    assert outcome.error is not None
    assert f"the teacher {wild.name} (identity {wild.identity}) failed: the loss is not finite" in outcome.error


# Counted and tracked


def nested(images: Images) -> tuple[Experiment, list[Experiment]]:
    """A student, and its teachers: a network pruned, and the dense one that both start from."""
    method = PruneThenDistill(rounds=1, student="given")
    taught = Experiment(method, data=images, training=TRAINING)
    return taught, [teacher_of(taught), dataclasses.replace(taught, method=method.pruning)]


def test_the_memory_that_a_teacher_took_is_not_its_students(
    images: Images, storage: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []
    monkeypatch.setattr(cost, "reset_peak_memory", lambda device: seen.append("reset"))

    def keep(_: int, event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            seen.append(event["stage"])

    for objective in (KDConfig(), TfKDSelfConfig(multiplier=1)):
        launch(execute, [work_in(storage, student(images, objective))], Group(storage=str(storage)), keep)
    first = ["reset", "reset", *["teacher's train"] * 2, "reset", *["train"] * 2]
    assert seen == [*first, "reset", *["train"] * 2]


def tracked(storage: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    suite = client.get_experiment_by_name("suite")
    assert suite is not None
    return list(client.search_runs([suite.experiment_id]))


def test_a_teacher_of_two_is_counted_and_tracked_once(images: Images, storage: Path):
    taught, teachers = nested(images)
    ended = run_experiments([taught], Placement(storage=str(storage)), "suite", "recipe", Console(file=io.StringIO()))
    assert [end.error for end in ended] == [None]

    metrics = {}
    for experiment in (taught, *teachers):
        result = RunFolder(storage, experiment.identity).read_result()
        assert result is not None
        metrics[experiment] = result["metrics"]
    own = {experiment: values["cost/own_training_flops"] for experiment, values in metrics.items()}
    assert metrics[taught]["cost/training_flops"] == pytest.approx(sum(own.values()))
    assert metrics[teachers[0]]["cost/training_flops"] == own[teachers[0]] > 0
    ratio = metrics[taught]["cost/dense_epochs"] / metrics[taught]["cost/own_dense_epochs"]
    assert ratio == pytest.approx(sum(own.values()) / own[taught])

    runs = tracked(storage)
    found = {run.data.tags["orchard.identity"]: run for run in runs}
    assert len(runs) == 3
    assert found.keys() == {experiment.identity for experiment in (taught, *teachers)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert found[taught.identity].info.run_id == ended[0].run_id
    for experiment in teachers:
        data = found[experiment.identity].data
        assert data.metrics["test/accuracy"] == metrics[experiment]["test/accuracy"]
        assert data.tags["orchard.recipe"] == "recipe"

    # A teacher that somebody asks for by itself is the run that is there.
    again = run_experiments(
        [teachers[0], taught], Placement(storage=str(storage)), "suite", "recipe", Console(file=io.StringIO())
    )
    assert all(end.before for end in again)
    assert again[0].run_id == found[teachers[0].identity].info.run_id
    assert len(tracked(storage)) == 3


def test_a_teacher_that_fails_is_tracked_as_failed(images: Images, storage: Path):
    wild = dataclasses.replace(
        student(images, CrossEntropyConfig()), training=dataclasses.replace(TRAINING, optimizer=SGD(lr=1e30))
    )
    placement = Placement(storage=str(storage))
    [ended] = run_experiments(
        [student(images, KDConfig(wild))], placement, "suite", "recipe", Console(file=io.StringIO())
    )
    assert wild.name in (ended.error or "")
    assert {run.data.tags["orchard.identity"]: run.info.status for run in tracked(storage)} == {
        ended.experiment.identity: "FAILED",
        wild.identity: "FAILED",
    }


def test_teachers_of_teachers_come_each_once_and_the_nearest_first(tmp_path: Path):
    taught_by = {"student": ["pruned", "dense"], "pruned": ["dense"], "dense": []}
    for name, teachers in taught_by.items():
        write_json(RunFolder(tmp_path, name).description, {"teachers": teachers})

    def names(of: str) -> list[str]:
        return [run.path.name for run in closure(RunFolder(tmp_path, of), lambda name: RunFolder(tmp_path, name))]

    assert names("student") == ["pruned", "dense"]
    assert names("pruned") == ["dense"]
    assert names("dense") == []
    assert names("not-begun") == []
