"""Workers that are a Ray Train (V2) worker group, on a cluster or on a Ray started for the occasion."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from cluster.launch import (
    LOOPBACK,
    PATIENCE,
    START_AGAIN,
    Body,
    Group,
    Ledger,
    Links,
    OnEvent,
    Outcome,
    death_notice,
    environment,
    thread_variables,
    work_through,
)

if TYPE_CHECKING:
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often the driver looks for messages."""

SETTINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # its 60 s are short for a busy machine or a growing cluster
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one actor more to start, for a notice that no body asks for
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that a body finds relative paths where the driver does
}
"""Ray's settings where the caller's environment leaves them open."""


def run_on_ray(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run the items on one worker group: together (`group.workers`) or dealt out in turn (`group.parallel`).

    A dead worker ends the group and leaves every unfinished item with an error that says so.
    """
    num_workers = group.workers if group.parallel == 1 else min(group.parallel, len(items))
    settings = {name: os.environ.get(name, value) for name, value in SETTINGS.items()}
    with environment(settings), _connection(num_workers) as interface:
        _warn_if_small(num_workers)
        mail = _mailbox()
        task = _Task(body, items, mail, group.threads, alone=group.parallel > 1 or num_workers == 1)
        ledger = Ledger(len(items), group.world_size)
        fit = _Fit(_trainer(task, group, num_workers, interface))
        handles: list[Any] = []
        fit.start()
        try:
            while fit.is_alive():
                _deliver(mail, ledger, on_event, handles)
                fit.join(POLL_SECONDS)
            _deliver(mail, ledger, on_event, handles)  # what came in before the end
        finally:
            _end(fit, handles, mail)
        _settle(ledger, fit.error, num_workers)
    return ledger.outcomes()


@contextmanager
def _connection(num_workers: int) -> Iterator[str | None]:
    """A connection to Ray: the caller's, that of RAY_ADDRESS, or one started here; what was opened is closed again.

    Gives the network interface on which the workers find each other, None for gloo's own choice.
    """
    import ray

    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    if ray.is_initialized():
        yield interface
        return
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address, logging_level=logging.ERROR)
    else:
        _start(num_workers)
        interface = interface or LOOPBACK
    try:
        yield interface
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


def _mailbox() -> Queue:
    """The queue through which workers report; its actor lives and dies with the driver's machine."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _trainer(task: _Task, group: Group, num_workers: int, interface: str | None) -> TorchTrainer:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    variables = thread_variables(group.threads) | ({"GLOO_SOCKET_IFNAME": interface} if interface else {})
    return TorchTrainer(
        _serve,
        train_loop_config={"task": task},
        torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=_resource() == "GPU"),
        run_config=_run_config(group, variables),
    )


def _run_config(group: Group, variables: dict[str, str]) -> RunConfig:
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2.api.config import LoggingConfig

    return RunConfig(
        name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}",
        storage_path=os.path.join(group.storage, "ray"),
        failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=3),
        worker_runtime_env={"env_vars": variables},
        logging_config=LoggingConfig(log_level="ERROR"),
    )


class _Fit(Thread):
    """`trainer.fit()` beside the driver's loop: Ctrl-C stays the driver's own, where `fit` would take the signal."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # raised in the driver's thread by _settle
            self.error = error


def _deliver(mail: Queue, ledger: Ledger, on_event: OnEvent, handles: list[Any]) -> None:
    """Take down what the workers have sent so far."""
    for kind, rank, number, payload in mail.get_nowait_batch(mail.qsize()):
        if kind == "hello":
            handles.append(payload)
        elif kind == "event":
            on_event(number, payload)
        else:
            ledger.report(number, rank, payload)


def _end(fit: _Fit, handles: list[Any], mail: Queue) -> None:
    import ray

    if fit.is_alive():  # interrupted, and Ray may live on
        for handle in handles:
            ray.kill(handle)
    mail.shutdown(force=True)


def _settle(ledger: Ledger, error: Exception | None, num_workers: int) -> None:
    """Settle what the end of the worker group left open; an error that is not of its workers is raised."""
    from ray.exceptions import RayActorError, RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    if error is not None and not isinstance(error, (TrainingFailedError, RayError)):
        raise error
    failures = getattr(error, "worker_failures", {})
    dead = [
        rank
        for rank, failure in sorted(failures.items())
        if isinstance(getattr(failure, "health_check_failure", failure), RayActorError)
    ]
    if dead:
        notice = death_notice(dead[0], num_workers, "its process is gone")
    else:
        reason = str(error or "it left without a word").strip().splitlines()[-1]
        notice = Outcome(error=f"the worker group ended ({reason}); {START_AGAIN}", traceback=str(error))
    ledger.give_up(ledger.unsettled(), notice, killed=bool(dead))


@dataclass(frozen=True)
class _Task:
    """What every worker is given: the items, and how to work and report.

    alone: each worker is a world of its own and takes its share of the items.
    """

    body: Body
    items: Sequence[Any]
    mail: Queue
    threads: int
    alone: bool


def _serve(config: dict[str, _Task]) -> None:
    """The training function of each Ray Train worker."""
    import ray.train
    from ray.train.torch import get_device

    task, context = config["task"], ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(task.threads)
    tasks = list(enumerate(task.items))
    if task.alone:
        dist.destroy_process_group()  # a body that asks torch must not find the other workers
        tasks, links = tasks[rank::world_size], None
        rank, world_size = 0, 1
    else:
        store = dist.distributed_c10d._get_default_store()  # Ray Train's; it outlives the groups opened on it
        links = Links(store, dist.get_backend(), rank, world_size)
    sender = _Sender(task.mail, rank)
    sender.post("hello", -1, ray.get_runtime_context().current_actor)
    work_through(task.body, tasks, rank, world_size, get_device(), links, sender.post)


class _Sender:
    """Posts to the driver's queue: events without waiting, an outcome until it has arrived."""

    def __init__(self, mail: Queue, rank: int) -> None:
        assert mail.actor is not None
        self._actor, self._rank = mail.actor, rank
        self._gone = False
        self._last: Any = None

    def post(self, kind: str, number: int, payload: Any) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            if self._last is not None:
                ray.wait([self._last], timeout=1)  # calls under way at once may overtake each other in the actor
            self._last = self._actor.put_nowait.remote((kind, self._rank, number, payload))
            if kind == "outcome":
                ray.get(self._last)
        except RayError as error:
            if not self._gone:
                log.warning("the driver is gone (%s): nothing more is sent", error)
            self._gone = True
