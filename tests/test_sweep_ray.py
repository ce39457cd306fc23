"""Sweeps by Ray Tune: killed at drawn moments, two at once, with several workers, and how long they take."""

from __future__ import annotations

import errno
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cluster.group import Group
from cluster.tracking import Tracker
from cluster.tuning import tune
from cluster.worker import Outcome, Worker
from pipelines import sweep
from pipelines.run_folder import RunFolder
from tests.kill_bodies import SEED, same_run
from tests.sweep_bodies import SHORT, Running, at_entry, journal

pytestmark = pytest.mark.ray

DRAW = random.Random(f"{SEED} sweep")

ONE_BY_ONE = ("digits_epsd", "--trials", "6", "--parallel", "1", *SHORT, "--training.epochs", "3")


def run_here(storage: Path, *options: str) -> int:
    return sweep.main([*options, "--storage", str(storage)])


def children(storage: Path, suite: str = "digits sweeps") -> tuple[str, list[dict[str, Any]]]:
    """The MLflow run of the only sweep, and those of its trials."""
    tracker = Tracker(f"sqlite:///{storage}/mlflow.db")
    runs = tracker.search(suite)
    [parent] = [run for run in runs if "sweep" in run["tags"] and "method" not in run["params"]]
    return parent["run_id"], [run for run in runs if run is not parent]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    running = Running(storage, *ONE_BY_ONE)
    assert running.end() == 0, running.output
    return storage


def test_it_leaves_what_a_person_needs(undisturbed: Path, capsys: pytest.CaptureFixture[str]):
    [folder] = (undisturbed / "sweeps").iterdir()
    assert {"sweep.json", "journal.jsonl", "trials.csv", "best.toml", "figures"} <= {p.name for p in folder.iterdir()}
    entries = journal(undisturbed)
    ended = Counter(entry["number"] for entry in entries if entry["kind"] == "end")
    states = {entry["state"] for entry in entries if entry["kind"] == "end"}
    assert max(ended.values()) == 1
    assert states == {"finished"}
    parent, trials = children(undisturbed)
    assert len(trials) == 6
    assert {run["status"] for run in trials} <= {"FINISHED", "KILLED"}
    nested = Tracker(f"sqlite:///{undisturbed}/mlflow.db")._client
    assert {nested.get_run(run["run_id"]).data.tags["mlflow.parentRunId"] for run in trials} == {parent}

    before = (folder / "journal.jsonl").read_bytes()
    assert run_here(undisturbed, *ONE_BY_ONE) == 0
    assert (folder / "journal.jsonl").read_bytes() == before, "the same command has nothing left to do"
    assert "begins" not in capsys.readouterr().out


def test_killed_three_times_it_is_the_undisturbed_one(undisturbed: Path, tmp_path: Path):
    """The driver, then a trial's process, then all at once; each at a drawn moment."""
    storage, expected = tmp_path / "storage", journal(undisturbed)
    first, second, third = sorted(DRAW.sample(range(2, len(expected) - 2), 3))
    where = f"ORCHARD_KILL_SEED={SEED}: after {first}, {second} and {third} of {len(expected)} entries"

    running = Running(storage, *ONE_BY_ONE)
    running.until(at_entry(storage, first, DRAW))
    running.kill_driver()
    done = journal(storage)
    assert done == expected[: len(done)], where

    running = Running(storage, *ONE_BY_ONE)
    running.until(lambda: len(journal(storage)) >= second and bool(running.trial_processes()))
    for process in running.trial_processes():
        process.kill()
    running.until(lambda: "the trial is started again" in running.output)
    running.until(at_entry(storage, third, DRAW))
    running.kill_all()
    done = journal(storage)
    assert done == expected[: len(done)], where

    running = Running(storage, *ONE_BY_ONE)
    assert running.end() == 0, running.output
    assert journal(storage) == expected, where
    finished = [path.name for path in (undisturbed / "runs").iterdir() if (path / "result.json").exists()]
    for name in finished:
        same_run(RunFolder(storage, name), RunFolder(undisturbed, name))
    _, trials = children(storage)
    assert Counter(run["tags"]["identity"] for run in trials) == Counter(
        path.name for path in (storage / "runs").iterdir()
    )


def test_two_sweeps_at_once_share_one_teacher(tmp_path: Path):
    options = (
        "digits_epsd",
        "--method",
        "dense",
        "--distillation",
        "kd",
        "--scheduler",
        "none",
        "--trials",
        "2",
        *SHORT,
    )
    both = [
        Running(tmp_path / "storage", *options, "--vary", f"method.objective.temperature={values}", "--parallel", "1")
        for values in ("2,4", "6,8")
    ]
    for running in both:
        assert running.end() == 0, running.output
    runs = [RunFolder(tmp_path / "storage", path.name).read_result() for path in (tmp_path / "storage/runs").iterdir()]
    labels = Counter(run["labels"]["method_label"] for run in runs if run)
    assert labels == {"dense": 1, "dense (KD)": 4}
    trained = sum(running.output.count("teacher dense") for running in both)
    assert trained <= 1


def test_trials_that_diverge_are_failed_and_the_search_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("digits_epsd", "--vary", "training.optimizer.lr=0.1,1e30", "--search", "grid", *SHORT)
    assert run_here(tmp_path, *options) == 0
    states = [entry for entry in journal(tmp_path) if entry["kind"] == "end"]
    assert Counter(entry["state"] for entry in states) == {"finished": 1, "failed": 1}
    assert "not finite" in next(entry["error"] for entry in states if entry["state"] == "failed")

    capsys.readouterr()
    assert (
        run_here(
            tmp_path / "all", "digits_epsd", "--vary", "training.optimizer.lr=1e29,1e30", "--search", "grid", *SHORT
        )
        == 1
    )
    assert "every trial failed" in capsys.readouterr().err


def test_a_trial_of_two_workers(tmp_path: Path):
    assert run_here(tmp_path, "digits_epsd", "--workers", "2", "--trials", "1", "--parallel", "1", *SHORT) == 0
    [run] = (RunFolder(tmp_path, path.name).read_result() for path in (tmp_path / "runs").iterdir())
    assert run is not None
    assert run["placement"]["workers"] == 2


class Nothing:
    """A search of trials that train nothing."""

    def __init__(self, trials: int) -> None:
        self.left, self.ended = trials, 0

    def next(self) -> tuple[int, Any] | None:
        self.left -= 1
        return None if self.left < 0 else (self.left, self.left)

    def report(self, number: int, event: dict[str, Any]) -> bool:
        return False

    def end(self, number: int, outcome: Outcome) -> None:
        assert outcome.error is None
        self.ended += 1

    def lost(self, number: int, reason: str) -> None:
        raise AssertionError(reason)


def do_nothing(item: Any, worker: Worker) -> None:
    return None


def fail_by_number(number: int, worker: Worker) -> None:
    """Trial 0 has impossible settings, trial 1 finds no space on its disk."""
    if number == 0:
        raise ValueError("nothing is left of conv1")
    if number == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Ends(Nothing):
    """Remembers how its trials ended."""

    def __init__(self, trials: int) -> None:
        super().__init__(trials)
        self.failed: dict[int, str | None] = {}
        self.open: dict[int, str] = {}

    def end(self, number: int, outcome: Outcome) -> None:
        self.failed[number] = outcome.error

    def lost(self, number: int, reason: str) -> None:
        self.open[number] = reason


def test_a_full_disk_is_no_result_of_a_trial(tmp_path: Path):
    search = Ends(3)
    assert tune(fail_by_number, search, Group(storage=str(tmp_path), launcher="ray", workers=1), "full", parallel=1)
    assert search.failed == {2: None, 0: "ValueError: nothing is left of conv1"}
    assert search.open == {1: "OSError: [Errno 28] No space left on device"}


def want_memory_once(flag: Path, worker: Worker) -> None:
    """Takes a quarter of the machine's memory at its first attempt, and waits."""
    if not flag.exists():
        flag.touch()
        taken = torch.ones(psutil.virtual_memory().total // 4 // 4)
        time.sleep(120)
        raise AssertionError(f"Ray did not end this process ({taken.nbytes:,} bytes)")


class Once(Nothing):
    """One trial, with a file as its item."""

    def __init__(self, flag: Path) -> None:
        super().__init__(1)
        self.flag = flag

    def next(self) -> tuple[int, Any] | None:
        found = super().next()
        return found and (found[0], self.flag)


@pytest.mark.alone
def test_a_trial_that_ray_kills_for_want_of_memory_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    used = psutil.virtual_memory().percent / 100
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{used + 0.16:.2f}")  # Ray itself takes about a tenth
    search = Once(tmp_path / "tried")
    group = Group(storage=str(tmp_path), launcher="ray", workers=1, max_failures=3)
    assert tune(want_memory_once, search, group, "memory", parallel=1)
    assert search.ended == 1


@pytest.mark.alone
def test_a_trial_of_nothing_takes_less_than_a_third_of_a_second(tmp_path: Path):
    group = Group(storage=str(tmp_path), launcher="ray", workers=1)
    seconds = []
    for trials in (20, 220):
        search, begin = Nothing(trials), time.monotonic()
        assert tune(do_nothing, search, group, "nothing", parallel=2)
        assert search.ended == trials
        seconds.append(time.monotonic() - begin)
    each = (seconds[1] - seconds[0]) / 200
    print(f"{each:.3f} s for a trial, beside {seconds[0]:.1f} s for the start and 20 trials")
    assert each <= 0.3
