"""The driver's view of its workers on Ray: their messages, failures, machines that leave, timeouts."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

from cluster.environment import SHUTDOWN_GRACE_SECONDS
from cluster.group import Group
from cluster.outcomes import OutcomeTracker, death_notice
from cluster.ray.mailbox import WorkerInfo
from cluster.stopping import RESUME, StopSignal
from cluster.worker import STOPPED, OnEvent, Outcome

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often the driver reads its messages."""

DRAIN_POLL_SECONDS = 2.0
"""How often it asks Ray for draining machines. They are gone after 30 s (Kubernetes, Google) to 120 s (AWS)."""


class Monitor:
    """Follows the successive worker groups of one launch, in the driver's thread."""

    def __init__(self, mailbox: ActorHandle, tracker: OutcomeTracker, on_event: OnEvent, group: Group) -> None:
        self._mailbox, self._tracker, self._on_event, self._group = mailbox, tracker, on_event, group
        self._attempt = ""
        self._num_failures = 0
        self._without_workers_since: float | None = time.monotonic()
        self._timed_out = ""
        self._draining: set[str] = set()
        """Machines that Ray drains, for which a checkpoint has been requested."""
        self._next_drain_poll = 0.0
        self.workers: dict[int, WorkerInfo] = {}
        """rank -> worker, of the current group."""

    def follow(self, fit: Thread, stop_signal: StopSignal) -> None:
        """Handle the workers' messages until the training has ended, or must not be waited for any longer."""
        deadline: float | None = None
        while fit.is_alive():
            self._read_messages()
            now = time.monotonic()
            if stop_signal.stop_requested and deadline is None:
                self._mailbox.request_stop.remote()
                deadline = now + (SHUTDOWN_GRACE_SECONDS if self.workers else 0)
            if deadline is not None and now > deadline:
                return
            if now > self._next_drain_poll:
                self._next_drain_poll = now + DRAIN_POLL_SECONDS
                self._save_before_draining()
            if self._without_workers_since is not None and now - self._without_workers_since > self._group.timeout:
                self._timed_out = f"Ray found no place for its workers in {self._group.timeout:.0f} s (--timeout)"
                return
            fit.join(POLL_SECONDS)
        self._read_messages()  # those that came before the end

    def finish(self, error: Exception | None, num_workers: int, stopped: bool) -> None:
        """End the pending items after the end of the training. An error that is not of its workers is raised."""
        from ray.exceptions import RayError
        from ray.train.v2.api.exceptions import TrainingFailedError

        if stopped:
            self._tracker.fail(self._tracker.pending(), STOPPED, killed=True)
            return
        if error is not None and not isinstance(error, (TrainingFailedError, RayError)):
            raise error
        dead = dead_ranks(getattr(error, "worker_failures", {}))
        if dead:
            notice = death_notice(dead[0], num_workers, "its process is gone")
            notice = replace(notice, error=f"{notice.error}{self._location(dead[0], '. It was on')}")
        else:
            text = f"the worker group ended ({self._timed_out or last_line(error)}); {RESUME}"
            notice = Outcome(error=text, traceback=str(error) if error else None, external=True)
        self._tracker.fail(self._tracker.pending(), notice, killed=bool(dead))

    def _read_messages(self) -> None:
        import ray

        for message in ray.get(self._mailbox.take.remote()):
            if message.kind == "started":
                self._on_start(message.rank, message.payload)
            elif message.kind == "event":
                self._on_event(message.number, message.payload)
            elif message.kind == "failure":
                self._on_failure(*message.payload)
            elif self._tracker.report(message.number, message.rank, message.payload):
                self._mailbox.finish.remote(message.number)

    def _on_start(self, rank: int, worker: WorkerInfo) -> None:
        if worker.attempt != self._attempt:
            if self._attempt:
                size, since = max(worker.world_size, self._group.parallel), self._without_workers_since
                waited = "" if since is None else f" after {time.monotonic() - since:.0f} s"
                log.warning("%d workers resume from their last checkpoint%s", size, waited)
            self._attempt, self._without_workers_since = worker.attempt, None
            self._tracker.restart(worker.world_size)
            self.workers = {}
        self.workers[rank] = worker
        log.info("worker %d%s", rank, self._location(rank, " is on"))

    def _on_failure(self, dead: list[int], reason: str) -> None:
        self._num_failures += 1
        self._without_workers_since = time.monotonic()
        allowed = self._group.max_failures
        if allowed != -1 and self._num_failures > allowed:
            return  # the launch ends with an error that says it
        failed = (
            f"worker {dead[0]} died{self._location(dead[0], '. It was on')}" if dead else f"a worker failed ({reason})"
        )
        of = "" if allowed == -1 else f" of {allowed}"
        log.warning("%s. Ray starts the workers again (%d%s)", failed, self._num_failures, of)

    def _save_before_draining(self) -> None:
        """Request a checkpoint if Ray drains a machine of the group: it will be taken away soon."""
        draining = draining_nodes()
        for rank, worker in sorted(self.workers.items()):
            if worker.node in draining and worker.node not in self._draining:
                self._draining.add(worker.node)
                log.warning("worker %d's machine %s is being drained: a checkpoint is requested", rank, worker.host)
                self._mailbox.request_save.remote()

    def _location(self, rank: int, verb: str) -> str:
        worker = self.workers.get(rank)
        return f"{verb} {worker.host}; its log: ray logs actor --id {worker.actor_id}" if worker else ""


def draining_nodes() -> set[str]:
    """The names of the machines that Ray has been told to drain (`ray drain-node`, a spot machine's notice)."""
    from ray._private.state import state  # as Ray Train itself does; there is no public function

    return set(state.get_draining_nodes())


def dead_ranks(failures: dict[int, Exception]) -> list[int]:
    """The ranks whose processes are gone. Others may have failed as a consequence."""
    from ray.exceptions import RayActorError

    return [
        rank
        for rank, failure in sorted(failures.items())
        if isinstance(getattr(failure, "health_check_failure", failure), RayActorError)
    ]


def last_line(*errors: Exception | None) -> str:
    """The last line of the first error's text."""
    return str(next(iter(errors), None) or "no error was reported").strip().splitlines()[-1]
