"""The same through Ray Train: a killed worker, a killed driver, and metrics of runs whose driver died."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.checkpoints import open_storage
from cluster.group import Group
from cluster.launch import launch
from compression.methods import EPSD, Dense, PruneThenDistill
from pipelines.driver import run_experiments
from pipelines.execute import execute
from pipelines.experiment import Placement
from pipelines.run_folder import RunFolder
from tests.enrolled import small
from tests.kill_bodies import Kill, command, execute_and_die, same_run, work_in

pytestmark = pytest.mark.ray
EXPERIMENT = small(EPSD())


def ignore(*_: object) -> None:
    return None


@pytest.fixture(scope="module")
def ray_cluster():
    """One Ray for all tests here and for the driver that gets killed: each start takes long."""
    import ray

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> RunFolder:
    """The undisturbed run, by two local workers."""
    storage = open_storage(tmp_path_factory.mktemp("undisturbed"))
    [outcome] = launch(execute, [work_in(storage, EXPERIMENT)], Group(storage=str(storage), workers=2), ignore)
    assert outcome.error is None
    return RunFolder(storage, EXPERIMENT.identity)


def test_killed_worker_and_driver_on_ray(ray_cluster: str, expected: RunFolder, tmp_path: Path):
    storage = open_storage(tmp_path)
    group = Group(storage=str(storage), launcher="ray", workers=2)
    work = work_in(storage, EXPERIMENT)
    run = RunFolder(storage, EXPERIMENT.identity)

    [outcome] = launch(execute_and_die, [(work, Kill("train", 4, rank=1))], group, ignore)
    assert outcome.error is not None
    assert "start the same command again" in outcome.error
    assert run.read_result() is None

    kill = Kill("train", 5, victim="driver", linger=0)
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    driver = subprocess.run(command(work, kill, group), capture_output=True, text=True, timeout=180, env=environment)
    assert driver.returncode == -9, driver.stdout + driver.stderr

    # Orphaned workers may be finishing it, or be gone: the next start waits for the lock and takes what is there.
    placement = Placement(
        launcher="ray", workers=2, checkpoint_steps=2, storage=str(storage), tracking_uri=f"sqlite:///{storage}/ml.db"
    )
    [ended] = run_experiments([EXPERIMENT], placement, "suite", "recipe")
    assert ended.error is None, ended.error
    assert ended.run_id is not None
    same_run(run, expected)
    client = MlflowClient(f"sqlite:///{storage}/ml.db")
    found = {
        (metric.key, metric.step): metric.value
        for key in client.get_run(ended.run_id).data.metrics
        for metric in client.get_metric_history(ended.run_id, key)
    }
    aliases = {key for key, _ in found if key.startswith(("test_", "val_"))}
    found = {place: value for place, value in found.items() if place[0] not in aliases}
    assert found == pytest.approx({(r["key"], r["step"]): r["value"] for r in run.read_history()})


def test_workers_side_by_side_on_ray(ray_cluster: str, tmp_path: Path):
    """Single-process experiments share a group, and here a teacher, without being one another's peers."""
    storage = open_storage(tmp_path)
    experiments = [small(PruneThenDistill(rounds=1)), small(Dense())]  # the second is a teacher of the first
    started = time.monotonic()
    group = Group(storage=str(storage), launcher="ray", workers=1, parallel=2)
    outcomes = launch(execute, [work_in(storage, experiment) for experiment in experiments], group, ignore)
    assert [outcome.error for outcome in outcomes] == [None, None], time.monotonic() - started
    assert {outcome.value["placement"]["workers"] for outcome in outcomes} == {1}


def test_zero_under_ray_ends_with_the_weights_of_ddp(ray_cluster: str, expected: RunFolder, tmp_path: Path):
    storage = open_storage(tmp_path)
    placement = Placement(launcher="ray", workers=2, strategy="deepspeed", zero_stage=3, storage=str(storage))
    [ended] = run_experiments([EXPERIMENT], placement, "suite", "recipe")
    assert ended.error is None, ended.error
    same_run(RunFolder(storage, EXPERIMENT.identity), expected)
    assert ended.result is not None
    assert ended.result["placement"]["strategy"] == "deepspeed"
