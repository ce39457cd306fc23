"""The driver's view of its workers on Ray: what they report, whether a group stands, when to stop waiting for one."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

from cluster.environment import SHUTDOWN_GRACE_SECONDS
from cluster.group import Group
from cluster.outcomes import OutcomeTracker, death_notice
from cluster.ray.mailbox import Arrival
from cluster.stopping import StopSignal
from cluster.worker import START_AGAIN, STOPPED, OnEvent, Outcome

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often the driver looks for messages."""

DRAIN_POLL_SECONDS = 2.0
"""How often it asks Ray for machines that are to go; their notice is of 30 s (Kubernetes, Google) to 120 s (AWS)."""


class Watch:
    """Follows the worker groups of one launch, one after the other, in the driver's thread."""

    def __init__(self, desk: ActorHandle, ledger: OutcomeTracker, on_event: OnEvent, group: Group) -> None:
        self._desk, self._ledger, self._on_event, self._group = desk, ledger, on_event, group
        self._attempt = ""
        self._num_failures = 0
        self._alone_since: float | None = time.monotonic()
        """Since when there has been no worker group."""
        self._gave_up = ""
        self._leaving: set[str] = set()
        """Machines that Ray drains, for which a checkpoint has been asked."""
        self._next_look = 0.0
        self.arrivals: dict[int, Arrival] = {}
        """The workers of the group that stands."""

    def until_the_end(self, fit: Thread, asked_to_stop: StopSignal) -> None:
        """Take down what the workers send until their group has ended, or is not to be waited for."""
        stop_by: float | None = None
        while fit.is_alive():
            self._take_down()
            now = time.monotonic()
            if asked_to_stop() and stop_by is None:
                self._desk.stop.remote()
                stop_by = now + (SHUTDOWN_GRACE_SECONDS if self.arrivals else 0)
            if stop_by is not None and now > stop_by:
                return
            if now > self._next_look:
                self._next_look = now + DRAIN_POLL_SECONDS
                self._save_where_machines_leave()
            if self._alone_since is not None and now - self._alone_since > self._group.patience:
                self._gave_up = f"Ray found no place for its workers in {self._group.patience:.0f} s (--patience)"
                return
            fit.join(POLL_SECONDS)
        self._take_down()  # what came in before the end

    def settle(self, error: Exception | None, num_workers: int, stopped: bool) -> None:
        """Settle what the end of the worker group left open; an error that is not of its workers is raised."""
        from ray.exceptions import RayError
        from ray.train.v2.api.exceptions import TrainingFailedError

        if stopped:
            self._ledger.give_up(self._ledger.unsettled(), STOPPED, killed=True)
            return
        if error is not None and not isinstance(error, (TrainingFailedError, RayError)):
            raise error
        dead = dead_ranks(getattr(error, "worker_failures", {}))
        if dead:
            notice = death_notice(dead[0], num_workers, "its process is gone")
            notice = replace(notice, error=f"{notice.error}{self._whereabouts(dead[0], '. It was on')}")
        else:
            reason = self._gave_up or last_line(error)
            notice = Outcome(
                error=f"the worker group ended ({reason}); {START_AGAIN}", traceback=str(error) if error else None
            )
        self._ledger.give_up(self._ledger.unsettled(), notice, killed=bool(dead))

    def _take_down(self) -> None:
        import ray

        for message in ray.get(self._desk.take.remote()):
            if message.kind == "hello":
                self._welcome(message.rank, message.payload)
            elif message.kind == "event":
                self._on_event(message.number, message.payload)
            elif message.kind == "failure":
                self._mourn(*message.payload)
            elif self._ledger.report(message.number, message.rank, message.payload):
                self._desk.settle.remote(message.number)

    def _welcome(self, rank: int, arrival: Arrival) -> None:
        if arrival.attempt != self._attempt:
            if self._attempt:
                size = max(arrival.world_size, self._group.parallel)
                waited = "" if self._alone_since is None else f" after {time.monotonic() - self._alone_since:.0f} s"
                log.warning("%d workers go on from their last checkpoint%s", size, waited)
            self._attempt, self._alone_since = arrival.attempt, None
            self._ledger.begin_again(arrival.world_size)
            self.arrivals = {}
        self.arrivals[rank] = arrival
        log.info("worker %d%s", rank, self._whereabouts(rank, " is on"))

    def _save_where_machines_leave(self) -> None:
        """Ask for a checkpoint where Ray drains a machine of the group: it will be taken away before long."""
        leaving = draining_nodes()
        for rank, arrival in sorted(self.arrivals.items()):
            if arrival.node in leaving and arrival.node not in self._leaving:
                self._leaving.add(arrival.node)
                log.warning("worker %d's machine %s is about to go: a checkpoint is asked for", rank, arrival.host)
                self._desk.save.remote()

    def _mourn(self, dead: list[int], reason: str) -> None:
        self._num_failures += 1
        self._alone_since = time.monotonic()
        allowed = self._group.max_failures
        if allowed != -1 and self._num_failures > allowed:
            return  # the launch ends with an error that says it
        lost = (
            f"worker {dead[0]} died{self._whereabouts(dead[0], '. It was on')}"
            if dead
            else f"a worker failed ({reason})"
        )
        of = "" if allowed == -1 else f" of {allowed}"
        log.warning("%s. Ray starts the workers again (%d%s)", lost, self._num_failures, of)

    def _whereabouts(self, rank: int, verb: str) -> str:
        if rank not in self.arrivals:
            return ""
        arrival = self.arrivals[rank]
        return f"{verb} {arrival.host}; its log: ray logs actor --id {arrival.actor_id}"


def draining_nodes() -> set[str]:
    """The names of the machines that Ray has been told to drain (`ray drain-node`, a spot machine's notice)."""
    from ray._private.state import state  # what Ray Train itself asks; there is no public way to it

    return set(state.get_draining_nodes())


def dead_ranks(failures: dict[int, Exception]) -> list[int]:
    """The ranks whose processes are gone; others may have failed through these."""
    from ray.exceptions import RayActorError

    return [
        rank
        for rank, failure in sorted(failures.items())
        if isinstance(getattr(failure, "health_check_failure", failure), RayActorError)
    ]


def last_line(*errors: Exception | None) -> str:
    """The end of the first error's text."""
    lines = str(next(iter(errors), None) or "it left without a word").strip().splitlines()
    return lines[-1]
