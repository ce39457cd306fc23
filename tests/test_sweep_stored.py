"""What a sweep reads of real runs on digits, and what their trials tell it. Never anything of the test split."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoints import open_storage
from cluster.worker import Worker, run_item
from compression.methods import Dense
from compression.objectives import KDConfig
from compression.spaces import Choices
from pipelines.experiment import Experiment, Placement
from pipelines.run_folder import RunFolder
from pipelines.search import spaces
from pipelines.search.plan import Plan, UnreadableError
from pipelines.search.runs import StoredRuns, cost_of, run_trial, stored_accuracies
from pipelines.search.trial import COSTS, Goal
from pipelines.teachers import needed
from tests.enrolled import small
from tests.sweep_runs import entries, open_study

TEMPERATURE = "method.objective.temperature"

PLAN = Plan(small(Dense(KDConfig())), {TEMPERATURE: Choices((2.0, 4.0))}, "grid", "none")
"""Two students of one teacher, two epochs each."""


def stored(storage: Path, goal: Goal | None = None, since_ms: int = 0) -> StoredRuns:
    return StoredRuns(storage, Placement(storage=str(storage)), {}, goal or Goal(), since_ms, pytest.fail)


class Died(BaseException):
    """The process of a trial is dead."""


def execute(runs: StoredRuns, experiment: Experiment, dies_at: int | None = None) -> list[dict[str, Any]]:
    """The events of a trial. dies_at: the number of the event at which its process dies."""
    events: list[dict[str, Any]] = []

    def emit(event: dict[str, Any]) -> None:
        events.append(event)
        if len(events) == dies_at:
            raise Died

    worker = Worker(0, 1, torch.device("cpu"), None, emit)
    try:
        outcome = run_item(run_trial, runs.item(experiment), worker)
    except Died:
        return events
    assert outcome.error is None, outcome.traceback
    return events


@pytest.fixture(scope="module")
def students() -> list[Experiment]:
    return [spaces.at(PLAN.experiment, {TEMPERATURE: temperature}) for temperature in (2.0, 4.0)]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, students: list[Experiment]) -> tuple[Path, list[Any]]:
    """Both students and their teacher, and the events of the students."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipelines.costs.LATENCY_BATCHES", (1,))
        path = open_storage(tmp_path_factory.mktemp("storage"))
        return path, [execute(stored(path), student) for student in students]


def results(path: Path, experiment: Experiment) -> dict[str, Any]:
    result = RunFolder(path, experiment.identity).read_result()
    assert result is not None
    return result


def recorded(path: Path, experiment: Experiment, key: str) -> list[float]:
    return [each["value"] for each in results(path, experiment)["history"] if each["key"] == key]


def test_a_trial_tells_the_validation_accuracy_of_each_epoch(
    storage: tuple[Path, list[Any]], students: list[Experiment]
):
    path, told = storage
    for student, events in zip(students, told, strict=True):
        accuracies = recorded(path, student, "val/accuracy")[:2]
        assert events == [
            {"epoch": 1, "value": accuracies[0], "last": False},
            {"epoch": 2, "value": accuracies[1], "last": True},
        ]
        assert stored_accuracies(RunFolder(path, student.identity)) == accuracies
        assert stored(path).history(student) == accuracies


def test_what_is_found_is_of_the_validation_split(storage: tuple[Path, list[Any]], students: list[Experiment]):
    path, _ = storage
    for student in students:
        metrics = results(path, student)["metrics"]
        of_test = {value for key, value in metrics.items() if key.startswith("test/")}
        assert of_test
        found = stored(path).found(student)
        assert found is not None
        assert found.values == (metrics["val/accuracy"],)
        assert found.dense_epochs == metrics["cost/own_dense_epochs"] > 2  # the teacher's forward passes are its own
        assert of_test.isdisjoint({*found.values, *stored(path).history(student)})


@pytest.mark.parametrize("cost", COSTS)
def test_costs_are_those_of_the_run(cost: str, storage: tuple[Path, list[Any]], students: list[Experiment]):
    path, _ = storage
    metrics = results(path, students[0])["metrics"]
    found = stored(path, Goal(cost)).found(students[0])
    assert found is not None
    assert found.values == (metrics["val/accuracy"], cost_of(metrics, cost))
    expected = {"compacted_macs": "cost/macs"}.get(cost, COSTS[cost].metric)
    assert found.values[1] == metrics[expected] > 0


def test_costs_by_hand():
    metrics = {
        "cost/macs": 10.0,
        "cost/effective_macs": 4.0,
        "cost/compacted_macs": 7.0,
        "cost/nonzero_parameters": 3.0,
    }
    metrics |= {"cost/latency_seconds_batch_1": 0.5}
    assert [cost_of(metrics, cost) for cost in COSTS] == [4.0, 7.0, 0.5, 3.0]
    dense = {"cost/macs": 10.0, "cost/effective_macs": 10.0}
    assert cost_of(dense, "compacted_macs") == 10.0
    for cost, known in (("compacted_macs", {**dense, "cost/effective_macs": 4.0}), ("latency", dense)):
        with pytest.raises(
            ValueError, match=f"the run has no {COSTS[cost].metric}: .* choose another cost for --objective"
        ):
            cost_of(known, cost)


def test_a_teacher_costs_what_its_training_cost(storage: tuple[Path, list[Any]], students: list[Experiment]):
    path, _ = storage
    [teacher] = needed(students[0])
    found = stored(path).found(students[0])
    assert found is not None
    # The network of both is the same, and the teacher's two epochs are dense ones.
    assert found.teachers == {teacher.identity: pytest.approx(2.0, rel=0.01)}
    late = stored(path, since_ms=time.time_ns() // 1_000_000 + 1).found(students[0])
    assert late is not None
    assert late.teachers == {}


def test_runs_that_are_there_are_trials_that_cost_nothing(
    storage: tuple[Path, list[Any]], students: list[Experiment], tmp_path: Path
):
    path, told = storage
    study = open_study(tmp_path, stored(path), PLAN, 2)
    assert study.next() is None
    assert [trial.state for trial in study.trials()] == ["finished"] * 2
    assert [trial.identity for trial in study.trials()] == [student.identity for student in students]
    for trial, events in zip(study.trials(), told, strict=True):
        assert trial.history == tuple((event["epoch"], event["value"]) for event in events)
    assert [entry["new"] for entry in entries(tmp_path) if entry["kind"] == "end"] == [False, False]


def test_a_teacher_counts_once_also_after_a_restart(
    storage: tuple[Path, list[Any]], students: list[Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, told = storage
    found = {each.identity: stored(path).found(each) for each in students}
    for events in told:
        with monkeypatch.context() as patched:  # the run is not finished before it was run
            patched.setattr(StoredRuns, "found", lambda *_: None)
            study = open_study(tmp_path, stored(path), PLAN, 2)
            number, work = study.next()
            for event in events:
                assert not study.report(number, event)
        # The sweep is killed here: its trial has ended, but its end is not in the journal.
        study = open_study(tmp_path, stored(path), PLAN, number + 1)
        assert study.next() is None
        assert study.trials()[number].identity == work.experiment.identity
    [teacher] = needed(students[0])
    ends = [entry for entry in entries(tmp_path) if entry["kind"] == "end"]
    first = found[students[0].identity]
    assert first is not None
    assert [entry["new"] for entry in ends] == [True, True]
    assert [entry["teachers"] for entry in ends] == [{teacher.identity: first.teachers[teacher.identity]}, {}]
    costs = [trial.dense_epochs for trial in open_study(tmp_path, stored(path), PLAN, 2).trials()]
    assert costs[0] - costs[1] == pytest.approx(2.0, rel=0.01)


def test_a_trial_whose_process_died_tells_its_epochs_again(
    storage: tuple[Path, list[Any]], students: list[Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.costs.LATENCY_BATCHES", (1,))
    _, told = storage
    runs = stored(open_storage(tmp_path))
    assert runs.found(students[0]) is None
    assert runs.history(students[0]) == []
    assert execute(runs, students[0], dies_at=1) == told[0][:1]
    assert runs.found(students[0]) is None
    assert runs.history(students[0]) == [told[0][0]["value"]]
    assert execute(runs, students[0]) == told[0]


def test_an_item_has_no_password(tmp_path: Path, students: list[Experiment]):
    placement = Placement(storage=str(tmp_path), tracking_uri="http://user:secret@host")
    runs = StoredRuns(tmp_path, placement, {"sweep": "x"}, Goal(), 0, pytest.fail)
    work = runs.item(students[0])
    assert (work.experiment, work.placement.tracking_uri, work.tags) == (students[0], None, {"sweep": "x"})


def test_a_damaged_run_is_refused(storage: tuple[Path, list[Any]], students: list[Experiment], tmp_path: Path):
    path, _ = storage
    result = RunFolder(path, students[1].identity).result
    before = result.read_bytes()
    result.write_bytes(before.replace(b'"val/accuracy":0.', b'"val/accuracy":1.', 1))
    try:
        assert result.read_bytes() != before
        with pytest.raises(UnreadableError, match="is damaged or was edited"):
            stored(path).found(students[1])
        study = open_study(tmp_path, stored(path), PLAN, 2)
        assert study.next() is None
        assert [trial.state for trial in study.trials()] == ["finished", "running"]
        assert "result.json is damaged or was edited" in study.losses[1]
    finally:
        result.write_bytes(before)
