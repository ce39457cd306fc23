"""The checkpoint store under kills, full disks and damage; locks; the storage folder."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from cluster.checkpoints import CheckpointStore, load_tensors, open_storage, read_json, save_tensors, write_json
from cluster.lock import lock


def some_tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((3, 2), value)}, "objective.rank0": {"memory": torch.full((4,), value)}}


def forks() -> multiprocessing.context.ForkServerContext:
    """Processes that start at once, forked from one that has imported torch and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "safetensors.torch", "cluster.checkpoints"])
    return context


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "model": {"w": weight, "transposed": weight.T, "tied": weight, "b": torch.tensor(True)},
        "optimizer": {"step": torch.tensor(7), "half": torch.ones(2, dtype=torch.bfloat16), "none": torch.empty(0)},
        "objective.rank0": {},
    }
    store = CheckpointStore(tmp_path / "run")
    assert store.latest() is None
    store.save(12, tensors, {"epoch": 3, "history": [0.5, float("nan")]})

    found = CheckpointStore(tmp_path / "run").latest()
    assert found is not None
    assert found.step == 12
    assert found.state["epoch"] == 3
    assert found.state["history"][0] == 0.5
    assert found.state["history"][1] != found.state["history"][1]
    assert {group: set(mapping) for group, mapping in found.tensors.items()} == {g: set(m) for g, m in tensors.items()}
    for group, mapping in tensors.items():
        for name, tensor in mapping.items():
            assert found.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(found.tensors[group][name], tensor)
    assert sorted(os.listdir(tmp_path / "run")) == ["step-00000012"]


def test_the_newest_are_kept_and_what_was_loaded_outlives_its_file(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(1, some_tensors(1), {})
    first = store.latest()
    for step in (2, 3):
        store.save(step, some_tensors(step), {})
    assert sorted(os.listdir(tmp_path)) == ["step-00000002", "step-00000003"]
    assert first is not None
    assert torch.equal(first.tensors["model"]["w"], torch.ones(3, 2))


def test_the_same_step_is_replaced_and_a_lower_one_becomes_the_latest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, value in [(4, 1.0), (4, 2.0), (8, 3.0), (6, 4.0)]:
        store.save(step, some_tensors(value), {"value": value})
        found = store.latest()
        assert found is not None
        assert (found.step, found.state["value"]) == (step, value)
        assert torch.equal(found.tensors["model"]["w"], torch.full((3, 2), value))
    assert sorted(os.listdir(tmp_path)) == ["step-00000004", "step-00000006"]


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(4, some_tensors(1), {"value": 1})
    rename = os.rename

    def dies_before_the_second(source: Path, target: Path) -> None:
        if Path(target).name == "step-00000004":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", dies_before_the_second)
    with pytest.raises(KeyboardInterrupt):
        store.save(4, some_tensors(2), {"value": 2})
    monkeypatch.undo()
    found = store.latest()
    assert found is not None
    assert (found.step, found.state) == (4, {"value": 1})
    store.save(4, some_tensors(3), {"value": 3})
    assert os.listdir(tmp_path) == ["step-00000004"]


def test_leftovers_of_a_killed_writer_are_ignored_and_cleaned(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, some_tensors(1), {})
    (tmp_path / ".partial-abc").mkdir()
    (tmp_path / ".partial-abc" / "state.json").write_text("{}")
    found = store.latest()
    assert found is not None
    assert found.step == 1
    store.save(2, some_tensors(2), {})
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("damage", ["model.safetensors", "state.json", "objective.rank0.safetensors"])
def test_a_broken_checkpoint_is_skipped_if_there_is_an_older_one(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, some_tensors(step), {})
    broken = tmp_path / "step-00000002" / damage
    broken.write_bytes(broken.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="step-00000002 is broken"):
        found = store.latest()
    assert found is not None
    assert found.step == 1
    broken.unlink()
    with pytest.warns(UserWarning, match="step-00000002 is broken"):
        store.latest()
    # The run goes on from step 1: what it saves next is the latest, and the broken one does not push it out.
    store.keep = 1
    store.save(1, some_tensors(5), {})
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_a_broken_checkpoint_without_an_older_one_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, some_tensors(1), {})
    (tmp_path / "step-00000001" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-00000001 is broken .*no older one"):
        store.latest()


def test_a_writer_killed_at_any_moment_loses_no_acknowledged_checkpoint(tmp_path: Path) -> None:
    random.seed(0)
    acknowledged, leftovers = 0, 0
    context = forks()
    for _ in range(40):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_write_forever, args=(tmp_path, sender))
        child.start()
        sender.close()
        assert receiver.poll(60)
        time.sleep(random.uniform(0, 0.06))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        try:
            while True:
                acknowledged = receiver.recv()
        except EOFError:
            receiver.close()
        leftovers += any(name.startswith(".") for name in os.listdir(tmp_path))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = CheckpointStore(tmp_path).latest()
        assert found is not None
        assert acknowledged <= found.step <= acknowledged + 1
        assert found.state == {"step": found.step}
        for group in ("model", "optimizer"):
            assert torch.equal(found.tensors[group]["w"], torch.full((20_000,), float(found.step)))
    assert leftovers > 0, "no kill hit a save: the test shows nothing"


def _write_forever(folder: Path, sender: multiprocessing.connection.Connection) -> None:
    store = CheckpointStore(folder)
    found = store.latest()
    step = found.step if found else 0
    while True:
        step += 1
        for _ in range(2):  # the second save replaces the first
            tensors = {group: {"w": torch.full((20_000,), float(step))} for group in ("model", "optimizer")}
            store.save(step, tensors, {"step": step})
            sender.send(step)


def test_a_save_that_finds_the_disk_full_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, some_tensors(1), {})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            store.save(step, some_tensors(2), {})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step-00000001"]
    found = store.latest()
    assert found is not None
    assert torch.equal(found.tensors["model"]["w"], torch.ones(3, 2))


def test_a_file_that_the_system_refuses_to_grow_leaves_the_previous_one(tmp_path: Path) -> None:
    """A real failing write, in a process whose files may not exceed 100 kB."""
    CheckpointStore(tmp_path).save(1, some_tensors(1), {})
    child = forks().Process(target=_save_too_much, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 42
    assert os.listdir(tmp_path) == ["step-00000001"]


def _save_too_much(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        CheckpointStore(folder).save(2, {"model": {"w": torch.zeros(100_000)}}, {})
    except OSError as error:
        os._exit(42 if error.errno == errno.EFBIG else 1)


def test_single_files_are_atomic(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": [1, None]}
    assert os.listdir(path.parent) == ["value.json"]
    save_tensors(tmp_path / "t.safetensors", {"x": torch.arange(3)})
    assert load_tensors(tmp_path / "t.safetensors")["x"].tolist() == [0, 1, 2]
    path.write_text("{")
    with pytest.raises(ValueError, match=r"value\.json is no complete JSON"):
        read_json(path)


HOLDER = """
import sys, time
from pathlib import Path
from cluster.lock import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    {then}
"""


def hold(path: Path, then: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER.format(then=then), str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_waits_for_its_holder_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "run.lock"
    holder = hold(path, "time.sleep(0.5)")
    told: list[str] = []
    with lock(path, told.append):
        assert holder.wait(10) == 0
        assert len(told) == 1
        assert f"process {holder.pid} on " in told[0]
        assert str(path) in told[0]
    with lock(path, told.append):
        assert len(told) == 1


@pytest.mark.parametrize(
    "then", ["time.sleep(60)", "__import__('os').fork() or time.sleep(8) or sys.exit(); time.sleep(60)"]
)
def test_a_lock_is_free_once_its_holder_is_killed(tmp_path: Path, then: str) -> None:
    """Also while a forked child of the holder lives on."""
    path = tmp_path / "run.lock"
    holder = hold(path, then)
    time.sleep(0.2)
    told: list[str] = []
    holder.send_signal(signal.SIGKILL)
    started = time.monotonic()
    with lock(path, told.append):
        assert time.monotonic() - started < 5
    holder.wait()


def test_storage_is_made_and_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("runs/here")
    assert storage == tmp_path / "runs" / "here"
    assert read_json(storage / "orchard.json") == {"format": 1}
    assert open_storage(storage) == storage
    assert open_storage(storage.as_uri()) == storage
    assert os.listdir(storage) == ["orchard.json"]


@pytest.mark.parametrize("content", ['{"format": 2}', "[]"])
def test_storage_of_another_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "orchard.json").write_text(content)
    with pytest.raises(ValueError, match=r"has format (2|None), this Orchard reads format 1: .*--storage"):
        open_storage(tmp_path)


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in ("/proc", "/proc/orchard", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=rf"storage {root} cannot be written: .*choose another with --storage"):
            open_storage(root)


@pytest.mark.parametrize("root", ["s3://bucket/runs", Path("gs://bucket"), "file://host/runs", ""])
def test_storage_that_is_no_local_folder_is_refused(root: str | Path) -> None:
    with pytest.raises(ValueError, match="--storage"):
        open_storage(root)


@pytest.mark.parametrize("damage", ["model.safetensors", "state.json"])
def test_one_flipped_bit_is_noticed(tmp_path: Path, damage: str) -> None:
    """The file can still be read: only its checksum tells."""
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, some_tensors(step), {"seconds": 12.5})
    path = tmp_path / "step-00000002" / damage
    content = bytearray(path.read_bytes())
    at = content.index(b"2.5") if damage == "state.json" else len(content) - 1
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000002 is broken .*(is damaged|checksum)"):
        found = store.latest()
    assert found is not None
    assert found.step == 1


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(1, some_tensors(1), {"epoch": 3})
    write_json(tmp_path / "step-00000001/state.json", {"groups": ["model", "objective.rank0"], "state": {"epoch": 3}})
    found = CheckpointStore(tmp_path).latest()
    assert found is not None
    assert found.state == {"epoch": 3}
