"""The same through Ray Train: a killed worker, a killed driver, and metrics of runs whose driver died."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.checkpoints import open_storage
from cluster.launch import Group, launch
from pipelines.driver import run_experiments
from pipelines.execute import execute
from pipelines.experiment import Placement
from pipelines.folder import RunFolder
from tests.kill_bodies import Kill, command, execute_and_die, small, work_in
from tests.test_resume import ignore, same_numbers

pytestmark = pytest.mark.ray
METHOD = "EPSD, CS-KD"


@pytest.fixture(scope="module")
def ray_cluster():
    """One Ray for all tests here and for the driver that gets killed: each start takes long."""
    import ray

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> RunFolder:
    """The undisturbed run, by two local workers."""
    storage = open_storage(tmp_path_factory.mktemp("undisturbed"))
    [outcome] = launch(execute, [work_in(storage, small(METHOD))], Group(storage=str(storage), workers=2), ignore)
    assert outcome.error is None
    return RunFolder(storage, small(METHOD).identity)


def test_killed_worker_and_driver_on_ray(ray_cluster: str, expected: RunFolder, tmp_path: Path):
    storage = open_storage(tmp_path)
    group = Group(storage=str(storage), launcher="ray", workers=2)
    work = work_in(storage, small(METHOD))
    run = RunFolder(storage, small(METHOD).identity)

    [outcome] = launch(execute_and_die, [(work, Kill("train", 4, 1, "worker"), 0)], group, ignore)
    assert outcome.error is not None
    assert "start the same command again" in outcome.error
    assert run.read_result() is None

    kill = Kill("train", 5, 0, "driver", linger=0)
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    driver = subprocess.run(
        command(storage, METHOD, group, kill), capture_output=True, text=True, timeout=180, env=environment
    )
    assert driver.returncode == -9, driver.stdout + driver.stderr

    # Orphaned workers may be finishing it, or be gone: the next start waits for the lock and takes what is there.
    placement = Placement(
        launcher="ray", workers=2, checkpoint_steps=2, storage=str(storage), tracking_uri=f"sqlite:///{storage}/ml.db"
    )
    [ended] = run_experiments([small(METHOD)], placement, "suite", "recipe")
    assert ended.error is None, ended.error
    assert (run.path / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    same_numbers(run, expected)
    client = MlflowClient(f"sqlite:///{storage}/ml.db")
    found = {
        (metric.key, metric.step): metric.value
        for key in client.get_run(ended.run_id).data.metrics
        for metric in client.get_metric_history(ended.run_id, key)
    }
    assert found == pytest.approx({(r["key"], r["step"]): r["value"] for r in run.read_history()})


def test_workers_side_by_side_on_ray(ray_cluster: str, tmp_path: Path):
    """Single-process experiments share a group without being one another's peers."""
    storage = open_storage(tmp_path)
    methods = ["early_pruning, PS-KD", "dense"]
    started = time.monotonic()
    group = Group(storage=str(storage), launcher="ray", workers=1, parallel=2)
    outcomes = launch(execute, [work_in(storage, small(method)) for method in methods], group, ignore)
    assert [outcome.error for outcome in outcomes] == [None, None], time.monotonic() - started
    assert {outcome.value["placement"]["workers"] for outcome in outcomes} == {1}
