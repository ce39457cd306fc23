"""Messages between a driver and its Ray workers: an actor on the driver's machine."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.stopping import StopSignal

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)


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
    """The actor. It lives as long as the driver's machine."""

    def __init__(self) -> None:
        self._attempts: list[str] = []
        self._messages: list[Message] = []
        self._finished: set[int] = set()
        self._num_saves, self._stop = 0, False
        self._changed = asyncio.Condition()

    async def register(self, rank: int, worker: WorkerInfo) -> set[int]:
        """A worker has started, perhaps one of a new group; returns the items that have ended."""
        if worker.attempt not in self._attempts:
            self._attempts.append(worker.attempt)
        self._messages.append(Message("started", rank, -1, worker))
        return self._finished

    async def post(self, attempt: str, message: Message) -> None:
        """Leave a message for the driver. Messages of a group that has been replaced are dropped."""
        if not self._attempts or attempt == self._attempts[-1]:
            self._messages.append(message)

    async def report_failure(self, dead: list[int], last_line: str) -> None:
        """Tell the driver that the group has failed: the ranks that died, and the last line of an error."""
        self._messages.append(Message("failure", -1, -1, (dead, last_line)))

    async def take(self) -> list[Message]:
        """The messages since the last call, in order."""
        messages, self._messages = self._messages, []
        return messages

    async def finish(self, number: int) -> None:
        """Item `number` has ended: a group that is started again skips it."""
        self._finished.add(number)

    async def stop(self) -> None:
        """Ask all workers to stop, also those that start later."""
        async with self._changed:
            self._stop = True
            self._changed.notify_all()

    async def save(self) -> None:
        """Ask the workers for a checkpoint."""
        async with self._changed:
            self._num_saves += 1
            self._changed.notify_all()

    async def num_saves(self) -> int:
        """How many checkpoints have been requested so far."""
        return self._num_saves

    async def next_request(self, num_saves: int) -> tuple[bool, int]:
        """Wait until a stop or more than `num_saves` checkpoints are requested: (stop, number of checkpoints)."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stop or self._num_saves > num_saves)
        return self._stop, self._num_saves


def open_mailbox() -> ActorHandle:
    """A mailbox on this machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here}
    return ray.remote(**options)(DriverMailbox).remote()  # pyright: ignore[reportReturnType]  (Ray types it as a proxy)


class Outbox:
    """Sends a worker's messages to the mailbox: events without waiting, an outcome until it has arrived."""

    def __init__(self, mailbox: ActorHandle, attempt: str, rank: int) -> None:
        self._mailbox, self._attempt, self._rank = mailbox, attempt, rank
        self._failed = False
        self._last: Any = None

    def post(self, kind: str, number: int, payload: Any) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            if self._last is not None:
                ray.wait([self._last], timeout=1)  # concurrent calls may overtake each other in the actor
            self._last = self._mailbox.post.remote(self._attempt, Message(kind, self._rank, number, payload))
            if kind == "outcome":
                ray.get(self._last)
        except RayError as error:
            if not self._failed:
                log.warning("the driver is gone (%s): events are no longer sent", error)
            self._failed = True


def listen(mailbox: ActorHandle) -> StopSignal:
    """A StopSignal that the driver sets through the mailbox. Checkpoints requested before this call do not count."""
    import ray
    from ray.exceptions import RayError

    stop_signal = StopSignal()

    def wait() -> None:
        try:
            num_saves = ray.get(mailbox.num_saves.remote())
            while not stop_signal.stop_requested:
                stop, num_saves = ray.get(mailbox.next_request.remote(num_saves))
                if stop:
                    stop_signal.request_stop()
                else:
                    stop_signal.request_save()
        except RayError as error:
            log.debug("the driver is gone: %s", error)

    # Not a ThreadPoolExecutor: the process may exit while this waits.
    threading.Thread(target=wait, name="listen", daemon=True).start()
    return stop_signal
