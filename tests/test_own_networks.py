"""A network of one's own, by the name "package.module:function": trained, saved, loaded again where that is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Outcome
from compression import artifact, models
from compression.methods import Dense, EarlyPruning
from compression.objectives import KDConfig
from pipelines import cli
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD
from pipelines.recipes import digits_epsd
from pipelines.run_folder import RunFolder

CODE = """
from torch import nn

ran = []

def small(num_classes, width=8):
    ran.append(width)
    features = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def without_classes():
    return small(10)

def text(num_classes):
    return "a network"

number = 3
"""

SHORT = Training(1, 256, SGD(0.1))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the module `my_nets`."""
    (tmp_path / "my_nets.py").write_text(CODE)
    (tmp_path / "broken_nets.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("my_nets", "broken_nets"):
        sys.modules.pop(name, None)


def run_here(storage: Path, experiment: Experiment) -> Outcome:
    storage.mkdir(exist_ok=True)
    work = Work(experiment, Placement(storage=str(storage)), storage, {"recipe": "test"})
    [outcome] = launch(execute, [work], Group(storage=str(storage)), lambda *_: None)
    return outcome


def test_a_network_of_ones_own_is_pruned_trained_and_loaded_again(here: Path, monkeypatch: pytest.MonkeyPatch):
    experiment = Experiment(EarlyPruning(sparsity=0.5), "my_nets:small", training=SHORT)
    outcome = run_here(here / "storage", experiment)
    assert outcome.error is None, outcome.traceback
    folder = RunFolder(here / "storage", experiment.identity).path
    described = json.loads((folder / "arch.json").read_text())["architecture"]
    assert described == {"name": "my_nets:small", "num_classes": 10}
    sys.modules.pop("my_nets")
    with pytest.raises(ValueError, match=r"code would run: .* allow_import=True or set ORCHARD_ALLOW_IMPORT=1"):
        artifact.load(folder)
    with pytest.raises(ValueError, match="whose code would run"):
        artifact.load(folder, allow_import="my_nets:another")
    assert "my_nets" not in sys.modules, "nothing was imported"
    logits = artifact.load(folder, allow_import="my_nets:small")(torch.zeros(2, 3, 8, 8))
    assert logits.shape == (2, 10)
    assert torch.equal(artifact.load(folder, allow_import=True)(torch.zeros(2, 3, 8, 8)), logits)
    monkeypatch.setenv("ORCHARD_ALLOW_IMPORT", "1")
    assert torch.equal(artifact.load(folder)(torch.zeros(2, 3, 8, 8)), logits)


def test_the_example_is_a_network_for_any_size():
    model = models.build("examples.my_network:MyNetwork", 7)
    assert [model(torch.zeros(2, 3, size, size)).shape for size in (8, 33)] == [(2, 7), (2, 7)]


def test_it_can_be_teacher_and_student(here: Path):
    teacher = Experiment(Dense(), "my_nets:small", training=SHORT)
    outcome = run_here(here / "storage", Experiment(Dense(KDConfig(teacher)), "vgg3", training=SHORT))
    assert outcome.error is None, outcome.traceback


def test_a_finished_run_is_of_its_code(here: Path):
    experiment = Experiment(Dense(), "my_nets:small", training=SHORT)
    assert run_here(here / "storage", experiment).error is None
    assert run_here(here / "storage", experiment).error is None
    (here / "my_nets.py").write_text(CODE.replace("width=8", "width=4"))
    assert "another code of my_nets:small" in str(run_here(here / "storage", experiment).error)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:net", "there is no module no_such_module: start the command in the folder that holds it"),
        ("my_nets.part:net", "there is no module my_nets.part"),
        ("my_nets:smal", "has no function smal; did you mean my_nets:small?"),
        ("my_nets:number", "has no function number"),
        ("broken_nets:net", "module broken_nets cannot be imported: ZeroDivisionError: division by zero"),
        ("../evil:net", "there is no hub of models '..'"),
        ("my_nets.py:small", "there is no module my_nets.py"),
        ("my_nets:__dict__", "has no function __dict__"),
        (":small", "is named package.module:function"),
        ("my_nets:", "is named package.module:function"),
    ],
)
def test_a_wrong_name_is_one_clear_error(name: str, words: str, here: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(digits_epsd, ["--model", name]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_nets:without_classes", r"my_nets:without_classes\(num_classes=10\) failed: TypeError"),
        ("my_nets:text", "my_nets:text must return a torch.nn.Module, not str"),
        ("os:system", r"os:system\(num_classes=10\) failed: TypeError"),
    ],
)
def test_what_builds_no_network_is_one_clear_error(name: str, words: str, here: Path):
    with pytest.raises(ValueError, match=words):
        models.build(name, 10)
    outcome: Any = run_here(here / "storage", Experiment(Dense(), name, training=SHORT))
    assert name in outcome.error
