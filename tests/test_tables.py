"""From MLflow to tables, by a real SQLite store and hand-checked numbers."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from benchmarks import tables
from benchmarks.collect import collect, read_runs, schema
from benchmarks.suites import TABLES
from cluster.tracking import Metric, RunRecord, Tracker

STARTED = 1_700_000_000_123
TAGS = {
    "recipe": "digits",
    "dataset": "digits",
    "model": "vgg",
    "method": "epsd",
    "method_label": "EPSD (CS-KD)",
    "objective": "CS-KD",
    "sparsity": "0.9",
    "workers": "1",
    "launcher": "process",
    "strategy": "single",
    "threads": "1",
    "commit": "abc",
    "dirty": "false",
    "hardware": "CPU",
    "versions": '{"torch": "2"}',
    "data_fingerprint": "0123456789abcdef",
}
DENSE = {"method": "dense", "method_label": "Zero sparsity (CE)", "sparsity": "0.0", "objective": "CE"}


def finished(identity: str, seed: int, accuracy: float, minutes: int = 0, **tags: str) -> RunRecord:
    at = STARTED + 60_000 * minutes
    costs = {"cost/parameters": 1000, "cost/nonzero_parameters": 100 + seed, "cost/effective_macs": 12_345_678}
    numbers = {"test/accuracy": accuracy, "cost/train_seconds": 2.0 + seed, **costs}
    metrics = [Metric("test/accuracy", 0, 0.1, at)] + [Metric(k, 1, v, at + 5000) for k, v in numbers.items()]
    all_tags = {**TAGS, "seed": str(seed), **tags}
    return RunRecord(identity, f"run {identity}", {"seed": seed, "b": 1, "a": 2}, all_tags, metrics, "FINISHED")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A storage folder whose suite "demo" has EPSD x 3 seeds, EPSD on 2 workers, dense and a running run; run ids."""
    folder = tmp_path_factory.mktemp("storage")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db")
    records = [
        finished("c" * 16, 2, 1.0),
        finished("a" * 16, 0, 0.98),
        finished("b" * 16, 1, 0.99),
        finished("e" * 16, 0, 0.5, workers="2", dirty="true"),
        finished("d" * 16, 0, 0.975, 0, **DENSE),
        dataclasses.replace(finished("f" * 16, 3, 0.1), status="RUNNING"),
    ]
    return folder, {record.identity[0]: tracker.sync("demo", record) for record in records}


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def make(folder: Path, out: Path, *arguments: str) -> int:
    return tables.main([*arguments, "--runs", str(folder / "runs.parquet"), "--out", str(out)])


def test_finished_runs_become_rows(store: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    parquet = tmp_path / "results" / "runs.parquet"
    assert collect(uri(store[0]), "demo", parquet) == 5
    rows = read_runs(parquet)
    assert [row["identity"][0] for row in rows] == ["a", "b", "c", "d", "e"]
    assert [row["run_id"] for row in rows] == [store[1][row["identity"][0]] for row in rows]
    row = rows[4]
    assert (row["suite"], row["name"], row["method_label"]) == ("demo", "run " + "e" * 16, "EPSD (CS-KD)")
    assert (row["seed"], row["sparsity"], row["workers"], row["dirty"]) == (0, 0.9, 2, True)
    assert (row["test_accuracy"], row["parameters"], row["effective_macs"]) == (0.5, 1000, 12_345_678)
    assert row["started"] == datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)
    assert (row["finished"] - row["started"]).total_seconds() == 5
    assert row["params"] == '{"a": "2", "b": "1", "seed": "0"}'
    assert row["macs"] is None
    assert row["val_accuracy"] is None
    readme = (Path(__file__).parents[1] / "results" / "README.md").read_text()
    described = {
        name.strip()
        for line in readme.splitlines()
        if line.startswith("|")
        for name in line[2:].split("|")[0].split(",")
    }
    assert set(schema().names) <= described


def test_equal_runs_give_equal_bytes_and_other_suites_stay(store: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    parquet = tmp_path / "runs.parquet"
    tracker = Tracker(uri(store[0]))
    tracker.sync("another", finished("a" * 16, 0, 0.3))
    collect(uri(store[0]), "demo", parquet)
    collect(uri(store[0]), "another", parquet)
    both = parquet.read_bytes()
    collect(uri(store[0]), "demo", parquet)
    assert parquet.read_bytes() == both
    parquet.unlink()
    collect(uri(store[0]), "another", parquet)
    collect(uri(store[0]), "demo", parquet)
    assert parquet.read_bytes() == both
    assert [(row["suite"], row["identity"][0]) for row in read_runs(parquet)][:2] == [("another", "a"), ("demo", "a")]


def test_the_newest_run_of_an_identity_wins(tmp_path: Path) -> None:
    parquet = tmp_path / "runs.parquet"
    for folder, minutes, accuracy in (("first", 10, 0.6), ("later", 20, 0.7), ("earlier", 5, 0.5)):
        tracker = Tracker(f"sqlite:///{tmp_path}/{folder}.db")
        tracker.sync("demo", finished("a" * 16, 0, accuracy, minutes))
        collect(f"sqlite:///{tmp_path}/{folder}.db", "demo", parquet)
    assert [row["test_accuracy"] for row in read_runs(parquet)] == [0.7]


def test_the_demo_table(store: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, ids = store
    assert make(tmp_path, tmp_path / "tables", "demo", "--storage", str(folder)) == 0
    markdown = (tmp_path / "tables" / "demo.md").read_text()
    assert capsys.readouterr().out == markdown + "\n"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line[:1] == "|"]
    assert rows[0][:5] == ["method", "sparsity", "workers", "test accuracy, %", "n"]
    dense, one, two = rows[2:]
    alone = ["-", "-", "-"]  # its control has not run
    assert dense == ["Zero sparsity (CE)", "0", "1", "97.50", "1", "0", *alone, "100", "12,345,678", "2.0", ids["d"]]
    # 98, 99, 100: mean 99, sample deviation sqrt((1 + 0 + 1) / 2) = 1.
    epsd = f"{ids['a']} {ids['b']} {ids['c']}"
    assert one == ["EPSD (CS-KD)", "0.9", "1", "99.00 ± 1.00", "3", "0 1 2", *alone, "101", "12,345,678", "3.0", epsd]
    assert two[:5] == ["EPSD (CS-KD) †", "0.9", "2", "50.00", "1"]
    assert "† run from an uncommitted tree" in markdown

    lines = list(csv.DictReader((tmp_path / "tables" / "demo.csv").open()))
    assert [line["method"] for line in lines] == ["Zero sparsity (CE)", "EPSD (CS-KD)", "EPSD (CS-KD)"]
    assert [line["test_accuracy_percent_mean"] for line in lines] == ["97.50", "99.00", "50.00"]
    assert [line["test_accuracy_percent_std"] for line in lines] == ["", "1.00", ""]
    assert [line["dirty"] for line in lines] == ["false", "false", "true"]
    assert lines[1]["run_ids"].split() == [ids["a"], ids["b"], ids["c"]]
    assert lines[1]["effective_macs_mean"] == "12345678"


def test_check_finds_every_difference_and_writes_nothing(
    store: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tables"
    collect(uri(store[0]), "demo", tmp_path / "runs.parquet")
    assert make(tmp_path, out, "--check") == 1
    assert f"{out}/demo.csv is missing" in capsys.readouterr().out
    assert not out.exists()
    assert make(tmp_path, out) == 0
    capsys.readouterr()
    assert make(tmp_path, out, "--check") == 0
    assert capsys.readouterr().out == ""

    table = out / "demo.csv"
    right = table.read_text()
    table.write_text(right.replace("99.00", "99.90"))
    assert make(tmp_path, out, "--check") == 1
    printed = capsys.readouterr().out
    assert "-EPSD (CS-KD),0.9,1,99.90" in printed
    assert "+EPSD (CS-KD),0.9,1,99.00" in printed
    assert "99.90" in table.read_text()
    table.write_bytes(right.replace("\n", "\r\n").encode())
    assert make(tmp_path, out, "--check") == 1

    table.write_text(right)
    (out / "old.md").write_text("")
    capsys.readouterr()
    assert make(tmp_path, out, "--check") == 1
    assert f"{out}/old.md belongs to no table" in capsys.readouterr().out

    (out / "old.md").rename(out / "every_method.md")
    assert make(tmp_path, out, "--check") == 1
    assert f"{out}/every_method.md has no runs behind it" in capsys.readouterr().out
    assert make(tmp_path, out, "--check", "demo") == 0


def test_what_the_user_has_to_correct(
    store: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert make(tmp_path, tmp_path / "tables", *arguments) == 2
        return capsys.readouterr().err

    assert "no table 'dmeo'; did you mean demo?" in error("dmeo")
    assert "runs.parquet is missing: collect runs first" in error("demo")
    assert "there is no tracking store" in error("--storage", str(tmp_path))
    assert not (tmp_path / "mlflow.db").exists()
    assert "leave out the store" in error("--check", "--storage", str(store[0]))
    assert "http://127.0.0.1:9 cannot be used" in error("--tracking-uri", "http://127.0.0.1:9")
    tracker = Tracker(f"sqlite:///{tmp_path}/other/mlflow.db")
    assert "no suite 'demo'" in error("--storage", str(tmp_path / "other"))
    tracker.sync("demo", dataclasses.replace(finished("a" * 16, 0, 0.1), status="FAILED"))
    assert "suite 'demo' has no finished runs" in error("--storage", str(tmp_path / "other"))
    tracker.sync("other", finished("a" * 16, 0, 0.1))
    collect(tracker.uri, "other", tmp_path / "runs.parquet")
    assert "there are no runs of suite 'demo'" in error()
    tracker.sync("odd", finished("a" * 16, 0, 0.1, workers="many"))
    with pytest.raises(ValueError, match=r"tag orchard\.workers is 'many', which is no int"):
        collect(tracker.uri, "odd", tmp_path / "runs.parquet")
    (tmp_path / "runs.parquet").write_bytes(b"PAR1")
    assert "is no complete Parquet file" in error()


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"run_id": ["x"]}), tmp_path / "runs.parquet")
    with pytest.raises(ValueError, match=r"not the columns of this version \(.*seed int64.*--runs"):
        read_runs(tmp_path / "runs.parquet")


def run_of(**values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(schema().names), "suite": "demo", "run_id": "r", "method": "epsd", **values}


def test_a_number_that_one_run_lacks_is_left_out() -> None:
    runs = [run_of(seed=0, test_accuracy=0.5), run_of(seed=1, train_seconds=3.0)]
    (row,) = tables.build(TABLES["demo"], runs)
    assert row.mean_and_std(TABLES["demo"].headline) == (None, None)
    assert "| - ‡° | - | - | - | 2 | 0 1 | - | - | - | - | - | - | r r |" in tables.as_markdown(
        "demo", TABLES["demo"], [row]
    )
    assert (
        tables.as_csv(TABLES["demo"], [row]).splitlines()[1]
        == ",,,,,2,0 1,,,,,,,,,,,unknown commit: unknown; unknown data: unknown,r r"
    )


def test_diverged_runs_are_shown_as_such() -> None:
    runs = [run_of(seed=0, test_accuracy=math.nan), run_of(seed=1, test_accuracy=0.5)]
    (row,) = tables.build(TABLES["demo"], runs)
    assert "| nan ± nan | 2 |" in tables.as_markdown("demo", TABLES["demo"], [row])


def test_rows_are_in_order_whatever_the_order_of_runs() -> None:
    runs = [
        run_of(method_label=label, method=method, sparsity=sparsity, seed=seed, workers=1)
        for label, method in (("B", "epsd"), ("Z", "dense"), ("A", "epsd"))
        for sparsity in (0.9, None, 0.5)
        for seed in (10, 9)
    ]
    for order in (runs, runs[::-1]):
        rows = tables.build(TABLES["demo"], order)
        keys = [(row.runs[0]["method_label"], row.runs[0]["sparsity"]) for row in rows]
        assert keys == [(label, sparsity) for label in "ZAB" for sparsity in (0.5, 0.9, None)]
        assert {row.seeds for row in rows} == {"9 10"}


def test_the_script_starts_from_anywhere(store: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    script = Path(tables.__file__)
    command = [sys.executable, str(script), "--storage", str(store[0]), "--runs", "r.parquet", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Early pruning")
    assert done.stderr == ""
    assert sorted(os.listdir(tmp_path / "out")) == ["demo.csv", "demo.md", "demo.tex"]


def test_a_terminal_shows_a_drawn_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tables.build(TABLES["demo"], [run_of(seed=0, method_label="EPSD [x]", run_id="0123456789")])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    tables.show(TABLES["demo"], rows, "markdown")
    printed = capsys.readouterr().out
    assert "EPSD [x]" in printed
    assert "01234567 " in printed
    assert "0123456789" not in printed


def test_runs_that_were_asked_something_else_are_no_seed_of_a_row():
    row = dict.fromkeys(tables.TABLES["demo"].rows) | {"suite": "demo", "method": "epsd", "dirty": False}
    runs = [
        row | {"run_id": "a", "seed": 0, "params": '{"epochs": "15", "seed": "0"}'},
        row | {"run_id": "b", "seed": 1, "params": '{"epochs": "15", "seed": "1"}'},
        row | {"run_id": "c", "seed": 1, "params": '{"epochs": "2", "seed": "1"}'},
    ]
    assert sorted(len(found.runs) for found in tables.build(tables.TABLES["demo"], runs)) == [1, 2]


def row_of(*changes: dict[str, Any], **common: Any) -> list[tables.Row]:
    known = {"commit": "a" * 40, "dirty": False, "hardware": "CPU", "versions": '{"torch": "2"}', "workers": 1}
    runs = [
        run_of(
            **known | {"data_fingerprint": "d" * 16, "seed": seed, "test_accuracy": 0.5, "params": "{}"} | common | own
        )
        for seed, own in enumerate(changes)
    ]
    return tables.build(TABLES["demo"], runs)


MARKED: list[tuple[str, Any, Any, str]] = [
    ("commit", "a" * 40, "b" * 40, "§ of several commits: aaaaaaa / bbbbbbb"),
    ("commit", "a" * 40, f"{'a' * 40}, {'b' * 40}", "§ of several commits: aaaaaaa / bbbbbbb"),
    ("commit", "a" * 40, "unknown", "‡ not known from which commit"),
    ("dirty", False, None, "‡ not known from which commit"),
    ("dirty", False, True, "† run from an uncommitted tree"),
    ("hardware", "CPU", "H100", "¶ on different hardware: CPU / H100"),
    (
        "versions",
        '{"torch": "2"}',
        '{"torch": "3", "ray": "1"}',
        "package versions: ray 1 / none, torch 2 / 3",
    ),
    ("threads", 1, 2, "# by workers that were placed differently: threads 1 / 2"),
]


@pytest.mark.parametrize(("field", "one", "other", "told"), MARKED)
def test_what_differs_inside_a_row_is_marked(field: str, one: Any, other: Any, told: str) -> None:
    (same,) = row_of({field: one}, {field: one})
    assert same.marks() == {}
    (row,) = row_of({field: one}, {field: other})
    assert len(row.runs) == 2
    markdown = tables.as_markdown("demo", TABLES["demo"], [row])
    assert told in markdown
    symbol = told[0] if told[0] != "p" else "‖"
    assert f"| - {symbol} |" in markdown
    line = next(csv.DictReader(tables.as_csv(TABLES["demo"], [row]).splitlines()))
    assert line["marks"]


@pytest.mark.parametrize("other", ["e" * 16, None])
def test_runs_of_other_data_are_rows_of_their_own_and_say_so(other: str | None) -> None:
    rows = row_of({}, {}, {"data_fingerprint": other})
    assert sorted(len(row.runs) for row in rows) == [1, 2]
    assert {row.others for row in rows} == {"data dddddddd", f"data {(other or 'unknown')[:8]}"}
    assert "| - (data dddddddd) |" in tables.as_markdown("demo", TABLES["demo"], rows)


def test_rows_that_look_the_same_say_how_they_differ() -> None:
    rows = row_of({"params": '{"epochs": "15", "kind": "Experiment"}'}, {"params": '{"epochs": "2"}'})
    assert sorted(row.others for row in rows) == ["epochs 15", "epochs 2"]
    assert len(row_of({"params": '{"e": "1", "kind": "Experiment"}'}, {"params": '{"e": "1", "dataset": "d"}'})) == 1


def test_a_run_without_git_has_its_row(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db")
    tracker.sync("demo", finished("a" * 16, 0, 0.9, commit="unknown", dirty="unknown"))
    collect(tracker.uri, "demo", tmp_path / "runs.parquet")
    (row,) = tables.build(TABLES["demo"], read_runs(tmp_path / "runs.parquet"))
    assert list(row.marks()) == ["unknown commit"]


def test_a_run_that_is_gone_in_mlflow_is_gone_from_the_file(tmp_path: Path) -> None:
    parquet, tracker = tmp_path / "runs.parquet", Tracker(f"sqlite:///{tmp_path}/mlflow.db")
    ids = [tracker.sync("demo", finished(digit * 16, seed, 0.9)) for seed, digit in enumerate("abc")]
    other = Tracker(f"sqlite:///{tmp_path}/other.db")
    other.sync("demo", finished("d" * 16, 3, 0.9))
    collect(other.uri, "demo", parquet)
    collect(tracker.uri, "demo", parquet)
    assert [row["identity"][0] for row in read_runs(parquet)] == ["a", "b", "c", "d"]
    client = MlflowClient(tracker.uri)
    client.delete_run(ids[0])
    tracker.sync("demo", finished("b" * 16, 1, 0.5))
    collect(tracker.uri, "demo", parquet)
    found = {row["identity"][0]: row["test_accuracy"] for row in read_runs(parquet)}
    assert found == {"b": 0.5, "c": 0.9, "d": 0.9}
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ValueError, match="no finished runs"):
        collect(tracker.uri, "demo", parquet)
    assert [row["identity"][0] for row in read_runs(parquet)] == ["d"]


def test_one_experiment_on_two_data_sets_stays_two_rows(tmp_path: Path) -> None:
    parquet = tmp_path / "runs.parquet"
    for name in ("one", "two"):
        tracker = Tracker(f"sqlite:///{tmp_path}/{name}.db")
        tracker.sync("demo", finished("a" * 16, 0, 0.9, data_fingerprint=name))
        collect(tracker.uri, "demo", parquet)
    assert len(tables.build(TABLES["demo"], read_runs(parquet))) == 2


def test_a_file_of_an_older_version_opens(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db")
    tracker.sync("demo", finished("a" * 16, 0, 0.9))
    collect(tracker.uri, "demo", tmp_path / "runs.parquet")
    table = pq.read_table(tmp_path / "runs.parquet").drop_columns(["data_fingerprint", "test_entropy"])
    pq.write_table(table, tmp_path / "old.parquet")
    (row,) = read_runs(tmp_path / "old.parquet")
    assert row["data_fingerprint"] is None
    (shown,) = tables.build(TABLES["demo"], [row])
    assert list(shown.marks()) == ["unknown data"]
    collect(tracker.uri, "demo", tmp_path / "old.parquet")
    assert [row["data_fingerprint"] for row in read_runs(tmp_path / "old.parquet")] == ["0123456789abcdef"]


def test_ones_own_runs_are_shown_and_nothing_of_the_project_is_written(
    store: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, ids = store
    before = {path: path.stat().st_mtime_ns for path in tables.RESULTS.rglob("*")}
    assert tables.main(["--storage", str(folder), "--suite", "demo"]) == 0
    shown = capsys.readouterr().out
    assert "# Runs of demo" in shown
    assert "| digits | vgg | 0.9 |" in shown
    assert ids["c"] in shown
    assert tables.main(["--storage", str(folder), "--suite", "demo", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.csv", "demo.md", "demo.tex"]
    assert {path: path.stat().st_mtime_ns for path in tables.RESULTS.rglob("*")} == before
    capsys.readouterr()
    for wrong, named in (
        (["--suite", "demo"], "--suite shows one's own runs: give --storage DIR"),
        (["--storage", str(folder), "--suite", "demi"], "there is no suite 'demi'"),
    ):
        assert tables.main(wrong) == 2
        assert named in " ".join(capsys.readouterr().err.split())


def test_results_are_written_only_when_asked(
    store: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    assert tables.main(["demo", "--storage", str(store[0])]) == 0
    assert not (tmp_path / "results").exists()
    assert (store[0] / "tables" / "demo.md").exists()
    assert tables.main(["demo", "--storage", str(store[0]), "--track"]) == 0
    assert (tmp_path / "results" / "runs.parquet").exists()
    assert (tmp_path / "results" / "tables" / "demo.md").exists()
    assert tables.main(["demo", "--tracking-uri", uri(store[0])]) == 2
    assert "--tracking-uri needs --track" in " ".join(capsys.readouterr().err.split())
