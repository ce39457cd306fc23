"""Does a plan come true? Predictions beside what really happens, on one worker and on two of this machine.

python -m benchmarks.planning.check [--json] [--model NAME] [--batch-size B] [--rounds R] [--steps K]

two workers: two processes take turns, round by round, between steps of their own (each with half of the batch, at the
same time as the other, so that each sees the machine as it is when two work) and the steps of one training that they
share. The first, before and after, and an all-reduce of as many bytes give the prediction for the second.

one worker: the recipe digits_epsd with few epochs is planned, run by its own code, and planned again; the mean of both
plans is compared with the seconds that the run's result.json has of its stages.

Ratios are predicted / measured, of the same round; docs/scaling.md has them as a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from benchmarks.planning.data import Counts, find
from benchmarks.planning.links import SMALL_BYTES, link_of, reduce_seconds
from benchmarks.planning.measure import run_steps
from benchmarks.planning.meter import Meter, Setting, gradient_bytes
from benchmarks.planning.model import Measured, Place, Stage, Train, all_reduce_seconds, predict, step_span
from benchmarks.planning.rehearsal import Part, Theatre, placed
from benchmarks.timing import noise_floor
from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Worker
from compression import models
from compression.methods import Dense
from compression.objectives import CrossEntropy
from pipelines.data.config import CIFAR10
from pipelines.data.loader import Loader
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.recipes import digits_epsd

EPOCHS = 6
"""Of the small run: the shortest in which its steps are most of it."""


@dataclass(frozen=True)
class Case:
    """What is checked on two workers: the global batch, how many rounds, and how many steps in each."""

    model: str
    batch_size: int
    rounds: int
    steps: int
    folder: str


@dataclass(frozen=True)
class Round:
    """Seconds, as the slower of the two workers had them: of a step alone with half of the batch, and together.

    again: alone, once more, after together. small, large: of an all-reduce of SMALL_BYTES, and of all gradients.
    """

    alone: float
    again: float
    together: float
    small: float
    large: float


def two_workers(case: Case) -> dict[str, Any]:
    """{"low", "high": medians of predicted / measured; "noise": of two equal things in a round, ...}."""
    group = Group(storage=case.folder, workers=2)
    [outcome] = launch(take_turns, [case], group, lambda number, event: None)
    if outcome.error is not None:
        raise ValueError(f"the workers failed: {outcome.error}\n{outcome.traceback}")
    rounds: list[Round] = outcome.value["rounds"]
    return {"check": "two workers", **dataclasses.asdict(case), **compared(rounds, outcome.value["gradient_bytes"])}


def compared(rounds: Sequence[Round], num_bytes: int) -> dict[str, Any]:
    """Each round's step beside its prediction by the round's own steps alone, and by all rounds' all-reduce.

    An all-reduce is short, and what disturbs it is not: one round's says little.
    noise: how far the median of steps alone by steps alone, before and after those together, may lie from 1.
    """
    small, large = (statistics.median(getattr(found, name) for found in rounds) for name in ("small", "large"))
    reduce = all_reduce_seconds(num_bytes, 2, link_of(SMALL_BYTES, small, num_bytes, large))
    alone = [(found.alone + found.again) / 2 for found in rounds]
    spans = [step_span(seconds, reduce, 0.0)[0] for seconds in alone]
    low = [span.low / found.together for span, found in zip(spans, rounds, strict=True)]
    high = [(seconds + reduce) / found.together for seconds, found in zip(alone, rounds, strict=True)]
    return {
        "low": statistics.median(low),
        "high": statistics.median(high),
        "communication": reduce / statistics.median(alone),
        "noise": noise_floor([found.alone / found.again for found in rounds]),
    }


def take_turns(case: Case, worker: Worker) -> dict[str, Any]:
    """Body: rounds of steps alone, of the all-reduce, and of steps together."""
    part = _part(case, worker.device)
    own = dataclasses.replace(worker, rank=0, world_size=1, control=None, emit=lambda event: None)
    quiet = dataclasses.replace(worker, emit=lambda event: None)
    num_bytes, rounds = gradient_bytes(part.model), []
    for number in range(case.rounds + 1):  # the first is a warm-up
        dist.barrier()
        alone = _steps(part, case, case.batch_size // 2, own, f"{number}-alone-{worker.rank}")
        dist.barrier()
        small, large = reduce_seconds((SMALL_BYTES, num_bytes), worker)
        together = _steps(part, case, case.batch_size, quiet, f"{number}-together")
        dist.barrier()
        again = _steps(part, case, case.batch_size // 2, own, f"{number}-again-{worker.rank}")
        slower = torch.tensor([alone, again, together, small, large], dtype=torch.float64, device=worker.device)
        dist.all_reduce(slower, op=dist.ReduceOp.MAX)
        rounds.append(Round(*slower.tolist()))
    return {"rounds": rounds[1:], "gradient_bytes": num_bytes}


def _steps(part: Part, case: Case, batch: int, worker: Worker, name: str) -> float:
    """Seconds of a step; the epoch before the one that counts is a warm-up."""
    return run_steps(part, batch, 32, case.steps, 2, worker, Path(case.folder) / name)[-1][0]


def _part(case: Case, device: torch.device) -> Part:
    settings = Training(batch_size=case.batch_size)
    data = CIFAR10()
    found = find(data, device, torch.float32, 0, Counts(10, 50_000, 10_000))
    assert found.in_step
    info = Loader(found.opened, 0.0, 0).info
    model = placed(models.build(case.model, 10), settings, device)
    return Part(
        Experiment(Dense(), case.model, data, settings),
        "train",
        model,
        CrossEntropy(),
        None,
        settings,
        {32: settings.epochs},
        10,
        info,
        found,
    )


def one_worker(folder: Path, seconds: float = 4.0) -> list[dict[str, Any]]:
    """{"stage", "ratio": predicted / measured seconds} of the small run's stages, and of both together."""
    experiment = digits_epsd()
    experiment = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, epochs=EPOCHS))
    plans = [planned(experiment, folder / "before", seconds)]
    work = Work(experiment, Placement(storage=str(folder)), folder, {})
    [outcome] = launch(execute, [work], Group(storage=str(folder)), lambda number, event: None)
    if outcome.error is not None:
        raise ValueError(f"the run failed: {outcome.error}\n{outcome.traceback}")
    plans.append(planned(experiment, folder / "after", seconds))
    took = {stage: outcome.value["metrics"][f"cost/{stage}_seconds"] for stage in ("score", "train")}
    predicted = {stage: statistics.mean(plan[stage] for plan in plans) for stage in took}
    apart = max(plans[0]["train"], plans[1]["train"]) / min(plans[0]["train"], plans[1]["train"]) - 1
    rows = [(stage, predicted[stage] / took[stage]) for stage in took]
    rows.append(("score and train", sum(predicted.values()) / sum(took.values())))
    return [{"check": "one worker", "stage": stage, "ratio": ratio, "noise": apart} for stage, ratio in rows]


def planned(experiment: Experiment, folder: Path, seconds: float) -> dict[str, float]:
    """Stage -> seconds on one worker of this machine."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    meter = Meter(Setting((1,), None, seconds, False, device, folder), Measured("here"), False, lambda text: None)
    Theatre(meter, lambda data: find(data, device, torch.float32, 0, None), device).rehearse(experiment)
    place = Place(1, 1, None)
    acts = [act for act in meter.acts if isinstance(act, (Stage, Train))]
    return {act.stage: predict(act, place, meter.measured)[0].low for act in acts}


def main(argv: Sequence[str] | None = None) -> int:
    """0 when checked, 2 for what the user has to correct."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--model", default="resnet20", help="of the two workers' training, at 32 pixels")
    parser.add_argument("--batch-size", type=int, default=64, help="of both together")
    parser.add_argument("--rounds", type=int, default=15, help="timed, of the two workers")
    parser.add_argument("--steps", type=int, default=4, help="in each part of a round")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        if options.batch_size % 2 or min(options.batch_size, options.rounds - 1, options.steps) < 1:
            raise ValueError("--batch-size must be even, --rounds 2 or more, --steps 1 or more")
        with tempfile.TemporaryDirectory() as folder:
            case = Case(options.model, options.batch_size, options.rounds, options.steps, folder)
            rows = [two_workers(case), *one_worker(Path(folder) / "run")]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        show(rows, Console())
    return 0


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """A table for readers."""
    table = Table("checked", title="predicted / measured")
    for heading in ("low", "high", "all-reduce / step alone", "noise"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row["check"] == "two workers":
            name = f"step of {row['model']}, batch {row['batch_size']}, 2 workers"
            table.add_row(name, *(f"{row[key]:.3f}" for key in ("low", "high", "communication", "noise")))
        else:
            table.add_row(f"{row['stage']}, 1 worker", *[f"{row['ratio']:.3f}"] * 2, "", f"{row['noise']:.3f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
