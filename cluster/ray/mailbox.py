"""Messages between a driver and its Ray workers: an actor on the driver's machine."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.stopping import StopSignal

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)


POLL_SECONDS = 0.5
"""How often a worker asks for requests."""


@dataclass(frozen=True)
class Message:
    """kind: "started" (payload: WorkerInfo), "event", "outcome" or "failure" (payload: dead ranks, text)."""

    kind: str
    rank: int
    number: int
    payload: Any


@dataclass(frozen=True)
class WorkerInfo:
    """A worker that has started.

    attempt: identifies the worker group; a group that is started again has another one.
    world_size: how many workers share an item.
    node, host: Ray's name and the address of its machine.
    """

    attempt: str
    world_size: int
    actor: ActorHandle
    actor_id: str
    node: str
    host: str


class DriverMailbox:
    """The actor. It lives as long as the driver's machine, and handles the calls of each worker in their order."""

    def __init__(self, num_items: int) -> None:
        self._attempts: list[str] = []
        self._messages: list[Message] = []
        self._num_items = num_items
        self._finished: set[int] = set()
        self._taken: set[int] = set()
        self._stop, self._num_saves = False, 0

    def register(self, rank: int, worker: WorkerInfo) -> set[int]:
        """A worker has started, perhaps one of a new group; returns the items that have ended."""
        if worker.attempt not in self._attempts:
            self._attempts.append(worker.attempt)
            self._taken = set(self._finished)
        self._messages.append(Message("started", rank, -1, worker))
        return self._finished

    def next_item(self, attempt: str) -> int | None:
        """The next item, for a worker that shares it with nobody; None if there is none, or its group is replaced."""
        left = [number for number in range(self._num_items) if number not in self._taken]
        if not left or attempt != self._attempts[-1]:
            return None
        self._taken.add(left[0])
        return left[0]

    def post(self, attempt: str, message: Message) -> None:
        """Leave a message for the driver. Messages of a group that has been replaced are dropped."""
        if not self._attempts or attempt == self._attempts[-1]:
            self._messages.append(message)

    def report_failure(self, dead: list[int], last_line: str) -> None:
        """Tell the driver that the group has failed: the ranks that died, and the last line of an error."""
        self._messages.append(Message("failure", -1, -1, (dead, last_line)))

    def take(self) -> list[Message]:
        """The messages since the last call, in order."""
        messages, self._messages = self._messages, []
        return messages

    def finish(self, number: int) -> None:
        """Item `number` has ended: a group that is started again skips it."""
        self._finished.add(number)

    def request_stop(self) -> None:
        """Ask all workers to stop, also those that start later."""
        self._stop = True

    def request_save(self) -> None:
        """Ask the current workers for a checkpoint."""
        self._num_saves += 1

    def requests(self) -> tuple[bool, int]:
        """Whether to stop, and how many checkpoints have been requested so far."""
        return self._stop, self._num_saves


def open_mailbox(num_items: int) -> ActorHandle:
    """A mailbox on this machine, for a launch of so many items."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here}
    return ray.remote(**options)(DriverMailbox).remote(num_items)  # pyright: ignore[reportReturnType]  (Ray types it as a proxy)


class Outbox:
    """Sends a worker's messages to the mailbox: events without waiting, an outcome until it has arrived."""

    def __init__(self, mailbox: ActorHandle, attempt: str, rank: int) -> None:
        self._mailbox, self._attempt, self._rank = mailbox, attempt, rank

    def post(self, kind: str, number: int, payload: Any) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            sent = self._mailbox.post.remote(self._attempt, Message(kind, self._rank, number, payload))
            if kind == "outcome":
                ray.get(sent)
        except RayError as error:
            log.warning("the driver is gone: %s", error)


def listen(mailbox: ActorHandle) -> StopSignal:
    """A StopSignal that the driver sets through the mailbox. Checkpoints requested before this call do not count."""
    import ray
    from ray.exceptions import RayError

    stop_signal = StopSignal()

    def poll() -> None:
        known: int | None = None
        try:
            while not stop_signal.stop_requested:
                stop, num_saves = ray.get(mailbox.requests.remote())
                if stop:
                    stop_signal.request_stop()
                elif known is not None and num_saves > known:
                    stop_signal.request_save()
                known = num_saves
                time.sleep(POLL_SECONDS)
        except RayError as error:
            log.debug("the driver is gone: %s", error)

    # Not a ThreadPoolExecutor: the process may exit while this runs.
    threading.Thread(target=poll, name="listen", daemon=True).start()
    return stop_signal
