"""The launcher on real processes: what comes back, what survives a failure, and that nothing outlives the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.group import Group
from cluster.launch import launch
from cluster.strategy import Single, strategy
from cluster.worker import Outcome
from tests.launch_bodies import play

Events = list[tuple[int, dict[str, Any]]]


def run(items: list[Any], **group: Any) -> tuple[list[Outcome], Events]:
    events: Events = []
    outcomes = launch(
        play, items, Group(storage="/nowhere", **group), lambda number, event: events.append((number, event))
    )
    return outcomes, events


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(seconds: float, pids: list[int]) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


class TestGroup:
    @pytest.mark.parametrize(
        ("wrong", "advice"),
        [
            ({"workers": 2, "parallel": 2}, "--workers 1 --parallel 2"),
            ({"launcher": "ray"}, "--launcher ray needs --workers 1 or more"),
            ({"launcher": "rya", "workers": 1}, "--launcher ray"),
            ({"threads": 0}, "1 or more"),
            ({"storage": "runs"}, "absolute"),
        ],
    )
    def test_an_impossible_group_is_refused_with_advice(self, wrong: Any, advice: str) -> None:
        with pytest.raises(ValueError, match=advice):
            Group(**({"storage": "/nowhere"} | wrong))


class TestInThisProcess:
    def test_an_error_ends_only_its_item(self) -> None:
        outcomes, events = run([("count", 2), "fail", "unpicklable", ("count", 1)])
        assert [outcome.value for outcome in outcomes] == ["counted", None, None, "counted"]
        assert outcomes[1].error == "ValueError: wrong on purpose"
        assert "in fail" in (outcomes[1].traceback or "")
        assert "pickle" in (outcomes[2].error or "")
        assert events == [(0, {"count": 0}), (0, {"count": 1}), (3, {"count": 0})]

    def test_threads_are_set_and_restored(self) -> None:
        before = torch.get_num_threads()
        outcomes, _ = run(["surroundings"], threads=before + 1)
        assert outcomes[0].value["pid"] == os.getpid()
        assert outcomes[0].value["threads"] == before + 1
        assert torch.get_num_threads() == before

    def test_ctrl_c_is_raised(self) -> None:
        def interrupt(number: int, event: dict[str, Any]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            launch(play, [("count", 1), "fail"], Group(storage="/nowhere"), interrupt)

    def test_no_items(self) -> None:
        assert run([], workers=2) == ([], [])


class TestTwoWorkers:
    ITEMS = (
        "reduce",
        "fail",
        "reduce",
        "fail_in_flight",
        "reduce",
        "fail_last",
        "reduce",
        ("count", 50),
        "surroundings",
    )

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> tuple[list[Outcome], Events]:
        assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "3"
        return run([*cls.ITEMS, "gradients"], workers=2, threads=3)

    def test_workers_reach_each_other(self, result: tuple[list[Outcome], Events]) -> None:
        expected = {"total": 3.0, "ranks": [0, 1], "device": "cuda" if torch.cuda.is_available() else "cpu"}
        assert result[0][0] == Outcome(value=expected)

    def test_the_next_items_run_after_errors(self, result: tuple[list[Outcome], Events]) -> None:
        outcomes = result[0]
        assert outcomes[1].error == "ValueError: wrong on purpose"
        assert outcomes[3].error == "ValueError: wrong in flight"
        assert outcomes[5].error == "ValueError: wrong here only (worker 1 of 2)"
        assert outcomes[5].value is None
        assert [outcomes[number].value["total"] for number in (2, 4, 6)] == [3.0, 3.0, 3.0]

    def test_events_come_in_order(self, result: tuple[list[Outcome], Events]) -> None:
        assert result[1] == [(7, {"count": number}) for number in range(50)]

    def test_threads(self, result: tuple[list[Outcome], Events]) -> None:
        value = result[0][8].value
        assert (value["omp"], value["threads"]) == ("3", 3)
        assert value["pid"] != os.getpid()
        assert os.environ.get("OMP_NUM_THREADS") != "3"

    def test_ddp_averages_gradients_and_keeps_hooks(self, result: tuple[list[Outcome], Events]) -> None:
        value = result[0][9].value
        assert value["masked entries that are not zero"] == [0, 0]
        assert min(value["entries"]) > 500
        assert max(value["largest error"]) < 1e-12

    def test_a_worker_left_waiting_ends_the_group(self) -> None:
        outcomes, _ = run(["desert", "reduce"], workers=2)
        assert outcomes[0].error == "ValueError: left the others (worker 1 of 2)"
        assert "worker 1 of 2 died (exit code 1)" in (outcomes[1].error or "")

    def test_a_killed_worker_ends_the_group(self) -> None:
        outcomes, _ = run(["reduce", "die", "reduce"], workers=2)
        assert outcomes[0].value["total"] == 3.0
        notice = "worker 1 of 2 died (SIGKILL); start the same command again to resume from the last checkpoint"
        assert [outcome.error for outcome in outcomes[1:]] == [notice, notice]


def test_three_workers_resume_bit_for_bit() -> None:
    outcomes, _ = run(["resume"], workers=3)
    assert outcomes == [Outcome(value=[True, True, True])]


def test_ctrl_c_ends_the_workers() -> None:
    pids: list[int] = []

    def interrupt(number: int, event: dict[str, Any]) -> None:
        pids.append(event["pid"])
        if len(pids) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(play, ["linger"], Group(storage="/nowhere", workers=2), interrupt)
    assert len(pids) == 2
    assert gone_within(60, pids)


def test_workers_die_with_their_driver() -> None:
    program = (
        "from cluster.launch import Group, launch\n"
        "from tests.launch_bodies import play\n"
        "launch(play, ['linger'], Group(storage='/nowhere', workers=2), lambda n, e: print(e['pid'], flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pids = [int(driver.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        driver.send_signal(signal.SIGKILL)
    assert gone_within(60, pids)


class TestSideBySide:
    def test_items_run_at_the_same_time(self, tmp_path: Path) -> None:
        folder = str(tmp_path)
        outcomes, _ = run([("meet_in", folder, "a", "b"), ("meet_in", folder, "b", "a"), "surroundings"], parallel=2)
        assert [outcome.error for outcome in outcomes] == [None, None, None]
        pids = {outcomes[0].value, outcomes[1].value}
        assert len(pids) == 2
        assert outcomes[2].value["pid"] in pids  # the first idle worker took it
        assert outcomes[2].value["world_size"] == 1
        assert not outcomes[2].value["control"]
        assert not outcomes[2].value["group"]

    def test_a_dead_worker_fails_only_its_own_item(self) -> None:
        outcomes, _ = run(["die", "die", "surroundings", "fail", "surroundings"], workers=1, parallel=2)
        assert [(outcome.error or "").split(";")[0] for outcome in outcomes] == [
            "the worker died (SIGKILL)",
            "the worker died (SIGKILL)",
            "",
            "ValueError: wrong on purpose",
            "",
        ]


def test_a_slow_driver_does_not_delay_the_training(tmp_path: Path) -> None:
    seen: list[int] = []

    def wait_for_the_last(number: int, event: dict[str, Any]) -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "flooded").exists():
            assert time.monotonic() < deadline, "the worker waits for the driver"
            time.sleep(0.01)
        seen.append(number)

    [outcome] = launch(play, [("flood", str(tmp_path))], Group(storage="/nowhere", workers=1), wait_for_the_last)
    assert outcome.error is None
    assert len(seen) == 3000


class TestStrategy:
    def test_one_worker_needs_no_ddp(self) -> None:
        assert isinstance(strategy("ddp", 1), Single)
        assert isinstance(strategy("single", 1), Single)

    @pytest.mark.parametrize(
        ("name", "world_size", "advice"),
        [
            ("single", 2, "--strategy ddp"),
            ("deepsped", 2, "did you mean --strategy deepspeed"),
            ("dpd", 2, "did you mean --strategy ddp"),
            ("singel", 1, "did you mean --strategy single"),
        ],
    )
    def test_an_unknown_strategy_is_refused_with_advice(self, name: str, world_size: int, advice: str) -> None:
        with pytest.raises(ValueError, match=advice):
            strategy(name, world_size)
