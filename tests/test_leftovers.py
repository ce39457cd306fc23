"""What killed commands leave is removed at the next start, and nothing of commands that live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cluster.checkpoints import CheckpointStore, open_storage
from cluster.scratch import scratch
from tests.test_checkpoints import some_tensors
from tests.test_records import dense, execute_here, images, one_latency
from tests.test_records import storage as storage_of_runs

__all__ = ["images", "one_latency", "storage_of_runs"]

HOLDER = """
import time
from cluster.scratch import scratch
with scratch("launch-") as folder:
    (folder / "tmpx").mkdir()
    print(folder, flush=True)
    time.sleep(60)
"""

LONG_AGO = time.time() - 10 * 86_400


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path / "tmp"


def test_the_folder_of_a_killed_driver_is_removed_and_that_of_a_living_one_stays(temporary: Path):
    holders = [subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout]
    holders[0].send_signal(signal.SIGKILL)
    holders[0].wait()
    with scratch("launch-") as own:
        assert set(temporary.iterdir()) == {own, folders[1]}
    assert set(temporary.iterdir()) == {folders[1]}
    holders[1].kill()
    holders[1].wait()


def test_folders_without_a_lock_go_if_they_are_old_and_ours(temporary: Path):
    for name, file in (("launch-old", "store"), ("launch-other", "letter"), ("launch-new", "store")):
        (temporary / name / "tmp1").mkdir(parents=True)
        (temporary / name / "tmp1" / file).touch()
        if name != "launch-new":
            os.utime(temporary / name, (LONG_AGO, LONG_AGO))
    with scratch("launch-") as own:
        assert set(temporary.iterdir()) == {own, temporary / "launch-other", temporary / "launch-new"}


def test_half_written_files_go_with_the_next_start(images, storage_of_runs: Path):
    experiment = dense(images)
    folder = storage_of_runs / "runs" / experiment.identity
    for name in (".tmp-run.json-1234", "stages/train/.tmp-stage.json-1", "stages/train/checkpoints/.partial-1/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{")
    # Without run.json, stages are of unknown origin.
    assert "run.json is missing" in (execute_here(storage_of_runs, experiment).error or "")
    assert not [path for path in folder.rglob("*") if path.name.startswith((".tmp-", ".partial-"))]


def test_old_files_beside_the_runs_go(tmp_path: Path):
    storage = open_storage(tmp_path / "storage")
    for name in (".tmp-orchard.json-1", ".seen-by-all-1", ".seen-by-all-2"):
        (storage / name).touch()
        if not name.endswith("2"):
            os.utime(storage / name, (LONG_AGO, LONG_AGO))
    open_storage(storage)
    assert {path.name for path in storage.iterdir()} == {"orchard.json", ".seen-by-all-2"}


def test_a_checkpoint_too_many_goes_with_the_next_start(tmp_path: Path):
    """A kill between a checkpoint and the removal of the oldest."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        CheckpointStore(store.folder, keep=3).save(step, some_tensors(step), {})
    store.remove_others(3)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000002", "step-00000003"]
