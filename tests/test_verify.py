"""python -m cluster.verify: every file of every finished run, and what comes back from MLflow."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.checkpoints import open_storage
from cluster.verify import main
from compression.methods import EarlyPruning
from pipelines.run_folder import RunFolder
from tests.test_data import make_images
from tests.test_records import as_before, dense, edit, empty, flip, images_in, one_latency, run

__all__ = ["one_latency"]

DAMAGE = {
    "model.safetensors": flip,
    "arch.json": Path.unlink,
    "result.json": edit,
    "run.json": edit,
    "stages/score/stage.json": edit,
    "stages/score/result.safetensors": flip,
    "stages/train/checkpoints/step-00000003/state.json": edit,
    "stages/train/checkpoints/step-00000003/weights.safetensors": flip,
    "stages/train/checkpoints/step-00000003/optimizer.safetensors": Path.unlink,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with one finished run that has all kinds of files."""
    root = tmp_path_factory.mktemp("verify")
    experiment = replace(dense(images_in(make_images(root / "images"))), method=EarlyPruning(sparsity=0.5))
    path = open_storage(root / "storage")
    run(path, experiment)
    return path


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_whole_storage(original: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(original)]) == 0
    assert lines(capsys) == ["1 finished runs: 1 whole, 0 damaged"]


@pytest.mark.parametrize("name", DAMAGE)
def test_any_file_that_is_not_as_it_was_written_is_named(
    original: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    storage = Path(shutil.copytree(original, tmp_path / "copy"))
    [folder] = (storage / "runs").iterdir()
    DAMAGE[name](folder / name)
    assert main([str(storage)]) == 1
    [bad, summary] = lines(capsys)
    assert bad.startswith("bad: ")
    assert str(folder / name) in bad
    assert summary == "1 finished runs: 0 whole, 1 damaged"


def test_networks_come_back_from_mlflow(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    [folder] = (original / "runs").iterdir()
    before = (folder / "model.safetensors").read_bytes()
    flip(folder / "model.safetensors")
    (folder / "arch.json").unlink()
    assert main([str(original), "--repair"]) == 0
    assert lines(capsys) == [
        f"repaired: {folder / 'model.safetensors'}",
        f"repaired: {folder / 'arch.json'}",
        "1 finished runs: 1 whole, 0 damaged",
    ]
    assert (folder / "model.safetensors").read_bytes() == before
    assert main([str(original)]) == 0


def test_a_copy_in_mlflow_that_is_damaged_too_does_not_come_back(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    [folder] = (original / "runs").iterdir()
    [copy] = (original / "mlartifacts").rglob("model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    for path in (copy, folder / "model.safetensors"):
        flip(path)
    damaged = (folder / "model.safetensors").read_bytes()
    assert main([str(original), "--repair", f"sqlite:///{original}/mlflow.db"]) == 1
    assert "bad: " in lines(capsys)[0]
    assert (folder / "model.safetensors").read_bytes() == damaged
    for path in (copy, folder / "model.safetensors"):
        path.write_bytes(whole)


def test_old_runs_are_counted(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    storage = Path(shutil.copytree(original, tmp_path / "copy"))
    [folder] = (storage / "runs").iterdir()
    as_before(RunFolder(storage, folder.name))
    assert main([str(storage)]) == 0
    assert "1 recorded without checksums" in lines(capsys)[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "is no storage"),
        ([".", "--repair", "ftp://x"], "is not supported"),
        ([".", "--repair"], "no MLflow"),
    ],
)
def test_wrong_commands_are_refused(
    original: Path,
    tmp_path: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    storage = shutil.copytree(original, tmp_path / "copy", ignore=shutil.ignore_patterns("mlflow.db"))
    [folder] = (Path(storage) / "runs").iterdir()
    flip(folder / "model.safetensors")
    monkeypatch.chdir(storage)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_result_of_nothing_is_bad(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    storage = Path(shutil.copytree(original, tmp_path / "copy"))
    [folder] = (storage / "runs").iterdir()
    empty(folder / "result.json")
    assert main([str(storage)]) == 1
    assert "is not the result of a finished run" in lines(capsys)[0]
