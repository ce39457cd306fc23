"""The worker's side on Ray: the training function of a Ray Train worker group."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from cluster.checkpoints import Marker, storage_error
from cluster.process_group import ProcessGroup, exchange
from cluster.ray.mailbox import Outbox, WorkerInfo, listen
from cluster.worker import Body, Outcome, Worker, run_items

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What every worker is given.

    independent: each worker is a group of its own and takes the next item whenever it is free.
    marker: the file that it must find in the storage. timeout: see `ProcessGroup`.
    """

    body: Body
    items: Sequence[Any]
    mailbox: ActorHandle
    threads: int
    independent: bool
    marker: Marker
    timeout: float


def run_worker(config: dict[str, Task]) -> None:
    """Run the items that no earlier worker group of this launch has finished."""
    import ray.train
    from ray.exceptions import RayError
    from ray.train.torch import get_device

    task, context = config["task"], ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    independent = task.independent or world_size == 1
    torch.set_num_threads(task.threads)
    store = dist.distributed_c10d._get_default_store()  # Ray Train's; it outlives the groups opened on it
    ask = partial(exchange, store, rank, world_size, timeout=timedelta(seconds=task.timeout))
    attempt = ask("attempt", uuid.uuid4().hex)[0]
    try:
        finished = ray.get(task.mailbox.register.remote(rank, _info(attempt, 1 if independent else world_size)))
    except RayError as error:
        log.warning("the driver is gone (%s): this worker ends", error)
        return
    finished = set(json.loads(ask("finished", json.dumps(sorted(finished)))[0]))
    items: Iterable[tuple[int, Any]] = _next_items(task, attempt)
    if not independent:
        items = [(number, item) for number, item in enumerate(task.items) if number not in finished]
    outbox = Outbox(task.mailbox, attempt, 0 if independent else rank)
    errors = [text for text in ask("storage", storage_error(task.marker, ray.util.get_node_ip_address()) or "") if text]
    if errors:
        for number, _ in items:
            outbox.post("outcome", number, Outcome(error=errors[0], external=True))
        return
    if independent:
        dist.destroy_process_group()  # a body that asks torch must not find the other workers
        worker, group = Worker(0, 1, get_device(), stop_signal=listen(task.mailbox)), None
    else:
        group = ProcessGroup(store, dist.get_backend(), rank, world_size, task.timeout)
        worker = Worker(rank, world_size, get_device(), stop_signal=listen(task.mailbox))
    run_items(task.body, items, worker, group, outbox.post)


def _next_items(task: Task, attempt: str) -> Iterator[tuple[int, Any]]:
    """The items that this worker takes, one after the other, until none is left."""
    import ray
    from ray.exceptions import RayError

    while True:
        try:
            number: Any = ray.get(task.mailbox.next_item.remote(attempt))
        except RayError as error:
            log.warning("the driver is gone (%s): this worker ends", error)
            return
        if number is None:
            return
        yield number, task.items[number]


def _info(attempt: str, world_size: int) -> WorkerInfo:
    import ray

    context = ray.get_runtime_context()
    actor, name, node = context.current_actor, context.get_actor_id() or "", context.get_node_id()
    return WorkerInfo(attempt, world_size, actor, name, node, ray.util.get_node_ip_address())
