"""Run a suite, a table of the papers, and make its table: what is done already is not run again.

python benchmarks/suite.py NAME [--reduced] [--only LABEL ...] [--max-minutes M] [--storage DIR] [--data.root DIR]

Rows of results/runs.parquet with the same identity and the same content of the data count as done. A command that was
stopped or killed goes on when it is started again. --import takes over the finished runs of another storage.
"""

import argparse
import fnmatch
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Drawing
from rich.text import Text

from benchmarks import collect, tables, takeover
from benchmarks.done import Done, as_rows, find, of_line, seconds_left
from benchmarks.rows import build
from benchmarks.suites import SUITES, TABLES, Suite, experiments, table_of
from cluster.atomic import write_atomically
from cluster.checkpoints import open_storage
from cluster.environment import installed
from cluster.exit import exit_process
from cluster.stopping import StopSignal, listening, stop_on_sigterm
from compression.choose import choose
from pipelines.cli import report
from pipelines.driver import STOPPED_STATUS, check_storage_outlives_job, run_experiments
from pipelines.experiment import Experiment, Placement
from pipelines.progress import complain, duration, refusing, say

SECONDS_BETWEEN_LOOKS = 0.5
"""At the clock, and whether the driver listens to signals."""

REDUCED_ONLY = ("model", "epochs", "precision")


@refusing(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """The exit status. 0: done, or the time is up; 1: runs failed, or were refused; 2: the command is wrong; 130:
    stopped by Ctrl-C, 143: by SIGTERM.
    """
    options, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    whole, placement, console = read_suite(options, rest), read_placement(options), Console()
    suite = only(whole, options.only) if options.only else whole
    check_storage_outlives_job(placement.storage)
    storage = open_storage(placement.storage)
    status = takeover.take_over(suite, options.taken, storage, console) if options.taken else 0
    runs = experiments(suite)
    done = find(runs, storage, options.runs)
    show(suite, done, console)
    if options.dry_run:
        return status
    todo = [each for each in runs if each.identity not in done.elsewhere]
    if options.taken:
        todo = [each for each in todo if each.identity in done.here]
    try:
        status = max(status, run(todo, placement, suite, options.max_minutes, console))
    except KeyboardInterrupt:
        complain("stopped; start the same command again to go on")
        return 130
    make_table(whole, done, placement, storage, options.track, console)
    left = find(runs, storage, options.runs).missing(runs)
    say(console, f"{len(runs) - len(left)} of {len(runs)} runs are done" + ("" if left else ": the suite is complete"))
    if left:
        say(
            console,
            "start the same command again to go on" if not options.taken else "start it without --import to go on",
        )
    return status


def read_suite(options: argparse.Namespace, rest: Sequence[str]) -> Suite:
    """The suite that a command line asks for, with all its rows. ValueError: a name or option that there is not."""
    make, places = choose("suite", options.name, SUITES), data_options(rest)
    for name in (*REDUCED_ONLY, "sparsities"):
        value = getattr(options, name)
        if value is not None:
            if name in REDUCED_ONLY and not options.reduced:
                raise ValueError(f"--{name} changes what the papers' recipes say: it needs --reduced")
            places[name] = tuple(value) if isinstance(value, list) else value
    suite = make(reduced=options.reduced, **places)
    if options.seeds:
        suite = replace(suite, seeds=tuple(dict.fromkeys(options.seeds)))
    return suite


def only(suite: Suite, patterns: Sequence[str]) -> Suite:
    """The lines whose labels are given, or fit a pattern with *. ValueError: nothing fits one of them."""
    labels = [line.label for line in suite.lines]
    chosen = {pattern: {label for label in labels if fnmatch.fnmatchcase(label, pattern)} for pattern in patterns}
    for pattern, found in chosen.items():
        if not found:
            choose("row (quote it, or use * for any text)", pattern, dict.fromkeys(labels))
    kept = set().union(*chosen.values())
    return replace(suite, lines=tuple(line for line in suite.lines if line.label in kept))


def data_options(words: Sequence[str]) -> dict[str, Any]:
    """`--data.root DIR`, `--data.image-size 16` and the like, as values of the data's fields."""
    found: dict[str, Any] = {}
    waiting = [part for word in words for part in (word.split("=", 1) if word.startswith("--data.") else [word])]
    while waiting:
        name = waiting.pop(0)
        if not name.startswith("--data."):
            raise ValueError(f"there is no option {name}; --help shows them, and options of the data are --data.NAME")
        value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        field = name.removeprefix("--data.").replace("-", "_")
        if field == "root":
            found[field] = str(Path(value).absolute())
        else:
            found[field] = json.loads(value) if re.fullmatch(r"true|false|\d+(\.\d+)?", value) else value
    return found


def read_placement(options: argparse.Namespace) -> Placement:
    given = {name: getattr(options, name) for name in ("workers", "launcher", "storage", "tracking_uri")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Placement(parallel=options.parallel, threads=options.threads, **chosen)


def show(suite: Suite, done: Done, console: Console) -> None:
    """What there is to do: rows, runs, where those are that are done, and how long the others take."""
    runs, per_line = experiments(suite), seconds_left(suite, done)
    missing, teachers = done.missing(runs), done.teachers(runs)
    say(console, f"{suite.title}. {suite.question}")
    drawing = Drawing("row", "runs", "in the storage", "in results", "to run", "time")
    for line, left, seconds in per_line:
        own = [each.identity for each in of_line(suite, line)]
        here, there = (sum(name in where for name in own) for where in (done.here, done.elsewhere))
        counts = map(str, (len(own), here, there, len(left)))
        drawing.add_row(Text(line.label), *counts, "unknown" if seconds is None else duration(seconds))
    console.print(drawing)
    finished = len(runs) - len(missing)
    say(console, f"{len(suite.lines)} rows, {len(runs)} runs: {finished} done, {len(missing)} to run")
    if teachers:
        say(console, f"and {len(teachers)} teachers: {'; '.join(each.name for each in teachers)}")
    known = sum(seconds or 0.0 for _, _, seconds in per_line)
    unknown = sum(seconds is None for _, _, seconds in per_line)
    if missing:
        texts = [f"{duration(known)}, one after the other, as long as the row's done runs took"] if known else []
        texts += [f"unknown for {unknown} rows: python benchmarks/plan.py {suite.recipe} --help"] if unknown else []
        say(console, f"time: {'; '.join([*texts, *(['without the teachers'] if teachers else [])])}")
    for note in done.notes:
        say(console, note, "yellow")


def run(todo: Sequence[Experiment], placement: Placement, suite: Suite, minutes: float | None, console: Console) -> int:
    """Run what is not finished, row by row, and bring MLflow up to date; the exit status."""
    if not todo:
        return 0
    with stopping_after(minutes) as time_is_up:
        try:
            ended = run_experiments(todo, placement, suite.name, suite.name, console)
        except SystemExit as stopped:
            if stopped.code != STOPPED_STATUS or not time_is_up.is_set():
                raise
            say(console, f"{minutes:g} minutes are over: what was running is saved")
            return 0
    return report(ended, console)


@contextmanager
def stopping_after(minutes: float | None) -> Iterator[threading.Event]:
    """Sends SIGTERM to this process after so many minutes, as soon as the driver listens; the event tells it.

    SIGTERM from outside counts in the block as everywhere else: what comes before the driver listens is passed on.
    """
    time_is_up, ended = threading.Event(), threading.Event()
    if minutes is None:
        yield time_is_up
        return

    def ring(asked: StopSignal) -> None:
        end = time.monotonic() + minutes * 60
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            due = asked.stop_requested or time.monotonic() >= end
            # Nobody else is told: Ray's own handler, before and after the driver's, would end the process at once.
            if due and listening() not in (None, asked):
                if not asked.stop_requested:
                    time_is_up.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    with stop_on_sigterm() as asked:
        bell = threading.Thread(target=ring, args=(asked,), daemon=True)
        bell.start()
        try:
            yield time_is_up
        finally:
            ended.set()
            bell.join()


def make_table(suite: Suite, done: Done, placement: Placement, storage: Path, track: bool, console: Console) -> None:
    """Collect the runs from MLflow and results/, write the table and print it.

    In results/ the table is the registered one, so that `tables.py --check` makes it again. Elsewhere its lines are
    those of this command, whose epochs, network or sparsities may be others.
    """
    if not (installed("mlflow") and installed("pyarrow")):
        say(console, "no table: it names runs of MLflow, and MLflow or pyarrow is not installed", "yellow")
        return
    place = tables.RESULTS if track else storage
    uri = placement.tracking_uri or f"sqlite:///{storage}/mlflow.db"
    parquet, known = place / "runs.parquet", as_rows(suite, done)
    if known:
        collect.add(parquet, known)
    store = collect.tracker(uri) if placement.tracking_uri or (storage / "mlflow.db").exists() else None
    if store is not None and suite.name in store.suites() and collect.finished(store, suite.name):
        collect.collect(uri, suite.name, parquet)
    elif not known:
        say(console, "no table yet: no run is finished")
        return
    table = TABLES[suite.name]
    if table.lines and not track:
        table = table_of(suite)
    rows = build(table, collect.read_runs(parquet))
    source = "results/runs.parquet" if track else str(parquet)
    files = tables.files_of(suite.name, table, rows, source, place / "tables", place / "figures")
    for path, text in files.items():
        write_atomically(path, text.encode())
    tables.show(table, rows, files[place / "tables" / f"{suite.name}.md"])


def _parser() -> argparse.ArgumentParser:
    suites = "\n".join(f"  {name:20}  {(make.__doc__ or '').splitlines()[0]}" for name, make in SUITES.items())
    how = {"epilog": f"suites:\n{suites}", "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("suite.py", description=__doc__, allow_abbrev=False, **how)
    parser.add_argument("name", metavar="NAME", help="of a suite")
    parser.add_argument("--reduced", action="store_true", help="small images and few epochs: minutes instead of days")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="rows to run, by their labels or patterns with *")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the suite's own")
    parser.add_argument("--sparsities", type=float, nargs="+", help="in place of the suite's own (EPSD's suites)")
    parser.add_argument("--model", help="with --reduced: the network (resnet20)")
    parser.add_argument("--epochs", type=int, help="with --reduced: of each training")
    parser.add_argument("--precision", help="with --reduced: float32, bfloat16 or auto")
    parser.add_argument("--max-minutes", type=float, metavar="M", help="then save what is running, and end")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="runs side by side")
    parser.add_argument("--workers", type=int, help="that train one run together")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--launcher", choices=["local", "ray"], help="local; in a Ray job ray")
    parser.add_argument("--storage", metavar="DIR", help="folder of everything of every run (or ORCHARD_STORAGE)")
    parser.add_argument("--tracking-uri", metavar="URI", help="of MLflow (or MLFLOW_TRACKING_URI)")
    parser.add_argument("--runs", type=Path, default=tables.RESULTS / "runs.parquet", help="rows that count as done")
    parser.add_argument(
        "--import", dest="taken", type=Path, metavar="DIR", help="take over the finished runs of a storage"
    )
    parser.add_argument("--track", action="store_true", help="write the table to results/, not to the storage")
    parser.add_argument("--dry-run", action="store_true", help="only show what there is to do")
    return parser


if __name__ == "__main__":
    exit_process(main())
