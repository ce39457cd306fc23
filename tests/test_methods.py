"""What every method must do, tried on whatever the registries hold: no method is named here."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.checkpoints import open_storage, read_json
from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Body, Outcome, Worker
from compression import artifact, models
from compression.methods import METHODS, Dense, MethodConfig
from compression.objectives import CrossEntropyConfig
from pipelines.data.loader import open_loader
from pipelines.evaluation import evaluate
from pipelines.execute import Work
from pipelines.experiment import Experiment, Training
from pipelines.run_folder import RunFolder
from tests import enrolled
from tests.kill_bodies import SEED, Kill, die_in_a_fork, draw_kill, execute_and_die, same_run, work_in

CASES = {**enrolled.methods(), **enrolled.objectives(), **enrolled.criteria()}
TO_KILL = {**enrolled.methods(), **enrolled.objectives()}
"""A criterion's own part of a run is one stage, as early pruning's is by default."""

FEW_STEPS = Training(epochs=1, batch_size=256)

UNFROZEN = "dense, BatchNorm not frozen"

COSTS = (
    "cost/parameters",
    "cost/nonzero_parameters",
    "cost/macs",
    "cost/effective_macs",
    "cost/latency_seconds_batch_1",
    "cost/peak_memory_bytes",
    "cost/run_seconds",
)


def result_of(run: RunFolder) -> dict[str, Any]:
    result = run.read_result()
    assert result is not None
    return result


def ignore(*_: object) -> None:
    return None


@dataclass
class Runs:
    """Some of the cases, each run in a storage of its own or all in one."""

    storages: dict[str, Path]
    experiments: dict[str, Experiment]
    outcomes: dict[str, Outcome]

    def folder(self, name: str) -> RunFolder:
        """Of a run that has ended well."""
        assert self.outcomes[name].error is None, self.outcomes[name].traceback
        return RunFolder(self.storages[name], self.experiments[name].identity)

    def folders(self, name: str) -> dict[str, RunFolder]:
        """By identity: the run and all that ran for it."""
        runs = (self.folder(name).path.parent).iterdir()
        return {path.name: RunFolder(self.storages[name], path.name) for path in sorted(runs)}


def run_all(
    experiments: Mapping[str, Experiment],
    storages: Mapping[str, Path],
    group: Group,
    kills: Mapping[str, Kill] | None = None,
    keep: int = 2,
    body: Body = execute_and_die,
) -> Runs:
    items: list[tuple[Work, Kill | None]] = [
        (work_in(storages[name], experiment, keep), (kills or {}).get(name)) for name, experiment in experiments.items()
    ]
    outcomes = launch(body, items, group, ignore)
    return Runs(dict(storages), dict(experiments), dict(zip(experiments, outcomes, strict=True)))


def own_storages(root: Path, names: Mapping[str, Any]) -> dict[str, Path]:
    """One for each name, so that its teachers are its own."""
    return {name: open_storage(root / re.sub(r"\W+", "_", name)) for name in names}


def side_by_side(root: Path) -> Group:
    return Group(storage=str(root), workers=1, parallel=2)


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory) -> Path:
    """The file of weights that examples name, in a folder that is the same for all runs."""
    folder = tmp_path_factory.mktemp("weights")
    model = models.build(enrolled.SMALL, num_classes=10)
    save_file(model.state_dict(), folder / enrolled.WEIGHTS)
    return folder / enrolled.WEIGHTS


def experiment_of(config: Any, weights: Path, training: Training = enrolled.TRAINING, **others: Any) -> Experiment:
    if getattr(config, "weights", None) == enrolled.WEIGHTS:
        config = dataclasses.replace(config, weights=str(weights))
    return enrolled.small(config, training, **others)


# Nothing escapes


def test_every_entry_of_the_registry_is_tried():
    assert {type(config) for config in enrolled.methods().values()} == set(METHODS.values())
    assert set(enrolled.EXAMPLES) <= set(METHODS.values())


@dataclass(frozen=True)
class Newcomer(MethodConfig):
    label = "new"


@dataclass(frozen=True)
class Demanding(MethodConfig):
    value: int
    label = "new"


def test_a_new_method_is_tried_without_being_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, "newcomer", Newcomer)
    assert Newcomer() in enrolled.methods().values()
    monkeypatch.setitem(METHODS, "demanding", Demanding)
    with pytest.raises(TypeError, match="value"):
        enrolled.methods()


# One worker, undisturbed


@pytest.fixture(scope="module")
def undisturbed(weights: Path, tmp_path_factory) -> Runs:
    """Every case by one worker, with every checkpoint kept."""
    root = tmp_path_factory.mktemp("undisturbed")
    experiments = {name: experiment_of(config, weights) for name, config in CASES.items()}
    return run_all(experiments, own_storages(root, CASES), side_by_side(root), keep=99)


@pytest.mark.parametrize("name", CASES)
def test_it_trains_on_real_digits(name: str, undisturbed: Runs):
    result = result_of(undisturbed.folder(name))
    losses = {r["step"]: r["value"] for r in result["history"] if r["key"] == "train/loss"}
    assert 0 <= result["metrics"]["test/accuracy"] <= 1
    assert result["metrics"]["test/loss"] > 0
    if isinstance(CASES[name], enrolled.TRAINS_NOTHING):
        assert not losses
        return
    assert sorted(losses) == list(range(1, len(losses) + 1))  # the epochs of the run, whatever its stages
    assert len(losses) >= enrolled.TRAINING.epochs
    assert losses[len(losses)] < losses[1]


@pytest.mark.parametrize("name", CASES)
def test_costs_are_logged(name: str, undisturbed: Runs):
    metrics = result_of(undisturbed.folder(name))["metrics"]
    assert {key: metrics[key] for key in COSTS if not metrics[key] > 0} == {}
    assert metrics["cost/effective_macs"] <= metrics["cost/macs"]
    assert 0 <= metrics["cost/own_dense_epochs"] <= metrics["cost/dense_epochs"]
    # Its stages', and those of everything that ran for it.
    own = [result_of(run)["metrics"]["cost/own_dense_epochs"] for run in undisturbed.folders(name).values()]
    assert metrics["cost/dense_epochs"] == pytest.approx(sum(own))
    if not isinstance(CASES[name], enrolled.TRAINS_NOTHING):
        assert metrics["cost/own_dense_epochs"] > 0.5


@pytest.mark.parametrize("name", [name for name, config in CASES.items() if config.sparsity is not None])
def test_pruned_weights_are_zero_in_every_checkpoint_and_the_artefact(name: str, undisturbed: Runs):
    run = undisturbed.folder(name)
    final = load_file(run.path / "model.safetensors")
    zeros = zero_pattern(final)
    share = sum(int(zero.sum()) for zero in zeros.values()) / sum(zero.numel() for zero in zeros.values())
    assert share == pytest.approx(CASES[name].sparsity, abs=1e-4)
    assert result_of(run)["metrics"]["cost/achieved_sparsity"] == pytest.approx(share)
    states = [load_file(path) for path in last_training(run).glob("checkpoints/step-*/weights.safetensors")]
    assert len(states) >= 3
    for state in states:
        assert all(torch.equal(zero, zeros[key]) for key, zero in zero_pattern(state).items())


@pytest.mark.parametrize("name", CASES)
def test_the_artefact_reloads_and_equals(name: str, undisturbed: Runs):
    run = undisturbed.folder(name)
    model = artifact.load(run.path)
    method: Any = undisturbed.experiments[name].method
    trained = load_file(method.weights) if isinstance(method, enrolled.TRAINS_NOTHING) else last_state(run)
    state = model.state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[key], trained[key]) for key in state)
    # And it is the network that was measured.
    metrics = result_of(run)["metrics"]
    loader = open_loader(enrolled.DIGITS, 3, "cpu")
    here = Worker(0, 1, torch.device("cpu"), None, ignore)
    found = evaluate(model, loader, "test", enrolled.TRAINING, here)
    assert found["accuracy"] == metrics["test/accuracy"]
    assert found["loss"] == pytest.approx(metrics["test/loss"], rel=1e-5)


def last_training(run: RunFolder) -> Path:
    """The folder of the stage that made the artefact's weights."""
    folders = run.path.glob("stages/*/checkpoints")
    return max(folders, key=lambda folder: max(path.stat().st_mtime_ns for path in folder.glob("step-*"))).parent


def last_state(run: RunFolder) -> dict[str, Tensor]:
    checkpoint = run.checkpoints(last_training(run).name).latest()
    assert checkpoint is not None
    assert checkpoint.state["finished"]
    return checkpoint.tensors["weights"]


def zero_pattern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor == 0 for key, tensor in state.items() if tensor.dim() in (2, 4)}


# Killed and started again


@pytest.fixture(scope="module")
def killed(undisturbed: Runs, tmp_path_factory) -> Runs:
    """Each case killed once, somewhere in all that runs for it, and started again."""
    root = tmp_path_factory.mktemp("killed")
    draw = random.Random(SEED)
    experiments = {name: undisturbed.experiments[name] for name in TO_KILL}
    kills = {name: draw_kill(draw, undisturbed.outcomes[name].value) for name in TO_KILL}
    print(f"ORCHARD_KILL_SEED={SEED}:", *(f"{name}: {kill}" for name, kill in kills.items()), sep="\n  ")
    died = run_all(experiments, own_storages(root, TO_KILL), side_by_side(root), kills, body=die_in_a_fork)
    for name, outcome in died.outcomes.items():
        assert "SIGKILL" in (outcome.error or ""), name
        assert RunFolder(died.storages[name], experiments[name].identity).read_result() is None
    return run_all(experiments, died.storages, side_by_side(root))


@pytest.mark.parametrize("name", TO_KILL)
def test_killed_and_started_again_it_ends_the_same(name: str, undisturbed: Runs, killed: Runs):
    expected, found = undisturbed.folders(name), killed.folders(name)
    assert found.keys() == expected.keys()
    for identity, run in found.items():
        same_run(run, expected[identity])


# One worker and two


def train_only(item: tuple[Work, Kill | None], worker: Worker) -> dict[str, int]:
    """Without validation, which would take half of the time: only the networks are compared."""
    with mock.patch("pipelines.training.evaluate", return_value={}):
        return execute_and_die(item, worker)


@pytest.fixture(scope="module")
def by_workers(weights: Path, tmp_path_factory) -> list[Runs]:
    """Every case, and one that cannot agree, by one worker and by two; the others train frozen and in float64."""
    frozen = {
        name: experiment_of(config, weights, enrolled.FROZEN, data=enrolled.FEWER_DIGITS)
        for name, config in TO_KILL.items()
    }
    others = {name: experiment_of(CASES[name], weights, FEW_STEPS) for name in CASES.keys() - frozen}
    training = dataclasses.replace(enrolled.FROZEN, epochs=1, freeze_batchnorm=False)
    others[UNFROZEN] = enrolled.small(Dense(CrossEntropyConfig()), training, enrolled.FEWER_DIGITS)
    runs = []
    for workers in (1, 2):
        root = open_storage(tmp_path_factory.mktemp(f"workers{workers}"))
        group = side_by_side(root) if workers == 1 else Group(storage=str(root), workers=2)
        experiments = {**frozen, **others}
        runs.append(run_all(experiments, dict.fromkeys(experiments, root), group, body=train_only))
    return runs


@pytest.mark.parametrize("name", CASES)
def test_two_workers_decide_what_one_does(name: str, by_workers: list[Runs]):
    one, two = (decisions(runs.folder(name)) for runs in by_workers)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) if isinstance(one[key], Tensor) else one[key] == two[key] for key in one)


def decisions(run: RunFolder) -> dict[str, Any]:
    """What stages have stored (scores, masks, plans), and which weights of the artefact are zero."""
    found: dict[str, Any] = zero_pattern(load_file(run.path / "model.safetensors"))
    for path in run.path.glob("stages/*/stage.json"):
        stage = read_json(path)
        found[f"{path.parent.name}: value"] = stage["value"]
        found[f"{path.parent.name}: order"] = stage["order"]
        if stage["kind"] != "json":
            tensors = load_file(path.parent / "result.safetensors")
            found |= {f"{path.parent.name}: {key}": tensor for key, tensor in tensors.items()}
    return found


@pytest.mark.parametrize("name", TO_KILL)
def test_with_batchnorm_frozen_two_workers_agree_with_one(name: str, by_workers: list[Runs]):
    one, two = (load_file(runs.folder(name).path / "model.safetensors") for runs in by_workers)
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in one.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in two.items()
    }
    assert all(tensor.dtype == torch.float64 for tensor in one.values() if tensor.is_floating_point())
    distance = max(float((one[key].double() - two[key].double()).abs().max()) for key in one)
    assert distance < 1e-9
    if not isinstance(CASES[name], enrolled.TRAINS_NOTHING):
        assert all(runs.outcomes[name].value["train"] >= 20 for runs in by_workers)


def test_without_the_frozen_batchnorm_two_workers_would_differ(by_workers: list[Runs]):
    """So the agreement above says something."""
    one, two = (load_file(runs.folder(UNFROZEN).path / "model.safetensors") for runs in by_workers)
    assert max(float((one[key] - two[key]).abs().max()) for key in one) > 1e-6
