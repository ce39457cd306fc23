"""The driver: from a list of experiments to finished, tracked runs."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.atomic import write_atomically
from cluster.checkpoints import open_storage
from cluster.group import Group
from cluster.launch import launch
from cluster.stopping import Stopped
from cluster.strategy import strategy as make_strategy
from cluster.worker import Outcome
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement
from pipelines.progress import Progress
from pipelines.publish import Publisher
from pipelines.run_folder import RunFolder
from pipelines.teachers import closure

IN_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable that a driver has which `ray job submit` started."""

MAX_FAILURES_ON_RAY = 3
"""Machines of a cluster go as a matter of course; a fault of our own would come back each time."""

STOPPED_STATUS = 128 + signal.SIGTERM
"""The exit status after SIGTERM, as a shell gives it."""


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

    SystemExit with status 143 after SIGTERM, when what was running is saved.

    suite: the MLflow experiment. recipe: the name under which somebody would start this again.
    """
    console = console or Console()
    check_storage_outlives_job(placement.storage)
    storage = open_storage(placement.storage)
    placement, group = resolve(placement, storage)
    tags = {"recipe": recipe, "suite": suite, **provenance()}
    folders = [RunFolder(storage, experiment.identity) for experiment in experiments]
    ended = [
        Ended(experiment, folder.path, result, before=result is not None)
        for experiment, folder in zip(experiments, folders, strict=True)
        for result in [folder.read_result()]
    ]
    for end in ended:
        if end.before:
            console.print(f"finished before: {end.experiment.name}", soft_wrap=True, highlight=False, markup=False)

    publisher = Publisher(placement.tracking_uri or f"sqlite:///{storage}/mlflow.db", storage, suite, console)
    todo = [number for number, end in enumerate(ended) if not end.before]
    outcomes: list[Outcome] = []
    if todo:
        seen_by_workers = dataclasses.replace(placement, tracking_uri=None)  # it may hold a password
        work = [Work(experiments[number], seen_by_workers, storage, tags) for number in todo]
        outcomes = _launch(work, group, publisher, console)
        for number, outcome in zip(todo, outcomes, strict=True):
            ended[number] = dataclasses.replace(ended[number], result=outcome.value, error=outcome.error)
    taught = [teacher for folder in folders for teacher in _teachers(folder, storage)]
    teachers = {folder.path: folder for folder in taught if folder.path not in {own.path for own in folders}}
    run_ids = publisher.publish_all([*folders, *teachers.values()], required=not todo)
    if any(outcome.stopped for outcome in outcomes):
        console.print(str(Stopped()), soft_wrap=True, highlight=False, markup=False)
        raise SystemExit(STOPPED_STATUS)
    return [dataclasses.replace(end, run_id=run_id) for end, run_id in zip(ended, run_ids[: len(ended)], strict=True)]


def _launch(work: Sequence[Work], group: Group, publisher: Publisher, console: Console) -> list[Outcome]:
    """Run the work; MLflow and the display follow it."""
    storage = work[0].storage
    folders = [RunFolder(storage, each.experiment.identity) for each in work]
    begun = [folder for folder in folders if folder.read_description() is not None]
    publisher.reach(required=not begun)
    # Of a run whose driver died MLflow may know less than the storage.
    for folder in begun:
        publisher.try_to_publish(folder)
    with Progress([each.experiment.name for each in work], console) as progress:

        def on_event(index: int, event: dict[str, Any]) -> None:
            progress(index, event)
            if event["kind"] == "epoch":
                for folder in (folders[index], *_teachers(folders[index], storage)):
                    publisher.publish_now_and_then(folder)

        outcomes = launch(execute, work, group, on_event)
        for index, (folder, outcome) in enumerate(zip(folders, outcomes, strict=True)):
            if outcome.error is not None:
                progress(index, {"kind": "failed", "error": outcome.error})
            if outcome.traceback is not None:
                write_atomically(folder.error, outcome.traceback.encode())
    return outcomes


def _teachers(folder: RunFolder, storage: Path) -> Iterable[RunFolder]:
    return closure(folder, lambda name: RunFolder(storage, name))


def check_storage_outlives_job(storage: str) -> None:
    """ValueError for a relative folder inside a Ray job's package: it would lie in a copy of the code, which goes."""
    in_package = any(part.startswith("_ray_pkg_") for part in Path.cwd().parts)
    if in_package and not storage.startswith(("/", "~", "file:")):
        raise ValueError(
            f"storage {storage!r} would lie in the job's own copy of the code, which other nodes do not see and Ray "
            "deletes: give the absolute path of a folder that every node sees, with --storage or ORCHARD_STORAGE"
        )


def resolve(placement: Placement, storage: Path) -> tuple[Placement, Group]:
    """The placement with every default decided, and the group that it means."""
    launcher = placement.launcher or ("ray" if IN_RAY_JOB in os.environ else "local")
    workers = placement.workers
    if workers is None:
        workers = 0 if launcher == "local" else _default_ray_workers(placement)
    world_size = max(workers, 1)
    max_failures = placement.max_failures
    if max_failures is None:
        max_failures = MAX_FAILURES_ON_RAY if launcher == "ray" else 0
    placement = dataclasses.replace(
        placement,
        launcher=launcher,
        workers=workers,
        storage=str(storage),
        max_failures=max_failures,
        # A number of workers that may change says so itself.
        accept_placement=placement.accept_placement or placement.min_workers is not None,
    )
    group = Group(
        launcher=launcher,
        workers=workers,
        parallel=placement.parallel,
        threads=placement.threads,
        storage=str(storage),
        max_failures=max_failures,
        min_workers=placement.min_workers,
        timeout=placement.timeout,
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
