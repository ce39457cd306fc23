"""Runs of one worker and of two, killed with their driver or without it, go on where they were, or say why not.

That every method and objective does so is tried in test_methods, with one worker.
"""

from __future__ import annotations

import dataclasses
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster import strategy
from cluster.checkpoints import open_storage
from cluster.group import Group
from cluster.launch import launch
from cluster.lock import lock
from compression.methods import Dense, IterativeMagnitude
from compression.objectives import DLBConfig, ObjectiveConfig, PSKDConfig
from pipelines.execute import execute
from pipelines.experiment import Experiment
from pipelines.run_folder import RunFolder
from tests import enrolled
from tests.kill_bodies import SEED, Kill, command, draw_kill, execute_and_die, same_run, work_in

DRAW = random.Random(f"{SEED} resume")

METHODS = {
    name: config for name, config in enrolled.methods().items() if not isinstance(config, enrolled.TRAINS_NOTHING)
}

REMEMBERING = {"PS-KD": Dense(PSKDConfig()), "DLB": Dense(DLBConfig())}
"""One memory that is the same on every worker, and one that is each worker's own."""

ONE = DRAW.choice(sorted(METHODS))
OTHER = DRAW.choice(sorted(METHODS))


def ignore(*_: object) -> None:
    return None


def run_here(storage: Path, experiment: Experiment) -> RunFolder:
    [outcome] = launch(execute, [work_in(storage, experiment)], Group(storage=str(storage)), ignore)
    assert outcome.error is None, outcome.traceback
    return RunFolder(storage, experiment.identity)


def kill_worker(storage: Path, experiment: Experiment, workers: int, kill: Kill) -> None:
    group = Group(storage=str(storage), workers=workers)
    [outcome] = launch(execute_and_die, [(work_in(storage, experiment), kill)], group, ignore)
    assert outcome.error is not None
    assert "SIGKILL" in outcome.error


def kill_driver(storage: Path, experiment: Experiment, workers: int, kill: Kill) -> None:
    kill = dataclasses.replace(kill, victim="driver")
    line = command(work_in(storage, experiment), kill, Group(storage=str(storage), workers=workers))
    driver = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert driver.returncode == -9, driver.stdout + driver.stderr
    with lock(RunFolder(storage, experiment.identity).lock, ignore):  # its workers have ended with it
        return


def killed_and_resumed_is_undisturbed(folder: Path, workers: int, cases: dict[str, Any]) -> int:
    """Workers and drivers are killed in turn; how many runs, teachers with them, were found to be the same."""
    num_same = 0
    group = Group(storage=str(folder), workers=workers)
    experiments = {name: enrolled.small(config) for name, config in cases.items()}
    undisturbed, again = ({name: open_storage(folder / part / name) for name in cases} for part in ("a", "b"))
    items = [(work_in(undisturbed[name], experiment), None) for name, experiment in experiments.items()]
    counts = launch(execute_and_die, items, group, ignore)
    assert [outcome.error for outcome in counts] == [None] * len(cases)

    for number, (name, experiment) in enumerate(experiments.items()):
        kill = draw_kill(DRAW, counts[number].value, rank=DRAW.randrange(workers))
        print(f"ORCHARD_KILL_SEED={SEED}: {name} by {workers} workers: {kill}")
        (kill_worker if number % 2 else kill_driver)(again[name], experiment, workers, kill)
        assert RunFolder(again[name], experiment.identity).read_result() is None

    items = [(work_in(again[name], experiment), None) for name, experiment in experiments.items()]
    outcomes = launch(execute_and_die, items, group, ignore)
    assert [outcome.error for outcome in outcomes] == [None] * len(cases)
    for name in cases:
        runs = [path.name for path in (undisturbed[name] / "runs").iterdir()]
        assert sorted(runs) == sorted(path.name for path in (again[name] / "runs").iterdir())
        for identity in runs:
            same_run(RunFolder(again[name], identity), RunFolder(undisturbed[name], identity))
            num_same += 1
    return num_same


def test_two_workers_that_are_killed_end_the_same(tmp_path: Path):
    cases = {OTHER: METHODS[OTHER], **REMEMBERING}
    assert killed_and_resumed_is_undisturbed(tmp_path, 2, cases) >= len(cases)


def test_one_worker_whose_driver_is_killed_ends_the_same(tmp_path: Path):
    assert killed_and_resumed_is_undisturbed(tmp_path, 1, {ONE: METHODS[ONE]}) >= 1


@pytest.mark.parametrize("objective", [PSKDConfig(), DLBConfig()], ids=lambda objective: objective.label)
def test_no_training_remembers_another(objective: ObjectiveConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that goes on at the first step of a training has forgotten the trainings before it."""
    method = IterativeMagnitude(rounds=1, rewind_epoch=1, objective=objective)
    experiment = enrolled.small(method)
    expected = run_here(open_storage(tmp_path / "undisturbed"), experiment)

    steps, step = 0, strategy.Single.step

    def stopped(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 5 + 5 + 1:
            raise RuntimeError("stopped")
        step(*arguments)

    monkeypatch.setattr(strategy.Single, "step", stopped)
    storage = open_storage(tmp_path / "stopped")
    [outcome] = launch(execute, [work_in(storage, experiment)], Group(storage=str(storage)), ignore)
    assert outcome.error == "RuntimeError: stopped"
    same_run(run_here(storage, experiment), expected)


def test_a_finished_run_is_read_back(tmp_path: Path):
    storage, experiment = open_storage(tmp_path), enrolled.small(Dense())
    run = run_here(storage, experiment)

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "lock"}

    before = times()
    for workers in (0, 2):
        group = Group(storage=str(storage), workers=workers)
        [outcome] = launch(execute, [work_in(storage, experiment)], group, ignore)
        assert outcome.value == run.read_result()
    assert times() == before


def test_another_number_of_workers_only_when_asked_for(tmp_path: Path):
    storage, experiment = open_storage(tmp_path), enrolled.small(Dense(DLBConfig()))
    kill_worker(storage, experiment, 1, Kill("train", 4))
    work, two = work_in(storage, experiment), Group(storage=str(storage), workers=2)
    latest = RunFolder(storage, experiment.identity).checkpoints("train").latest()
    assert latest is not None
    assert latest.step == 2

    [refused] = launch(execute, [work], two, ignore)
    assert refused.error is not None
    assert "--accept-placement" in refused.error

    asked = dataclasses.replace(work, placement=dataclasses.replace(work.placement, accept_placement=True))
    notes: list[str] = []

    def keep(_: int, event: dict[str, Any]) -> None:
        if event["kind"] == "note":
            notes.append(event["text"])

    [outcome] = launch(execute, [asked], two, keep)
    assert outcome.error is None
    assert outcome.value["placement"]["workers"] == 2
    assert [earlier["workers"] for earlier in outcome.value["earlier_placements"]] == [1]
    # On a busy machine a note about a slow worker may come, too.
    assert any(note.startswith("resumes with {'workers': 2") for note in notes)
    assert "train resumes from its checkpoint of step 2" in notes
