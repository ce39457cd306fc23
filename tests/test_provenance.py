"""Provenance: every commit of a run is kept, and code that was sent or packed knows its commit."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.checkpoints import open_storage
from compression.objectives import KDConfig
from pipelines import provenance
from pipelines.data.config import Images
from pipelines.provenance import resumed, with_dirty
from pipelines.run_folder import RunFolder
from tests.job_package import ROOT, package
from tests.test_data import make_images
from tests.test_records import dense, execute_here, images_in, one_latency

__all__ = ["one_latency"]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return images_in(make_images(tmp_path / "images"))


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    return (
        subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)
        .stdout.decode()
        .strip()
    )


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, str]:
    """A repository with the files that provenance needs, and its commit."""
    root = tmp_path / "checkout"
    (root / "pipelines").mkdir(parents=True)
    for name in (".gitattributes", "pipelines/commit.txt", "pipelines/provenance.py"):
        shutil.copy(ROOT / name, root / name)
    (root / "cluster/manifests").mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root, git(root, "rev-parse", "HEAD")


def of(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the code in `root` says of itself."""
    monkeypatch.delenv("ORCHARD_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setattr(provenance, "__file__", str(root / "pipelines/provenance.py"))
    return provenance.provenance()


def unpacked_archive(root: Path, target: Path) -> None:
    """As a release on GitHub, or `git archive`."""
    data = subprocess.run(["git", "-C", str(root), "archive", "HEAD"], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(target, filter="data")


def sent(root: Path, target: Path) -> None:
    """As by `ray job submit --working-dir . --runtime-env cluster/manifests/runtime_env.yaml`."""
    archive = package(root, target.with_suffix(".zip"))
    with zipfile.ZipFile(archive) as file:
        file.extractall(target)
    assert not (target / ".git/config").exists()
    assert not (target / ".git/objects").exists()


def sent_with_packed_refs(root: Path, target: Path) -> None:
    git(root, "pack-refs", "--all")
    sent(root, target)


def sent_detached(root: Path, target: Path) -> None:
    git(root, "checkout", "-q", "--detach")
    sent(root, target)


@pytest.mark.parametrize("carry", [unpacked_archive, sent, sent_with_packed_refs, sent_detached])
def test_the_commit_travels_with_the_code(
    checkout: tuple[Path, str], tmp_path: Path, carry: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
):
    root, commit = checkout
    assert of(root, monkeypatch) == {"commit": commit, "dirty": "false"}
    (root / "new").write_text("")
    assert of(root, monkeypatch) == {"commit": commit, "dirty": "true"}
    # Inside a repository of something else, whose commit it must not take.
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "other")
    carry(root, tmp_path / "carried")
    assert of(tmp_path / "carried", monkeypatch) == {"commit": commit, "dirty": "unknown"}


def test_what_cannot_be_known_is_unknown(checkout: tuple[Path, str], monkeypatch: pytest.MonkeyPatch):
    root, _ = checkout
    shutil.rmtree(root / ".git")
    assert of(root, monkeypatch) == {"commit": "unknown", "dirty": "unknown"}
    monkeypatch.setenv("ORCHARD_COMMIT", "abc")
    assert provenance.provenance() == {"commit": "abc", "dirty": "unknown"}


def test_a_resume_keeps_every_commit_and_that_it_was_dirty():
    tags = resumed({}, {"suite": "s", "commit": "a", "dirty": "true"})
    tags = resumed(tags, {"suite": "t", "commit": "b", "dirty": "false"})
    tags = resumed(tags, {"suite": "t", "commit": "b", "dirty": "false"})
    tags = resumed(tags, {"suite": "t", "commit": "a", "dirty": "unknown"})
    assert tags == {"suite": "t", "commit": "a, b, a", "dirty": "true"}
    assert with_dirty({"dirty": "false"}, "unknown")["dirty"] == "unknown"
    assert with_dirty({"dirty": "false"}, None)["dirty"] == "false"
    assert with_dirty({}, None) == {}


def test_a_run_that_resumes_records_both_commits(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage, experiment = open_storage(tmp_path / "storage"), dense(images)
    folder = RunFolder(storage, experiment.identity)

    def stopped(*_: object) -> None:
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.execute._finish", stopped)
        execute_here(storage, experiment, {"commit": "a", "dirty": "true"})
    assert folder.read_result() is None
    execute_here(storage, experiment, {"commit": "b", "dirty": "false"})
    result = folder.read_result()
    assert result is not None
    assert (result["tags"]["commit"], result["tags"]["dirty"]) == ("a, b", "true")
    description = folder.read_description()
    assert description is not None
    assert description["tags"] == result["tags"]


def test_a_dirty_teacher_marks_its_student(images: Images, tmp_path: Path):
    storage = open_storage(tmp_path / "storage")
    taught = dense(images, KDConfig())
    execute_here(storage, dense(images), {"commit": "a", "dirty": "true"})
    outcome = execute_here(storage, taught, {"commit": "b", "dirty": "false"})
    assert outcome.value["tags"] == {"commit": "b", "dirty": "true"}
    # And the student's student.
    outcome = execute_here(storage, dense(images, KDConfig(taught)), {"commit": "b", "dirty": "false"})
    assert outcome.value["tags"]["dirty"] == "true"
    clean = execute_here(storage, replace(dense(images), seed=1), {"commit": "b", "dirty": "false"})
    assert clean.value["tags"]["dirty"] == "false"
