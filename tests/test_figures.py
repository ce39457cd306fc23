"""Figures of tables: what is drawn where, from which rows, always with the same bytes."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import figures, tables
from benchmarks.figures import Point, draw
from benchmarks.rows import build
from benchmarks.suites import TABLES, Column, own
from tests.test_tables import run_of

TABLE = own("demo")
KINDS = ["sparsity", "effective_macs", "latency", "training_cost"]


def runs_of(label: str, sparsity: float, *accuracies: float | None, **values: Any) -> list[dict[str, Any]]:
    common = {
        "method_label": label,
        "sparsity": sparsity,
        "effective_macs": round(2e6 * (1 - sparsity)),
        "latency_seconds_batch_1": 0.002,
        "dense_epochs": 10.0,
        "hardware": "CPU",
        "threads": 1,
    }
    return [run_of(seed=seed, test_accuracy=value, **(common | values)) for seed, value in enumerate(accuracies)]


def texts_of(svg: str) -> set[str]:
    return {
        " ".join("".join(node.itertext()).split())
        for node in ElementTree.fromstring(svg).iter()
        if node.tag.endswith("}text")
    }


def test_a_point_is_a_mean_with_its_deviations():
    runs = runs_of("A", 0.9, 0.8, 0.9, 1.0, effective_macs=5) + runs_of("A", 0.5, 0.7)
    series = figures._series(TABLE, build(TABLE, runs), Column("effective_macs", "", ""))
    [(label, [low, high])] = series.items()
    assert label == "A"
    assert low == Point(0.5, 1e6, 70.0, 0.0, 0.0)
    assert (high.sparsity, high.x, high.wide) == (0.9, 5.0, 0.0)
    # 80, 90, 100: mean 90, deviation 10.
    assert (high.y, high.high) == (pytest.approx(90), pytest.approx(10))


def test_every_figure_names_its_axes_and_methods():
    runs = [*runs_of("A", 0.9, 0.8, 0.9), *runs_of("A", 0.5, 0.85), *runs_of("dense $x$", 0.0, 0.95)]
    found = draw("demo", TABLE, build(TABLE, runs))
    assert [*found] == [f"demo-{kind}.svg" for kind in KINDS]
    texts = {name.partition("-")[2].removesuffix(".svg"): texts_of(svg) for name, svg in found.items()}
    assert all({"A", "dense $x$", "test accuracy, %"} <= shown for shown in texts.values())
    assert {"0%", "50%", "90%"} <= texts["sparsity"]
    assert "MACs with weights that are not zero, an image" in texts["effective_macs"]
    assert {"latency of an image, in ms", "(CPU, 1 thread)"} <= texts["latency"]
    assert "training with teachers, in epochs of the dense network" in texts["training_cost"]


def test_the_same_rows_give_the_same_bytes():
    runs = [*runs_of("A", 0.9, 0.8, 0.9), *runs_of("B", 0.5, 0.85)]
    assert draw("demo", TABLE, build(TABLE, runs)) == draw("demo", TABLE, build(TABLE, runs[::-1]))


def test_what_is_unknown_or_diverged_is_not_drawn():
    runs = [
        *runs_of("A", 0.9, 0.8),
        *runs_of("B", 0.5, math.nan),
        *runs_of("C", 0.5, None),
        *runs_of("D", 0.9, 0.7, effective_macs=None, dense_epochs=None),
    ]
    found = draw("demo", TABLE, build(TABLE, runs))
    assert [*found] == ["demo-latency.svg"]  # one sparsity, one number of MACs, one cost
    assert {"A", "D"} <= texts_of(found["demo-latency.svg"])
    assert not {"B", "C"} & texts_of(found["demo-latency.svg"])


def test_latencies_of_several_machines_are_not_compared():
    runs = [
        *runs_of("A", 0.9, 0.8, 0.8),
        *runs_of("B", 0.9, 0.8),
        *runs_of("C", 0.9, 0.8, 0.8, hardware="H100"),
        *runs_of("D", 0.9, 0.8, threads=2),
    ]
    rows, where = figures._of_one_machine(build(TABLE, runs))
    assert [row.runs[0]["method_label"] for row in rows] == ["A", "B"]
    assert where == "\n(CPU, 1 thread)"


def test_each_network_and_data_set_has_its_own_figures():
    runs = [
        run
        for model in ("timm/vgg 1", "resnet")
        for sparsity in (0.5, 0.9)
        for run in runs_of("A", sparsity, 0.8, model=model, dataset="cifar10")
    ]
    found = draw("demo", TABLE, build(TABLE, runs))
    assert [*found] == [f"demo-cifar10_{model}-{kind}.svg" for model in ("resnet", "timm_vgg_1") for kind in KINDS]
    title = " ".join(texts_of(found["demo-cifar10_timm_vgg_1-sparsity.svg"]))
    assert "timm/vgg 1 on cifar10: sparsity" in title
    assert "resnet" not in title


def test_lines_that_differ_in_another_field_say_so():
    table = dataclasses.replace(TABLE, rows={**TABLE.rows, "workers": "workers"})
    runs = [*runs_of("A", 0.9, 0.8, workers=1), *runs_of("A", 0.9, 0.7, workers=2)]
    assert [*figures._series(table, build(table, runs), Column("sparsity", "", ""))] == ["A, workers 1", "A, workers 2"]


def test_figures_are_written_beside_the_tables_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    runs = [*runs_of("A", 0.9, 0.8, workers=1), *runs_of("B", 0.5, 0.85, workers=1)]
    monkeypatch.setattr(tables, "read_runs", lambda parquet: runs)
    assert tables.main([]) == 0
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["demo.csv", "demo.md", "demo.tex"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(
        f"demo-{kind}.svg" for kind in KINDS
    )
    capsys.readouterr()
    assert tables.main(["--check"]) == 0
    assert capsys.readouterr().out == ""

    figure, latex = tmp_path / "figures" / "demo-latency.svg", tmp_path / "tables" / "demo.tex"
    right = figure.read_text()
    number = re.search(r"\d+\.\d+", right[right.index("<path") :])
    assert number
    figure.write_text(right.replace(number[0], "1.5"))
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().out == f"{figure} differs from the runs\n"
    figure.unlink()
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().out == f"{figure} is missing\n"
    figure.write_text(right)
    (tmp_path / "figures" / "demo-old.svg").write_text("")
    assert tables.main(["--check"]) == 1
    assert "demo-old.svg has no runs behind it" in capsys.readouterr().out
    (tmp_path / "figures" / "demo-old.svg").unlink()
    latex.write_text(latex.read_text().replace("85.00", "86.00"))
    assert tables.main(["--check"]) == 1
    assert "86.00" in capsys.readouterr().out


def test_the_committed_tables_and_figures_are_those_of_the_runs(capsys: pytest.CaptureFixture[str]):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out
    assert {path.name.partition("-")[0] for path in (tables.RESULTS / "figures").iterdir()} <= {*TABLES}
