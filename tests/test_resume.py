"""A run killed at any point and started again ends with the same weights, bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.checkpoints import CheckpointStore, Lock, open_storage, read_json
from cluster.launch import Group, launch
from compression import artifact
from compression.allocation import global_topk
from pipelines.execute import execute
from pipelines.folder import RunFolder
from tests.kill_bodies import EPOCHS, METHODS, STEPS_PER_EPOCH, Kill, command, execute_and_die, small, work_in

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


def draw_kills(method: str, workers: int) -> tuple[Kill, Kill]:
    """A kill of a worker in the first half, then one of the driver soon after the run goes on."""
    draw = random.Random(f"{SEED} {method} {workers}")
    points = ["train", "checkpoint"] + (["score"] if method != "dense" else [])
    point = draw.choice(points)
    nth = {"train": draw.randint(1, 7), "checkpoint": draw.randint(1, 3), "score": draw.randint(1, 4)}[point]
    if "PS-KD" in method and point == "score":
        nth = draw.randint(1, 4)
    rank = draw.randrange(workers) if point == "train" else 0
    first = Kill(point, nth, rank, "worker")
    point = draw.choice(["train", "checkpoint"])
    second = Kill(point, draw.randint(1, 4 if point == "train" else 2), 0, "driver")
    print(f"\nkills of {method!r} with {workers} workers, ORCHARD_KILL_SEED={SEED}: {first}, then {second}")
    return first, second


@pytest.mark.parametrize("method", METHODS)
def test_killed_runs_end_with_the_same_weights(method: str, workers: int, undisturbed: Path, tmp_path: Path):
    storage = open_storage(tmp_path)
    group = Group(storage=str(storage), workers=workers)
    work = work_in(storage, small(method))
    first, second = draw_kills(method, workers)

    [outcome] = launch(execute_and_die, [(work, first, os.getpid())], group, ignore)
    assert outcome.error is not None
    assert "SIGKILL" in outcome.error

    group = Group(storage=str(storage), workers=0 if workers == 1 else workers)
    driver = subprocess.run(command(storage, method, group, second), capture_output=True, text=True, timeout=120)
    assert driver.returncode == -9, driver.stdout + driver.stderr
    run = folder_of(storage, method)
    assert run.read_result() is None

    with Lock(run.lock).acquire(ignore):  # the dead driver's workers have ended with it
        pass
    [outcome] = launch(execute, [work], group, ignore)
    assert outcome.error is None, outcome.error
    expected = folder_of(undisturbed, method)
    assert (run.path / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    assert outcome.value["metrics"]["test/accuracy"] == expected.read_result()["metrics"]["test/accuracy"]
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
        states = [load_file(path) for path in sorted(run.path.rglob("model.safetensors"))]
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


def test_the_wrong_number_of_workers_is_refused(tmp_path: Path):
    storage = open_storage(tmp_path)
    work = work_in(storage, small("dense"))
    [outcome] = launch(
        execute_and_die, [(work, Kill("train", 3, 0, "worker"), 0)], Group(storage=str(storage), workers=1), ignore
    )
    assert outcome.error is not None
    [outcome] = launch(execute, [work], Group(storage=str(storage), workers=2), ignore)
    assert outcome.error is not None
    assert "--accept-placement" in outcome.error
    store = CheckpointStore(folder_of(storage, "dense").stage("train") / "checkpoints")
    latest = store.latest()
    assert latest is not None
    assert latest.step <= STEPS_PER_EPOCH
    assert torch.isfinite(latest.tensors["model"]["conv1.weight"]).all()
