"""The driver's display: on a terminal one live table, elsewhere plain lines."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines import progress
from pipelines.progress import Progress
from tests.terminal import run_in_terminal, screen

NAMES = ["EPSD (CS-KD) at 0.95, resnet20 on digits, seed 0", "dense, resnet20 on digits, seed 1"]

Event = dict[str, Any]

STAMP = len("2026-01-31 23:59:59  ")
"""Of each line that is not on a terminal."""


def training(epoch: int, step: int = 10, accuracy: float | None = None, stage: str = "train", loss: float = 1.5):
    """An event of ten epochs of ten steps."""
    return {
        "kind": "progress" if accuracy is None else "epoch",
        "stage": stage,
        "epoch": epoch,
        "num_epochs": 10,
        "step": step,
        "steps_per_epoch": 10,
        "loss": loss,
        "metrics": {} if accuracy is None else {"val/accuracy": accuracy, "train/loss": loss},
    }


RUN: list[tuple[int, Event]] = [
    (0, {"kind": "waiting", "text": "waiting for process 7, which holds the lock"}),
    (0, {"kind": "stage", "stage": "score"}),
    (1, training(1, 5)),
    (0, training(1, accuracy=0.25, loss=2.3456)),
    (1, {"kind": "failed", "error": "ValueError: [batch_size] is 5000"}),
    (0, training(2, accuracy=0.5)),
    (0, {"kind": "stage", "stage": "test"}),
    (0, {"kind": "finished", "accuracy": 0.975}),
]


def test_logs_of_the_cluster_package_are_shown_during_runs() -> None:
    console = Console(file=io.StringIO(), width=80)
    logger = logging.getLogger("cluster.ray.monitor")
    logger.info("before")
    with Progress(["dense"], console):
        logger.info("worker %d is on %s", 1, "[10.0.0.2]")
        logger.debug("not for people")
    logger.info("after")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue()[STAMP:] == "worker 1 is on [10.0.0.2]\n"


DRIVER = f"""
import time
from pipelines.progress import Progress
with Progress({NAMES!r}) as progress:
    for number, event in {RUN!r}:
        progress(number, event)
        time.sleep(0.3)
print("the report")
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.monotonic` returns in the display, in a list."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    return now


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE")}


def plain(names: list[str] = NAMES) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(names, Console(file=out, width=200)), out


def drawn(display: Progress, width: int = 120, height: int = 40) -> str:
    """The table as text, on a console of this size."""
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    display.console = console
    console.print(display.table())
    return console.export_text()


def test_on_a_terminal_there_is_one_live_table(tmp_path: Path):
    status, output = run_in_terminal([sys.executable, "-c", DRIVER], tmp_path, environment())
    assert status == 0
    shown = screen(output)
    [header] = [number for number, line in enumerate(shown) if line.startswith("experiment")]
    assert shown[header].split() == ["experiment", "stage", "epoch", "loss", "accuracy", "ETA"]
    first, second = shown[header + 1], shown[header + 2]
    assert first.split("  ")[0] == NAMES[0]
    assert "finished   2/10  ━━━━━━━━━━━━━━  1.5000  97.50% test" in first
    assert second.split("  ")[0] == NAMES[1]
    assert "failed     1/10  " in second
    # Lines that the table does not show stay above it.
    above = "\n".join(shown[:header])
    assert "waiting for process 7" in above
    assert "ValueError" not in output, "the report names the error"
    assert "epoch" not in above
    assert shown[header + 3 :] == ["the report", ""]


def test_on_a_terminal_the_table_is_live(tmp_path: Path):
    _, output = run_in_terminal([sys.executable, "-c", DRIVER], tmp_path, environment())
    frames = output.split("experiment")
    assert len(frames) > 4, "redrawn many times"
    assert any("score" in frame for frame in frames)
    assert any("25.00% val" in frame for frame in frames)
    assert "\x1b[1A" in output
    assert "\x1b[32mfinished" in output
    assert "\x1b[31mfailed" in output
    assert output.index("\x1b[?25l") < output.rindex("\x1b[?25h"), "the cursor is back"


def test_a_pipe_gets_plain_lines(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout
    epsd, dense = NAMES
    *timed, last = done.stdout.splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S.*", line) for line in timed)
    lines = [*(line[STAMP:] for line in timed), last]
    eta = lines[4].removeprefix(f"{epsd}: train epoch 2/10, loss 1.5000, accuracy 50.00% val, ")
    assert lines == [
        f"{epsd}: waiting for process 7, which holds the lock",
        f"{epsd}: score",
        f"{dense}: train epoch 1/10, step 5/10, loss 1.5000",
        f"{epsd}: train epoch 1/10, loss 2.3456, accuracy 25.00% val",
        f"{epsd}: train epoch 2/10, loss 1.5000, accuracy 50.00% val, {eta}",
        f"{epsd}: test",
        f"{epsd}: finished, test accuracy 97.50%",
        "the report",
    ]
    minutes, seconds = eta.removesuffix(" to go").split(":")
    assert 4 <= 60 * int(minutes) + int(seconds) <= 40, "a tenth took about 0.6 s, eight tenths are left"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    display = Progress(NAMES, Console(file=out, force_terminal=True, width=200))
    with display:
        display(0, {"kind": "stage", "stage": "score"})
    assert out.getvalue()[STAMP:] == f"{NAMES[0]}: score\n"


def test_the_report_alone_shows_the_failure_of_a_single_experiment():
    out = io.StringIO()
    with Progress(NAMES[:1], Console(file=out, force_terminal=True, width=200)) as display:
        display(0, {"kind": "failed", "error": "ValueError: x"})
    assert "ValueError" not in out.getvalue()
    assert "failed" in out.getvalue()


def test_the_time_left_follows_from_the_speed_of_this_process(clock: list[float]):
    display, out = plain()
    row = display.rows[0]
    display(0, training(3, accuracy=0.1))  # a resumed run: the first three epochs took no time here
    assert row.eta() == ""
    clock[0] += 60
    display(0, training(4, accuracy=0.2))
    assert row.eta() == "6:00"
    assert out.getvalue().endswith("accuracy 20.00% val, 6:00 to go\n")
    clock[0] += 15
    assert row.eta() == "5:45", "it counts down between events"
    clock[0] += 3600
    assert row.eta() == "0:00"
    display(0, training(10, accuracy=0.2))
    assert row.eta() == ""


def test_inside_a_long_epoch_there_is_a_line_now_and_then(clock: list[float]):
    display, out = plain()
    for step in range(1, 8):
        display(0, training(1, step))
        clock[0] += 4
    steps = [line.partition("step ")[2].partition("/")[0] for line in out.getvalue().splitlines()]
    assert steps == ["1", "4", "7"], "at most one in ten seconds"
    display(0, training(1, accuracy=0.5))
    assert "epoch 1/10, loss" in out.getvalue(), "the end of an epoch is always shown"


def test_a_report_without_losses_keeps_the_last_one(clock: list[float]):
    display, out = plain()
    display(0, {**training(1, 1), "loss": None})
    assert out.getvalue().endswith("train epoch 1/10, step 1/10\n")
    display(0, training(1, 2, loss=0.75))
    clock[0] += 11
    display(0, {**training(1, 3), "loss": None})
    assert ", step 3/10, loss 0.7500" in out.getvalue()


def test_long_times_have_hours(clock: list[float]):
    display, _ = plain()
    display(0, training(1, 1))
    clock[0] += 100
    display(0, training(1, 2))
    assert display.rows[0].eta() == "2:43:20"


def test_each_training_has_its_own_clock(clock: list[float]):
    display, _ = plain()
    row = display.rows[0]
    display(0, training(1, stage="teacher"))
    clock[0] += 9
    display(0, training(10, stage="teacher"))
    clock[0] += 500
    display(0, training(1, stage="student"))
    assert row.eta() == ""
    clock[0] += 2
    display(0, training(2, stage="student"))
    assert row.eta() == "0:16"


@pytest.mark.parametrize("end", [{"kind": "failed", "error": "x"}, {"kind": "finished", "accuracy": 1.0}], ids=str)
def test_an_ended_experiment_has_no_time_left(end: Event, clock: list[float]):
    display, _ = plain()
    display(0, training(1))
    clock[0] += 1
    display(0, training(2))
    assert display.rows[0].eta() == "0:08"
    display(0, end)
    assert display.rows[0].eta() == ""


def test_a_row_without_validation_has_no_accuracy():
    display, out = plain()
    event = training(1, accuracy=0.1)
    event["metrics"] = {"train/loss": 1.5}
    display(0, event)
    assert out.getvalue()[STAMP:] == f"{NAMES[0]}: train epoch 1/10, loss 1.5000\n"


def test_the_bar_shows_the_share_done():
    display, _ = plain()
    for number, event in ((0, training(5, 10)), (1, {"kind": "stage", "stage": "score"})):
        display(number, event)
    bar, pulse = (row.cells()[""] for row in display.rows)
    assert isinstance(bar, progress.ProgressBar)
    assert (bar.completed, bar.total) == (0.5, 1.0)
    assert isinstance(pulse, progress.ProgressBar)
    assert pulse.total is None, "it pulses while nothing is known"


@pytest.mark.parametrize("width", [1, 8, 20, 40, 60, 79, 80, 100, 120, 300])
def test_every_width_can_be_drawn(width: int):
    display, _ = plain()
    for number, event in RUN:
        display(number, event)
    lines = drawn(display, width).splitlines()
    assert max(map(len, lines)) <= width
    if width >= 20:
        text = "".join(lines).replace(" ", "")
        assert "finished" in text
        assert "failed" in text
    assert ("━" in "".join(lines)) == (width >= 79), "the name is more important than the bar"
    if width >= 60:
        assert "97.50% test" in "\n".join(lines)


def test_names_are_text_not_markup():
    display, out = plain(["digits[/red] [bold]x"])
    display(0, {"kind": "stage", "stage": "score"})
    assert out.getvalue()[STAMP:] == "digits[/red] [bold]x: score\n"
    assert "digits[/red] [bold]x" in drawn(display)


def test_a_short_terminal_shows_running_experiments_and_counts_the_others():
    names = [f"experiment number {number}" for number in range(30)]
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=8)
    display = Progress(names, console)
    for number in range(10):
        display(number, {"kind": "finished", "accuracy": 0.9})
    for number in (17, 25):
        display(number, training(2))
    with display:
        text = drawn(display, height=8)
        assert len(text.splitlines()) <= 8
        assert names[17] in text
        assert names[25] in text
        assert "and 7 finished, 18 waiting" in text
    display.console = console
    text = drawn(display, height=8)
    assert all(name in text for name in names), "the final table has all experiments"


def test_an_error_ends_the_display():
    out = io.StringIO()

    def interrupted() -> None:
        with Progress(NAMES, Console(file=out, force_terminal=True)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.getvalue().endswith("\x1b[?25h"), "the cursor is back"
