"""Run a list of items with one function: in this process, on local processes, or on a Ray Train worker group.

An item is any picklable value. A body is a module-level function `body(item, worker)`. Its return value on the first
worker is the item's outcome; what it emits reaches the driver as events.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from cluster.group import Group
from cluster.local.pool import run_on_processes
from cluster.ray.trainer import run_on_ray
from cluster.stopping import stop_on_sigterm
from cluster.worker import STOPPED, Body, OnEvent, Outcome, Worker, run_item


def launch(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run `body(item, worker)` for each item and return the outcomes in order.

    If an item raises an Exception, its outcome is the error and the next item runs. If a worker dies, its group is
    started again, or the outcomes of the unfinished items say so. SIGTERM stops the workers; unfinished items come back
    as stopped. `on_event(item number, event)` is called in the calling thread.
    """
    if not items:
        return []
    if group.launcher == "ray":
        return run_on_ray(body, items, group, on_event)
    if group.workers == 0 and group.parallel == 1:
        return _run_in_this_process(body, items, group, on_event)
    return run_on_processes(body, items, group, on_event)


def _run_in_this_process(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(group.threads)
    try:
        with stop_on_sigterm() as signal:
            return [
                STOPPED
                if signal.stop_requested
                else run_item(body, item, Worker(0, 1, device, None, partial(on_event, number), signal))
                for number, item in enumerate(items)
            ]
    finally:
        torch.set_num_threads(threads)
