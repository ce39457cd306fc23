"""What a person gets from a sweep: tables, the display while it runs, figures, and the file of best settings."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.search import display
from pipelines.search.display import SweepProgress
from pipelines.search.table import best_table, comparison, rows, write_csv
from pipelines.search.trial import Goal, Trial
from pipelines.search.words import cost_text, settings_text, short_names

STAMP = len("2026-01-31 23:59:59  ")
"""Of each line that is not on a terminal."""

SPARSITY, TEMPERATURE = "method.sparsity", "method.distillation.temperature"


def trial(number: int, *values: float, state: Any = None, epochs: int = 2, **others: Any) -> Trial:
    """Finished with these values; without values it runs, or has the state."""
    point = {SPARSITY: 0.8 + number / 100, TEMPERATURE: 1.0 + number}
    history = [(epoch, (values or (0.5,))[0] * epoch / epochs) for epoch in range(1, epochs + 1)]
    known = {"point": point, "history": history, "dense_epochs": epochs / 2, **others}
    return Trial(
        number,
        identity=f"{number:016x}",
        state=state or ("finished" if values else "running"),
        values=values or None,
        **known,
    )


def text_of(renderable: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(renderable)
    return console.export_text()


SWEEP = [
    trial(0, 0.5),
    trial(1, 0.75),
    trial(2, state="stopped", epochs=1),
    trial(3, state="failed", history=(), dense_epochs=0.0, error="ValueError: the loss is nan\nat step 3"),
    trial(4, 0.75),
    trial(5),
]
COSTLY = [
    trial(0, 0.5, 3e6),
    trial(1, 0.75, 2e6),
    trial(2, 0.7, 41.2e6),
    trial(3, 0.9, 41.2e6),
    trial(4, state="stopped"),
]


# Words


def test_short_names_are_the_fewest_last_words_that_differ():
    names = ["method.sparsity", "method.temperature", "method.distillation.temperature", "training.optimizer.lr"]
    assert list(short_names(names).values()) == ["sparsity", "method.temperature", "distillation.temperature", "lr"]
    assert short_names(["lr", "method.lr"]) == {"lr": "lr", "method.lr": "method.lr"}
    assert short_names([]) == {}


def test_settings_are_shown_with_four_digits():
    point = {"method.sparsity": 0.123456, "method.rounds": 123456, "a.nesterov": True, "a.budget": None, "a.kind": "kl"}
    assert settings_text(point) == "sparsity 0.1235, rounds 123456, nesterov True, budget None, kind kl"


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("latency", 0.00321, "3.21 ms"),
        ("parameters", 999, "999"),
        ("parameters", 270_000, "270 k"),
        ("parameters", 999_900, "1 M"),
        ("effective_macs", 41.23e6, "41.2 M"),
        ("compacted_macs", 4.1e9, "4.1 G"),
    ],
)
def test_costs_have_units(cost: str, value: float, text: str):
    assert cost_text(cost, value) == text


# Tables


def test_a_row_for_each_trial():
    first, _, stopped, failed, _, running = rows(SWEEP, Goal())
    assert first == {
        "number": 0,
        "identity": "0" * 16,
        "state": "finished",
        "accuracy": 0.5,
        "last_accuracy": 0.5,
        "epochs": 2,
        "dense_epochs": 1.0,
        SPARSITY: 0.8,
        TEMPERATURE: 1.0,
        "error": None,
    }
    assert (stopped["accuracy"], stopped["last_accuracy"], stopped["epochs"]) == (None, 0.5, 1)
    assert (failed["last_accuracy"], failed["epochs"], failed["error"]) == (None, 0, SWEEP[3].error)
    assert running["state"] == "running"
    assert [row["effective_macs"] for row in rows(COSTLY, Goal("effective_macs"))] == [3e6, 2e6, 41.2e6, 41.2e6, None]
    assert rows([], Goal()) == []


def test_the_csv_file_has_all_digits_and_all_settings(tmp_path: Path):
    point = {SPARSITY: 0.1 + 0.2, "method.budget": None, "method.note": 'a,"b"\nc'}
    write_csv(tmp_path / "new" / "trials.csv", [*COSTLY, trial(5, 0.1, 1 / 3, point=point, error="x")], Goal("latency"))
    with (tmp_path / "new" / "trials.csv").open(newline="") as file:
        first, *_, last = csv.DictReader(file)
    assert list(first) == [
        *("number", "identity", "state", "accuracy", "latency", "last_accuracy", "epochs", "dense_epochs"),
        *(SPARSITY, TEMPERATURE, "method.budget", "method.note", "error"),
    ]
    assert (first["accuracy"], first["method.budget"], first["error"]) == ("0.5", "", "")
    assert (float(last["latency"]), float(last[SPARSITY])) == (1 / 3, 0.1 + 0.2)
    assert (last["method.budget"], last["method.note"], last[TEMPERATURE]) == ("None", 'a,"b"\nc', "")
    write_csv(tmp_path / "empty.csv", [], Goal())
    assert (tmp_path / "empty.csv").read_text().splitlines() == [
        "number,identity,state,accuracy,last_accuracy,epochs,dense_epochs,error"
    ]


def test_the_best_come_first_and_of_equal_ones_the_first():
    lines = text_of(best_table(SWEEP, Goal(), limit=2)).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["trial", "validation", "accuracy", "sparsity", "temperature", "epochs"],
        ["1", "75.00%", "0.81", "2", "2"],
        ["4", "75.00%", "0.84", "5", "2"],
    ]
    assert lines[3].strip() == "the best 2 of 3 finished trials"
    none = text_of(best_table(SWEEP[2:4], Goal())).splitlines()
    assert [line.strip() for line in none] == ["trial  validation accuracy  epochs", "no trial is finished"]


def test_with_a_cost_the_table_is_the_front():
    lines = text_of(best_table(COSTLY, Goal("effective_macs"))).splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [["1", "75.00%", "2", "M"], ["3", "90.00%", "41.2", "M"]]
    assert lines[3].strip() == "Pareto front of 4 finished trials: none is both more accurate and cheaper"


def test_many_settings_share_a_column_that_fits_the_terminal():
    point = {f"method.part{number}.a_long_name": number / 7 for number in range(8)}
    shown = text_of(best_table([trial(0, 0.5, point=point)], Goal()), width=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "part7.a_long_name 1" in " ".join(shown.split())


def test_methods_are_compared_by_their_most_accurate_trials():
    table, markdown = comparison({"epsd|x": COSTLY, "dense": [], "snip": SWEEP[2:4]}, Goal("effective_macs"))
    titles, rule, epsd, dense, snip = markdown.splitlines()
    assert titles.count("|") == rule.count("|") == dense.count("|") == snip.count("|") == 11
    assert epsd == ("| epsd\\|x | 5 | 4 | 1 | 0 | 10 | 5 | 90.00% | 41.2 M | sparsity 0.83, temperature 4 |"), (
        "two epochs for each of five trials, each half as dear as a dense one"
    )
    assert dense == "| dense | 0 | 0 | 0 | 0 | 0 | 0 | - | - | - |"
    assert snip == "| snip | 2 | 0 | 1 | 1 | 1 | 0.5 | - | - | - |"
    lines = text_of(table, 120).splitlines()
    assert lines[1].split() == ["epsd|x", "5", "4", "1", "0", "10", "5", "90.00%", "41.2", "M"]
    assert lines[5].strip() == "epsd|x: sparsity 0.83, temperature 4"


# The display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.monotonic` returns in the display, in a list."""
    now = [1000.0]
    monkeypatch.setattr(display, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    return now


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line[STAMP:] for line in console.file.getvalue().splitlines()]


def plain() -> Console:
    return Console(file=io.StringIO(), width=60)


def test_without_a_terminal_there_are_lines(clock: list[float]):
    console = plain()
    with SweepProgress(console, 6, Goal()) as shown:
        shown.update([trial(0)])
        clock[0] += 60
        shown.update([trial(0, 0.5), trial(1)])
        clock[0] += 60
        shown.update([trial(0, 0.5), trial(1, 0.75), *SWEEP[2:4], trial(4)])
        shown.update([trial(0, 0.5), trial(1, 0.75), *SWEEP[2:4], trial(4)])
        logging.getLogger("cluster.ray").info("a worker [died]")
    assert lines_of(console) == [
        "trial 0 begins: sparsity 0.8, temperature 1",
        "trial 0 finished: 50.00% (validation), the best so far; 1 of 6 have ended, 5:00 to go",
        "trial 1 begins: sparsity 0.81, temperature 2",
        "trial 1 finished: 75.00% (validation), the best so far; 4 of 6 have ended, 1:00 to go",
        "trial 2 stopped after epoch 1: 50.00% (validation); 4 of 6 have ended, 1:00 to go",
        "trial 3 failed: ValueError: the loss is nan; 4 of 6 have ended, 1:00 to go",
        "trial 4 begins: sparsity 0.84, temperature 5",
        "a worker [died]",
    ]


def test_a_sweep_that_goes_on_expects_its_end_from_its_own_trials(clock: list[float]):
    console = plain()
    shown = SweepProgress(console, 6, Goal())
    shown.update([*SWEEP[:4], trial(4)])
    clock[0] += 10
    shown.update([*SWEEP[:4], trial(4, 0.1)])
    assert lines_of(console) == [
        "4 of 6 trials had ended before",
        "trial 4 begins: sparsity 0.84, temperature 5",
        "trial 4 finished: 10.00% (validation); 5 of 6 have ended, 0:10 to go",
    ]


def test_running_trials_are_told_of_once_a_minute(clock: list[float]):
    console = plain()
    shown = SweepProgress(console, 6, Goal())
    for epochs in (0, 1, 2, 3):
        shown.update([trial(number, epochs=epochs) for number in range(6)])
        clock[0] += 30
    assert lines_of(console)[6:] == [
        "0 of 6: 6 running; trial 0 (epoch 2, 50.00%), trial 1 (epoch 2, 50.00%), trial 2 (epoch 2, 50.00%), "
        "trial 3 (epoch 2, 50.00%) and 2 more"
    ]


def test_on_a_terminal_one_table_says_it_all(clock: list[float]):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    shown = SweepProgress(console, 10, Goal("effective_macs"))
    shown.update(COSTLY[:1])
    clock[0] += 100
    shown.update(
        [
            *COSTLY,
            trial(5),
            trial(6, state="failed", error="ValueError: x"),
            trial(7, state="failed", error="ValueError: x"),
        ]
    )
    assert console.file.getvalue() == "trial 6 failed: ValueError: x\n", "once"  # pyright: ignore[reportAttributeAccessIssue]
    assert [line.strip() for line in text_of(shown.table()).splitlines()] == [
        "trials   ━━━━━━━━━╸      7 of 10: 4 finished, 1 running, 1 stopped, 2 failed",
        "best     trial 3, 90.00% at 41.2 M effective MACs (validation); 2 on the Pareto front",
        "sparsity 0.83, temperature 4",
        "running  trial 5 (epoch 2, 50.00%)",
        "time     1:40 spent, 0:50 to go",
    ]
    with shown:
        pass
    assert text_of(shown.table()).splitlines()[-1].strip() == "time     1:40 spent"
    assert [line.split()[0] for line in text_of(SweepProgress(console, 3, Goal()).table()).splitlines()] == [
        "trials",
        "time",
    ]
