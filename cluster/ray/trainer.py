"""Workers that are a Ray Train (V2) worker group, on a cluster or on a Ray started for the occasion: the driver's side.

Ray finds a machine that is dead or cut off the network within about a minute, ends the group and starts it again,
as often as it is allowed to; the workers go on from what they have saved.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

from cluster.environment import LOOPBACK, environment, thread_variables
from cluster.group import Group
from cluster.outcomes import OutcomeTracker
from cluster.ray.mailbox import open_mailbox
from cluster.ray.monitor import Watch, dead_ranks, last_line
from cluster.ray.network import torch_config
from cluster.ray.worker import Task, serve
from cluster.stopping import sigterm_notice
from cluster.storage_check import marked
from cluster.worker import Body, OnEvent, Outcome

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train import RunConfig, UserCallback
    from ray.train.torch import TorchTrainer

log = logging.getLogger(__name__)

SETTINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # its 60 s are short for a busy machine or a growing cluster
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one actor more to start, for a notice that no body asks for
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that a body finds relative paths where the driver does
}
"""Ray's settings where the caller's environment leaves them open."""


ELASTIC_SETTINGS = {
    # Ray tries at first to start as many as before, also where a machine has just gone; then it counts again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}
"""The same, where the number of workers may change."""


def run_on_ray(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run the items on one worker group: together (`group.workers`) or dealt out in turn (`group.parallel`).

    A group that loses a worker is started again `group.max_failures` times, for the items that are not settled; then
    every unfinished item is left with an error that says so.
    """
    num_workers = group.workers if group.parallel == 1 else min(group.parallel, len(items))
    wanted = SETTINGS if group.min_workers is None else SETTINGS | ELASTIC_SETTINGS
    settings = {name: os.environ.get(name, value) for name, value in wanted.items()}
    # Ray takes SIGTERM when it starts: the notice comes after it.
    with environment(settings), _connection(num_workers) as interface, sigterm_notice() as asked_to_stop:
        _warn_if_small(num_workers)
        with marked(group.storage) as marker:
            desk = open_mailbox()
            alone = group.parallel > 1 or num_workers == 1
            task = Task(body, items, desk, group.threads, alone, marker, group.patience)
            ledger = OutcomeTracker(len(items), group.world_size)
            fit = _Fit(_trainer(task, group, num_workers, interface))
            watch = Watch(desk, ledger, on_event, group)
            fit.start()
            try:
                watch.until_the_end(fit, asked_to_stop)
            finally:
                _end(fit, watch, desk)
        watch.settle(fit.error, num_workers, asked_to_stop())
    return ledger.outcomes()


@contextmanager
def _connection(num_workers: int) -> Iterator[str | None]:
    """A connection to Ray: the caller's, that of RAY_ADDRESS, or one started here, which ends with the block.

    That to a cluster stays open until the process ends (`cluster.exit` says why).
    Gives the network interface on which the workers find each other, None for that by which Ray knows each machine.
    """
    import ray

    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    if ray.is_initialized():
        yield interface
        return
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address, logging_level=logging.ERROR)
        yield interface
        return
    _start(num_workers)
    try:
        yield interface or LOOPBACK
    finally:
        ray.shutdown()


def _start(num_workers: int) -> None:
    """Start Ray on this machine, for as long as this process is connected to it."""
    import ray
    from ray.job_config import JobConfig

    quiet = JobConfig()  # `ray.init(logging_config=...)` would change the driver's own logging too
    quiet.set_py_logging_config(ray.LoggingConfig(log_level="ERROR"))
    num_cpus = max(os.cpu_count() or 1, num_workers)
    ray.init("local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR, job_config=quiet)


def _warn_if_small(num_workers: int) -> None:
    import ray

    have = int(ray.cluster_resources().get(_resource(), 0))
    if have < num_workers:
        log.warning("Ray has %d %ss for %d workers: waiting for it to grow", have, _resource(), num_workers)


def _resource() -> str:
    """What each worker takes one of."""
    import ray

    return "GPU" if ray.cluster_resources().get("GPU", 0) > 0 else "CPU"


def _trainer(task: Task, group: Group, num_workers: int, interface: str | None) -> TorchTrainer:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    variables = thread_variables(group.threads) | ({"GLOO_SOCKET_IFNAME": interface} if interface else {})
    span = num_workers if group.min_workers is None else (group.min_workers, num_workers)
    return TorchTrainer(
        serve,
        train_loop_config={"task": task},
        torch_config=torch_config(group.patience),
        scaling_config=ScalingConfig(num_workers=span, use_gpu=_resource() == "GPU"),
        run_config=_run_config(task, group, variables),
    )


def _run_config(task: Task, group: Group, variables: dict[str, str]) -> RunConfig:
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2.api.config import LoggingConfig

    return RunConfig(
        name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}",
        storage_path=os.path.join(group.storage, "ray"),
        failure_config=FailureConfig(
            max_failures=group.max_failures,
            max_preemption_failures=group.max_failures,
            controller_failure_limit=3 if group.min_workers is None else -1,  # the driver's patience ends that
        ),
        callbacks=[_failure_callback(task.desk)],
        worker_runtime_env={"env_vars": variables},
        logging_config=LoggingConfig(log_level="ERROR"),
    )


def _failure_callback(desk: ActorHandle) -> UserCallback:
    """Tells the driver at once when workers fail, while Ray starts the group again by itself."""
    from ray.train import UserCallback

    class Failures(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            desk.report_failure.remote(dead_ranks(worker_exceptions), last_line(*worker_exceptions.values()))

    return Failures()


class _Fit(Thread):
    """`trainer.fit()` beside the driver's loop: Ctrl-C stays the driver's own, where `fit` would take the signal."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # raised in the driver's thread by settle
            self.error = error


def _end(fit: _Fit, watch: Watch, desk: ActorHandle) -> None:
    import ray

    ray.kill(desk)  # a group that is started after this finds no desk, and ends
    if fit.is_alive():  # interrupted, and Ray may live on
        for arrival in watch.arrivals.values():
            ray.kill(arrival.actor)
