"""The MLflow writer against a real SQLite store and a real MLflow server."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster.tracking import DamagedError, Metric, RunRecord, Tracker

STARTED = 1_700_000_000_000


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("storage")
    return Tracker(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    folder = tmp_path_factory.mktemp("server")
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "served"), "--port", uri.rpartition(":")[2], "--workers", "1"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_healthy(uri, process, folder / "log")
        yield Tracker(uri)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.fixture(params=["sqlite", "server"])
def tracker(request: pytest.FixtureRequest) -> Tracker:
    return request.getfixturevalue(request.param)


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> str:
    return request.node.name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def history(epochs: int) -> list[Metric]:
    return [
        Metric(key, epoch, offset + epoch / 100, STARTED + 1000 * epoch)
        for epoch in range(epochs)
        for key, offset in (("train/loss", 1.0), ("test/accuracy", 0.5))
    ]


def record(epochs: int = 2, **changes: Any) -> RunRecord:
    base = RunRecord(
        identity="0123456789abcdef",
        name="epsd-s0",
        params={"method.sparsity": 0.9, "seed": 0, "nesterov": True, "teacher": None, "note": ""},
        tags={"recipe": "digits", "seed": "0", "commit": "abc"},
        metrics=history(epochs),
        status="RUNNING",
    )
    return dataclasses.replace(base, **changes)


def raw(tracker: Tracker, run_id: str) -> tuple[MlflowClient, Run]:
    """What MLflow itself says, past our own reading."""
    client = MlflowClient(tracker.uri)
    return client, client.get_run(run_id)


def num_points(tracker: Tracker, run_id: str) -> int:
    client, run = raw(tracker, run_id)
    return sum(len(client.get_metric_history(run_id, key)) for key in run.data.metrics)


def test_a_run_is_written_as_the_driver_knows_it(tracker: Tracker, suite: str) -> None:
    run_id = tracker.sync(suite, record())
    client, run = raw(tracker, run_id)
    assert client.get_experiment(run.info.experiment_id).name == suite
    assert run.info.run_name == "epsd-s0"
    assert run.info.status == "RUNNING"
    assert run.info.start_time == STARTED
    assert run.data.params == {
        "method.sparsity": "0.9",
        "seed": "0",
        "nesterov": "True",
        "teacher": "None",
        "note": "",
    }
    assert run.data.tags["orchard.identity"] == "0123456789abcdef"
    assert run.data.tags["orchard.recipe"] == "digits"
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    points = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value, m.timestamp) for m in points] == [(0, 1.0, STARTED), (1, 1.01, STARTED + 1000)]


def test_sync_adds_only_what_is_missing(tracker: Tracker, suite: str) -> None:
    run_id = tracker.sync(suite, record(epochs=1))
    # The level tag must not be what keeps points from doubling.
    for epochs in (1, 3, 3, 2):
        MlflowClient(tracker.uri).delete_tag(run_id, "orchard.synced")
        assert tracker.sync(suite, record(epochs)) == run_id
    assert num_points(tracker, run_id) == 2 * 3
    late = [Metric("test/accuracy", 1, 0.51, STARTED + 99), Metric("test/loss", 1, 0.2, STARTED + 99)]
    tracker.sync(suite, record(metrics=[*history(3), *late, *late]))
    assert num_points(tracker, run_id) == 2 * 3 + 1


def test_a_run_goes_from_failed_through_running_to_finished(tracker: Tracker, suite: str, tmp_path: Path) -> None:
    model, notes = tmp_path / "model.safetensors", tmp_path / "arch.json"
    model.write_bytes(bytes(range(256)) * 100)
    notes.write_text("{}")
    artifacts = [model, notes]

    run_id = tracker.sync(suite, record(1, status="FAILED", artifacts=artifacts))
    client, run = raw(tracker, run_id)
    assert run.info.status == "FAILED"
    assert client.list_artifacts(run_id) == []
    tracker.sync(suite, record(2, artifacts=artifacts))
    assert raw(tracker, run_id)[1].info.status == "RUNNING"
    assert tracker.sync(suite, record(3, status="FINISHED", artifacts=artifacts)) == run_id

    client, run = raw(tracker, run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == STARTED + 2000
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["arch.json", "model.safetensors"]
    fetched = client.download_artifacts(run_id, "model.safetensors", str(tmp_path / "fetched"))
    assert Path(fetched).read_bytes() == model.read_bytes()
    assert num_points(tracker, run_id) == 2 * 3


def copy_of(tracker: Tracker, run_id: str, name: str, folder: Path) -> bytes:
    return Path(MlflowClient(tracker.uri).download_artifacts(run_id, name, str(folder))).read_bytes()


def test_an_artefact_whose_upload_was_cut_off_is_sent_again(sqlite: Tracker, suite: str, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"the whole")
    finished = record(status="FINISHED", artifacts=[model])
    run_id = sqlite.sync(suite, finished)
    client, run = raw(sqlite, run_id)
    stored = Path(run.info.artifact_uri or "") / "model.safetensors"
    stored.write_bytes(b"the")
    for tag in ("orchard.synced", "orchard.files"):
        client.delete_tag(run_id, tag)
    assert sqlite.sync(suite, finished) == run_id
    assert stored.read_bytes() == b"the whole"


@pytest.mark.parametrize("recorded", [True, False])
def test_a_damaged_artefact_never_replaces_the_good_copy(
    tracker: Tracker, suite: str, tmp_path: Path, recorded: bool
) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"good")
    hashes = {"model.safetensors": hashlib.sha256(b"good").hexdigest()} if recorded else {}
    finished = record(status="FINISHED", artifacts=[model], hashes=hashes)
    run_id = tracker.sync(suite, finished)
    client = MlflowClient(tracker.uri)
    for damage in (b"goof", b"go", b"", None):
        model.unlink() if damage is None else model.write_bytes(damage)
        client.set_tag(run_id, "orchard.synced", "interrupted")
        # with a recorded hash there is nothing to send, without one it is not known what the file should be
        with contextlib.nullcontext() if recorded else pytest.raises(DamagedError):
            tracker.sync(suite, finished)
        assert copy_of(tracker, run_id, "model.safetensors", tmp_path) == b"good"
    if recorded:
        model.write_bytes(b"goof")
        with pytest.raises(DamagedError, match=r"model.safetensors is damaged"):
            tracker.sync(suite + " 2", finished)


def test_a_copy_of_an_older_version_is_not_overwritten(sqlite: Tracker, suite: str, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"good")
    finished = record(status="FINISHED", artifacts=[model])
    run_id = sqlite.sync(suite, finished)
    client = MlflowClient(sqlite.uri)
    client.delete_tag(run_id, "orchard.files")
    client.set_tag(run_id, "orchard.synced", "of an older version")
    model.write_bytes(b"goof")
    with pytest.raises(DamagedError):
        sqlite.sync(suite, finished)
    model.write_bytes(b"good")
    assert sqlite.sync(suite, finished) == run_id
    assert copy_of(sqlite, run_id, "model.safetensors", tmp_path) == b"good"


def test_a_level_run_costs_one_search(sqlite: Tracker, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = record(status="FINISHED")
    run_id = sqlite.sync(suite, finished)

    class OnlySearches:
        search_runs = sqlite._client.search_runs

    monkeypatch.setattr(sqlite, "_client", OnlySearches())
    assert sqlite.sync(suite, finished) == run_id
    with pytest.raises(AttributeError):
        sqlite.sync(suite, record(5, status="FINISHED"))


def test_long_histories_and_values_fit(tracker: Tracker, suite: str) -> None:
    metrics = [Metric("loss", step, math.nan if step == 7 else 0.5, STARTED) for step in range(1200)]
    metrics += [Metric("last", 0, math.nan, STARTED), Metric("over", 0, math.inf, STARTED)]
    params = {f"p{i}": i for i in range(130)} | {"long": "x" * 10_000}
    for status in ("RUNNING", "FINISHED"):
        tags = {"versions": "y" * 10_000}
        run_id = tracker.sync(suite, record(metrics=metrics, params=params, tags=tags, status=status))
    client, run = raw(tracker, run_id)
    assert num_points(tracker, run_id) == 1202
    assert math.isnan(run.data.metrics["last"])
    assert math.isnan(next(m for m in client.get_metric_history(run_id, "loss") if m.step == 7).value)
    assert run.data.metrics["over"] > 1e308
    assert len(run.data.params) == 131
    for text in (run.data.params["long"], run.data.tags["orchard.versions"]):
        assert text.endswith(text[0] + "…")
        assert 6000 <= len(text) <= 8000


CHANGES: dict[str, dict[str, Any]] = {
    "a value": {"metrics": [Metric("train/loss", 0, 1.5, STARTED)]},
    "a last digit": {"metrics": [Metric("train/loss", 0, math.nextafter(1.0, 2), STARTED)]},
    "not a number": {"metrics": [Metric("train/loss", 0, math.nan, STARTED)]},
    "a param": {"params": {"seed": 1}},
    "data": {"tags": {"data_fingerprint": "other"}},
    "start": {"tags": {"started_ms": str(STARTED + 5)}},
    "weights": {"status": "FINISHED", "hashes": {"model.safetensors": "0" * 64}},
    "fewer epochs": {"status": "FINISHED", "metrics": history(1)},
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_what_says_something_else_is_a_new_run(sqlite: Tracker, suite: str, change: str, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"good")
    tags = {"started_ms": str(STARTED), "data_fingerprint": "abc"}
    first = sqlite.sync(suite, record(3, params={"seed": 0}, tags=tags, status="FINISHED", artifacts=[model]))
    before = raw(sqlite, first)[1].data
    changed = record(**{"params": {"seed": 0}, "tags": {}, "metrics": history(3), **CHANGES[change]})
    second = sqlite.sync(suite, changed)
    assert second != first
    assert sqlite.sync(suite, changed) == second
    after = raw(sqlite, first)[1].data
    assert after.tags.pop("orchard.replaced_by") == second
    assert (after.tags, after.params, after.metrics) == (before.tags, before.params, before.metrics)
    assert [run["run_id"] for run in sqlite.search(suite)] == [second]
    assert sqlite.gone(suite) == {first}
    tracked = {m.step: m.value for m in MlflowClient(sqlite.uri).get_metric_history(second, "train/loss")}
    asked = {m.step: m.value for m in changed.metrics if m.key == "train/loss"}
    assert [repr(value) for value in tracked.values()] == [repr(value) for value in asked.values()]


def test_runs_of_two_storages_on_one_server_stay_apart(tracker: Tracker, suite: str) -> None:
    """Each storage's run grows in its own MLflow run, whoever comes last."""

    def of(storage: int, epochs: int) -> RunRecord:
        metrics = [dataclasses.replace(m, value=m.value + storage) for m in history(epochs)]
        return record(metrics=metrics, tags={"started_ms": str(STARTED + storage)})

    ids = {(storage, epochs): tracker.sync(suite, of(storage, epochs)) for epochs in (1, 2, 3) for storage in (0, 1)}
    assert len(set(ids.values())) == 2
    assert ids[0, 1] == ids[0, 3] != ids[1, 1] == ids[1, 3]
    for storage in (0, 1):
        points = raw(tracker, ids[storage, 1])[0].get_metric_history(ids[storage, 1], "train/loss")
        assert [m.value for m in points] == [storage + 1.0, storage + 1.01, storage + 1.02]
    assert [run["run_id"] for run in tracker.search(suite)] == [ids[1, 1]]
    MlflowClient(tracker.uri).delete_run(ids[1, 1])
    assert [run["run_id"] for run in tracker.search(suite)] == [ids[0, 1]], "what replaced it was deleted"


def test_a_run_of_an_older_version_goes_on_unless_it_ended_before(sqlite: Tracker, suite: str) -> None:
    first = sqlite.sync(suite, record(2, status="FAILED"))
    going_on = record(3, tags={"started_ms": str(STARTED - 10)})
    assert sqlite.sync(suite, going_on) == first
    ended = sqlite.sync(suite + "2", record(2, status="FAILED"))
    assert sqlite.sync(suite + "2", record(1, tags={"started_ms": str(STARTED + 1001)})) != ended


def test_search_gives_every_run_with_its_last_values(tracker: Tracker, suite: str) -> None:
    first = tracker.sync(suite, record(3, status="FINISHED"))
    second = tracker.sync(suite, record(1, identity="f" * 16, name="other"))
    found = {run["run_id"]: run for run in tracker.search(suite)}
    assert set(found) == {first, second}
    run = found[first]
    assert (run["name"], run["status"]) == ("epsd-s0", "FINISHED")
    assert (run["started_ms"], run["ended_ms"]) == (STARTED, STARTED + 2000)
    assert run["metrics"] == {"train/loss": 1.02, "test/accuracy": 0.52}
    assert run["params"]["method.sparsity"] == "0.9"
    assert {key: run["tags"][key] for key in ("identity", "recipe")} == {
        "identity": "0123456789abcdef",
        "recipe": "digits",
    }
    assert found[second]["status"] == "RUNNING"
    with pytest.raises(ValueError, match=r"no suite 'nowhere' in .*" + suite.replace("[", r"\[")):
        tracker.search("nowhere")


def test_two_suites_keep_the_same_identity_apart(sqlite: Tracker, suite: str) -> None:
    assert sqlite.sync(suite, record()) != sqlite.sync(suite + " 2", record())


def test_trials_are_nested_below_their_sweep_once(sqlite: Tracker, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, first, second, other = (sqlite.sync(suite, record(identity=str(number) * 16)) for number in range(4))

    def below(run_id: str) -> str | None:
        return raw(sqlite, run_id)[1].data.tags.get("mlflow.parentRunId")

    sqlite.nest(sweep, [first])
    assert [below(run) for run in (sweep, first, second, other)] == [None, sweep, None, None]
    sqlite.nest(sweep, [first, second])
    sqlite.nest(other, [first])
    assert [below(run) for run in (first, second)] == [sweep, sweep]
    written = []
    monkeypatch.setattr(sqlite._client, "set_tag", lambda *args: written.append(args))
    sqlite.nest(sweep, [first, second])
    sqlite.nest(sweep, [])
    assert written == []
    with pytest.raises(ConnectionError, match=r"sqlite:///.*nowhere"):
        sqlite.nest("nowhere", [first])


def test_a_nested_run_is_still_synced_and_found(sqlite: Tracker, suite: str) -> None:
    sweep, trial = sqlite.sync(suite, record(identity="f" * 16)), sqlite.sync(suite, record(1))
    sqlite.nest(sweep, [trial])
    assert sqlite.sync(suite, record(3)) == trial
    assert raw(sqlite, trial)[1].data.tags["mlflow.parentRunId"] == sweep
    assert {run["run_id"] for run in sqlite.search(suite)} == {sweep, trial}


def test_a_deleted_suite_says_how_to_bring_it_back(sqlite: Tracker, suite: str) -> None:
    client = MlflowClient(sqlite.uri)
    client.delete_experiment(client.create_experiment(suite))
    with pytest.raises(ValueError, match="mlflow experiments restore"):
        sqlite.sync(suite, record())


def test_a_refused_value_is_a_value_error(sqlite: Tracker, suite: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite:///.* refused a value: .*a\*b"):
        sqlite.sync(suite, record(params={"a*b": 1}))


def test_a_server_that_is_not_there_is_named_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"http://me:secret@127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=uri.replace("me:secret", r"\*\*\*")) as caught:
        Tracker(uri)
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "foo://bar", "", "sqlite:///", "sqlite://x.db"])
def test_a_uri_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=rf"tracking URI '{uri}' is not supported: give sqlite:///FILE or http"):
        Tracker(uri)


def test_a_file_that_is_no_database_is_refused_soon(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is text, and long enough to be read as a header of a database" * 20)
    (tmp_path / "folder.db").mkdir()
    started = time.monotonic()
    for name in ("mlflow.db", "folder.db", "mlflow.db/below.db"):
        with pytest.raises(ValueError, match=rf"tracking store {tmp_path}/{name} cannot be opened"):
            Tracker(f"sqlite:///{tmp_path}/{name}")
    assert time.monotonic() - started < 5


STARTER = """
import sys
from pathlib import Path
from cluster.tracking import RunRecord, Tracker
print("starting", flush=True)
tracker = Tracker(sys.argv[1])
print("open", flush=True)
tracker.sync("demo", RunRecord(sys.argv[2] * 16, "n", {}, {}, [], "RUNNING"))
"""


def start(uri: str, digit: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STARTER, uri, str(digit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_drivers_that_start_together_share_a_new_store_even_after_a_kill(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    killed = start(uri, 0)
    # As soon as the database appears, under whatever name, its migrations are under way.
    for _ in range(3000):
        if any(path.stat().st_size > 0 for path in tmp_path.glob("*mlflow.db")):
            break
        time.sleep(0.02)
    killed.kill()
    printed, _ = killed.communicate()
    assert printed == "starting\n", "the kill came too late to show anything"
    drivers = [start(uri, digit) for digit in (1, 2)]
    for driver in drivers:
        _, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, errors
    assert {run["tags"]["identity"][0] for run in Tracker(uri).search("demo")} == {"1", "2"}
