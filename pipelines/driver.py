"""The driver: from a list of experiments to finished, tracked runs."""

import dataclasses
import logging
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.checkpoints import open_storage
from cluster.group import Group
from cluster.launch import launch
from cluster.stopping import Stopped
from cluster.strategy import strategy as make_strategy
from cluster.worker import Outcome
from pipelines import reuse
from pipelines.checks import check_before_workers
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement
from pipelines.progress import Progress, say
from pipelines.provenance import provenance
from pipelines.publish import Publisher, open_publisher
from pipelines.run_folder import RunFolder
from pipelines.teachers import closure

IN_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable of a driver that `ray job submit` started."""

MAX_FAILURES_ON_RAY = 3
"""Clusters lose machines as a matter of course, but a bug of our own would come back each time."""

STOPPED_STATUS = 128 + signal.SIGTERM
"""Exit status after SIGTERM, as in a shell."""


@dataclass(frozen=True)
class Ended:
    """How one experiment ended."""

    experiment: Experiment
    folder: Path
    result: dict[str, Any] | None = None
    error: str | None = None
    run_id: str | None = None
    """of MLflow"""
    page: str | None = None
    """address of the run in MLflow's UI"""
    before: bool = False
    """it was already finished"""


def run_experiments(
    experiments: Sequence[Experiment],
    placement: Placement,
    suite: str,
    recipe: str,
    console: Console | None = None,
) -> list[Ended]:
    """Run what is not finished yet, bring MLflow up to date with the storage, and return how each experiment ended.

    suite: the MLflow experiment. recipe: the name of the recipe that starts this again.
    After SIGTERM it saves what is running and raises SystemExit with status 143.
    """
    console = console or Console()
    check_storage_outlives_job(placement.storage)
    storage = open_storage(placement.storage)
    placement, group = resolve(placement, storage)
    tags = {"recipe": recipe, "suite": suite, **provenance()}
    folders = [RunFolder(storage, experiment.identity) for experiment in experiments]
    ended: list[Ended] = []
    for experiment, folder in zip(experiments, folders, strict=True):
        result = reuse.read_finished(experiment, folder, lambda text: say(console, text))
        ended.append(Ended(experiment, folder.path, result, before=result is not None))
        if result is not None:
            say(console, f"already finished: {experiment.name}")

    check_before_workers(experiments, storage, group.world_size)
    publisher = open_publisher(placement.tracking_uri, storage, suite, console)
    todo = [number for number, end in enumerate(ended) if not end.before]
    outcomes: list[Outcome] = []
    if todo:
        reuse.remember_images([experiments[number] for number in todo], storage, lambda text: say(console, text))
        seen_by_workers = dataclasses.replace(placement, tracking_uri=None)  # it may hold a password
        work = [Work(experiments[number], seen_by_workers, storage, tags) for number in todo]
        outcomes = _launch(work, group, publisher, console)
        for number, outcome in zip(todo, outcomes, strict=True):
            ended[number] = dataclasses.replace(ended[number], result=outcome.value, error=outcome.error)
    all_folders = [*folders, *(teacher for folder in folders for teacher in _teachers(folder, storage))]
    run_ids = publisher.publish_all(all_folders, required=not todo)
    if any(outcome.stopped for outcome in outcomes):
        say(console, str(Stopped()))
        raise SystemExit(STOPPED_STATUS)
    pages = {folder: publisher.page(run_ids[folder]) for folder in (end.folder for end in ended) if folder in run_ids}
    return [dataclasses.replace(end, run_id=run_ids.get(end.folder), page=pages.get(end.folder)) for end in ended]


def _launch(work: Sequence[Work], group: Group, publisher: Publisher, console: Console) -> list[Outcome]:
    """Run the work; MLflow and the display follow it."""
    storage = work[0].storage
    folders = [RunFolder(storage, each.experiment.identity) for each in work]
    begun = [folder for folder in folders if folder.read_description() is not None]
    publisher.reach(required=not begun)
    # If a run's driver died, MLflow may have less than the storage.
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
                folder.path.mkdir(parents=True, exist_ok=True)
                folder.error.write_text(outcome.traceback)
    return outcomes


def _teachers(folder: RunFolder, storage: Path) -> Iterable[RunFolder]:
    return closure(folder, lambda name: RunFolder(storage, name))


def check_storage_outlives_job(storage: str) -> None:
    """ValueError for a relative folder in a Ray job: it would be in the job's copy of the code, which Ray deletes."""
    in_package = any(part.startswith("_ray_pkg_") for part in Path.cwd().parts)
    if in_package and not storage.startswith(("/", "~", "file:")):
        raise ValueError(
            f"storage {storage!r} would be in the job's own copy of the code, which other nodes do not see and Ray "
            "deletes: give the absolute path of a folder that every node sees, with --storage or ORCHARD_STORAGE"
        )


def resolve(placement: Placement, storage: Path) -> tuple[Placement, Group]:
    """The placement with every default decided, and the group of workers that follows from it."""
    launcher = placement.launcher or ("ray" if IN_RAY_JOB in os.environ else "local")
    workers = placement.workers
    if workers is None:
        workers = 0 if launcher == "local" else _default_ray_workers(placement)
    max_failures = placement.max_failures
    if max_failures is None:
        max_failures = MAX_FAILURES_ON_RAY if launcher == "ray" else 0
    strategy = placement.strategy or ("ddp" if workers > 1 else "single")
    placement = dataclasses.replace(
        placement,
        launcher=launcher,
        workers=workers,
        strategy=strategy,
        storage=str(storage),
        max_failures=max_failures,
        # --min-workers already accepts another number of workers.
        accept_placement=placement.accept_placement or placement.min_workers is not None,
    )
    group = Group(**{item.name: getattr(placement, item.name) for item in dataclasses.fields(Group)})
    make_strategy(strategy, max(workers, 1))  # an error before anything starts
    return placement, group


def _default_ray_workers(placement: Placement) -> int:
    """One worker for each GPU of the cluster at RAY_ADDRESS; 1 without a cluster or without GPUs."""
    if placement.parallel > 1 or "RAY_ADDRESS" not in os.environ:
        return 1
    import ray

    if not ray.is_initialized():
        ray.init(os.environ["RAY_ADDRESS"], logging_level=logging.ERROR)
    return max(1, int(ray.cluster_resources().get("GPU", 0)))
