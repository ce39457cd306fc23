"""Several hosts on this machine, for tests of a cluster: network namespaces on one bridge, each with an address."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

BRIDGE = "survival0"
NETWORK = "10.78.0"


def why_not() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "network namespaces need Linux and iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"{BRIDGE}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


class Hosts:
    """Hosts 1 to `count`, each with an interface eth0. Leftovers of earlier ones are removed first.

    Processes of the hosts share this machine's files, except for what a command of `on` mounts.
    """

    def __init__(self, count: int) -> None:
        self.numbers = range(1, count + 1)

    def __enter__(self) -> Hosts:
        self.__exit__(None, None, None)
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("link", "set", BRIDGE, "up")
        for number in self.numbers:
            space, cable = self._space(number), self._cable(number)
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", BRIDGE, "up")
            _ip("-n", space, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", space, "link", "set", interface, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
        for number in self.numbers:
            if self._space(number) in there:
                self.kill(number)
                _ip("netns", "del", self._space(number))
        # The kernel removes a namespace and its cables asynchronously.
        for link in (*map(self._cable, self.numbers), BRIDGE):
            subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)

    def address(self, number: int) -> str:
        return f"{NETWORK}.{number}"

    def on(self, number: int, *command: str) -> list[str]:
        """The command line that runs this on a host."""
        return ["ip", "netns", "exec", self._space(number), *command]

    def cut(self, number: int) -> None:
        """Cut a host off the network: packets to and from it are lost, no connection is closed."""
        _ip("link", "set", self._cable(number), "down")

    def heal(self, number: int) -> None:
        """Connect it again."""
        _ip("link", "set", self._cable(number), "up")

    def kill(self, number: int) -> None:
        """Kill all its processes."""
        for _ in range(3):  # also processes that were just being started
            for pid in self._pids(number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def slowed(self, number: int, name: str) -> Iterator[None]:
        """Processes of a host whose command line starts with `name` get a fifth of their CPU time, also later ones."""
        ended = threading.Event()

        def stop_and_go() -> None:
            pids: list[int] = []
            for turn in itertools.count():
                if ended.is_set():
                    return
                if turn % 20 == 0:
                    pids = [pid for pid in self._pids(number) if _command(pid).startswith(name)]
                for signal_, seconds in ((signal.SIGSTOP, 0.04), (signal.SIGCONT, 0.01)):
                    for pid in pids:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal_)
                    time.sleep(seconds)

        thread = threading.Thread(target=stop_and_go)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _pids(self, number: int) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self._space(number)).split()]

    def processes(self, number: int) -> list[str]:
        """The names of its processes."""
        names = []
        for pid in self._pids(number):
            with contextlib.suppress(OSError):
                names.append(Path(f"/proc/{pid}/comm").read_text().strip())
        return names

    def _space(self, number: int) -> str:
        return f"survival-host{number}"

    def _cable(self, number: int) -> str:
        return f"survival-v{number}"


def _command(pid: int) -> str:
    """Its command line; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
