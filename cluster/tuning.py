"""Ray Tune runs the items of a search: what is tried next, and what is stopped early, is the caller's `Search`.

A trial of one worker trains inside Tune's own actor, which is used for one trial after the other. A trial of several
workers starts a Ray Train worker group from there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster.checkpoints import Marker, storage_error, storage_marker
from cluster.environment import environment, thread_variables
from cluster.group import Group
from cluster.ray.trainer import connection, resource, run_on_ray
from cluster.stopping import StopSignal, stop_on_sigterm
from cluster.trials import WAIT, Report, Search, Trials
from cluster.worker import Body, Outcome, Worker, run_item

if TYPE_CHECKING:
    from ray.tune import Tuner
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the storage is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a process that died is replaced, and the driver says so
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the caller's own journal says how to go on
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "20",  # a trial that was stopped saves nothing, but may be inside a step
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Share:
    """What one trial takes of the cluster. cpus and gpus: of each of its workers; a GPU can be shared by several."""

    cpus: float = 1.0
    gpus: float = 0.0


def tune(
    body: Body, search: Search, group: Group, name: str, parallel: int | None = None, gpus: float | None = None
) -> bool:
    """Run `body(item, worker)` for each item of the search, each by one worker or by `group.workers` together.

    name: of the search, which runs once at a time; Tune's own files are in the storage under this name while it runs.
    parallel: trials at a time; None: as many as fit.
    gpus: of each worker, which may be a part of one; None: 1 if the cluster has any.
    A trial whose process dies is started again, `group.max_failures` times: the body must resume from what it has
    saved. False if SIGTERM ended the search. ValueError: a trial needs more than any machine has.
    """
    from ray.exceptions import RayError

    with (
        environment(SETTINGS),
        connection((parallel or 1) * group.world_size) as interface,
        stop_on_sigterm() as stop_signal,  # after Ray has installed its own handler
        storage_marker(group.storage) as marker,
    ):
        share = Share(group.threads, float(resource() == "GPU") if gpus is None else gpus)
        fits = check_share(share, group)
        trials, files = Trials(search, group.max_failures), Path(group.storage) / "ray" / f"tune-{name}"
        variables = thread_variables(group.threads) | ({"GLOO_SOCKET_IFNAME": interface} if interface else {})
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it takes trials that are started again for errors
        how = body, group, marker
        while True:
            shutil.rmtree(files, ignore_errors=True)  # also of a driver that was killed
            tuner = _tuner(trials, files, parallel or fits, stop_signal, how, _resources(share, group))
            try:
                with environment(variables):
                    tuner.fit()
                break
            except RuntimeError as error:
                # When Ray has killed a process for want of memory, Tune itself ends.
                if not isinstance(error.__cause__, RayError):
                    raise
                trials.start_again(str(error.__cause__).partition("\n")[0])
        shutil.rmtree(files, ignore_errors=True)
    return not stop_signal.stop_requested


def _tuner(
    trials: Trials,
    files: Path,
    parallel: int,
    stop_signal: StopSignal,
    how: tuple[Body, Group, Marker],
    resources: dict[str, float],
) -> Tuner:
    from ray import tune as ray_tune

    trial = ray_tune.with_parameters(_trial, how=how)
    return ray_tune.Tuner(
        ray_tune.with_resources(trial, resources),
        tune_config=ray_tune.TuneConfig(
            search_alg=_searcher(trials),
            scheduler=_scheduler(trials.search),
            num_samples=-1,
            max_concurrent_trials=parallel,
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name=files.name,
            storage_path=str(files.parent),
            verbose=0,
            stop=_stopper(lambda: stop_signal.stop_requested),
        ),
    )


def check_share(share: Share, group: Group) -> int:
    """How many trials fit. ValueError: one needs more than any machine has, or than all have together."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, asked in {"GPU": share.gpus, "CPU": share.cpus}.items():
        most, total = max(node.get(name, 0.0) for node in nodes), sum(node.get(name, 0.0) for node in nodes)
        if asked > most:
            option = "--gpus-per-trial" if name == "GPU" else "--threads"
            most_text = f"use {most:g} or less" if most else f"leave out {option}"
            raise ValueError(
                f"{option} {asked:g}: no machine has so many {name}s, the largest has {most:g}: {most_text}"
            )
        if asked * group.world_size > total:
            raise ValueError(
                f"--workers {group.workers} with {asked:g} {name} each: the cluster has {total:g}: use fewer workers"
            )
    fits = [
        sum(int(node.get(name, 0.0) / asked + 1e-9) for node in nodes) // group.world_size
        for name, asked in {"GPU": share.gpus, "CPU": share.cpus}.items()
        if asked
    ]
    return max(1, min(fits, default=1))


def _resources(share: Share, group: Group) -> dict[str, float]:
    """Of Tune's actor. The workers of a Ray Train group ask for their own: it takes a byte, as Tune wants something."""
    if group.world_size > 1:
        return {"memory": 1}
    return {"cpu": share.cpus, "gpu": share.gpus}


def _trial(config: dict[str, Any], how: tuple[Body, Group, Marker]) -> None:
    """One trial, in a thread of Tune's actor. `report` waits for the driver, and does not return if it says stop."""
    import ray
    from ray import tune as ray_tune

    body, group, marker = how

    def emit(event: dict[str, Any]) -> None:
        ray_tune.report({"report": Report(event=event)})

    item = config["item"]
    if error := storage_error(marker, ray.util.get_node_ip_address()):
        outcome = Outcome(error=error, external=True)
    elif group.world_size > 1:
        [outcome] = run_on_ray(body, [item], group, lambda _, event: emit(event))
    else:
        torch.set_num_threads(group.threads)
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        outcome = run_item(body, item, Worker(0, 1, device, None, emit))
    ray_tune.report({"report": Report(outcome=outcome), "done": True})


class _NotStored:
    """Tune stores copies of what it works with, to go on after a crash. A search goes on from its caller's journal."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _searcher(trials: Trials) -> Searcher:
    """Tune's view of a search: it asks for trials, and is told their ends."""
    from ray.tune.search import Searcher

    class Driver(_NotStored, Searcher):
        def __init__(self, trials: Trials) -> None:
            super().__init__()
            self.trials = trials

        def suggest(self, trial_id: str) -> Any:
            found = self.trials.next(trial_id)
            if found is None:
                return Searcher.FINISHED
            return None if found is WAIT else {"number": found[0], "item": found[1]}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            self.trials.end(trial_id, (result or {}).get("report"), died=error)

        def save(self, checkpoint_path: str) -> None:
            """The caller saves what it needs."""

    return Driver(trials)


def _scheduler(search: Search) -> TrialScheduler:
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class Events(_NotStored, FIFOScheduler):
        """Passes the events of trials to the search, which decides whether they are stopped."""

        def __init__(self, search: Search) -> None:
            super().__init__()
            self.search = search

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            event = result["report"].event
            stop = event is not None and self.search.report(trial.config["number"], event)
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    return Events(search)


def _stopper(stop_requested: Callable[[], bool]) -> Any:
    from ray.tune import Stopper

    class OnRequest(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return stop_requested()

    return OnRequest()
