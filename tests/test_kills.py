"""Many kills: whatever file operation a command dies before, started again it ends with the same bytes.

Each process runs a tiny experiment until a drawn operation; the next one resumes, and may die again. ORCHARD_KILLS is
the number of kills (for a thorough test 1000), ORCHARD_KILL_SEED draws the same ones again.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from cluster.checkpoints import open_storage
from compression import models
from compression.methods import Dense, Pretrained
from compression.objectives import KDConfig, PSKDConfig
from pipelines.experiment import Experiment
from pipelines.run_folder import RunFolder
from tests import enrolled
from tests.kill_bodies import SEED, same_run

KILLS = int(os.environ.get("ORCHARD_KILLS", "16"))
KILLED = 9

CASES: dict[str, Any] = {**enrolled.methods(), "PS-KD": Dense(PSKDConfig()), "KD": Dense(KDConfig())}


@dataclass
class Ran:
    """How a process ended. operations: None: it was killed."""

    error: str | None
    operations: int | None


@dataclass
class Case:
    """An experiment, where it ran undisturbed, and how many file operations that took."""

    experiment: Experiment
    storage: Path
    operations: int


def run(storage: Path, experiment: Experiment, kill: int = 0, torn: bool = False) -> Ran:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.file_kills"])
    from tests import file_kills

    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=file_kills.run_and_die, args=(storage, experiment, kill, torn, sender))
    child.start()
    sender.close()
    try:
        error, operations = receiver.recv()
    except EOFError:
        child.join()
        return Ran(None if child.exitcode == KILLED else f"exit status {child.exitcode}", None)
    child.join()
    return Ran(error, operations)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(models.build(enrolled.SMALL, num_classes=10).state_dict(), path)
    return str(path)


def small(config: Any, weights: str) -> Experiment:
    config = Pretrained(weights) if isinstance(config, Pretrained) else config
    return replace(enrolled.small(config), model=enrolled.SMALL)


def names_in(storage: Path) -> set[str]:
    """Of all files and folders. Locks are there as soon as somebody asked for one; fingerprints are only remembered."""
    found = {str(path.relative_to(storage)) for path in storage.rglob("*")}
    return {name for name in found if not name.endswith("lock") and not name.startswith("fingerprints")}


def test_many_kills(tmp_path: Path, weights: str):
    draw, cases, kills = random.Random(f"{SEED} file operations"), {}, 0
    names = list(CASES)
    draw.shuffle(names)
    while kills < KILLS:
        name = names[0]
        names.append(names.pop(0))
        if name not in cases:
            storage = open_storage(tmp_path / f"undisturbed-{len(cases)}")
            experiment = small(CASES[name], weights)
            ran = run(storage, experiment)
            assert ran.error is None, ran.error
            assert ran.operations is not None
            cases[name] = Case(experiment, storage, ran.operations)
        kills += killed_until_it_ends(cases[name], open_storage(tmp_path / f"killed-{kills}"), draw, name)
    print(f"ORCHARD_KILL_SEED={SEED}: {kills} kills of {len(cases)} cases")


def killed_until_it_ends(case: Case, storage: Path, draw: random.Random, name: str) -> int:
    """The number of kills until the run has ended; it must be what it is undisturbed."""
    drawn: list[tuple[int, bool]] = []
    while True:
        kill = (draw.randint(1, case.operations), draw.random() < 0.5)
        where = f"ORCHARD_KILL_SEED={SEED}: {name}, kills {[*drawn, kill]} of {case.operations} operations"
        ran = run(storage, case.experiment, *kill)
        assert ran.error is None, f"{where}\n{ran.error}"
        if ran.operations is not None:
            break
        drawn.append(kill)
    print(where)
    assert names_in(storage) == names_in(case.storage), where
    for path in (case.storage / "runs").iterdir():
        same_run(RunFolder(storage, path.name), RunFolder(case.storage, path.name))
    return len(drawn)
