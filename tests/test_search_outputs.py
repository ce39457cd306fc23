"""What a person gets from a sweep: tables, the display while it runs, figures, and the file of best settings."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from rich.console import Console

from compression.criteria import SNIPConfig
from compression.methods import EPSD, PDD, EarlyPruning
from compression.objectives import KDConfig
from compression.spaces import Choices, IntRange, LogRange, Range, Space
from pipelines import cli
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, AdamW, Linear, TorchOptimizer
from pipelines.recipes import cifar10_pdd, digits_epsd
from pipelines.search import display, figures
from pipelines.search.axes import Axis, covering
from pipelines.search.display import SweepProgress
from pipelines.search.importance import importance
from pipelines.search.settings import Settings, apply, read_settings, write_settings
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


# Figures


@pytest.mark.parametrize(
    ("space", "values", "wider"),
    [
        (Range(0.0, 1.0), [0.5], Range(0.0, 1.0)),
        (Range(0.0, 1.0), [-1.0, 2.0], Range(-1.0, 2.0)),
        (LogRange(0.1, 1.0), [10.0], LogRange(0.1, 10.0)),
        (LogRange(0.1, 1.0), [0.0], Range(0.0, 1.0)),
        (IntRange(1, 3), [5], IntRange(1, 5)),
        (Choices((1, 2)), [3, 1, 3], Choices((1, 2, 3))),
        (None, [2, 1, 2], IntRange(1, 2)),
        (None, [2, 0.5], Range(0.5, 2)),
        (None, [7.0], Choices((7.0,))),
        (None, [True, None, "x"], Choices((True, None, "x"))),
    ],
)
def test_an_axis_covers_all_values(space: Space | None, values: list[Any], wider: Space):
    assert covering(space, values) == wider


@pytest.mark.parametrize(
    ("space", "value", "place"),
    [
        (Range(1.0, 5.0), 2.0, 0.25),
        (LogRange(0.01, 1.0), 0.1, 0.5),
        (IntRange(0, 4), 1, 0.25),
        (Choices(("a", "b", "c")), "b", 0.5),
        (Choices(("a",)), "a", 0.5),
    ],
)
def test_where_a_value_lies_on_its_axis(space: Space, value: Any, place: float):
    assert Axis(space).place(value) == pytest.approx(place)


@pytest.mark.parametrize(
    ("space", "texts"),
    [
        (Choices((0.8, 0.95, None)), ["0.8", "0.95", "None"]),
        (LogRange(0.001, 0.5), ["0.001", "0.01", "0.1", "0.5"]),
        (Range(1.0, 20.0), ["1", "5", "10", "15", "20"]),
        (IntRange(1, 4), ["1", "2", "3", "4"]),
    ],
)
def test_the_ticks_of_an_axis_are_round_numbers_and_both_ends(space: Space, texts: list[str]):
    ticks = Axis(space).ticks()
    assert [text for _, text in ticks] == texts
    assert [place for place, _ in ticks] == sorted(place for place, _ in ticks)


def grid_of(accuracy: Any, *costs: float) -> list[Trial]:
    """Sixteen trials: four sparsities, and four temperatures."""
    points = [
        {SPARSITY: sparsity, TEMPERATURE: 2.0**power} for sparsity in (0.8, 0.9, 0.95, 0.98) for power in range(4)
    ]
    return [
        Trial(number, point, f"{number:016x}", "finished", (accuracy(point), *costs), [(1, 0.1), (2, accuracy(point))])
        for number, point in enumerate(points)
    ]


SPACE: dict[str, Space] = {SPARSITY: Choices((0.8, 0.9, 0.95, 0.98)), TEMPERATURE: LogRange(1.0, 8.0)}


def test_the_setting_that_decides_is_the_important_one():
    by_sparsity = importance(grid_of(lambda point: 1 - point[SPARSITY]), SPACE)
    assert isinstance(by_sparsity, dict)
    assert [*by_sparsity] == [SPARSITY, TEMPERATURE]
    assert by_sparsity[SPARSITY] > 0.95
    assert sum(by_sparsity.values()) == pytest.approx(1)
    by_temperature = importance(grid_of(lambda point: point[TEMPERATURE] / 10), {})
    assert isinstance(by_temperature, dict)
    assert by_temperature[TEMPERATURE] > 0.95
    assert by_temperature == importance(grid_of(lambda point: point[TEMPERATURE] / 10), {}), "a fixed seed"


@pytest.mark.parametrize(
    ("trials", "note"),
    [
        (grid_of(lambda point: point[SPARSITY])[:3], "needs 4 finished trials (finished: 3)"),
        (grid_of(lambda point: point[TEMPERATURE])[:4], "fewer than two of them vary"),
        (grid_of(lambda point: 0.5), "all finished trials have the same accuracy"),
    ],
)
def test_importance_says_why_it_is_not_known(trials: list[Trial], note: str):
    found = importance(trials, SPACE)
    assert isinstance(found, str)
    assert note in found


def texts_of(file: Path) -> list[str]:
    """The texts of an SVG file, each with its words separated by one space."""
    return [
        " ".join("".join(node.itertext()).split())
        for node in ElementTree.parse(file).iter()
        if node.tag.endswith("}text")
    ]


def drawn(trials: Sequence[Trial], folder: Path, goal: Goal | None = None, title: str = "a sweep") -> dict[str, Path]:
    files, _ = figures.draw(trials, goal or Goal(), SPACE, title, folder)
    return {file.name: file for file in files}


def test_every_figure_is_an_svg_and_a_png_with_its_labels(tmp_path: Path):
    trials = [
        *grid_of(lambda point: 1 - point[SPARSITY] / point[TEMPERATURE], 3e6),
        *COSTLY[4:],
        *SWEEP[3:4],
        *SWEEP[5:],
    ]
    trials = [replace(trial, number=number) for number, trial in enumerate(trials)]
    files = drawn(trials, tmp_path, Goal("effective_macs"))
    names = ["accuracy", "settings", "front", "importance", "learning_curves"]
    assert [*files] == [f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(files)
    for name in names:
        with Image.open(files[f"{name}.png"]) as image:
            assert (image.format, image.size) == ("PNG", (1600, 900))
            assert image.convert("L").getextrema() != (255, 255)
    texts = {name: texts_of(files[f"{name}.svg"]) for name in names}
    assert all(shown[-1].startswith("a sweep: ") or shown[0].startswith("a sweep: ") for shown in texts.values())
    assert {"trial", "validation accuracy", "finished", "stopped", "failed", "running", "best so far"} <= {
        *texts["accuracy"]
    }
    assert {"sparsity", "temperature", "0.8", "0.98", "8", "the best: trial 3"} <= {*texts["settings"]}
    assert {"multiply-accumulates with weights that are not zero, for an image", "3"} <= {*texts["front"]}
    assert {"share of the variance of the validation accuracy (fANOVA, 16 trials)", "sparsity"} <= {
        *texts["importance"]
    }
    assert {"epoch of the last training stage", "the best: trial 3"} <= {*texts["learning_curves"]}


def test_the_same_trials_give_the_same_bytes(tmp_path: Path):
    trials = grid_of(lambda point: 1 - point[SPARSITY] / point[TEMPERATURE], 0.002)
    first = drawn(trials, tmp_path / "first", Goal("latency"))
    second = drawn(trials, tmp_path / "second", Goal("latency"))
    assert len(first) == 10
    assert {name: file.read_bytes() for name, file in first.items()} == {
        name: file.read_bytes() for name, file in second.items()
    }
    assert "<dc:date>" not in first["front.svg"].read_text()


def test_figures_that_trials_cannot_fill_are_left_out_with_a_note(tmp_path: Path):
    assert figures.draw([], Goal(), SPACE, "none", tmp_path)[0] == []
    files, notes = figures.draw(SWEEP[3:4], Goal(), SPACE, "failed", tmp_path)
    assert [file.name for file in files] == ["accuracy.svg", "accuracy.png"]
    assert [note.partition(":")[0] for note in notes] == [
        "settings and accuracy are not drawn",
        "the importance of settings is not drawn",
    ]
    assert [*drawn([trial(0, 0.5)], tmp_path)][::2] == ["accuracy.svg", "settings.svg", "learning_curves.svg"]


@pytest.mark.filterwarnings("error")
def test_odd_sweeps_are_drawn(tmp_path: Path):
    """matplotlib warns of what does not fit; a $ would begin a formula."""
    long = {f"method.a_group_of_settings.{name}_with_a_long_$name$": name for name in ("one", "two")}
    odd = [trial(0, 0.5, 0.0, point=long), trial(7, 0.5, 1e9, point={"lr": 0.1}), trial(8, state="stopped", epochs=1)]
    files = drawn(odd, tmp_path, Goal("parameters"), title=f"{'a title of many words ' * 9}with $x$")
    shown = " ".join(texts_of(files["settings.svg"]))
    assert "one_with_ a_long_ $name$" in shown
    assert "with $x$: settings" in shown
    begun = drawn([trial(0, state="running", epochs=0)], tmp_path / "begun")
    assert [*begun] == ["accuracy.svg", "accuracy.png"]


def test_the_persons_own_style_of_matplotlib_is_not_used_and_not_changed(tmp_path: Path):
    import matplotlib

    before = drawn(SWEEP, tmp_path / "before")["accuracy.png"].read_bytes()
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "black"}):
        during = drawn(SWEEP, tmp_path / "during")["accuracy.png"].read_bytes()
        assert matplotlib.rcParams["font.size"] == 30.0
    assert during == before


# The file of best settings


def best(experiment: Experiment, **values: Any) -> Trial:
    return Trial(
        3, {name.replace("__", "."): value for name, value in values.items()}, experiment.identity, "finished", (0.9,)
    )


def written(path: Path, experiment: Experiment, **values: Any) -> Path:
    write_settings(path, best(experiment, **values), experiment, {"sweep": "digits"})
    return path


def test_the_file_is_readable_and_reads_back_exactly(tmp_path: Path):
    file, experiment = tmp_path / "new" / "best.toml", Experiment()
    values = {SPARSITY: 0.1 + 0.2, TEMPERATURE: 1e-05, "training.optimizer.lr": 1.0, "training.epochs": 10**18}
    odd = {"method.chunk_size": None, "training.compile": True, "model": 'a"b\\c\n\x7f\x01é💥'}
    about = {"sweep": "digits [1]", "command": "python\n  sweep.py\x1b x"}
    write_settings(file, Trial(3, values | odd, "0", "finished", (0.9,)), experiment, about)
    found = read_settings(file)
    assert found.values == values | odd
    assert {name: type(value) for name, value in found.values.items()} == {
        name: type(value) for name, value in (values | odd).items()
    }
    assert found.kinds == {
        "method": "EPSD",
        "method.distillation": "CSKDConfig",
        "training": "Training",
        "training.optimizer": "SGD",
    }
    assert file.read_text().splitlines() == [
        "# The best settings of a sweep. Give them to a recipe with --from and this file's name.",
        "# sweep: digits [1]",
        "# command: python sweep.py x",
        "",
        'none = ["method.chunk_size"]',
        "",
        "[kinds]",
        '"method" = "EPSD"',
        '"method.distillation" = "CSKDConfig"',
        '"training" = "Training"',
        '"training.optimizer" = "SGD"',
        "",
        "[values]",
        '"method.sparsity" = 0.30000000000000004',
        '"method.distillation.temperature" = 1e-05',
        '"training.optimizer.lr" = 1.0',
        f'"training.epochs" = {10**18}',
        '"training.compile" = true',
        '"model" = "a\\"b\\\\c\\n\\u007f\\u0001é💥"',
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a = = 1", "is no TOML file"),
        ("\xff", "is no TOML file"),
        ("[values]", r"has no table \[kinds\]"),
        ("kinds = 1\n[values]", r"has no table \[kinds\]"),
        ("[kinds]", r"has no table \[values\]"),
        ("[kinds]\nmethod = 1\n[values]", "the kind of method must be a name in quotes"),
        ("[kinds]\n[values]\nmethod.sparsity = 0.9", "write whole names in quotes"),
        ("[kinds]\n[values]\nx = [1]", r"x must be a number, .* not \[1\]"),
        ("[kinds]\n[values]\nx = 2026-01-01", "x must be a number"),
        ("none = 1\n[kinds]\n[values]", "none must list"),
        ('none = ["x"]\n[kinds]\n[values]\nx = 1', "none must list"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(text: str, error: str, tmp_path: Path):
    file = tmp_path / "best.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"^{file}:? {error}") as refused:
        read_settings(file)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        read_settings(tmp_path / "nowhere.toml")


def test_settings_reach_the_experiment(tmp_path: Path):
    experiment = Experiment(EPSD(KDConfig()))
    values = {"method__sparsity": 0.9, "method__distillation__temperature": 2.5, "training__optimizer__lr": 0.02}
    settings = read_settings(written(tmp_path / "best.toml", experiment, **values))
    assert apply(settings, experiment, tmp_path) == Experiment(
        EPSD(KDConfig(temperature=2.5), sparsity=0.9), training=Training(optimizer=SGD(lr=0.02))
    )


def test_a_whole_number_is_taken_where_a_float_is_due():
    changed = apply(Settings({}, {"training.optimizer.lr": 1}), Experiment(), Path("best.toml"))
    assert changed.training.optimizer == SGD(lr=1.0)
    assert changed.identity == Experiment(training=Training(optimizer=SGD(lr=1.0))).identity


PRUNED = EarlyPruning(criterion=SNIPConfig())


@pytest.mark.parametrize(
    ("found", "name", "here", "error"),
    [
        (
            Experiment(),
            SPARSITY,
            Experiment(PRUNED),
            "EPSD for method, but .* method is EarlyPruning: add --method epsd",
        ),
        (Experiment(), TEMPERATURE, Experiment(PRUNED), "EPSD for method, but .* is EarlyPruning: add --method epsd"),
        (
            Experiment(),
            TEMPERATURE,
            Experiment(EPSD(KDConfig())),
            "CSKDConfig for .* is KDConfig: add --distillation cs_kd",
        ),
        (
            Experiment(EarlyPruning()),
            "method.criterion.steps",
            Experiment(PRUNED),
            "ProsPrConfig for method.criterion, but .* is SNIPConfig: add --criterion prospr",
        ),
        (
            Experiment(),
            "training.optimizer.lr",
            Experiment(training=Training(optimizer=AdamW())),
            "SGD for training.optimizer, but .* is AdamW: add --optimizer sgd",
        ),
        (
            Experiment(training=Training(optimizer=TorchOptimizer("Adam"))),
            "training.optimizer.lr",
            Experiment(training=Training(optimizer=TorchOptimizer("RMSprop"))),
            r"torch\.optim\.Adam for training.optimizer, but .* is torch\.optim\.RMSprop: add --optimizer adam",
        ),
        (
            Experiment(),
            "training.schedule.final",
            Experiment(training=Training(schedule=Linear())),
            "Cosine for training.schedule, but .* is Linear: give the command that the sweep had",
        ),
        (
            Experiment(PDD(gating=Training())),
            "method.gating.epochs",
            Experiment(PDD()),
            "Training for method.gating, and this command's experiment has no method.gating",
        ),
    ],
)
def test_settings_of_something_else_say_the_option(
    found: Experiment, name: str, here: Experiment, error: str, tmp_path: Path
):
    file = tmp_path / "best.toml"
    write_settings(file, Trial(0, {name: 1}, "0"), found, {})
    settings = read_settings(file)
    with pytest.raises(ValueError, match=f"^best.toml has values of {error}") as refused:
        apply(settings, here, Path("best.toml"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("method.sparsty", 0.9, "method.sparsity"),
        ("method.distillation", 0.9, "method.distillation"),
        (SPARSITY, 1.5, "sparsity"),
        (SPARSITY, "high", "method.sparsity cannot be 'high': its type is float"),
        (SPARSITY, None, "method.sparsity cannot be None: its type is float"),
        (SPARSITY, True, "method.sparsity cannot be True: its type is float"),
        ("training.epochs", 1.5, "training.epochs cannot be 1.5: its type is int"),
        ("method.chunk_size", "x", "method.chunk_size cannot be 'x': its type is int or None"),
        ("training.precision", "float8", "training.precision cannot be 'float8': its type is one of auto, float32"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_file(name: str, value: Any, error: str):
    with pytest.raises(ValueError, match=rf"^best\.toml: .*{error}") as refused:
        apply(Settings({}, {name: value}), Experiment(), Path("best.toml"))
    assert "\n" not in str(refused.value)


def test_from_gives_defaults_and_options_override_them(tmp_path: Path):
    file = written(tmp_path / "best.toml", digits_epsd(), method__sparsity=0.8, training__optimizer__lr=0.02)
    command = cli.parse(digits_epsd, ["--from", str(file)])
    assert command.experiment == apply(read_settings(file), digits_epsd(), file)
    assert command.experiment.identity != digits_epsd().identity
    over = cli.parse(digits_epsd, ["--method.sparsity", "0.9", f"--from={file}", "--seed", "2"]).experiment
    assert (over.sparsity, over.training.optimizer, over.seed) == (0.9, SGD(lr=0.02), 2)
    with pytest.raises(ValueError, match=r"best\.toml has values of EPSD for method, but .*: add --method epsd"):
        cli.parse(digits_epsd, ["--from", str(file), "--method", "early_pruning"])


def test_teachers_follow_the_trainings_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["--distillation", "kd", "--teacher", "resnet32"]
    own = cli.parse(digits_epsd, argv).experiment
    file = written(tmp_path / "best.toml", own, training__epochs=4)
    student = cli.parse(digits_epsd, [*argv, "--from", str(file)]).experiment
    assert student.method.objective.teacher.training == student.training == Training(4, 128, SGD(0.1))
    assert capsys.readouterr().err == ""
    later = cli.parse(digits_epsd, [*argv, "--from", str(file), "--training.batch-size", "32"]).experiment
    assert later.method.objective.teacher.training == later.training == Training(4, 32, SGD(0.1))
    pdd = written(tmp_path / "pdd.toml", cifar10_pdd(), training__epochs=4)
    assert cli.parse(cifar10_pdd, ["--from", str(pdd)]).experiment.training.epochs == 4
    assert "the teacher keeps its own training (200 epochs)" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "x = 1"])
def test_from_a_file_that_is_none_ends_with_one_line(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "best.toml"
    if content:
        file.write_text(content)
    assert cli.main(digits_epsd, ["--from", str(file)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(file) in line


def test_the_short_help_has_from(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.parse(digits_epsd, ["--help"])
    assert "--from FILE               best.toml of a sweep: its values become defaults" in capsys.readouterr().out
