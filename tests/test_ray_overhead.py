"""The ray benchmark: turns on hand-made and on real groups, its rows' arithmetic, and what Ray may add to a step."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks import ray_overhead, throughput, turns
from benchmarks.ray_overhead import ENDLESS, Contest, InTurns, NoMoreTurns, Setting, Start, Task, body, contest, rows
from benchmarks.training_steps import Row, enlarged_digits, open_digits
from benchmarks.turns import Team, Turns, cpu_seconds
from cluster.group import Group
from cluster.worker import Worker
from pipelines import training

CPU = torch.device("cpu")
NAMES = ["local", "local_again", "ray"]
STARTS = {"local": Start(1.0, 2.0), "local_again": Start(1.5, 2.5), "ray": Start(10.0, 12.0)}

MOST = 1.03
"""The longest steady step under Ray, in local steps, beyond the noise floor."""

MOST_NOISE = 0.1
"""A measurement with more says nothing of so small a share."""

MOST_ROUNDS = 60

WATCHDOG_SECONDS = 280


@pytest.fixture(autouse=True)
def _watchdog(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Groups are waited for in Python, where a signal's error gets through."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"the test hung for {WATCHDOG_SECONDS} s")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(WATCHDOG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def setting(model: str = "resnet20", size: int = 8, batch_size: int = 8, workers: int = 2, steps: int = 3) -> Setting:
    return Setting(model, size, batch_size, workers, 5, steps, CPU)


# ---- the driver's arithmetic


class Clockwork:
    """A team whose turns take what it was given; between them the machine's clock goes on."""

    pid = os.getpid()

    def __init__(self, name: str, seconds: Iterator[float], calls: list[str]) -> None:
        self._name, self._seconds, self._calls = name, seconds, calls

    def turn(self) -> float:
        self._calls.append(self._name)
        return next(self._seconds)


def test_only_turns_are_timed_and_the_warm_up_is_not():
    calls: list[str] = []
    first = {"local": 10.0, "local_again": 20.0, "ray": 30.0}  # the warm-up's; each turn takes a second more
    teams: Any = {name: Clockwork(name, itertools.count(start), calls) for name, start in first.items()}
    seconds = Contest(teams, STARTS).rounds(2)
    assert seconds == {"local": [11.0, 12.0], "local_again": [21.0, 22.0], "ray": [31.0, 32.0]}
    assert calls[:3] == NAMES
    assert sorted(calls[3:6]) == sorted(calls[6:]) == NAMES


def test_background_is_what_others_use_during_a_turn(monkeypatch: pytest.MonkeyPatch):
    # Each group's processes use 1, 2 and 4 CPU seconds a second, all of them also while they have their turn.
    now = itertools.count(100, 10)
    monkeypatch.setattr(ray_overhead.time, "perf_counter", lambda: float(next(now)))
    looks = itertools.count(0, 10)

    def used(pids: Iterator[int]) -> dict[int, float]:
        at = next(looks)
        return {pid: float(pid * at) for pid in pids}

    monkeypatch.setattr(ray_overhead, "cpu_seconds", used)
    teams: Any = {name: Clockwork(name, itertools.count(1), []) for name in NAMES}
    for pid, team in zip((1, 2, 4), teams.values(), strict=True):
        team.pid = pid
    groups = Contest(teams, STARTS)
    groups.rounds(1)
    assert groups.background() == {"local": 1.0, "local_again": 2.0, "ray": 4.0}


def measured() -> list[Row]:
    # Two steps a turn. The machine grows ten times slower in the middle of the third round.
    seconds = {"local": [1.0, 1.0, 10.0, 10.0, 10.0], "local_again": [1.0, 1.01, 10.0, 10.0, 10.2]}
    seconds["ray"] = [1.1, 1.1, 1.1, 11.0, 11.0]
    background = {"local": 0.0, "local_again": 0.01, "ray": 0.13}
    return rows(setting(batch_size=30, steps=2), seconds, STARTS, background)


def over_limit(measured: list[Row]) -> bool:
    ray = {row["launcher"]: row for row in measured}["ray"]
    return ray["ratio"] > MOST + ray["noise_floor"]


def test_rows_compare_within_a_round():
    local, again, ray = measured()
    assert [row["launcher"] for row in (local, again, ray)] == NAMES
    assert (local["ratio"], again["ratio"], ray["ratio"]) == (1.0, 1.0, 1.1)
    assert [row["noise_floor"] for row in (local, again, ray)] == [pytest.approx(0.02)] * 3
    assert (local["seconds_median"], local["images_per_second"]) == (5.0, 6.0)
    assert (ray["startup_seconds"], ray["first_step_seconds"]) == (10.0, 12.0)
    assert [row["background_cpu"] for row in (local, again, ray)] == [0.0, 0.01, 0.13]
    assert over_limit([local, again, ray])
    assert not over_limit([local, again, {**ray, "ratio": 1.049}])
    for name, value in (
        ("benchmark", "ray"),
        ("workers", 2),
        ("steps", 2),
        ("rounds", 5),
        ("torch", torch.__version__),
    ):
        assert ray[name] == value


def test_rows_and_table_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    asked: list[Setting] = []
    monkeypatch.setattr(ray_overhead, "measure", lambda setting: asked.append(setting) or measured())
    words = "--model resnet56 --size 16 --batch-size 12 --workers 3 --rounds 5 --steps 4 --device cpu"
    options = words.split()
    assert throughput.main(["ray", "--json", *options]) == 0
    assert asked == [Setting("resnet56", 16, 12, 3, 5, 4, CPU)]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == measured()
    monkeypatch.setenv("COLUMNS", "200")
    assert throughput.main(["ray", *options]) == 0
    printed = capsys.readouterr().out
    [line] = [line for line in printed.splitlines() if "│ ray " in line]
    assert [word for word in line.split() if word != "│"] == [
        "ray",
        "550.0",
        "54.5",
        "1.100",
        "10.0",
        "12.0",
        "0.130",
    ]
    assert "noise floor 0.020" in " ".join(printed.split())


# ---- a training that takes turns


class Given:
    """Turns of which there are so many."""

    def __init__(self, num: int) -> None:
        self.left, self.log = num, ""

    def first_step_done(self) -> None:
        self.log += "1"

    def begin(self) -> bool:
        self.log += "("
        self.left -= 1
        return self.left >= 0

    def end(self) -> None:
        self.log += ")"


def test_batches_come_in_turns_and_epoch_after_epoch():
    given: Any = Given(3)
    loader = InTurns(enlarged_digits(8, CPU), given, 2)
    assert loader.steps_per_epoch(600) == ENDLESS
    [counted] = loader.batches("train", 1, 2, frozenset())
    assert len(counted.index) == 2
    assert given.log == "", "counting operations takes no turn"
    found: list[torch.Tensor] = []

    def train() -> None:
        for batch in loader.epoch("train", 0, 600, frozenset(), 1, 2):
            given.log += "."
            found.append(batch.index)

    with pytest.raises(NoMoreTurns):
        train()
    assert given.log == ".1(..)(..)(..)("
    plain = open_digits(8, CPU)
    assert plain.steps_per_epoch(600) == 2
    epochs = (plain.epoch("train", epoch, 600, frozenset(), 1, 2) for epoch in range(4))
    expected = [batch.index for batch in itertools.islice(itertools.chain.from_iterable(epochs), 7)]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_group_trains_by_the_loop_of_every_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps: list[int] = []
    monkeypatch.setattr(
        training, "optimizer_step", lambda *_, apply=training.optimizer_step: steps.append(1) or apply(*_)
    )
    monkeypatch.setattr(training, "LOG_STEPS", 4)
    answers: list[float] = []

    def drive() -> None:
        channel = server.accept()[0]
        for _ in range(2):
            channel.sendall(b"!")
            answers.append(turns._SECONDS.unpack(channel.recv(turns._SECONDS.size))[0])
        channel.close()

    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    server.bind("turns")
    server.listen()
    driver = threading.Thread(target=drive)
    driver.start()
    events: list[dict[str, Any]] = []
    assert body(Task(setting(steps=3), "."), Worker(0, 1, CPU, None, events.append)) is None
    driver.join()
    server.close()
    assert len(steps) == 1 + 2 * 3
    assert len(answers) == 2
    assert min(answers) > 0
    assert [event["kind"] for event in events if event["kind"] != "stage"] == ["began", "first_step", "progress"]
    assert not list(tmp_path.rglob("*.safetensors")), "a turn holds no checkpoint"


# ---- real groups


def play(item: tuple[str, str], worker: Worker) -> None:
    """Take turns, and note in the storage when they began and ended; `act` is what happens in the second one."""
    storage, act = item
    mine = Turns(storage, worker)
    if act == "fail at once":
        raise ValueError("wrong at once")
    mine.first_step_done()
    for number in itertools.count():
        if not mine.begin():
            return
        begin = time.monotonic()
        if number == 1:
            ACTS[act](worker)
        time.sleep(0.2)
        end = time.monotonic()
        mine.end()
        with (Path(storage) / f"rank {worker.rank}").open("a") as log:
            print(begin, end, file=log)


def fail(worker: Worker) -> None:
    raise ValueError("wrong in its turn")


def die(worker: Worker) -> None:
    if worker.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def go_on(worker: Worker) -> None:
    pass


ACTS: dict[str, Callable[[Worker], None]] = {"fail": fail, "die": die, "go on": go_on}


def team(storage: Path, act: str = "go on", name: str = "a") -> Team:
    storage.mkdir()
    return Team(name, play, (str(storage), act), Group(storage=str(storage), workers=2), {})


def spans(storage: Path) -> list[tuple[float, float]]:
    found = []
    for rank in range(2):
        lines = (storage / f"rank {rank}").read_text().splitlines()
        found += [tuple(map(float, line.split())) for line in lines]
    return found


def test_groups_take_turns_and_wait_without_using_the_cpu(tmp_path: Path):
    with closing(team(tmp_path / "a")) as a, closing(team(tmp_path / "b", name="b")) as b:
        for group in (a, b):
            first_event, first_step = group.wait_for_first_step()
            assert 0 < first_event <= first_step
        pids = [a.pid, b.pid]
        before, began = cpu_seconds(pids), time.monotonic()
        answers = [group.turn() for group in (a, b, b, a, a, b)]
        elapsed, after = time.monotonic() - began, cpu_seconds(pids)
        time.sleep(0.5)  # in which nobody has a turn
    assert all(0.2 <= answer < elapsed for answer in answers)
    assert sum(answers) <= elapsed
    ends = [end for storage in (tmp_path / "a", tmp_path / "b") for _, end in spans(storage)]
    assert len(ends) == 6 * 2
    assert max(ends) <= began + elapsed
    for begin, end in spans(tmp_path / "a"):
        assert all(end <= other_begin or other_end <= begin for other_begin, other_end in spans(tmp_path / "b"))
    # Two workers of a group that waits by looking again and again would use two seconds a second.
    assert all(after[pid] - before[pid] < 0.3 * elapsed for pid in pids)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("fail at once", "the group a ended: ValueError: wrong at once"),
        ("fail", "the group a ended: ValueError: wrong in its turn"),
        ("die", r"the group a ended: worker 1 of 2 died \(SIGKILL\)"),
    ],
)
def test_a_group_that_fails_ends_with_its_error(act: str, message: str, tmp_path: Path):
    with closing(team(tmp_path / "a", act)) as failing:
        if act == "fail at once":
            with pytest.raises(ChildProcessError, match=message):
                failing.wait_for_first_step()
        else:
            failing.wait_for_first_step()
            failing.turn()
            begin = time.monotonic()
            with pytest.raises(ChildProcessError, match=message) as raised:
                failing.turn()
            assert time.monotonic() - begin < 20
            assert ("Traceback" in str(raised.value)) == (act == "fail")


def test_a_group_whose_launch_fails_says_why(tmp_path: Path):
    storage = tmp_path / "a"
    storage.mkdir()
    broken = Group(storage=str(storage), workers=2)
    object.__setattr__(broken, "workers", "two")
    with closing(Team("a", play, (str(storage), "go on"), broken, {})) as failing:
        with pytest.raises(ChildProcessError, match="the group a ended: TypeError"):
            failing.wait_for_first_step()


DRIVER = """
import sys
from pathlib import Path
from tests.test_ray_overhead import team

if __name__ == "__main__":
    group = team(Path(sys.argv[1]))
    group.wait_for_first_step()
    group.turn()
    print(group.pid, flush=True)
    input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_outlives_a_killed_driver(tmp_path: Path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        group = int(driver.stdout.readline())
        workers = [int(pid) for pid in Path(f"/proc/{group}/task/{group}/children").read_text().split()]
        assert len(workers) >= 2
        driver.kill()
    gone_by = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in (group, *workers)):
        assert time.monotonic() < gone_by, "a process outlived its driver"
        time.sleep(0.1)


BURN = """
import subprocess, sys, time

def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

burn(0.3)
if sys.argv[1] == "root":
    for name in ("ended", "living"):
        child = subprocess.Popen([sys.executable, "-c", sys.argv[2], name, ""], stdout=subprocess.PIPE)
        child.stdout.readline() if name == "living" else child.wait()
print("burnt", flush=True)
if sys.argv[1] != "ended":
    sys.stdin.read()
"""


def test_cpu_seconds_are_those_of_a_whole_tree():
    command = [sys.executable, "-S", "-c", BURN, "root", BURN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as root:
        assert root.stdout is not None
        root.stdout.readline()  # the living child is burnt, too
        found, again = (cpu_seconds([root.pid]) for _ in range(2))
        root.communicate()
    assert 0.9 - 0.05 < found[root.pid] < 2
    assert again[root.pid] == pytest.approx(found[root.pid], abs=0.1), "who sleeps uses nothing"
    assert cpu_seconds([root.pid]) == {root.pid: 0.0}, "it is gone"


# ---- what is refused, and the real thing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rounds 4", "--rounds must be 5 or more, not 4"),
        ("--workers 0", "--workers must be 1 or more, not 0"),
        ("--steps 0", "--steps must be 1 or more, not 0"),
        ("--size 7", "--size must be 8 or more, not 7"),
        ("--batch-size 63", "batch_size 63 does not divide by 2 workers"),
        ("--batch-size 2", "use 4 or more"),
        ("--batch-size 100000", "use 1 to 14"),
        ("--model resnet21", "resnet20"),
        pytest.param(
            "--device cuda",
            "use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_values_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert throughput.main(["ray", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert throughput.main(["ray"]) == 2
    message = capsys.readouterr().err
    assert "192.0.2.1:6379" in message
    assert "unset RAY_ADDRESS" in message


def test_a_group_that_fails_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fail(setting: Setting) -> list[Row]:
        raise ChildProcessError("the group ray ended: ValueError: wrong")

    monkeypatch.setattr(ray_overhead, "measure", fail)
    assert throughput.main(["ray", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "error: the group ray ended: ValueError: wrong\n"


@pytest.mark.alone
@pytest.mark.ray
def test_a_step_under_ray_takes_as_long_as_under_plain_torch():
    chosen = setting("resnet20", 16, 32, steps=10)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    measured: list[Row] = []
    with contest(chosen) as groups:
        while len(seconds["ray"]) < MOST_ROUNDS:
            for name, more in groups.rounds(15).items():
                seconds[name] += more
            measured = rows(chosen, seconds, groups.starts, groups.background())
            if measured[0]["noise_floor"] <= MOST_NOISE and not over_limit(measured):
                break
    local, _, ray = measured
    for row in measured:
        assert 0 < row["startup_seconds"] < row["first_step_seconds"]
    assert 0 <= local["background_cpu"] < 0.2, "a group that waits uses the CPU"
    assert ray["background_cpu"] > 0, "Ray's daemons use none"
    if local["noise_floor"] > MOST_NOISE:
        pytest.skip(f"two equal trainings differ by more than {MOST_NOISE:.0%}: this machine is too busy to tell")
    assert not over_limit(measured), f"{ray['ratio']:.3f} of a local step; noise floor {ray['noise_floor']:.3f}"
