"""A run killed at any point and started again ends with the same weights, bit for bit."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cluster.checkpoints import Lock, open_storage, read_json
from cluster.launch import Group, launch
from compression import artifact
from compression.allocation import global_topk
from pipelines.execute import execute
from pipelines.folder import RunFolder
from tests.kill_bodies import EPOCHS, METHODS, Kill, command, execute_and_die, small, work_in

SEED = int(os.environ.get("ORCHARD_KILL_SEED", random.randrange(10**6)))
"""Of the draws; set the variable to draw the same again."""


def ignore(*_: object) -> None:
    return None


def folder_of(storage: Path, method: str) -> RunFolder:
    return RunFolder(storage, small(method).identity)


@pytest.fixture(scope="module", params=[1, 2], ids=lambda workers: f"{workers} workers")
def workers(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(workers: int, tmp_path_factory) -> Path:
    """One run of each method without a kill, all by one worker group."""
    storage = open_storage(tmp_path_factory.mktemp(f"undisturbed{workers}"))
    group = Group(storage=str(storage), workers=workers)
    outcomes = launch(execute, [work_in(storage, small(method)) for method in METHODS], group, ignore)
    assert [outcome.error for outcome in outcomes] == [None] * len(METHODS)
    return storage


def draw_kill(draw: random.Random, method: str, workers: int, victim: str, first: bool) -> Kill:
    """Anywhere in the first half of a run that begins, or soon after one that goes on."""
    points = ["train", "checkpoint", *(["score"] if first and method != "dense" else [])]
    point = draw.choice(points)
    last = {"train": 7 if first else 4, "checkpoint": 3 if first else 2, "score": 4}[point]
    return Kill(point, draw.randint(1, last), draw.randrange(workers) if point == "train" else 0, victim)


@pytest.fixture(scope="module")
def killed(workers: int, tmp_path_factory) -> Path:
    """Every method killed and then finished: with one worker a worker first and then the driver, with two either."""
    storage = open_storage(tmp_path_factory.mktemp(f"killed{workers}"))
    draw = random.Random(f"{SEED} {workers}")
    turn = draw.randrange(2)
    for number, method in enumerate(METHODS):
        victims = ["worker", "driver"] if workers == 1 else [["worker", "driver"][(number + turn) % 2]]
        for victim in victims:
            kill = draw_kill(draw, method, workers, victim, first=victim == victims[0])
            print(f"ORCHARD_KILL_SEED={SEED}: {method!r} with {workers} workers: {kill}")
            (kill_worker if victim == "worker" else kill_driver)(storage, method, workers, kill)
            assert folder_of(storage, method).read_result() is None
    group = Group(storage=str(storage), workers=0 if workers == 1 else workers)
    outcomes = launch(execute, [work_in(storage, small(method)) for method in METHODS], group, ignore)
    assert [outcome.error for outcome in outcomes] == [None] * len(METHODS)
    return storage


def kill_worker(storage: Path, method: str, workers: int, kill: Kill) -> None:
    item = (work_in(storage, small(method)), kill, os.getpid())
    [outcome] = launch(execute_and_die, [item], Group(storage=str(storage), workers=workers), ignore)
    assert outcome.error is not None
    assert "SIGKILL" in outcome.error


def kill_driver(storage: Path, method: str, workers: int, kill: Kill) -> None:
    group = Group(storage=str(storage), workers=0 if workers == 1 else workers)
    driver = subprocess.run(command(storage, method, group, kill), capture_output=True, text=True, timeout=180)
    assert driver.returncode == -9, driver.stdout + driver.stderr
    with Lock(folder_of(storage, method).lock).acquire(ignore):  # the dead driver's workers have ended with it
        return


@pytest.mark.parametrize("method", METHODS)
def test_killed_runs_end_with_the_same_weights(method: str, undisturbed: Path, killed: Path):
    run, expected = folder_of(killed, method), folder_of(undisturbed, method)
    assert (run.path / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    same_numbers(run, expected)


def same_numbers(run: RunFolder, expected: RunFolder) -> None:
    """Every number but times is in both histories, once."""

    def numbers(folder: RunFolder) -> dict[tuple[str, int], float]:
        history = [r for r in folder.read_history() if "seconds" not in r["key"] and "per_second" not in r["key"]]
        found = {(r["key"], r["step"]): r["value"] for r in history}
        assert len(found) == len(history)
        return found

    assert numbers(run) == pytest.approx(numbers(expected), rel=1e-12)
    assert ("train/loss", EPOCHS) in numbers(run)


def test_a_finished_run_is_read_back(undisturbed: Path, workers: int):
    run = folder_of(undisturbed, "dense")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "lock"}
    group = Group(storage=str(undisturbed), workers=0 if workers == 1 else workers)
    [outcome] = launch(execute, [work_in(undisturbed, small("dense"))], group, ignore)
    assert outcome.value == run.read_result()
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "lock"}


def test_pruned_weights_are_zero_in_checkpoints_and_artefact(undisturbed: Path):
    for method in METHODS:
        run = folder_of(undisturbed, method)
        if method == "dense":
            continue
        score = run.stage("score")
        scores = load_file(score / "result.safetensors")
        masks = global_topk({name: scores[name] for name in read_json(score / "stage.json")["order"]}, 0.9)
        states = [
            load_file(path) for path in sorted([*run.path.rglob("weights.safetensors"), run.path / "model.safetensors"])
        ]
        assert len(states) == 3  # two checkpoints are kept, and the artefact
        for state in states:
            for name, mask in masks.items():
                assert not state[name][~mask].any()
                assert state[name][mask].any()
        masks.verify(artifact.load(run.path))


def test_masks_do_not_depend_on_the_number_of_workers(undisturbed: Path, workers: int, tmp_path_factory):
    for method in METHODS:
        score = folder_of(undisturbed, method).stage("score") / "result.safetensors"
        if method == "dense":
            assert not score.exists()
            continue
        MASKS.setdefault(method, score.read_bytes())
        assert MASKS[method] == score.read_bytes()


MASKS: dict[str, bytes] = {}
"""Scores of the first number of workers, for the second to agree with."""


def test_another_number_of_workers_only_when_asked_for(tmp_path: Path):
    storage, method = open_storage(tmp_path), "early_pruning, DLB"
    kill_worker(storage, method, 1, Kill("train", 4, 0, "worker"))
    work, two = work_in(storage, small(method)), Group(storage=str(storage), workers=2)
    store = folder_of(storage, method).checkpoints("train")
    latest = store.latest()
    assert latest is not None
    assert latest.step == 2

    [refused] = launch(execute, [work], two, ignore)
    assert refused.error is not None
    assert "--accept-placement" in refused.error

    asked = dataclasses.replace(work, placement=dataclasses.replace(work.placement, accept_placement=True))
    notes = []
    [outcome] = launch(execute, [asked], two, lambda _, event: notes.append(event) if event["kind"] == "note" else None)
    assert outcome.error is None
    assert outcome.value["placement"]["workers"] == 2
    assert [earlier["workers"] for earlier in outcome.value["earlier_placements"]] == [1]
    assert len(notes) == 1
    assert "goes on" in notes[0]["text"]
