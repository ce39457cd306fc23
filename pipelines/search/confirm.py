"""Confirm: the best settings of a sweep over fresh seeds. Only here the test split is looked at."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from cluster.records import write_record
from pipelines.driver import IN_RAY_JOB, Ended, run_experiments
from pipelines.progress import complain, say
from pipelines.search import spaces
from pipelines.search.sweep import Place, Swept
from pipelines.search.trial import Trial
from pipelines.search.words import settings_text


def confirm(swept: Swept, seeds: Sequence[int], whole_front: bool, place: Place, console: Console) -> int:
    """Run the best trial's settings, or those of the whole Pareto front, with each seed; 1 if a run failed, else 0.

    Prints mean and standard deviation of the test accuracy, and writes confirmed.json.
    """
    if not seeds:
        return 0
    chosen = swept.best if whole_front else [swept.first]
    base = swept.plan.experiment
    experiments = [replace(spaces.at(base, trial.point), seed=seed) for trial in chosen for seed in seeds]
    say(console, f"confirming {len(chosen)} setting{'s' * (len(chosen) > 1)} with seeds {' '.join(map(str, seeds))}")
    placement = place.placement
    if (placement.workers or 1) == 1:
        local = place.parallel or torch.cuda.device_count() or os.cpu_count() or 1
        workers = 1 if IN_RAY_JOB in os.environ else 0
        placement = replace(placement, workers=workers, parallel=min(local, len(experiments)))
    ended = run_experiments(experiments, placement, place.suite, place.recipe, console)
    groups = list(zip(chosen, _pieces(ended, len(seeds)), strict=True))
    console.print(_table(groups))
    rows = [_row(trial, ends) for trial, ends in groups]
    write_record(swept.folder / "confirmed.json", {"sweep": swept.folder.name, "confirmed": rows})
    failed = [end for end in ended if end.error is not None]
    for end in failed:
        complain(f"failed: {end.experiment.name}: {end.error}")
    return 1 if failed else 0


def _pieces(ended: Sequence[Ended], size: int) -> list[Sequence[Ended]]:
    return [ended[start : start + size] for start in range(0, len(ended), size)]


def _accuracies(ends: Sequence[Ended]) -> list[float]:
    return [end.result["metrics"]["test/accuracy"] for end in ends if end.result is not None]


def _row(trial: Trial, ends: Sequence[Ended]) -> dict[str, object]:
    runs = [
        {"identity": end.experiment.identity, "seed": end.experiment.seed, "test_accuracy": accuracy}
        for end, accuracy in zip((end for end in ends if end.result is not None), _accuracies(ends), strict=True)
    ]
    return {"trial": trial.number, "settings": dict(trial.point), "runs": runs}


def _table(groups: Sequence[tuple[Trial, Sequence[Ended]]]) -> Table:
    table = Table("trial", "settings", "test accuracy", "n", box=None, pad_edge=False)
    for trial, ends in groups:
        found = _accuracies(ends)
        text = f"{statistics.mean(found):.2%}" if found else "-"
        if len(found) > 1:
            text += f" ± {statistics.stdev(found):.2%}"
        table.add_row(str(trial.number), settings_text(trial.point), text, str(len(found)))
    return table
