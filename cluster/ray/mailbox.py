"""Where a driver and its Ray workers leave each other messages: an actor on the driver's machine."""

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
    """kind: "hello" (payload: Arrival), "event", "outcome" or "failure" (payload: dead ranks, text)."""

    kind: str
    rank: int
    number: int
    payload: Any


@dataclass(frozen=True)
class Arrival:
    """A worker that has begun.

    attempt: names the worker group; a group that is started again has another one.
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
    """The actor. It lives and dies with the driver's machine."""

    def __init__(self) -> None:
        self._attempts: list[str] = []
        self._messages: list[Message] = []
        self._settled: set[int] = set()
        self._num_saves, self._stop = 0, False
        self._changed = asyncio.Condition()

    async def join(self, rank: int, arrival: Arrival) -> set[int]:
        """A worker of a group, perhaps a new one, says hello; which items need no work any more."""
        if arrival.attempt not in self._attempts:
            self._attempts.append(arrival.attempt)
        self._messages.append(Message("hello", rank, -1, arrival))
        return self._settled

    async def post(self, attempt: str, message: Message) -> None:
        """Leave a message for the driver; what comes from a group that has been replaced is dropped."""
        if not self._attempts or attempt == self._attempts[-1]:
            self._messages.append(message)

    async def report_failure(self, dead: list[int], last_line: str) -> None:
        """Tell the driver that the group has failed: the ranks that are gone, and the end of an error."""
        self._messages.append(Message("failure", -1, -1, (dead, last_line)))

    async def take(self) -> list[Message]:
        """What has come in since the last call, in order."""
        messages, self._messages = self._messages, []
        return messages

    async def settle(self, number: int) -> None:
        """Say that an item needs no more work."""
        self._settled.add(number)

    async def stop(self) -> None:
        """Ask all workers to stop, those that come later too."""
        async with self._changed:
            self._stop = True
            self._changed.notify_all()

    async def save(self) -> None:
        """Ask the workers for a checkpoint."""
        async with self._changed:
            self._num_saves += 1
            self._changed.notify_all()

    async def num_saves(self) -> int:
        """How many checkpoints have been asked for so far."""
        return self._num_saves

    async def wishes(self, num_saves: int) -> tuple[bool, int]:
        """Whether to stop, and how many checkpoints have been asked for: once it is to stop, or they are more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stop or self._num_saves > num_saves)
        return self._stop, self._num_saves


def open_mailbox() -> ActorHandle:
    """A desk on this machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here}
    return ray.remote(**options)(DriverMailbox).remote()  # pyright: ignore[reportReturnType]  (Ray types it as a proxy)


class Sender:
    """A worker's way to the desk: events without waiting, an outcome until it has arrived."""

    def __init__(self, desk: ActorHandle, attempt: str, rank: int) -> None:
        self._desk, self._attempt, self._rank = desk, attempt, rank
        self._gone = False
        self._last: Any = None

    def post(self, kind: str, number: int, payload: Any) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            if self._last is not None:
                ray.wait([self._last], timeout=1)  # calls under way at once may overtake each other in the actor
            self._last = self._desk.post.remote(self._attempt, Message(kind, self._rank, number, payload))
            if kind == "outcome":
                ray.get(self._last)
        except RayError as error:
            if not self._gone:
                log.warning("the driver is gone (%s): nothing more is sent", error)
            self._gone = True


def listen(desk: ActorHandle) -> StopSignal:
    """A notice that the driver gives through the desk. What was asked of an earlier group's workers counts no more."""
    import ray
    from ray.exceptions import RayError

    notice = StopSignal()

    def wait() -> None:
        try:
            num_saves = ray.get(desk.num_saves.remote())
            while not notice():
                stop, num_saves = ray.get(desk.wishes.remote(num_saves))
                if stop:
                    notice.give()
                else:
                    notice.ask_to_save()
        except RayError as error:
            log.debug("the driver is gone: %s", error)

    threading.Thread(target=wait, name="listen", daemon=True).start()
    return notice
