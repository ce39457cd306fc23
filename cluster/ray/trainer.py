"""The driver's side of workers that are a Ray Train (V2) worker group, on a cluster or on a Ray started here.

Ray notices within about a minute that a machine is dead or cut off. It then ends the worker group and starts it again,
as often as allowed; the workers resume from their checkpoints.
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

from cluster.checkpoints import storage_marker
from cluster.environment import LOOPBACK, environment, thread_variables
from cluster.group import Group
from cluster.outcomes import OutcomeTracker
from cluster.ray.mailbox import open_mailbox
from cluster.ray.monitor import Monitor, dead_ranks, last_line
from cluster.ray.worker import Task, run_worker
from cluster.stopping import stop_on_sigterm
from cluster.worker import Body, OnEvent, Outcome

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train import UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

log = logging.getLogger(__name__)


def _settings(group: Group) -> dict[str, str]:
    """Ray's settings, where the caller's environment does not set them."""
    defaults = {
        # Its 60 s are short for a busy machine or a growing cluster. If the number of workers may change, Ray first
        # tries to start as many as before the loss of a machine. It counts again after this time.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600" if group.min_workers is None else "30",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an additional actor for a notice that nobody uses
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in workers and driver
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def run_on_ray(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run the items on one worker group: together (`group.workers`) or each by one worker (`group.parallel`).

    A group that loses a worker is started again for the pending items, `group.max_failures` times. After that every
    pending item fails.
    """
    num_workers = group.workers if group.parallel == 1 else min(group.parallel, len(items))
    # Ray installs a SIGTERM handler when it starts: ours comes after that.
    with environment(_settings(group)), connection(num_workers) as interface, stop_on_sigterm() as stop_signal:
        _warn_if_small(num_workers)
        with storage_marker(group.storage) as marker:
            mailbox = open_mailbox(len(items))
            independent = group.parallel > 1 or num_workers == 1
            task = Task(body, items, mailbox, group.threads, independent, marker, group.timeout)
            tracker = OutcomeTracker(len(items), group.world_size)
            fit = _Fit(_trainer(task, group, num_workers, interface))
            monitor = Monitor(mailbox, tracker, on_event, group)
            fit.start()
            try:
                monitor.follow(fit, stop_signal)
            finally:
                _end(fit, monitor, mailbox)
        monitor.finish(fit.error, num_workers, stop_signal.stop_requested)
    return tracker.outcomes()


@contextmanager
def connection(num_workers: int) -> Iterator[str | None]:
    """A connection to Ray: the caller's, that of RAY_ADDRESS, or to a Ray started here that ends with the block.

    A connection to a cluster stays open until the process ends (see `cluster.exit`).
    Yields the network interface on which the workers connect; None: the one by which Ray knows each machine.
    """
    import ray
    from ray.job_config import JobConfig

    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    address = os.environ.get("RAY_ADDRESS")
    if ray.is_initialized() or address:
        if not ray.is_initialized():
            ray.init(address, logging_level=logging.ERROR)
        yield interface
        return
    quiet = JobConfig()  # `ray.init(logging_config=...)` would change the driver's own logging too
    quiet.set_py_logging_config(ray.LoggingConfig(log_level="ERROR"))
    num_cpus = max(os.cpu_count() or 1, num_workers)
    ray.init("local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR, job_config=quiet)
    try:
        yield interface or LOOPBACK
    finally:
        ray.shutdown()


def _warn_if_small(num_workers: int) -> None:
    import ray

    available = int(ray.cluster_resources().get(resource(), 0))
    if available < num_workers:
        log.warning("Ray has %d %ss for %d workers: waiting for more", available, resource(), num_workers)


def resource() -> str:
    """The resource of which each worker takes one."""
    import ray

    return "GPU" if ray.cluster_resources().get("GPU", 0) > 0 else "CPU"


def _trainer(task: Task, group: Group, num_workers: int, interface: str | None) -> TorchTrainer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    variables = thread_variables(group.threads) | ({"GLOO_SOCKET_IFNAME": interface} if interface else {})
    return TorchTrainer(
        run_worker,
        train_loop_config={"task": task},
        torch_config=torch_config(group.timeout),
        scaling_config=ScalingConfig(
            num_workers=num_workers if group.min_workers is None else (group.min_workers, num_workers),
            use_gpu=resource() == "GPU",
        ),
        run_config=RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}",
            storage_path=os.path.join(group.storage, "ray"),
            failure_config=FailureConfig(
                max_failures=group.max_failures,
                max_preemption_failures=group.max_failures,
                controller_failure_limit=3 if group.min_workers is None else -1,  # -1: the driver's timeout ends it
            ),
            callbacks=[_failure_callback(task.mailbox)],
            worker_runtime_env={"env_vars": variables},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def torch_config(timeout: float) -> TorchConfig:
    """Ray's setup of torch's process group, after each worker has chosen its interface.

    That is the one by which Ray knows its machine. By itself, Gloo takes the address of the host name. On many machines
    that is loopback, and workers on two of them would never connect. NCCL does not have this problem.
    timeout: seconds until a collective fails.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            worker_group.execute(use_interface_of_node)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return Config(timeout_s=int(timeout) or 1)


def use_interface_of_node() -> None:
    """Tell Gloo this machine's interface, unless the environment already does."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The name of the interface with this IP address; None if there is none (behind network address translation)."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None


def _failure_callback(mailbox: ActorHandle) -> UserCallback:
    """Tells the driver at once that workers failed, while Ray starts the group again by itself."""
    from ray.train import UserCallback

    class ReportFailure(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            mailbox.report_failure.remote(dead_ranks(worker_exceptions), last_line(*worker_exceptions.values()))

    return ReportFailure()


class _Fit(Thread):
    """`trainer.fit()` in a thread, as in the main thread it would handle Ctrl-C itself.

    Not a ThreadPoolExecutor: the driver may be interrupted and exit while this runs.
    """

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # raised in the driver's thread by Monitor.finish
            self.error = error


def _end(fit: _Fit, monitor: Monitor, mailbox: ActorHandle) -> None:
    import ray

    ray.kill(mailbox)  # a worker group that is started after this finds no mailbox, and ends
    if fit.is_alive():  # interrupted: a cluster's Ray goes on
        for worker in monitor.workers.values():
            ray.kill(worker.actor)
