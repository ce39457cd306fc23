"""Failures: workers that die, hang or are slow, SIGTERM, a storage that is not shared, killed writers."""

from __future__ import annotations

import itertools
import math
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoints import CheckpointStore, Marker, storage_error, storage_marker
from cluster.environment import LOOPBACK
from cluster.group import Group
from cluster.launch import launch
from cluster.outcomes import OutcomeTracker
from cluster.ray.trainer import interface_of
from cluster.stopping import StopRequest, StopSignal
from cluster.stragglers import Slowest, find_slowest
from cluster.worker import STOPPED, Outcome
from pipelines.cli import parse
from pipelines.driver import check_storage_outlives_job, resolve
from pipelines.experiment import Placement
from pipelines.recipes import RECIPES
from tests.survival_bodies import survive


def run(names: list[str], folder: Path, terminate: bool = False, **group: Any) -> list[Outcome]:
    """terminate: this process gets SIGTERM once all workers have sent an event."""
    heard: set[int] = set()

    def listen(number: int, event: dict[str, Any]) -> None:
        heard.add(event["rank"])
        if terminate and len(heard) == max(group.get("workers", 0), 1):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    outcomes = launch(survive, [(name, str(folder)) for name in names], Group(storage=str(folder), **group), listen)
    assert signal.getsignal(signal.SIGTERM) is before
    return outcomes


class TestADeadWorker:
    def test_is_replaced_and_finished_items_are_kept(self, tmp_path: Path) -> None:
        outcomes = run(["count", "die_once", "count"], tmp_path, workers=2, max_failures=1)
        assert [outcome.error for outcome in outcomes] == [None, None, None]
        assert outcomes[1].value == "survived"
        assert (tmp_path / "begun").read_text() == "x" * 4, "each of two workers begins each of two items once"

    def test_is_replaced_max_failures_times(self, tmp_path: Path) -> None:
        [outcome] = run(["die_once"], tmp_path, workers=2, max_failures=0)
        assert "worker 1 of 2 died (SIGKILL); start the same command again" in (outcome.error or "")

    def test_fails_no_other_item_with_parallel_workers(self, tmp_path: Path) -> None:
        outcomes = run(["die_once", "count"], tmp_path, workers=1, parallel=2, max_failures=-1)
        assert [outcome.error for outcome in outcomes] == [None, None]

    def test_is_waited_for_until_the_timeout(self, tmp_path: Path) -> None:
        [outcome] = run(["stay_away"], tmp_path, workers=2, timeout=5)
        assert (outcome.error or "").startswith("worker 0 lost the others (RuntimeError: ")
        assert "Timed out waiting 5000ms" in (outcome.error or "")
        assert "start the same command again" in (outcome.error or "")


class TestHeartbeat:
    def test_a_suspended_first_worker_is_reported(self, tmp_path: Path) -> None:
        [outcome] = run(["stop_for_good"], tmp_path, workers=2, timeout=5)
        error = "worker 1 lost worker 0: no sign of life for 5 s (--timeout); start the same command again"
        assert (outcome.error or "").startswith(error)

    def test_it_is_replaced_then_and_waited_for_while_it_computes(self, tmp_path: Path) -> None:
        outcomes = run(["stop_for_good", "count"], tmp_path, workers=2, timeout=5, max_failures=1)
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert outcomes[0].value == "survived"


class TestSigterm:
    def test_workers_stop_at_the_same_step_and_no_item_is_started(self, tmp_path: Path) -> None:
        outcomes = run(["work_until_stopped", "count"], tmp_path, terminate=True, workers=2)
        assert outcomes == [STOPPED, STOPPED]
        steps = [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)]
        assert steps[0] == steps[1]
        assert not (tmp_path / "begun").exists()

    @pytest.mark.parametrize("group", [{}, {"workers": 1}])
    def test_alone(self, tmp_path: Path, group: dict[str, Any]) -> None:
        assert run(["work_until_stopped", "count"], tmp_path, terminate=True, **group) == [STOPPED, STOPPED]

    @pytest.mark.parametrize(("workers", "steps"), [(0, "[3, 7]"), (2, "[4, 8]")])
    def test_all_workers_save_if_one_is_asked_to(self, tmp_path: Path, workers: int, steps: str) -> None:
        [outcome] = run(["save_when_asked"], tmp_path, workers=workers)
        assert outcome.error is None
        assert [path.read_text() for path in tmp_path.glob("saved-*")] == [steps] * max(workers, 1)

    def test_stop_is_stronger_than_save(self) -> None:
        notice = StopSignal()
        notice.request_save()
        assert not notice.stop_requested
        assert (notice.take(), notice.take()) == (StopRequest.SAVE, StopRequest.NOTHING)
        notice.request_stop()
        notice.request_save()
        assert notice.stop_requested
        assert (notice.take(), notice.take()) == (StopRequest.STOP, StopRequest.STOP)

    def test_a_worker_that_does_not_stop_is_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cluster.local.pool.SHUTDOWN_GRACE_SECONDS", 1.0)
        assert run(["ignore_the_stop"], tmp_path, terminate=True, workers=2) == [STOPPED]


class TestASlowWorker:
    @pytest.mark.parametrize(
        ("seconds", "slowest"),
        [([1.0, 3.0], Slowest(1, "b", 3.0)), ([6.0, 2.0, 1.0], Slowest(0, "a", 4.0)), ([2.0, 2.0], Slowest(0, "a", 1))],
    )
    def test_is_compared_with_the_median_of_the_others(self, seconds: list[float], slowest: Slowest) -> None:
        assert find_slowest(seconds, ["a", "b", "c"]) == slowest

    def test_is_found_among_workers_that_wait_for_it(self, tmp_path: Path) -> None:
        [outcome] = run(["be_slow"], tmp_path, workers=2)
        found, again = outcome.value
        assert (found.rank, found.host) == (1, platform.node())
        assert found.ratio > 2
        assert again is None, "each call is about the steps since the last one"

    def test_needs_others(self, tmp_path: Path) -> None:
        assert run(["be_slow"], tmp_path)[0].value == (None, None)


def test_sigterm_ends_children_of_a_worker(tmp_path: Path) -> None:
    assert run(["have_a_child"], tmp_path, workers=1)[0].value == -signal.SIGTERM


def test_a_restarted_tracker_keeps_final_outcomes() -> None:
    tracker = OutcomeTracker(2, world_size=2)
    assert not tracker.report(0, 0, Outcome(value="a"))
    assert tracker.report(0, 1, Outcome())
    assert not tracker.report(1, 0, Outcome(error="a broken connection"))
    tracker.restart(world_size=1)
    assert tracker.pending() == [1]
    assert tracker.report(1, 0, Outcome(value="b"))
    assert [outcome.value for outcome in tracker.outcomes()] == ["a", "b"]


class TestStorage:
    def test_that_is_seen(self, tmp_path: Path) -> None:
        with storage_marker(str(tmp_path / "storage")) as marker:
            assert storage_error(marker, "127.0.0.1") is None
        assert list((tmp_path / "storage").iterdir()) == []

    def test_that_is_another_one(self, tmp_path: Path) -> None:
        with storage_marker(str(tmp_path)) as marker:
            for other in (Marker(marker.path, "other"), Marker(str(tmp_path / "elsewhere" / "marker"), marker.content)):
                text = storage_error(other, "127.0.0.1", timeout=0.3)
                assert text is not None
                assert f"does not see the storage {Path(other.path).parent}" in text
                assert "on every node" in text
                assert "--storage" in text

    def test_inside_the_package_of_a_job_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        check_storage_outlives_job("storage")
        package = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef"
        package.mkdir(parents=True)
        monkeypatch.chdir(package)
        check_storage_outlives_job("/shared/storage")
        with pytest.raises(ValueError, match=r"'storage' would be in the job's own copy.*absolute path.*--storage"):
            check_storage_outlives_job("storage")


@pytest.mark.parametrize(("connected", "status"), [(True, 3), (False, -signal.SIGSEGV)])
def test_a_crash_in_the_teardown_does_not_change_the_exit_status(connected: bool, status: int) -> None:
    script = f"""
import atexit, os, signal, sys, types
from cluster.exit import exit_process
sys.modules["ray"] = types.SimpleNamespace(is_initialized=lambda: {connected})
atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
print("everything that was printed")
exit_process(3)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    if connected:
        assert done.stdout == "everything that was printed\n"


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == LOOPBACK
    assert interface_of("192.0.2.1") is None, "nobody's address"


class TestPlacement:
    def test_defaults(self, tmp_path: Path) -> None:
        assert resolve(Placement(workers=2), tmp_path)[1].max_failures == 0
        placement, group = resolve(Placement(workers=2, launcher="ray"), tmp_path)
        assert (group.max_failures, placement.accept_placement) == (3, False)

    def test_a_number_of_workers_that_may_change_accepts_that(self, tmp_path: Path) -> None:
        placement, group = resolve(Placement(workers=4, min_workers=2, launcher="ray"), tmp_path)
        assert (group.min_workers, group.workers, placement.accept_placement) == (2, 4, True)

    def test_the_old_name_of_the_timeout_works_with_a_warning(self, capsys: pytest.CaptureFixture[str]) -> None:
        for words in (["--patience", "7"], ["--patience=7"]):
            assert parse(RECIPES["digits_epsd"], words).placement.timeout == 7
            assert "--patience is now --timeout" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("wrong", "advice"),
        [
            ({"workers": 2, "min_workers": 3, "launcher": "ray"}, "--workers 3 or more"),
            ({"workers": 2, "min_workers": 1}, "--launcher ray"),
            ({"workers": 1, "min_workers": 1, "parallel": 2, "launcher": "ray"}, "leave one of them out"),
            ({"max_failures": -2}, "no limit"),
            ({"timeout": 0}, "more than 0"),
        ],
    )
    def test_an_impossible_placement_is_refused_with_advice(
        self, tmp_path: Path, wrong: dict[str, Any], advice: str
    ) -> None:
        with pytest.raises(ValueError, match=advice):
            resolve(Placement(**wrong), tmp_path)


class Killed(BaseException):
    """Stands for SIGKILL: after it, nothing that this writer tries changes a file."""


class Killer:
    """Lets a writer change files so many times, as Python's audit events tell, and no more."""

    def __init__(self) -> None:
        self.left = math.inf
        self.hits = 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left == math.inf:
            return
        writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            self.left -= 1
            if self.left < 0:
                raise Killed

    def write_bytes(self, draw: random.Random) -> Callable[[Path, bytes], int]:
        """`Path.write_bytes`, which a kill may interrupt after a part of the data."""
        write = Path.write_bytes

        def interruptible(path: Path, data: bytes) -> int:
            written = write(path, data)
            self.left -= 1
            if self.left < 0:
                left, self.left = self.left, math.inf
                write(path, data[: draw.randrange(len(data))])
                self.left = left
                raise Killed
            return written

        return interruptible


def test_a_thousand_writers_killed_at_any_file_operation_lose_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, killer, acknowledged = random.Random(0), Killer(), 0
    monkeypatch.setattr(Path, "write_bytes", killer.write_bytes(draw))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill loses nothing that was written
    kills: Counter[int] = Counter()
    for _ in range(1000):
        allowed = killer.left = draw.randrange(40)
        store = CheckpointStore(tmp_path)  # a new writer
        try:
            step = acknowledged
            while True:
                step += draw.choice([0, 1])  # the same step again replaces its checkpoint
                tensors = {group: {"w": torch.full((50,), float(step))} for group in ("weights", "optimizer")}
                store.save(step, tensors, {"step": step})
                acknowledged = step
        except Killed:
            kills[allowed] += 1
        finally:
            killer.left = math.inf
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = CheckpointStore(tmp_path).latest()
        if found is None:
            assert acknowledged == 0
            continue
        assert acknowledged <= found.step <= acknowledged + 1
        assert found.state == {"step": found.step}
        assert all(torch.equal(group["w"], torch.full((50,), float(found.step))) for group in found.tensors.values())
        acknowledged = found.step
    assert sum(kills.values()) == 1000
    assert len(kills) == 40, "every point was hit"


def test_who_reads_while_another_writes_sees_a_whole_checkpoint(tmp_path: Path) -> None:
    """As the driver does, that brings MLflow level while the run goes on."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(0, {"weights": {"w": torch.zeros(1000)}}, {"step": 0})

    enough = threading.Event()

    def write() -> None:
        for step in itertools.count(1):
            if enough.is_set():
                return
            store.save(step, {"weights": {"w": torch.full((1000,), float(step))}}, {"step": step})

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            while len(set(seen)) < 10:
                found = CheckpointStore(tmp_path).latest()
                assert found is not None
                assert found.state == {"step": found.step}
                assert found.step >= seen[-1]
                seen.append(found.step)
        finally:
            enough.set()
            writer.join()


FILL = """
import errno, os, sys
from pathlib import Path
import torch
from cluster.checkpoints import CheckpointStore, Marker, storage_error, storage_marker
store = CheckpointStore(Path(sys.argv[1]))
for step in range(1, 100):
    try:
        store.save(step, {"weights": {"w": torch.full((100_000,), float(step))}}, {"step": step})
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        reason = error.strerror
        break
found = CheckpointStore(store.folder).latest()
names = sorted(os.listdir(store.folder))
print(step, found.step, found.tensors["weights"]["w"].unique().tolist(), names, reason)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs Linux and root")
def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A real one of 1 MB, in which two checkpoints of 400 kB have room, and a third has not."""
    command = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$0" -c "$2" "$1"'
    unshare = ["unshare", "--mount", "sh", "-c", command, sys.executable, str(tmp_path), FILL]
    done = subprocess.run(unshare, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 2 [2.0] ['step-00000001', 'step-00000002']"), done.stdout
    assert "No space left on device" in done.stdout
