"""The ray benchmark: its rows' arithmetic, real groups that take turns, and what Ray may add to a step."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from benchmarks import ray_overhead, throughput
from benchmarks.ray_overhead import LAUNCHERS, Team, measure, rows
from benchmarks.timing import Row, Setting

CPU = torch.device("cpu")
TEAMS: Any = {
    "local": SimpleNamespace(startup_seconds=1.0, first_step_seconds=2.0),
    "local_again": SimpleNamespace(startup_seconds=1.5, first_step_seconds=2.5),
    "ray": SimpleNamespace(startup_seconds=10.0, first_step_seconds=12.0),
}

MOST = 1.03
"""The longest steady step under Ray, in local steps, beyond the noise floor."""

MOST_NOISE = 0.2
"""A measurement with more says nothing about so small a share."""

TRIES = 3


def setting(model: str = "vgg3", size: int = 8, batch_size: int = 8, rounds: int = 5, steps: int = 3) -> Setting:
    return Setting(CPU, model, size, batch_size, 2, rounds, steps)


def measured() -> list[Row]:
    # Two steps a turn. The machine becomes ten times slower in the middle of the third round.
    seconds = {"local": [1.0, 1.0, 10.0, 10.0, 10.0], "local_again": [1.0, 1.01, 10.0, 10.0, 10.2]}
    seconds["ray"] = [1.1, 1.1, 1.1, 11.0, 11.0]
    return rows(setting(batch_size=30, steps=2), TEAMS, seconds)


def over_limit(found: Sequence[Row]) -> bool:
    ray = {row["launcher"]: row for row in found}["ray"]
    return ray["ratio"] > MOST + ray["noise_floor"]


def test_rows_compare_within_a_round():
    local, again, ray = measured()
    assert [row["launcher"] for row in (local, again, ray)] == list(LAUNCHERS)
    assert (local["ratio"], again["ratio"], ray["ratio"]) == (1.0, 1.0, pytest.approx(1.1))
    assert [row["noise_floor"] for row in (local, again, ray)] == [pytest.approx(0.02)] * 3
    assert (local["seconds_median"], local["images_per_second"]) == (5.0, 6.0)
    assert (ray["startup_seconds"], ray["first_step_seconds"]) == (10.0, 12.0)
    assert over_limit([local, again, ray])
    assert not over_limit([local, again, {**ray, "ratio": 1.049}])
    expected = {"benchmark": "ray", "workers": 2, "steps": 2, "rounds": 5, "device": "cpu", "torch": torch.__version__}
    assert {name: ray[name] for name in expected} == expected


def test_rows_and_table_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    asked: list[Setting] = []
    monkeypatch.setattr(ray_overhead, "measure", lambda setting: asked.append(setting) or measured())
    words = "--model resnet56 --size 16 --batch-size 12 --workers 3 --rounds 5 --steps 4 --device cpu"
    options = words.split()
    assert throughput.main(["ray", "--json", *options]) == 0
    assert asked == [Setting(CPU, "resnet56", 16, 12, 3, 5, 4)]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == measured()
    monkeypatch.setenv("COLUMNS", "200")
    assert throughput.main(["ray", *options]) == 0
    printed = capsys.readouterr().out
    [line] = [line for line in printed.splitlines() if "│ ray " in line]
    assert [word for word in line.split() if word != "│"] == ["ray", "550.0", "54.5", "1.100", "10.0", "12.0"]
    assert "noise floor 0.020" in " ".join(printed.split())


@pytest.fixture
def teams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Team]]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with (
        closing(Team("local", setting(), tmp_path / "a")) as a,
        closing(Team("local_again", setting(), tmp_path / "b")) as b,
    ):
        yield [a, b]


def test_groups_take_turns_and_wait_without_using_the_cpu(teams: list[Team]):
    a, b = teams
    for team in teams:
        assert 0 < team.startup_seconds < team.first_step_seconds
    began = time.perf_counter()
    a.turn()
    first = a.elapsed
    assert 0 < first <= time.perf_counter() - began
    b.turn()
    assert (a.elapsed, b.elapsed > 0) == (first, True)
    a.turn()
    assert a.elapsed > first
    processes = psutil.Process().children(recursive=True)
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    time.sleep(1)
    # Four workers that wait by looking again and again would use all cores.
    assert sum(sum(process.cpu_times()[:2]) for process in processes) - before < 0.5


def test_a_group_that_dies_in_its_turn_says_so(teams: list[Team]):
    victims = [process for process in psutil.Process().children() if "spawn_main" in " ".join(process.cmdline())]
    victims[1].kill()
    with pytest.raises(ChildProcessError, match=r"the group local ended: worker . of 2 died \(SIGKILL\)"):
        teams[0].turn()


def test_a_group_that_cannot_train_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        ChildProcessError, match=r"the group local ended: ValueError.*batch_size 7 does not divide by 2"
    ):
        Team("local", setting(batch_size=7), tmp_path / "a")


def test_only_turns_are_timed_and_the_warm_up_is_not(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    class Fake(SimpleNamespace):
        def __init__(self, name: str, *_: Any) -> None:
            super().__init__(name=name, startup_seconds=0.0, first_step_seconds=0.0, elapsed=0.0)
            self.number = itertools.count(1)

        def turn(self) -> None:
            calls.append(self.name)
            self.elapsed += next(self.number)  # each turn takes a second more; the machine's clock does not count

        def close(self) -> None:
            calls.append("close")

    monkeypatch.setattr(ray_overhead, "Team", Fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = measure(setting(rounds=2, steps=1))
    assert {row["launcher"]: row["seconds_median"] for row in found} == dict.fromkeys(LAUNCHERS, 2.5)
    assert calls[:3] == list(LAUNCHERS)
    assert [sorted(calls[i : i + 3]) for i in (3, 6)] == [sorted(LAUNCHERS)] * 2
    assert calls[9:] == ["close"] * 3


@pytest.mark.parametrize("words", ["--rounds 4", "--workers 0", "--steps 0", "--size 7"])
def test_bad_values_are_refused(words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as refused:
        throughput.main(["ray", *words.split()])
    assert refused.value.code == 2
    assert "or more, not" in capsys.readouterr().err


def test_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert throughput.main(["ray"]) == 2
    message = capsys.readouterr().err
    assert "192.0.2.1:6379" in message
    assert "unset RAY_ADDRESS" in message


@pytest.mark.alone
@pytest.mark.ray
def test_a_step_under_ray_takes_as_long_as_under_plain_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found: list[Row] = []
    for _ in range(TRIES):
        found = measure(setting("resnet20", 16, 32, rounds=21, steps=10))
        if found[0]["noise_floor"] <= MOST_NOISE and not over_limit(found):
            break
    for row in found:
        assert 0 < row["startup_seconds"] < row["first_step_seconds"]
    if found[0]["noise_floor"] > MOST_NOISE:
        pytest.skip(f"two equal trainings differ by more than {MOST_NOISE:.0%}: this machine is too busy to tell")
    assert not over_limit(found), f"{found[2]['ratio']:.3f} local steps; noise floor {found[2]['noise_floor']:.3f}"
