"""Differences from controls, paired over seeds: hand-checked numbers, and what may not be compared."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from typing import Any

import pytest

from benchmarks import differences
from benchmarks.differences import Difference, compare, paired
from benchmarks.formats import as_csv, as_markdown
from benchmarks.latex import as_latex
from benchmarks.rows import build
from benchmarks.suites import SUITES, Line, Suite, Table, own, table_of
from pipelines.execute import labels
from pipelines.identity import canonical
from pipelines.publish import flatten
from tests.test_tables import run_of

TABLE = dataclasses.replace(own("demo"), controls={"A": "B"})
KNOWN = {"dataset": "digits", "model": "vgg", "sparsity": 0.9, "data_fingerprint": "d" * 16, "params": "{}"}


def test_the_interval_of_three_pairs():
    # 1, 2, 3: mean 2, deviation 1; t(0.975, 2) = 4.30265 in every table; 4.30265 / sqrt(3) = 2.48414.
    found = paired({0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0}, "B")
    assert (found.control, found.pairs, found.mean) == ("B", 3, 2.0)
    assert found.interval == pytest.approx((-0.48414, 4.48414), abs=1e-5)
    assert found.verdict(2) == "not told apart"


@pytest.mark.parametrize(
    ("pairs", "quantile"), [(2, 12.7062), (4, 3.18245), (5, 2.77645), (10, 2.26216), (30, 2.04523)]
)
def test_the_quantiles_are_those_of_the_tables(pairs: int, quantile: float):
    seeds = range(pairs)
    found = paired({seed: float(seed) for seed in seeds}, dict.fromkeys(seeds, 0.0), "B")
    assert found.interval is not None
    assert found.mean is not None
    # The integers 0 to n - 1 have the variance n (n + 1) / 12, the mean of n of them a twelfth of n + 1.
    assert found.interval[1] - found.mean == pytest.approx(quantile * math.sqrt((pairs + 1) / 12), rel=1e-5)


def test_only_seeds_of_both_count():
    found = paired({0: 1.0, 1: 3.0, 7: 99.0}, {0: 0.0, 1: 1.0, 8: -99.0}, "B")
    assert (found.pairs, found.mean) == (2, 1.5)
    # 1, 2: deviation sqrt(0.5), its mean's 0.5; t(0.975, 1) = 12.7062.
    assert found.interval == pytest.approx((1.5 - 6.3531, 1.5 + 6.3531), abs=1e-4)


@pytest.mark.parametrize("other", [{}, {0: 1.0}, {5: 1.0}])
def test_fewer_than_two_pairs_give_no_difference(other: dict[int, float]):
    found = paired({0: 2.0, 1: 2.0}, other, "B")
    assert (found.pairs, found.mean, found.interval) == (len(other.keys() & {0}), None, None)
    assert found.verdict(2) == ""


def test_equal_differences_have_no_interval():
    found = paired({0: 0.1 + 0.2, 1: 1.3}, {0: 0.0, 1: 1.0}, "B")
    assert found.mean == pytest.approx(0.3)
    assert (found.interval, found.verdict(2)) == (None, "")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 2.0), "higher"),
        ((-2.0, -0.1), "lower"),
        ((-0.1, 2.0), "not told apart"),
        ((0.0, 2.0), "not told apart"),
        ((0.004, 2.0), "not told apart"),  # shown as 0.00
        ((-2.0, -0.004), "not told apart"),
        ((math.nan, math.nan), ""),
    ],
)
def test_an_interval_with_zero_is_no_improvement(interval: tuple[float, float], verdict: str):
    assert Difference("B", 3, sum(interval) / 2, interval).verdict(2) == verdict


def test_a_diverged_run_has_a_difference_but_no_verdict():
    found = paired({0: math.nan, 1: 1.0}, {0: 0.0, 1: 0.0}, "B")
    assert found.pairs == 2
    assert found.mean is not None
    assert math.isnan(found.mean)
    assert found.verdict(2) == ""


def compared(
    changes: dict[str, Any], accuracies: tuple[float, ...] = (0.92, 0.94), table: Table = TABLE
) -> list[Difference | None]:
    """Differences of rows A and B, in this order, of two seeds; A has `changes`."""
    runs = [
        run_of(method_label="A", seed=seed, test_accuracy=value, **(KNOWN | changes))
        for seed, value in enumerate(accuracies)
    ]
    runs += [
        run_of(method_label="B", seed=seed, test_accuracy=value, **KNOWN) for seed, value in enumerate((0.9, 0.91))
    ]
    rows = build(table, runs)
    found = compare(table, rows)
    return [found[[row.runs[0]["method_label"] for row in rows].index(label)] for label in "AB"]


def test_rows_are_compared_with_their_controls():
    one, other = compared({})
    assert other is None
    assert one is not None
    assert (one.control, one.pairs) == ("B", 2)
    assert one.mean == pytest.approx(2.5)  # 2 and 3 points
    assert one.interval == pytest.approx((2.5 - 6.3531, 2.5 + 6.3531), abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"data_fingerprint": "e" * 16},
        {"data_fingerprint": None},
        {"dataset": "cifar10"},
        {"model": "resnet20"},
        {"sparsity": 0.8},
        {"params": '{"data.val_fraction": "0.2"}'},
        {"params": '{"training.epochs": "2"}'},
    ],
)
def test_rows_of_other_data_or_settings_are_not_compared(changes: dict[str, Any]):
    assert compared(changes) == [None, None]


@pytest.mark.parametrize("changes", [{"sparsity": 0.0}, {"params": '{"method.inner_steps": "3"}'}])
def test_what_the_method_changes_is_compared(changes: dict[str, Any]):
    one, _ = compared(changes)
    assert one is not None
    assert one.pairs == 2


def test_two_rows_that_could_be_the_control_are_none():
    def runs(label: str, value: float, steps: int) -> list[dict[str, Any]]:
        params = f'{{"method.steps": "{steps}"}}'
        return [
            run_of(method_label=label, seed=seed, test_accuracy=value + seed / 10, **(KNOWN | {"params": params}))
            for seed in range(2)
        ]

    rows = build(TABLE, [*runs("A", 0.1, 1), *runs("B", 0.2, 1), *runs("B", 0.3, 2)])
    assert compare(TABLE, rows) == [None, None, None]
    named = dataclasses.replace(TABLE, controls={"A": "B (method.steps 2)", "B (method.steps 2)": "B (method.steps 1)"})
    one, other, last = compare(named, rows)
    assert one is not None
    assert one.control == "B (method.steps 2)"
    assert one.mean == pytest.approx(-20)
    assert other is None
    assert last is not None
    assert last.mean == pytest.approx(10)


def test_a_seed_that_a_row_has_twice_is_no_pair():
    runs = [run_of(method_label="A", seed=seed, test_accuracy=0.5, **KNOWN) for seed in (0, 0, 1, 2)]
    runs += [run_of(method_label="B", seed=seed, test_accuracy=0.4 + seed / 100, **KNOWN) for seed in (0, 1, 2)]
    (found, _) = compare(TABLE, build(TABLE, runs))
    assert found is not None
    assert found.pairs == 2


def test_every_form_shows_the_difference_its_interval_and_the_pairs():
    runs = [
        run_of(method_label=label, seed=seed, test_accuracy=value, run_id=f"{label}{seed}", **KNOWN)
        for label, values in (("A", (0.9, 0.9, 0.9)), ("B", (0.86, 0.85, 0.84)))
        for seed, value in enumerate(values)
    ]
    rows = build(TABLE, runs)
    # 4, 5, 6 points: mean 5, 4.30265 / sqrt(3) = 2.48414 to both sides.
    line, other = csv.DictReader(as_csv(TABLE, rows).splitlines())
    name = "test_accuracy_percent_difference"
    assert [line[name], line[f"{name}_low"], line[f"{name}_high"]] == ["+5.00", "+2.52", "+7.48"]
    assert [line[f"{name}_verdict"], line["pairs"], line["control"]] == ["higher", "3", "B"]
    assert [other[name], other["pairs"], other["control"]] == ["", "", ""]
    assert "| +5.00 [+2.52, +7.48] higher | 3 | B |" in as_markdown("x", TABLE, rows)
    assert "& +5.00 {[}+2.52, +7.48] higher & 3 & B &" in as_latex("x", TABLE, rows)
    assert differences.NOTE in as_markdown("x", TABLE, rows)
    without = as_markdown("x", own("demo"), rows)
    assert "control" not in without


def run_of_line(suite: Suite, line: Line, seed: int, accuracy: float, **params: Any) -> dict[str, Any]:
    """A run as MLflow and runs.parquet have it."""
    experiment = dataclasses.replace(line.experiment, seed=seed)
    flat = {name: str(value) for name, value in flatten(canonical(experiment))}
    known = labels(experiment)
    return run_of(
        suite=suite.name,
        run_id=f"{line.label}/{seed}",
        **known | {"seed": seed, "sparsity": experiment.sparsity},
        test_accuracy=accuracy,
        data_fingerprint="d" * 16,
        params=json.dumps(flat | known | params),
    )


@pytest.mark.parametrize("name", ["epsd_ablations", "pdd", "prune_then_distill", "epsd_cifar10"])
@pytest.mark.parametrize("reduced", [True, False])
def test_rows_of_a_suite_are_compared_as_its_lines_say(name: str, reduced: bool):
    suite = SUITES[name](reduced=reduced)
    place = {line.label: number for number, line in enumerate(suite.lines)}
    # Line 3 has 0.03 and 0.032 + 0.0001 * 3: differences of any two lines are known.
    runs = [
        run_of_line(suite, line, seed, 0.01 * number + 0.002 * seed + 0.0001 * number * seed)
        for number, line in enumerate(suite.lines)
        for seed in (0, 1)
    ]
    table = table_of(suite)
    rows = build(table, runs)
    assert len(rows) == len(suite.lines)
    by_label = {line.label: line for line in suite.lines}
    compared = 0
    for row, found in zip(rows, compare(table, rows), strict=True):
        line = by_label[row.run_ids[0].rpartition("/")[0]]
        if line.control is None:
            assert found is None
            continue
        assert found is not None, line.label
        assert found.mean == pytest.approx(1.005 * (place[line.label] - place[line.control]))
        compared += 1
    assert compared == sum(line.control is not None for line in suite.lines) > 0


def test_lines_that_were_trained_or_fed_otherwise_are_not_compared():
    suite = SUITES["epsd_ablations"](reduced=True)
    [line, *_] = [line for line in suite.lines if line.control]
    [control] = [other for other in suite.lines if other.label == line.control]
    for other, number in (({}, 2), ({"training.epochs": "99"}, 0), ({"data.val_fraction": "0.3"}, 0)):
        runs = [run_of_line(suite, line, seed, 0.5 + seed / 10) for seed in (0, 1)]
        runs += [run_of_line(suite, control, seed, 0.4, **other) for seed in (0, 1)]
        rows = build(table_of(suite), runs)
        assert sum(found.pairs for found in compare(table_of(suite), rows) if found) == number
    runs = [run_of_line(suite, line, seed, 0.5) for seed in (0, 1)]
    runs += [run_of_line(suite, control, seed, 0.4) | {"data_fingerprint": "e" * 16} for seed in (0, 1)]
    assert compare(table_of(suite), build(table_of(suite), runs)) == [None, None]
