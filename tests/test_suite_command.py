"""benchmarks/suite.py: what is done is not run again, and a suite that was cut short ends with the same table."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import suite
from benchmarks.collect import add, read_runs
from benchmarks.done import find
from benchmarks.suites import SUITES, experiments
from cluster.checkpoints import open_storage, write_json
from cluster.stopping import stop_on_sigterm
from pipelines.recipes import digits_epsd
from pipelines.run_folder import RunFolder
from tests.blocked import BLOCK

ROOT = Path(__file__).resolve().parent.parent

EPSD = ["epsd_ablations", "--reduced", "--model", "vgg3", "--epochs", "1", "--sparsities", "0.5", "--only", "*CS-KD*5"]
"""Eight runs of a second: the simple combination and EPSD, as it is and changed."""

PTD = ["prune_then_distill", "--reduced", "--model", "vgg3", "--epochs", "1", "--seeds", "0", "--only", "*derived*"]
"""Five students, and three teachers of theirs."""

FEW = [*EPSD[:-1], "ProsPr + CS-KD*", "EPSD (CS-KD), 0.5"]
"""Two rows of two runs."""

FEW_RUNS, FEW_NAME = 4, "epsd_ablations_reduced"

SEED = int(os.environ.get("ORCHARD_KILL_SEED", random.randrange(10**6)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.costs.LATENCY_BATCHES", (1,))
    for name in ("ORCHARD_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def start(words: list[str], storage: Path, *more: str) -> int:
    return suite.main([*words, "--storage", str(storage), "--runs", str(storage / "none.parquet"), *more])


def table(storage: Path, name: str = FEW_NAME) -> str:
    """The Markdown table, with identities in place of MLflow's random run ids, and no place of files."""
    text = (storage / "tables" / f"{name}.md").read_text().replace(str(storage), "STORAGE")
    ids = {row["run_id"]: row["identity"] for row in read_runs(storage / "runs.parquet")}
    return re.sub("[0-9a-f]{32}", lambda found: ids[found[0]], text)


def finished(storage: Path) -> set[str]:
    return {path.parent.name for path in (storage / "runs").glob("*/result.json")}


def chosen(words: list[str]) -> set[str]:
    options, rest = suite._parser().parse_known_args(words)
    return {each.identity for each in experiments(suite.only(suite.read_suite(options, rest), options.only))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage in which the few rows have run undisturbed."""
    storage = tmp_path_factory.mktemp("whole")
    assert start(FEW, storage) == 0
    return storage


@pytest.mark.parametrize("words", [EPSD, PTD], ids=["epsd", "ptd"])
def test_killed_at_a_drawn_moment_it_ends_with_the_same_table(words: list[str], tmp_path: Path):
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    began = time.monotonic()
    assert start(words, quiet) == 0
    draw, name = random.Random(SEED), f"{words[0]}_reduced"
    command = [sys.executable, "benchmarks/suite.py", *words, "--storage", str(killed)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "train epoch" in line:
                break
        time.sleep(draw.uniform(0, time.monotonic() - began) / 2)
        os.killpg(process.pid, signal.SIGKILL)
    assert not chosen(words) <= finished(killed), f"it had ended: ORCHARD_KILL_SEED={SEED}"
    assert start(words, killed) == 0
    assert table(killed, name) == table(quiet, name), f"ORCHARD_KILL_SEED={SEED}"
    assert "| PtD (derived" in table(quiet, name) or re.search(r"EPSD.*\| 2 \| ProsPr \+ CS-KD \|", table(quiet, name))
    assert chosen(words) <= finished(killed)


def test_a_second_start_runs_nothing(whole: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("result.json")}
    expected = table(whole)
    assert start(FEW, whole) == 0
    said = capsys.readouterr().out
    assert f"2 rows, {FEW_RUNS} runs: {FEW_RUNS} done, 0 to run" in said
    assert "the suite is complete" in said
    assert {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("result.json")} == before
    assert table(whole) == expected


def test_when_the_time_is_up_it_ends_well_and_goes_on(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(suite, "SECONDS_BETWEEN_LOOKS", 0.01)
    assert start(FEW, tmp_path, "--max-minutes", "0.0001") == 0
    said = capsys.readouterr().out
    assert "0.0001 minutes are over: what was running is saved" in said
    assert re.search(rf"\n[0-3] of {FEW_RUNS} runs are done\n", said)
    assert "start the same command again to go on" in said
    assert start(FEW, tmp_path, "--max-minutes", "10") == 0
    assert "the suite is complete" in capsys.readouterr().out
    assert table(tmp_path) == table(whole)


def test_sigterm_from_outside_ends_it_as_everywhere(tmp_path: Path):
    command = [sys.executable, "benchmarks/suite.py", *FEW, "--storage", str(tmp_path), "--max-minutes", "10"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "runs: 0 done" in line)
        process.terminate()  # most likely before the driver listens
        process.stdout.read()
    assert process.returncode in (143, -signal.SIGTERM)
    assert len(finished(tmp_path)) < FEW_RUNS


def test_a_signal_that_comes_before_the_driver_listens_is_not_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(suite, "SECONDS_BETWEEN_LOOKS", 0.01)
    with suite.stopping_after(10) as time_is_up:
        os.kill(os.getpid(), signal.SIGTERM)
        with stop_on_sigterm() as driver:
            deadline = time.monotonic() + 30
            while not driver.stop_requested and time.monotonic() < deadline:
                time.sleep(0.01)
        assert driver.stop_requested
        assert not time_is_up.is_set()


def test_only_the_driver_is_told_that_the_time_is_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(suite, "SECONDS_BETWEEN_LOOKS", 0.01)
    heard: list[int] = []
    with suite.stopping_after(0.0001) as time_is_up:
        # As Ray does when it starts, and as it is again when the driver listens no more.
        before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        assert not time_is_up.wait(0.2)
        with stop_on_sigterm() as driver:
            assert time_is_up.wait(30)
            time.sleep(0.05)
        assert driver.stop_requested
        time.sleep(0.1)
        signal.signal(signal.SIGTERM, before)
    assert heard == []


def test_a_dry_run_shows_the_plan_and_starts_nothing(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert start(FEW, tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"2 rows, {FEW_RUNS} runs: 0 done, {FEW_RUNS} to run" in said
    assert "time: unknown for 2 rows: python benchmarks/plan.py cifar10_epsd --help" in said
    assert finished(tmp_path) == set()
    assert start(FEW, whole, "--dry-run", "--seeds", "0", "1", "2", "3") == 0
    said = capsys.readouterr().out
    assert "4 done, 4 to run" in said
    assert re.search(r"time: \d+:\d\d, one after the other, as long as the row's done runs took\n", said)
    assert start(PTD, tmp_path, "--dry-run") == 0
    assert re.search(r"and 3 teachers: dense, vgg3 on digits, seed 0; .*IMP, restart", capsys.readouterr().out)


def test_rows_of_other_machines_count_if_their_data_are_the_same(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows, known = read_runs(whole / "runs.parquet"), tmp_path / "results.parquet"
    other = [{**row, "suite": "another"} for row in rows]  # what counts is the run, whatever suite it was run for
    changed = {"data_fingerprint": "0" * 16}, {"data_fingerprint": None}
    add(known, [other[0], {**other[1], **changed[0]}, {**other[2], **changed[1]}])
    storage = tmp_path / "storage"
    command = [*FEW, "--storage", str(storage), "--runs", str(known)]
    assert suite.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1 done, 3 to run" in said
    assert f"1 rows of {known} do not count as done: their data are others than here" in said
    assert f"1 rows of {known} do not count as done: the fingerprint of their data is not recorded" in said
    add(known, other)
    known_rows = {row["identity"] for row in read_runs(known)}
    assert known_rows == {row["identity"] for row in rows}
    assert suite.main(command) == 0
    assert finished(storage) == set()
    assert table(storage) == table(whole)


def test_another_method_version_does_not_count(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(whole / "runs.parquet", tmp_path / "runs.parquet")
    options, rest = suite._parser().parse_known_args(FEW)
    runs = experiments(suite.only(suite.read_suite(options, rest), options.only))
    assert len(find(runs, tmp_path, tmp_path / "runs.parquet").elsewhere) == FEW_RUNS
    monkeypatch.setattr(type(runs[-1].method), "VERSION", 2, raising=False)
    assert len(find(runs, tmp_path, tmp_path / "runs.parquet").elsewhere) == FEW_RUNS - 2


def test_two_halves_from_two_storages_are_the_whole(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    halves = [tmp_path / "one", tmp_path / "two"]
    for number, half in enumerate(halves):
        assert start(FEW, half, "--seeds", str(number)) == 0
    both = tmp_path / "both"
    for half, done in zip(halves, (2, 4), strict=True):
        assert start(FEW, both, "--import", str(half)) == 0
        assert f"2 runs were taken over from {half}" in capsys.readouterr().out
        assert len(finished(both)) == done
    assert table(both) == table(whole)
    assert not list((both / "import").glob(".*"))
    assert start(FEW, both, "--import", str(halves[0])) == 0
    said = capsys.readouterr().out
    assert said.count("here already: ") == 2
    assert f"0 runs were taken over from {halves[0]}" in said


def test_what_does_not_fit_is_not_taken_over(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other, storage = tmp_path / "other", tmp_path / "storage"
    shutil.copytree(whole / "runs", other / "runs")
    open_storage(other)
    damaged, unfinished, of_other_data, good = sorted(finished(other))
    network = RunFolder(other, damaged).path / "model.safetensors"
    *rest, last = network.read_bytes()
    network.write_bytes(bytes([*rest, last ^ 1]))
    RunFolder(other, unfinished).result.unlink()
    result = RunFolder(other, of_other_data).read_result()
    assert result is not None
    write_json(RunFolder(other, of_other_data).result, {**result, "inputs": {"data": "0" * 16}})
    foreign = RunFolder(other, digits_epsd().identity)
    write_json(foreign.result, {**result, "identity": digits_epsd().identity, "name": "a stranger"})
    assert start(FEW, storage, "--import", str(other)) == 1
    said = capsys.readouterr().out
    assert f"{network} is damaged: it does not have the recorded sha256" in said
    assert "left out, not finished: " in said
    assert re.search(r"refused: .* was started on other data of the same name", said)
    assert f"left out, not of {FEW_NAME}: a stranger ({digits_epsd().identity})" in said
    assert "1 runs were taken over" in said
    assert finished(storage) == {good}
    assert start(FEW, storage, "--import", str(tmp_path)) == 2
    assert "is no storage: give the folder that was --storage there" in capsys.readouterr().err
    assert start(FEW, storage, "--import", str(storage)) == 2
    assert "is this storage" in capsys.readouterr().err


WITHOUT = (
    BLOCK
    + """
from benchmarks import suite

status = suite.main(sys.argv[1:])
assert not BLOCKED & set(sys.modules)
sys.exit(status)
"""
)


def without(*words: str) -> tuple[int, str]:
    """The command where ray, MLflow and pyarrow are not installed: its exit status, and what it said."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_without_ray_and_mlflow_runs_are_tracked_later(whole: Path, tmp_path: Path):
    bare, here = tmp_path / "bare", tmp_path / "here"
    status, said = without(*FEW, "--storage", str(bare), "--runs", str(whole / "runs.parquet"))
    assert status == 0, said
    assert said.count("MLflow is not installed: runs are not tracked") == 1
    assert "pyarrow is not installed" in said
    assert "no table" in said
    assert len(finished(bare)) == FEW_RUNS
    assert not (bare / "mlflow.db").exists()
    assert start(FEW, here, "--import", str(bare)) == 0
    assert table(here) == table(whole)
    assert start(FEW, bare) == 0
    assert table(bare) == table(whole)
    status, said = without(*FEW, "--storage", str(bare), "--tracking-uri", "http://127.0.0.1:9")
    assert status == 2
    assert "MLflow is not installed" in said


def test_wrong_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def error(*words: str) -> str:
        assert suite.main([*words, "--storage", str(tmp_path)]) == 2
        return capsys.readouterr().err

    assert "there is no suite 'epsd_cifar11'; did you mean epsd_cifar10?" in error("epsd_cifar11")
    assert "there is no row" in error("demo", "--only", "EPSD")
    assert "did you mean EPSD (CS-KD), 0.95?" in error("demo", "--only", "EPSD (CS-KD)")
    assert "--epochs changes what the papers' recipes say: it needs --reduced" in error("pdd", "--epochs", "3")
    assert "there is no option --epoch" in error("pdd", "--epoch", "3")
    assert "there is no option of cifar10 'rot'; did you mean root?" in error("pdd", "--data.rot", "x")


def test_options_of_the_data():
    words = ["--data.root=x", "--data.image-size", "16", "--data.subset", "--data.name", "my flowers"]
    found = suite.data_options(words)
    assert found == {"root": str(Path("x").absolute()), "image_size": 16, "subset": True, "name": "my flowers"}
    assert json.dumps(found)


def test_every_suite_is_in_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        suite.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert [name for name in SUITES if f"  {name} " not in said] == []
