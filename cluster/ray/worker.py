"""The worker's side on Ray: the training function of a Ray Train worker group."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from cluster.process_group import ProcessGroup, exchange
from cluster.ray.mailbox import Arrival, Sender, listen
from cluster.storage_check import Marker, complaint
from cluster.worker import Body, Outcome, Place, work_through

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What every worker is given: the items, and how to work and report.

    alone: each worker is a world of its own and takes its share of the items.
    marker: what it must find in the storage.
    """

    body: Body
    items: Sequence[Any]
    desk: ActorHandle
    threads: int
    alone: bool
    marker: Marker
    patience: float


def serve(config: dict[str, Task]) -> None:
    """Work through the items that no earlier group of this launch has settled."""
    import ray.train
    from ray.exceptions import RayError
    from ray.train.torch import get_device

    task, context = config["task"], ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(task.threads)
    store = dist.distributed_c10d._get_default_store()  # Ray Train's; it outlives the groups opened on it
    ask = partial(exchange, store, rank, world_size, patience=timedelta(seconds=task.patience))
    attempt = ask("attempt", uuid.uuid4().hex)[0]
    alone = task.alone or world_size == 1
    runtime = ray.get_runtime_context()
    arrival = Arrival(
        attempt,
        1 if alone else world_size,
        runtime.current_actor,
        runtime.get_actor_id() or "",
        runtime.get_node_id(),
        ray.util.get_node_ip_address(),
    )
    try:
        settled = ray.get(task.desk.join.remote(rank, arrival))
    except RayError as error:
        log.warning("the driver is gone (%s): nothing is left to do", error)
        return
    settled = set(json.loads(ask("settled", json.dumps(sorted(settled)))[0]))
    tasks = [(number, item) for number, item in enumerate(task.items) if number not in settled]
    sender = Sender(task.desk, attempt, 0 if alone else rank)
    wrong = [text for text in ask("storage", complaint(task.marker) or "") if text]
    if alone:
        tasks = tasks[rank::world_size]
    if wrong:
        for number, _ in tasks:
            sender.post("outcome", number, Outcome(error=wrong[0]))
        return
    if alone:
        dist.destroy_process_group()  # a body that asks torch must not find the other workers
        place = Place(0, 1, get_device(), None)
    else:
        links = ProcessGroup(store, dist.get_backend(), rank, world_size, task.patience)
        place = Place(rank, world_size, get_device(), links)
    work_through(task.body, tasks, place, sender.post, listen(task.desk))
