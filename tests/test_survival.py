"""A real cluster of two hosts: submit from a fresh clone, train on both, and lose nothing when machines fail.

All runs are the same training with one worker on each host. Each must end with the weights of an undisturbed run, bit
for bit.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.run_folder import RunFolder
from tests.hosts import Hosts, why_not
from tests.kill_bodies import same_run
from tests.ray_on_hosts import Cluster, Done, Job, fresh_clone

pytestmark = [
    pytest.mark.ray,
    pytest.mark.cluster,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

CHECKPOINT_STEPS = 4
THREE = ("--training.batch-size", "129")
"""Divisible by three workers."""

RUN = (
    *("pipelines/digits_epsd.py", "--no-controls", "--workers", "2", "--method.inner-steps", "1"),
    *("--training.epochs", "12", "--training.batch-size", "128", "--checkpoint-steps", str(CHECKPOINT_STEPS)),
)
"""Twelve epochs, so that the run does not end before the failure on a fast machine."""

STEPS_PER_EPOCH = 10

DISTURB_AT = 16
"""Step after which the machines fail: inside the second epoch."""


class Storage:
    """A storage with one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def run(self) -> RunFolder:
        [path] = (self.path / "runs").iterdir()
        return RunFolder(self.path, path.name)

    def step(self) -> int:
        """Of the newest checkpoint."""
        names = [path.name for path in self.path.glob("runs/*/stages/train/checkpoints/step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_clone(tmp_path_factory.mktemp("clone") / "orchard")


@pytest.fixture(scope="module")
def undisturbed(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run with two processes of this machine."""
    storage = Storage(tmp_path_factory.mktemp("undisturbed"))
    command = [sys.executable, *RUN, "--storage", str(storage.path)]
    environment = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return storage.run


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that host 2 does not see."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, elsewhere: Path) -> Iterator[Cluster]:
    with Hosts(2) as hosts:
        cluster = Cluster(hosts, tmp_path_factory.mktemp("cluster"), elsewhere)
        try:
            cluster.start_head()
            cluster.start_node()
            yield cluster
        finally:
            cluster.close()


def in_second_epoch(cluster: Cluster, clone: Path, storage: Storage, *options: str, environment: str = "{}") -> Job:
    """A job that is inside its second epoch."""
    job = cluster.submit(clone, *RUN, "--storage", str(storage.path), *options, environment=environment)
    job.until(lambda: storage.step() >= DISTURB_AT, 240)
    return job


def finished(done: Done, storage: Storage, undisturbed: RunFolder) -> None:
    """It has succeeded, with the weights and metrics of the undisturbed run."""
    assert done.status == 0, done.output
    assert "test accuracy" in done.output
    same_run(storage.run, undisturbed)


def resumed_from(done: Done, killed: int) -> int:
    """The step of the checkpoint that the run resumed from: at least the newest one at the failure."""
    found = [int(step) for step in re.findall(r"train resumes from its checkpoint of step (\d+)", done.output)]
    assert len(found) == 1, done.output
    assert found[0] >= killed, "more than one checkpoint interval is lost"
    return found[0]


def report(request: pytest.FixtureRequest, text: str) -> None:
    """The cost of a failure, shown by `pytest -rP`."""
    print(f"{request.node.name}: {text}")


def test_a_storage_that_a_worker_does_not_see_is_refused(cluster: Cluster, clone: Path, elsewhere: Path) -> None:
    done = cluster.submit(clone, *RUN, "--storage", str(elsewhere)).end(240)
    assert done.status == 1, done.output
    assert f"({cluster.hosts.address(2)}) does not see the storage {elsewhere}" in done.output
    assert "on every node" in done.output
    assert not list(elsewhere.glob("runs/*/stages/*")), "no stage was started"


def test_missing_machines_are_waited_for_until_the_timeout(cluster: Cluster, clone: Path, tmp_path: Path) -> None:
    done = cluster.submit(clone, *RUN, "--storage", str(tmp_path), "--workers", "3", *THREE, "--timeout", "15").end(240)
    assert done.status == 1, done.output
    assert "2 CPUs for 3 workers: waiting for more" in done.output
    assert "Ray found no place for its workers in 15 s (--timeout)" in done.output
    assert "start the same command again" in done.output


def test_a_host_killed_mid_epoch_comes_back(
    cluster: Cluster, clone: Path, undisturbed: RunFolder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = Storage(tmp_path)
    job = in_second_epoch(cluster, clone, storage)
    cluster.hosts.kill(2)
    killed, begin = storage.step(), time.monotonic()
    cluster.start_node()
    started = time.monotonic()
    job.until(lambda: storage.step() > killed, 240)
    again = time.monotonic()
    done = job.end(240)
    finished(done, storage, undisturbed)
    assert "Ray starts the workers again (1 of 3)" in done.output
    assert "2 workers resume from their last checkpoint" in done.output
    step = resumed_from(done, killed)
    report(
        request,
        f"killed after the checkpoint of step {killed}, resumed from that of step {step}: under {CHECKPOINT_STEPS} "
        f"steps lost; host back after {started - begin:.0f} s, next checkpoint after {again - begin:.0f} s",
    )


def test_a_host_cut_off_for_a_minute(
    cluster: Cluster, clone: Path, undisturbed: RunFolder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Ray may consider it dead or not: the training continues, or the host has to join again."""
    storage = Storage(tmp_path)
    job = in_second_epoch(cluster, clone, storage)
    cluster.hosts.cut(2)
    begin = time.monotonic()
    time.sleep(5)  # for what had already started
    cut_at = storage.step()
    assert storage.run.read_result() is None
    time.sleep(55)
    cluster.hosts.heal(2)
    resumed = None
    while job.process.poll() is None and time.monotonic() - begin < 300:
        if not cluster.has_node():  # Ray has given it up
            cluster.hosts.kill(2)
            cluster.start_node()
        if resumed is None and storage.step() > cut_at:
            resumed = time.monotonic() - begin
        time.sleep(1)
    done = job.end(60)
    finished(done, storage, undisturbed)
    report(request, f"cut off after the checkpoint of step {cut_at}; next checkpoint {resumed:.0f} s after the cut")


def test_a_drained_host_saves_a_checkpoint(
    cluster: Cluster, clone: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Like a spot machine: Ray is told, and some time later it is gone. A checkpoint after each epoch of 647 steps."""
    storage = Storage(tmp_path)
    longer = ("--training.epochs", "3", "--training.batch-size", "2", "--checkpoint-steps", "0")
    job = cluster.submit(clone, *RUN, "--storage", str(storage.path), *longer)
    job.until(lambda: "step 100/647" in job.output, 240)
    with cluster.hosts.slowed(2, "ray::RayTrainWorker"):  # so that the epoch lasts until Ray has been told
        cluster.drain_node(seconds=60)
        begin = time.monotonic()
        job.until(lambda: storage.step() > 0, 60)
    saved, seconds = storage.step(), time.monotonic() - begin
    cluster.hosts.kill(2)
    cluster.start_node()
    assert saved % 10 == 0, "inside the first epoch, where the workers vote"
    done = job.end(400)
    assert done.status == 0, done.output
    assert f"machine {cluster.hosts.address(2)} is being drained: a checkpoint is requested" in done.output
    assert resumed_from(done, saved) == saved
    report(request, f"checkpoint of step {saved} {seconds:.1f} s after the notice")


def test_a_slow_host_is_reported_and_changes_nothing(
    cluster: Cluster, clone: Path, undisturbed: RunFolder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = Storage(tmp_path)
    job = cluster.submit(clone, *RUN, "--storage", str(storage.path))
    with cluster.hosts.slowed(2, "ray::RayTrainWorker"):
        done = job.end(400)
    finished(done, storage, undisturbed)
    ratios = [number["value"] for number in storage.run.read_history() if number["key"] == "train/slowest_worker"]
    assert len(ratios) == 12
    assert max(ratios) > 1.5
    assert re.search(r"worker \d of 2, on \S+, takes [\d.]+ times as long as the others for the same work", done.output)
    report(request, f"the slow host took {statistics.median(ratios):.1f} times as long; the job {done.seconds:.0f} s")


def test_the_log_of_each_worker_is_found(cluster: Cluster, clone: Path, tmp_path: Path) -> None:
    done = cluster.submit(clone, "-m", "tests.survival_bodies", str(tmp_path)).end(240)
    assert done.status == 0, done.output
    for rank in (0, 1):
        said = re.search(rf"worker {rank} is on (\S+); its log: ray logs actor --id (\w+)", done.output)
        assert said, done.output
        log = cluster.run(1, "ray", "logs", "actor", "--id", said[2])
        assert log.status == 0, log.output
        assert f"rank {rank} speaks" in log.output
        assert f"rank {rank} speaks" in done.output, "it is in the job's log, too"


def test_a_head_killed_and_started_again(
    cluster: Cluster, clone: Path, undisturbed: RunFolder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = Storage(tmp_path)
    job = in_second_epoch(cluster, clone, storage)
    cluster.hosts.kill(1)
    cluster.hosts.kill(2)  # its Ray would end itself a minute after the head
    killed = storage.step()
    assert job.end(240).status != 0
    cluster.start_head()
    cluster.start_node()
    done = cluster.submit(clone, *RUN, "--storage", str(storage.path)).end(300)
    finished(done, storage, undisturbed)
    step = resumed_from(done, killed)
    report(
        request,
        f"killed after the checkpoint of step {killed}; the same command resumed from that of step {step} and took "
        f"{done.seconds:.0f} s",
    )


def test_a_stopped_job_saves_a_checkpoint_and_resumes(
    cluster: Cluster, clone: Path, undisturbed: RunFolder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = Storage(tmp_path)
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})  # Ray's 3 s end in SIGKILL
    job = cluster.submit(
        clone, *RUN, "--storage", str(storage.path), "--checkpoint-steps", "0", environment=environment
    )
    job.until(job.submitted)
    stopper = cluster.stopper(job)
    job.until(lambda: storage.step() >= STEPS_PER_EPOCH, 240)
    begin = time.monotonic()
    stopper.communicate("\n", timeout=60)
    done = job.end(120)
    assert "stopped by SIGTERM; start the same command again" in done.output, done.output
    assert storage.run.read_result() is None
    report(request, f"ended {time.monotonic() - begin:.0f} s after `ray job stop`, with step {storage.step()} saved")
    finished(cluster.submit(clone, *RUN, "--storage", str(storage.path)).end(300), storage, undisturbed)


def test_one_host_is_enough_with_min_workers(
    cluster: Cluster, clone: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two workers, then one, and two again when the host is back."""
    storage = Storage(tmp_path)
    job = in_second_epoch(cluster, clone, storage, "--min-workers", "1", "--training.epochs", "120")
    cluster.hosts.kill(2)
    begin, killed = time.monotonic(), storage.step()
    job.until(lambda: storage.step() > killed, 240)
    resumed = time.monotonic() - begin
    job.until(lambda: "1 workers resume" in job.output)
    cluster.start_node()
    back = time.monotonic()
    with cluster.hosts.slowed(1, "ray::RayTrainWorker"):  # Ray looks for machines once a minute: the run must not end
        job.until(lambda: "2 workers resume" in job.output, 240)
    grown = time.monotonic() - back
    done = job.end(400)
    assert done.status == 0, done.output
    result = storage.run.read_result()
    assert result is not None
    assert result["placement"]["workers"] == 2
    assert [placement["workers"] for placement in result["earlier_placements"]] == [2, 1]
    report(
        request,
        f"one worker's next checkpoint came {resumed:.0f} s after the other host was killed; two resumed {grown:.0f} s "
        "after it was back",
    )


def test_a_sweep_uses_both_hosts_and_ends_on_one(
    cluster: Cluster, clone: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Eight trials: host 2 is killed while it runs one."""
    options = ("pipelines/sweep.py", "digits_epsd", "--trials", "8", "--scheduler", "none", "--training.epochs", "12")
    job = cluster.submit(clone, *options, "--storage", str(tmp_path))

    def trials_on(host: int) -> bool:
        return any(name.startswith("ray::Implicit") for name in cluster.hosts.processes(host))

    job.until(lambda: trials_on(1) and trials_on(2), 240)
    job.until(lambda: len(list(tmp_path.glob("runs/*/result.json"))) >= 2 and trials_on(2), 240)
    cluster.hosts.kill(2)
    begin = time.monotonic()
    done = job.end(400)
    cluster.start_node()
    assert done.status == 0, done.output
    results = [RunFolder(tmp_path, path.name).read_result() for path in (tmp_path / "runs").iterdir()]
    assert len(results) == 8
    assert None not in results
    report(
        request,
        f"the sweep ended {time.monotonic() - begin:.0f} s after host 2 was killed, {done.seconds:.0f} s in all",
    )
