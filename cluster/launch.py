"""Run a list of items with one function: in this process, on local processes, or on a Ray Train worker group.

An item is any picklable value and a body is a module-level function `body(item, worker)`. What the body returns on the
first worker is the item's outcome; what it emits on the way reaches the driver as events.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from cluster.group import Group
from cluster.local.pool import run_on_processes
from cluster.ray.trainer import run_on_ray
from cluster.stopping import sigterm_notice
from cluster.worker import STOPPED, Body, OnEvent, Outcome, Worker, attempt


def launch(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    """Run `body(item, worker)` for each item and return their outcomes in order.

    An item that raises an Exception gets its error as outcome and the next item runs; a worker that dies ends its
    group: it is started again, or the items without outcome say so. On SIGTERM the workers are told to stop, and what
    they have not finished comes back as stopped. `on_event(item number, event)` is called in the calling thread.
    """
    if not items:
        return []
    if group.launcher == "ray":
        return run_on_ray(body, items, group, on_event)
    if group.workers == 0 and group.parallel == 1:
        return _run_here(body, items, group, on_event)
    return run_on_processes(body, items, group, on_event)


def _run_here(body: Body, items: Sequence[Any], group: Group, on_event: OnEvent) -> list[Outcome]:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(group.threads)
    try:
        with sigterm_notice() as stop_signal:
            return [
                attempt(body, item, Worker(0, 1, device, None, partial(on_event, number), stop_signal))
                if not stop_signal()
                else STOPPED
                for number, item in enumerate(items)
            ]
    finally:
        torch.set_num_threads(threads)
