"""The launcher on Ray Train: each launch starts a Ray of its own on this machine, as no other one is named."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.group import Group
from cluster.launch import launch
from cluster.ray.mailbox import DriverMailbox, WorkerInfo
from cluster.worker import Outcome
from tests.launch_bodies import play

pytestmark = pytest.mark.ray

Events = list[tuple[int, dict[str, Any]]]


@pytest.fixture(autouse=True)
def no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run(items: list[Any], storage: Path, **group: Any) -> tuple[list[Outcome], Events]:
    import ray

    events: Events = []
    how = Group(launcher="ray", storage=str(storage), **group)
    interrupt = signal.getsignal(signal.SIGINT)
    outcomes = launch(play, items, how, lambda number, event: events.append((number, event)))
    assert not ray.is_initialized(), "launch ends the Ray that it started"
    assert signal.getsignal(signal.SIGINT) is interrupt, "the caller's handler of Ctrl-C is kept"
    return outcomes, events


def test_two_workers(tmp_path: Path) -> None:
    items = ["reduce", "fail", "fail_in_flight", "reduce", ("count", 5), "surroundings", "die", "reduce"]
    outcomes, events = run(items, tmp_path, workers=2, threads=3)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert outcomes[0].value == {"total": 3.0, "ranks": [0, 1], "device": device}
    assert outcomes[1].error == "ValueError: wrong on purpose"
    assert "in fail" in (outcomes[1].traceback or "")
    assert outcomes[2].error == "ValueError: wrong in flight"
    assert outcomes[3] == outcomes[0]
    assert outcomes[4].value == "counted"
    assert events == [(4, {"count": number}) for number in range(5)]
    around = outcomes[5].value
    assert (around["omp"], around["threads"], around["world_size"], around["control"]) == ("3", 3, 2, True)
    assert around["pid"] != os.getpid()
    lost = "worker 1 of 2 died (its process is gone); start the same command again"
    assert all((outcome.error or "").startswith(lost) for outcome in outcomes[6:])
    assert list((tmp_path / "ray").iterdir()), "Ray Train's files are in the storage"


def test_a_mailbox_gives_each_item_once_to_each_group() -> None:
    mailbox = DriverMailbox(3)
    workers = {attempt: WorkerInfo(attempt, 1, None, "", "", "") for attempt in ("first", "second")}  # pyright: ignore[reportArgumentType]
    mailbox.register(0, workers["first"])
    assert [mailbox.next_item("first"), mailbox.next_item("first")] == [0, 1]
    mailbox.finish(1)
    mailbox.register(0, workers["second"])
    assert mailbox.next_item("first") is None, "it has been replaced"
    assert [mailbox.next_item("second") for _ in range(3)] == [0, 2, None], "what has ended is not run again"


def test_workers_side_by_side(tmp_path: Path) -> None:
    folder = str(tmp_path)
    # The first item ends only when the last one but one is at work: the other worker must have taken all others.
    items = [
        ("meet_in", folder, "a", "b"),
        "surroundings",
        "surroundings",
        "fail",
        ("meet_in", folder, "b", "a"),
        "surroundings",
    ]
    outcomes, _ = run(items, tmp_path, parallel=2)
    assert [outcome.error for outcome in outcomes] == [None, None, None, "ValueError: wrong on purpose", None, None]
    long, other = outcomes[0].value, outcomes[4].value
    assert long != other
    assert outcomes[1].value["pid"] == outcomes[2].value["pid"] == other, "a free worker takes the next item"
    around = outcomes[2].value
    assert (around["rank"], around["world_size"], around["control"], around["group"]) == (0, 1, False, False)
