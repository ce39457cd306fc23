"""From the storage to MLflow: what is tracked is what the storage says, wherever the storage is."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from cluster.checkpoints import open_storage, write_json
from cluster.run_record import RunRecord
from cluster.tracking import Tracker
from pipelines.execute import labels
from pipelines.experiment import Experiment
from pipelines.identity import canonical
from pipelines.publish import Publisher
from pipelines.recipes import digits_epsd
from pipelines.run_folder import RunFolder
from tests.test_tracking import free_port

STARTED = 1_700_000_000_000


def finished(storage: Path, accuracy: float, started: int = STARTED, seed: int = 0, **changes: Any) -> RunFolder:
    """A finished run as `execute` leaves it, without the training."""
    experiment = digits_epsd()
    experiment = Experiment(experiment.method, experiment.model, experiment.data, experiment.training, seed)
    folder = RunFolder(open_storage(storage), experiment.identity)
    folder.path.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": f"weights {accuracy}".encode(), "arch.json": b"{}"}
    for name, content in files.items():
        (folder.path / name).write_bytes(content)
    keys = {"test/accuracy": accuracy, "val/accuracy": 0.5, "cost/macs": 10}
    description = {
        "identity": experiment.identity,
        "name": experiment.name,
        "experiment": canonical(experiment),
        "placement": {"workers": 0},
        "labels": labels(experiment),
        "data": "0123456789abcdef",
        "tags": {"commit": "abc", "dirty": "false"},
        "started_ms": started,
        **changes,
    }
    write_json(folder.description, description)
    history = [{"key": key, "step": 1, "value": value, "time_ms": started + 10} for key, value in keys.items()]
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_json(folder.result, {**description, "files": hashes, "metrics": keys, "history": history})
    return folder


def send(folder: RunFolder, uri: str | None = None) -> tuple[str, str]:
    """The MLflow run id, and what was said."""
    console = Console(file=io.StringIO(), width=200)
    publisher = Publisher(uri or f"sqlite:///{folder.storage}/mlflow.db", "suite", console)
    ids = publisher.publish_all([folder], required=True)
    assert isinstance(console.file, io.StringIO)
    return ids.get(folder.path, ""), console.file.getvalue()


def tracked(storage: Path, run_id: str) -> Run:
    return MlflowClient(f"sqlite:///{storage}/mlflow.db").get_run(run_id)


def test_runs_deleted_and_run_again_by_other_code_are_tracked_anew(tmp_path: Path) -> None:
    old, _ = send(finished(tmp_path, 0.0752))
    shutil.rmtree(tmp_path / "runs")
    new, _ = send(finished(tmp_path, 0.5292, started=STARTED + 60_000))
    assert tracked(tmp_path, new).data.metrics["test/accuracy"] == 0.5292
    assert tracked(tmp_path, old).data.metrics["test/accuracy"] == 0.0752
    assert tracked(tmp_path, old).data.tags["orchard.replaced_by"] == new
    copy = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").download_artifacts(new, "model.safetensors")
    assert Path(copy).read_bytes() == b"weights 0.5292"


def test_a_damaged_network_is_named_and_the_others_are_sent(tmp_path: Path) -> None:
    good, bad = finished(tmp_path, 0.9), finished(tmp_path, 0.8, seed=1)
    (bad.path / "model.safetensors").write_bytes(b"WEIGHTS 0.8")
    console = Console(file=io.StringIO(), width=500)
    ids = Publisher(f"sqlite:///{tmp_path}/mlflow.db", "suite", console).publish_all([bad, good], required=True)
    assert set(ids) == {good.path}
    assert isinstance(console.file, io.StringIO)
    assert f"not in MLflow: {bad.path}/model.safetensors is damaged" in console.file.getvalue()


@pytest.mark.parametrize("move", [False, True])
def test_a_copied_storage_writes_into_itself(tmp_path: Path, move: bool) -> None:
    original, copy = tmp_path / "original_", tmp_path / "copy_with_a_longer_name"
    first, _ = send(finished(original, 0.9))
    (shutil.move if move else shutil.copytree)(original, copy)
    before = {path: path.read_bytes() for path in (original / "mlartifacts").rglob("*") if path.is_file()}
    second, _ = send(finished(copy, 0.8, seed=1))
    client = MlflowClient(f"sqlite:///{copy}/mlflow.db")
    for run_id, accuracy in ((first, 0.9), (second, 0.8)):
        path = Path(client.download_artifacts(run_id, "model.safetensors"))
        assert path.read_bytes() == f"weights {accuracy}".encode()
        stored = copy / "mlartifacts" / run_id / "artifacts/model.safetensors"
        assert stored.read_bytes() == path.read_bytes()
        assert tracked(copy, run_id).info.artifact_uri == str(stored.parent)
    after = {path: path.read_bytes() for path in (original / "mlartifacts").rglob("*") if path.is_file()}
    assert after == before
    models = client.search_logged_models([tracked(copy, first).info.experiment_id])
    assert {model.artifact_location.partition("/mlartifacts")[0] for model in models} == {str(copy)}


@pytest.mark.parametrize("name", ["plain #1", "ü b", "x" * 100 + "/" + "y" * 200])
def test_unusual_paths_of_a_storage_work(tmp_path: Path, name: str) -> None:
    storage = tmp_path / name
    run_id, _ = send(finished(storage, 0.9))
    assert (storage / "mlartifacts" / run_id / "artifacts/model.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [Path(name).parts[0]], "nothing beside the storage"


@pytest.mark.parametrize("name", ["a%20b", "what?", "long/" + "/".join(["z" * 200] * 4)])
def test_paths_that_mlflow_cannot_open_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"it takes no path with % or \?, and at most 480 bytes") as caught:
        send(finished(tmp_path / name, 0.9))
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*mlflow.db*"))


def test_what_searches_and_columns_need_is_there(tmp_path: Path) -> None:
    run_id, _ = send(finished(tmp_path, 0.9))
    other, _ = send(finished(tmp_path, 0.8, seed=1))
    run = tracked(tmp_path, run_id)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    query = "params.method = 'epsd' and params.dataset = 'digits' and metrics.test_accuracy > 0.85"
    assert [found.info.run_id for found in client.search_runs([run.info.experiment_id], query)] == [run_id]
    assert run.data.metrics["test/accuracy"] == run.data.metrics["test_accuracy"] == 0.9
    assert run.data.metrics["val_accuracy"] == 0.5
    assert run.data.params["method.kind"] == "EPSD"
    assert "Experiment" not in run.data.params.values()
    assert "Training" not in run.data.params.values()
    names = [run.info.run_name, tracked(tmp_path, other).info.run_name]
    assert names[0] != names[1]
    assert all(name is not None and len(name) < 40 for name in names)
    assert run.data.tags["mlflow.note.content"].startswith("EPSD (CS-KD) at 0.95, resnet20 on digits")
    assert run.inputs is not None
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "0123456789abcdef")
    assert run.outputs is not None
    [model] = run.outputs.model_outputs
    assert client.get_logged_model(model.model_id).name == "resnet20"


def test_a_driver_names_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="cannot be used"):
        send(finished(tmp_path, 0.9), f"http://127.0.0.1:{free_port()}")


def test_the_ui_of_a_storage_opens_at_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from cluster import ui

    started: list[list[str]] = []
    monkeypatch.setattr(ui.os, "execv", lambda program, arguments: started.append(arguments))
    monkeypatch.setattr(ui.sys, "argv", ["ui", str(tmp_path)])
    with pytest.raises(SystemExit):
        ui.main()
    assert f"{tmp_path}/mlflow.db does not exist" in capsys.readouterr().err
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db")
    record = RunRecord("0123456789abcdef", "epsd 0.95", {"method": "epsd"}, {}, [], "FINISHED")
    run_id = tracker.sync("digits", record)
    ui.main()
    page = tracker.page("digits")
    assert capsys.readouterr().out == f"digits: {page}\n"
    assert page.endswith("/runs?workflowType=machine_learning")
    assert run_id in tracker.page("digits", run_id)
    assert started[0][-1] == f"sqlite:///{tmp_path}/mlflow.db"
