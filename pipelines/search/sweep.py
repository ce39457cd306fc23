"""Sweep: one search from its plan to its results in `storage/sweeps/<identity>/`.

sweep.json      what is searched, by which sampler and scheduler; the first command
journal.jsonl   everything that happened, in order
lock            held by the process that runs the sweep
trials.csv      every trial: identity, state, values, settings
best.toml       the best settings, for --from
figures/        SVG and PNG
confirmed.json  test accuracies of the best settings over fresh seeds
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.checkpoints import open_storage
from cluster.lock import lock
from cluster.records import read_json, sha256_of, write_record
from cluster.run_record import Metric, RunRecord
from cluster.tuning import tune
from compression.methods import name_of
from pipelines import identity, reuse
from pipelines.checks import check_before_workers
from pipelines.driver import check_storage_outlives_job, resolve
from pipelines.execute import environment
from pipelines.experiment import Placement
from pipelines.progress import say
from pipelines.provenance import provenance
from pipelines.publish import Publisher, Status, open_publisher
from pipelines.run_folder import RunFolder
from pipelines.search.display import SweepProgress
from pipelines.search.figures import draw
from pipelines.search.journal import Journal
from pipelines.search.plan import Limits, Plan
from pipelines.search.runs import StoredRuns, run_trial
from pipelines.search.settings import write_settings
from pipelines.search.study import Study
from pipelines.search.table import write_csv
from pipelines.search.trial import Trial, front

STATUS: dict[str, Status] = {"running": "RUNNING", "finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""State of a trial -> of its run in MLflow."""


@dataclass(frozen=True)
class Place:
    """Where a sweep runs. parallel: trials at a time; gpus: of each worker of a trial; None: as many as there are."""

    placement: Placement
    suite: str
    recipe: str
    command: str
    parallel: int | None = None
    gpus: float | None = None


@dataclass(frozen=True)
class Swept:
    """How a sweep ended. note: why there are fewer trials than asked for; stopped: by SIGTERM; page: in MLflow."""

    plan: Plan
    folder: Path
    trials: Sequence[Trial]
    lost: Mapping[int, str]
    note: str
    stopped: bool
    page: str | None = None

    @property
    def best(self) -> list[Trial]:
        """The best trial, or the Pareto front."""
        return front(self.trials)

    @property
    def first(self) -> Trial:
        """The most accurate of the best."""
        return max(self.best, key=lambda trial: trial.values or ())


def identity_of(plan: Plan) -> str:
    """16 hexadecimal digits: the same for sweeps that draw and stop the same trials, however many they have."""
    space = [[name, type(each).__name__, str(each)] for name, each in plan.space.items()]
    return identity.identity(["sweep", plan.experiment, space, plan.search, plan.scheduler, plan.goal.names])


def run_sweep(plan: Plan, limits: Limits, place: Place, console: Console) -> Swept:
    """Run what a sweep lacks, and write its results. The same call goes on where a killed one was.

    ValueError: what cannot be searched here, before anything starts.
    """
    check_storage_outlives_job(place.placement.storage)
    storage = open_storage(place.placement.storage)
    workers = max(place.placement.workers or 1, 1)
    asked = dataclasses.replace(place.placement, launcher="ray", workers=workers, parallel=1)
    placement, group = resolve(asked, storage)
    check_before_workers([plan.experiment], storage, group.world_size)
    reuse.remember_images([plan.experiment], storage, lambda text: say(console, text))
    folder = storage / "sweeps" / identity_of(plan)
    publisher = open_publisher(placement.tracking_uri, storage, place.suite, console)
    publisher.reach(required=not folder.exists())
    with lock(folder / "lock", lambda text: say(console, text)):
        about = _about(folder, plan, place)
        tags = {"recipe": place.recipe, "suite": place.suite, "sweep": folder.name, **provenance()}
        runs = StoredRuns(storage, placement, tags, plan.goal, about["started_ms"], lambda text: say(console, text))
        with SweepProgress(console, limits.trials, plan.goal) as progress, _Tracking(publisher, storage) as tracking:

            def on_change(number: int) -> None:
                trials = study.trials()
                progress.update(trials)
                tracking.send(trials[number])

            study = Study(plan, limits, Journal(folder / "journal.jsonl"), runs, on_change)
            progress.update(study.trials())
            completed = study.complete or tune(run_trial, study, group, folder.name, place.parallel, place.gpus)
        swept = Swept(plan, folder, study.trials(), study.losses, study.exhausted, not completed)
        figures = _write_results(swept, place, console)
        page = _track(swept, place, publisher, {**about, **tags}, figures)
    return dataclasses.replace(swept, page=page)


def _about(folder: Path, plan: Plan, place: Place) -> dict[str, Any]:
    """The content of sweep.json, which is written once."""
    path = folder / "sweep.json"
    if path.exists():
        try:
            return read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}. Delete it, and the same command goes on and writes it again") from error
    import optuna
    import torch

    about = {
        "identity": folder.name,
        "name": f"sweep of {plan.title}",
        "experiment": identity.canonical(plan.experiment),
        "space": {name: str(each) for name, each in plan.space.items()},
        "search": plan.search,
        "scheduler": plan.scheduler,
        "objective": plan.goal.names,
        "recipe": place.recipe,
        "command": place.command,
        "started_ms": time.time_ns() // 1_000_000,
        "environment": {**environment(torch.device("cpu")), "optuna": optuna.__version__},
    }
    write_record(path, about)
    return about


class _Tracking:
    """Sends runs to MLflow beside the search, in one thread: a slow server delays no trial."""

    def __init__(self, publisher: Publisher, storage: Path) -> None:
        self._publisher, self._storage = publisher, storage
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    def __enter__(self) -> "_Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)  # what was not sent is sent at the end

    def send(self, trial: Trial) -> None:
        folder = RunFolder(self._storage, trial.identity) if trial.identity else None
        if folder is None:
            return
        if trial.state == "running":
            self._thread.submit(self._publisher.publish_now_and_then, folder)
        else:
            self._thread.submit(self._publisher.try_to_publish, folder, STATUS[trial.state])


def _write_results(swept: Swept, place: Place, console: Console) -> list[Path]:
    """The files for people; returns those that MLflow gets too."""
    plan, folder = swept.plan, swept.folder
    table, best = folder / "trials.csv", folder / "best.toml"
    write_csv(table, swept.trials, plan.goal)
    written = [table]
    if swept.best:
        first = swept.first
        about = {
            "sweep": f"{folder.name}, {plan.title}",
            "recipe": place.recipe,
            "trial": str(first.number),
            "validation accuracy": f"{(first.values or (0.0,))[0]:.4f}, seed {plan.experiment.seed}",
        }
        write_settings(best, first, plan.experiment, about)
        written.append(best)
    if swept.trials:
        paths, notes = draw(swept.trials, plan.goal, plan.space, plan.title, folder / "figures")
        for note in notes:
            say(console, note)
        written += paths
    return written


def _track(
    swept: Swept, place: Place, publisher: Publisher, about: Mapping[str, Any], artifacts: Sequence[Path]
) -> str | None:
    """Send the trials' runs and the sweep's own, and show the trials below it; the address of its page."""
    storage, plan = swept.folder.parent.parent, swept.plan
    folders = {trial.identity: RunFolder(storage, trial.identity) for trial in swept.trials if trial.identity}
    states: dict[str, Status] = {trial.identity: STATUS[trial.state] for trial in swept.trials}
    ids = publisher.publish_all(list(folders.values()), required=False, statuses=states)
    running = swept.stopped or swept.lost
    record = RunRecord(
        identity=swept.folder.name,
        name=f"sweep {name_of(plan.experiment.method)} {plan.experiment.model} {swept.folder.name[:4]}",
        params={
            **{f"space.{name}": str(each) for name, each in plan.space.items()},
            **{key: about[key] for key in ("search", "scheduler", "recipe")},
            "objective": ",".join(plan.goal.names),
        },
        tags={key: str(about[key]) for key in ("sweep", "recipe", "suite", "commit", "dirty", "started_ms", "command")},
        metrics=_metrics(swept, about["started_ms"]),
        status="RUNNING" if running else "FINISHED",
        artifacts=list(artifacts),
        hashes={path.name: sha256_of(path) for path in artifacts},
        note=about["name"],
    )
    return publisher.publish_parent(record, list(ids.values()))


def _metrics(swept: Swept, time_ms: int) -> list[Metric]:
    """The values of each trial at the step of its number, and the best so far."""
    found, best = [], 0.0
    for trial in swept.trials:
        if trial.values is None:
            continue
        best = max(best, trial.values[0])
        keys = {**dict(zip(swept.plan.goal.names, trial.values, strict=True)), "best_accuracy": best}
        found += [Metric(f"trial/{key}", trial.number, value, time_ms) for key, value in keys.items()]
    return found
