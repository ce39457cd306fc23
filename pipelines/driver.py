"""The driver: from a list of experiments to finished, tracked runs."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.checkpoints import open_storage, write_atomically
from cluster.launch import Group, launch
from cluster.strategy import strategy as make_strategy
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement
from pipelines.folder import RunFolder
from pipelines.progress import Progress
from pipelines.publish import Publisher
from pipelines.teachers import closure


@dataclass(frozen=True)
class Ended:
    """How one experiment came out."""

    experiment: Experiment
    folder: Path
    result: dict[str, Any] | None = None
    error: str | None = None
    run_id: str | None = None
    """of MLflow"""
    before: bool = False
    """it had been finished before"""


def run_experiments(
    experiments: Sequence[Experiment],
    placement: Placement,
    suite: str,
    recipe: str,
    console: Console | None = None,
) -> list[Ended]:
    """Run what is not finished yet, bring MLflow level with the storage, and say how each experiment came out.

    suite: the MLflow experiment. recipe: the name under which somebody would start this again.
    """
    console = console or Console()
    storage = open_storage(placement.storage)
    placement, group = resolve(placement, storage)
    tags = {"recipe": recipe, "suite": suite, **provenance()}
    folders = [RunFolder(storage, experiment.identity) for experiment in experiments]
    results: list[dict[str, Any] | None] = [folder.read_result() for folder in folders]
    errors: list[str | None] = [None] * len(experiments)
    before = [result is not None for result in results]
    for experiment, done in zip(experiments, before, strict=True):
        if done:
            console.print(f"finished before: {experiment.name}", soft_wrap=True, highlight=False, markup=False)

    publisher = Publisher(placement.tracking_uri or f"sqlite:///{storage}/mlflow.db", storage, suite, console)
    todo = [number for number, done in enumerate(before) if not done]
    if todo:
        publisher.connect()
        work = [Work(experiments[number], placement, storage, tags) for number in todo]
        # Of a run whose driver died MLflow may know less than the storage.
        for number in todo:
            if folders[number].read_description() is not None:
                publisher.publish(folders[number], "RUNNING")
        with Progress([experiments[number].name for number in todo], console) as progress:

            def on_event(index: int, event: dict[str, Any]) -> None:
                progress(index, event)
                if event["kind"] == "epoch":
                    own = folders[todo[index]]
                    for folder in (own, *closure(own, lambda name: RunFolder(storage, name))):
                        publisher.publish_now_and_then(folder)

            outcomes = launch(execute, work, group, on_event)
            for index, (number, outcome) in enumerate(zip(todo, outcomes, strict=True)):
                results[number], errors[number] = outcome.value, outcome.error
                if outcome.error is not None:
                    progress(index, {"kind": "failed", "error": outcome.error})
                if outcome.traceback is not None:
                    write_atomically(folders[number].error, outcome.traceback.encode())
    taught = [teacher for folder in folders for teacher in closure(folder, lambda name: RunFolder(storage, name))]
    teachers = {folder.path: folder for folder in taught if folder.path not in {own.path for own in folders}}
    run_ids = publisher.publish_all([*folders, *teachers.values()])[: len(folders)]
    return [
        Ended(*values)
        for values in zip(experiments, [f.path for f in folders], results, errors, run_ids, before, strict=True)
    ]


def resolve(placement: Placement, storage: Path) -> tuple[Placement, Group]:
    """The placement with every default decided, and the group that it means."""
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    launcher = placement.launcher or ("ray" if in_ray_job else "local")
    workers = placement.workers
    if workers is None:
        workers = 0 if launcher == "local" else _default_ray_workers(placement)
    world_size = max(workers, 1)
    placement = dataclasses.replace(placement, launcher=launcher, workers=workers, storage=str(storage))
    group = Group(
        launcher=launcher,
        workers=workers,
        parallel=placement.parallel,
        threads=placement.threads,
        storage=str(storage),
    )
    strategy = placement.strategy or ("ddp" if world_size > 1 else "single")
    make_strategy(strategy, world_size)  # refuse what cannot be before anything starts
    return dataclasses.replace(placement, strategy=strategy), group


def _default_ray_workers(placement: Placement) -> int:
    """One worker for each GPU of the cluster that we are pointed at, one where there is none."""
    if placement.parallel > 1 or "RAY_ADDRESS" not in os.environ:
        return 1
    import ray

    if not ray.is_initialized():
        ray.init(os.environ["RAY_ADDRESS"], logging_level=logging.ERROR)
    return max(1, int(ray.cluster_resources().get("GPU", 0)))


def provenance() -> dict[str, str]:
    """The commit that this code is, and whether files differ from it (the tables it writes aside)."""

    def git(*arguments: str) -> str | None:
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
    except FileNotFoundError:  # no git on this machine
        commit = changes = None
    if commit is None:
        # Under `ray job submit --working-dir` there is no checkout; the submitter may say what it sent.
        return {"commit": os.environ.get("ORCHARD_COMMIT", "unknown"), "dirty": "unknown"}
    return {"commit": commit, "dirty": str(bool(changes)).lower()}
