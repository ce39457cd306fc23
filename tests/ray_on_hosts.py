"""A Ray cluster with token authentication on `tests.hosts`: started, killed, given jobs from a fresh clone."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hosts import Hosts

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    output: str
    seconds: float


class Cluster:
    """One CPU on each host, so that two workers run on two hosts; host 1 is the head.

    elsewhere: a folder that host 2 does not share; it does not share Ray's own files either.
    """

    def __init__(self, hosts: Hosts, folder: Path, elsewhere: Path) -> None:
        self.hosts, self._folder, self._elsewhere = hosts, folder, elsewhere
        # Short: the paths of Ray's sockets start with it.
        self._temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        # Without GLOO_SOCKET_IFNAME: the address of the host name is loopback here, as on many real machines.
        dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "ORCHARD_STORAGE", "PYTEST_CURRENT_TEST", "GLOO_SOCKET_IFNAME")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in dropped},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
        }

    def start_head(self) -> None:
        address = self.hosts.address(1)
        self._start(1, "--head", "--port=6379", f"--dashboard-host={address}", f"--temp-dir={self._temporary}")

    def start_node(self) -> None:
        self._start(2, f"--address={self.hosts.address(1)}:6379")

    def _start(self, number: int, *options: str) -> None:
        start = ["ray", "start", f"--node-ip-address={self.hosts.address(number)}", "--num-cpus=1", *options]
        start += ["--object-store-memory=80000000", "--disable-usage-stats"]
        line = shlex.join(start)
        if number == 2:
            own = " && ".join(f"mount -t tmpfs tmpfs {shlex.quote(f)}" for f in (str(self._elsewhere), self._temporary))
            line = f"{own} && {line}"
        done = self.run(number, "sh", "-c", line)
        assert done.status == 0, done.output

    def run(self, number: int, *command: str, timeout: float = 120) -> Done:
        begin = time.monotonic()
        done = subprocess.run(
            self.hosts.on(number, *command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            env=self.environment,
            check=False,
        )
        return Done(done.returncode, done.stdout, time.monotonic() - begin)

    def submit(self, clone: Path, *arguments: str, environment: str = "{}") -> Job:
        """`ray job submit` of the command, from this folder."""
        command = ["ray", "job", "submit", "--address", self._dashboard]
        command += ["--working-dir", str(clone), "--runtime-env-json", environment, "--"]
        return Job(self, [*command, "python", *arguments], self._folder)

    def stopper(self, job: Job) -> subprocess.Popen[str]:
        """Does what `ray job stop` does when it reads a line: the command itself takes seconds to start."""
        line = f"from ray.job_submission import *; client = JobSubmissionClient({self._dashboard!r}); print(); input()"
        command = ["python", "-c", f"{line}; client.stop_job({job.identifier!r})"]
        pipe = subprocess.PIPE
        stopper = subprocess.Popen(self.hosts.on(1, *command), stdin=pipe, stdout=pipe, text=True, env=self.environment)
        assert stopper.stdout is not None
        assert stopper.stdout.readline() == "\n"
        return stopper

    def drain_node(self, seconds: int) -> None:
        """Tell Ray that host 2 will be taken away."""
        which = (
            "import ray; ray.init('auto', log_to_driver=False); print(*[n['NodeID'] for n in ray.nodes() if n['Alive']"
        )
        found = self.run(1, "python", "-c", f"{which} and n['NodeManagerAddress'] == {self.hosts.address(2)!r}])")
        node = found.output.split()[-1]
        words = ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--address", f"{self.hosts.address(1)}:6379", "--deadline-remaining-seconds", str(seconds)]
        done = self.run(1, "ray", "drain-node", *words)
        assert done.status == 0, done.output

    def has_node(self) -> bool:
        """Whether Ray runs on host 2."""
        return any("raylet" in name for name in self.hosts.processes(2))

    @property
    def _dashboard(self) -> str:
        return f"http://{self.hosts.address(1)}:8265"

    def close(self) -> None:
        for number in (2, 1):
            self.hosts.kill(number)
        shutil.rmtree(self._temporary, ignore_errors=True)


class Job:
    """A submitted job, followed until it ends."""

    def __init__(self, cluster: Cluster, command: list[str], folder: Path) -> None:
        self._log = Path(tempfile.mktemp(prefix="job-", suffix=".log", dir=folder))
        self._begin = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                cluster.hosts.on(1, *command), stdout=log, stderr=log, env=cluster.environment
            )

    @property
    def output(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self._log.read_text(errors="replace"))

    @property
    def identifier(self) -> str:
        found = re.search(r"raysubmit_\w+", self.output)
        assert found, self.output
        return found[0]

    def submitted(self) -> bool:
        return "raysubmit_" in self.output

    def until(self, what: Callable[[], bool], timeout: float = 90) -> None:
        """Wait for a condition while the job runs."""
        deadline = time.monotonic() + timeout
        while not what():
            assert self.process.poll() is None, f"the job has ended:\n{self.output}"
            assert time.monotonic() < deadline, f"not true after {timeout} s:\n{self.output}"
            time.sleep(0.05)

    def end(self, timeout: float) -> Done:
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the job did not end in {timeout} s:\n{self.output}") from error
        return Done(status, self.output, time.monotonic() - self._begin)


def fresh_clone(target: Path) -> Path:
    """A clone of this repository, with the changes of its working tree."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)], check=True)
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--modified", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)
    return target
