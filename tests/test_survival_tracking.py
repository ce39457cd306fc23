"""A tracking server that goes away while a run is under way: the run ends well, and no number is lost."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from compression.methods import Dense
from pipelines import publish
from pipelines.driver import Ended, run_experiments
from pipelines.experiment import Experiment, Placement, Training
from pipelines.publish import Publisher
from pipelines.run_folder import RunFolder
from tests.enrolled import DIGITS
from tests.test_tracking import free_port, wait_until_healthy

EXPERIMENT = Experiment(Dense(), "resnet20", DIGITS, Training(epochs=4, batch_size=256))


class Server:
    """An MLflow server on one port and one database, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"http://127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/ml.db"]
        command += ["--artifacts-destination", f"{self.folder}/served", "--port", self.uri.rpartition(":")[2]]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
            )
        wait_until_healthy(self.uri, self.process, self.folder / "log")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path):
    server = Server(tmp_path)
    yield server
    server.kill()


def run(storage: Path, server: Server) -> tuple[Ended, str]:
    console = Console(file=io.StringIO(), width=200)
    [ended] = run_experiments([EXPERIMENT], Placement(storage=str(storage), tracking_uri=server.uri), "s", "r", console)
    assert isinstance(console.file, io.StringIO)
    return ended, console.file.getvalue()


def test_a_server_killed_mid_run_loses_no_number(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(publish, "SECONDS_AFTER_FAILURE", 0.0)
    original, points_before = Publisher.publish, []

    def kill_after_second(self: Publisher, folder: RunFolder, status: publish.Status) -> str:
        run_id = original(self, folder, status)
        points_before.append(count(server, run_id))
        if len(points_before) == 2:
            server.kill()
        return run_id

    monkeypatch.setattr(Publisher, "publish", kill_after_second)
    server.start()
    storage = tmp_path / "storage"
    ended, said = run(storage, server)
    assert ended.error is None
    assert ended.result is not None
    assert ended.run_id is None
    assert "MLflow does not answer now; the runs will be sent later" in said
    assert "not in MLflow yet" in said
    assert "start the same command again when MLflow answers" in said

    # Nothing is left to run: the command is there for MLflow alone, and says by its status that it did not reach it.
    with pytest.raises(ConnectionError, match="The storage has everything"):
        run(storage, server)
    server.start()
    again, said = run(storage, server)
    assert again.before
    assert again.run_id is not None
    history = RunFolder(storage, EXPERIMENT.identity).read_history()
    assert count(server, again.run_id) == len({(r["key"], r["step"]) for r in history}) > points_before[1] > 0


def test_a_missing_server_prevents_a_new_run_but_not_a_resumed_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConnectionError, match="Is it running"):
        run(tmp_path / "storage", server)
    assert RunFolder(tmp_path / "storage", EXPERIMENT.identity).read_description() is None
    monkeypatch.setattr("pipelines.driver.launch", begin_and_end)
    with pytest.raises(KeyboardInterrupt):
        run_experiments([EXPERIMENT], Placement(storage=str(tmp_path / "storage")), "s", "r", Console(quiet=True))
    monkeypatch.undo()
    ended, said = run(tmp_path / "storage", server)
    assert ended.error is None
    assert "not in MLflow yet" in said


def begin_and_end(body, work, group, on_event):
    """A run of which only the description is there."""
    from unittest import mock

    from cluster.launch import launch

    with mock.patch("pipelines.session.Trainer.train", side_effect=KeyboardInterrupt):
        return launch(body, work, group, on_event)


def count(server: Server, run_id: str) -> int:
    client = MlflowClient(server.uri)
    return sum(
        len(client.get_metric_history(run_id, key))
        for key in client.get_run(run_id).data.metrics
        if not key.startswith(("test_", "val_"))
    )
