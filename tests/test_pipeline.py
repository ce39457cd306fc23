"""Experiments, the training loop, the driver and what MLflow is told, on real digits."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from cluster import strategy
from cluster.checkpoints import open_storage, write_json
from cluster.group import Group
from cluster.launch import launch
from compression import artifact
from compression.batch import Batch
from compression.methods import EPSD, METHODS, Dense, EarlyPruning, MethodConfig
from compression.objectives import CrossEntropy, CrossEntropyConfig, DLBConfig, PSKDConfig
from compression.session import Session
from pipelines.data.config import CIFAR10, Digits
from pipelines.data.loader import open_loader
from pipelines.driver import run_experiments
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.identity import ADDED, PLACE, canonical, identity
from pipelines.optimizers import SGD, AdamW, Cosine, MultiStep, TorchOptimizer, factor_at
from pipelines.run_folder import RunFolder

SHORT = Training(epochs=2, batch_size=256, optimizer=SGD(lr=0.05))


def ignore(*_: object) -> None:
    return None


def quiet() -> Console:
    return Console(file=io.StringIO())


def run_here(storage: Path, *experiments: Experiment):
    work = [Work(e, Placement(storage=str(storage)), storage, {"recipe": "test"}) for e in experiments]
    return launch(execute, work, Group(storage=str(storage)), ignore)


# Identity


@dataclass(frozen=True)
class Before:
    lr: float = 0.1


@dataclass(frozen=True)
class After:
    lr: float = 0.1
    root: str = field(default="here", metadata=PLACE)
    warmup: int = field(default=0, metadata=ADDED)


def test_identity_is_of_values_alone():
    assert Experiment().identity == Experiment().identity
    assert len(Experiment().identity) == 16
    others = [
        Experiment(seed=1),
        Experiment(model="resnet32"),
        Experiment(method=EPSD(sparsity=0.9)),
        Experiment(method=EPSD(distillation=PSKDConfig())),
        Experiment(method=Dense()),
        Experiment(training=dataclasses.replace(Training(), schedule=MultiStep())),
    ]
    assert len({e.identity for e in [Experiment(), *others]}) == 7


def test_places_and_added_defaults_leave_the_identity_alone():
    assert Experiment(data=CIFAR10(root="a")).identity == Experiment(data=CIFAR10(root="b")).identity
    same = {**canonical(After(root="there")), "kind": "Before"}
    assert same == canonical(Before())
    assert canonical(After(warmup=2))["warmup"] == 2


def test_a_raised_version_is_another_identity(monkeypatch: pytest.MonkeyPatch):
    before = Experiment().identity
    monkeypatch.setattr(EPSD, "VERSION", 2, raising=False)
    assert Experiment().identity != before


def test_values_that_are_not_plain_are_refused():
    with pytest.raises(TypeError, match="Path"):
        identity(Before(lr=Path("x")))  # type: ignore[arg-type]


def test_names_say_what_is_run():
    method = EarlyPruning(objective=DLBConfig(), sparsity=0.9)
    assert Experiment(method, seed=4).name == "ProsPr + DLB at 0.9, resnet20 on digits, seed 4"


# Schedules


def test_learning_rates_by_hand():
    steps = [factor_at(step, 8, 0, MultiStep((0.5, 0.75), 0.1)) for step in range(8)]
    assert steps == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    warm = [factor_at(step, 10, 3, Cosine()) for step in range(10)]
    assert warm[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert warm[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 6 / 7)))
    assert warm[3:] == sorted(warm[3:], reverse=True)


# Training


def test_dense_reaches_97_and_a_sparse_one_95_percent(tmp_path: Path):
    storage = open_storage(tmp_path)
    training = Training(epochs=15, batch_size=128, optimizer=SGD(lr=0.1), schedule=Cosine())
    dense, sparse = run_here(storage, Experiment(Dense(), training=training), Experiment(EPSD(), training=training))
    assert dense.error is None, dense.traceback
    assert sparse.error is None, sparse.traceback
    assert dense.value["metrics"]["test/accuracy"] >= 0.97
    assert sparse.value["metrics"]["test/accuracy"] >= 0.95
    assert sparse.value["metrics"]["cost/achieved_sparsity"] == pytest.approx(0.95, abs=1e-5)
    assert dense.value["metrics"]["cost/parameters"] == 269_722


@pytest.mark.parametrize("optimizer", [SGD(0.05, weight_decay=0.01), AdamW(0.01)], ids=["sgd", "adamw"])
def test_masks_hold_in_every_checkpoint(optimizer: SGD | AdamW, tmp_path: Path):
    training = dataclasses.replace(SHORT, epochs=3, optimizer=optimizer)
    experiment = Experiment(EPSD(sparsity=0.9), training=training)
    storage = open_storage(tmp_path)
    work = Work(experiment, Placement(storage=str(storage), keep=99, checkpoint_steps=2), storage, {})
    [outcome] = launch(execute, [work], Group(storage=str(storage)), ignore)
    assert outcome.error is None, outcome.traceback
    folder = RunFolder(storage, experiment.identity)
    states = [
        load_file(path)
        for path in sorted([*folder.path.rglob("weights.safetensors"), folder.path / "model.safetensors"])
    ]
    assert len(states) == 1 + 3 + 3 * 2
    weights = [name for name, tensor in states[0].items() if tensor.dim() in (2, 4)]
    zeros = [{name: state[name] == 0 for name in weights} for state in states]
    assert sum(int(zero.sum()) for zero in zeros[0].values()) == math.floor(0.9 * 268_336)
    assert all(torch.equal(zero[name], zeros[0][name]) for zero in zeros for name in weights)


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_other_precisions_train(precision, tmp_path: Path):
    training = dataclasses.replace(SHORT, epochs=1, precision=precision, warmup_epochs=0.5)
    experiment = Experiment(EPSD(sparsity=0.9), training=training)
    [outcome] = run_here(open_storage(tmp_path), experiment)
    assert outcome.error is None, outcome.traceback
    model = artifact.load(RunFolder(tmp_path, experiment.identity).path)
    dtype = torch.float64 if precision == "float64" else torch.float32
    assert next(model.parameters()).dtype == dtype


def test_frozen_batchnorm_keeps_its_statistics_and_learns_the_rest(tmp_path: Path):
    assert "freeze_batchnorm" not in canonical(Training())  # runs from before it keep their identity
    for frozen in (False, True):
        experiment = Experiment(Dense(), training=dataclasses.replace(BRIEF, freeze_batchnorm=frozen), data=FEW_DIGITS)
        [outcome] = run_here(open_storage(tmp_path), experiment)
        assert outcome.error is None, outcome.traceback
        layers = [
            module
            for module in artifact.load(RunFolder(tmp_path, experiment.identity).path).modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        assert len(layers) == 19
        for layer in layers:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            assert bool((layer.running_mean == 0).all()) is frozen
            assert bool((layer.running_var == 1).all()) is frozen
            assert layer.num_batches_tracked == (0 if frozen else BRIEF.epochs * BRIEF_STEPS)
            assert (layer.weight != 1).any()
            assert (layer.bias != 0).any()


@dataclass(frozen=True)
class Probe(MethodConfig):
    """A method that a test writes."""

    objective: Any = field(default_factory=CrossEntropyConfig)
    label = "probe"


BRIEF = Training(epochs=3, batch_size=64, optimizer=SGD(lr=0.01), schedule=Cosine())
FEW_DIGITS = Digits(val_fraction=0.8)
BRIEF_STEPS = 4
"""In an epoch."""


@dataclass
class Probed:
    """What a method of a test's own has done: its run, and (learning rate, weight decay) of each group at each step."""

    folder: RunFolder
    steps: list[list[tuple[float, float]]]

    @property
    def rates(self) -> list[float]:
        return [rate for [(rate, _)] in self.steps]

    def recorded(self, key: str) -> dict[int, float]:
        return {r["step"]: r["value"] for r in self.folder.read_history() if r["key"] == key}


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Session], nn.Module]], Probed]:
    """Runs a function of the session as a method."""
    steps: list[list[tuple[float, float]]] = []
    step = strategy.Single.step

    def seen(self: strategy.Single, optimizer: torch.optim.Optimizer) -> None:
        steps.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
        step(self, optimizer)

    monkeypatch.setattr(strategy.Single, "step", seen)
    monkeypatch.setattr("pipelines.costs.LATENCY_BATCHES", (1,))

    def run(method: Callable[[Session], nn.Module]) -> Probed:
        monkeypatch.setitem(METHODS, "probe", Probe)
        monkeypatch.setattr(Probe, "run", lambda self, session: method(session))
        experiment = Experiment(Probe(), data=FEW_DIGITS, training=BRIEF)
        [outcome] = run_here(open_storage(tmp_path), experiment)
        assert outcome.error is None, outcome.traceback
        return Probed(RunFolder(tmp_path, experiment.identity), steps)

    return run


def rates(training: Training) -> list[float]:
    steps = training.epochs * BRIEF_STEPS
    return [training.optimizer.lr * factor_at(step, steps, 0, training.schedule) for step in range(steps)]


def test_a_stage_may_have_a_schedule_of_its_own(probe):
    other = Training(epochs=2, batch_size=64, optimizer=SGD(lr=0.02), schedule=MultiStep((0.5,)))

    def method(session: Session) -> nn.Module:
        model = session.train("first", session.model(), CrossEntropy(), schedule=other)
        return session.train("second", model, CrossEntropy())

    done = probe(method)
    assert done.rates == pytest.approx([0.02] * 4 + [0.002] * 4 + rates(BRIEF))
    # The epochs of the run are counted over its stages.
    assert sorted(done.recorded("train/loss")) == sorted(done.recorded("val/accuracy")) == [1, 2, 3, 4, 5]
    assert done.recorded("cost/second_flops")[0] == pytest.approx(done.recorded("cost/first_flops")[0] * 3 / 2)
    assert done.recorded("cost/own_dense_epochs")[0] == pytest.approx(5)


class Told(CrossEntropy):
    """Remembers what it was told of epochs, and each batch."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, int]] = []
        self.labels: list[torch.Tensor] = []

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        self.epochs.append((epoch, num_epochs))

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        self.labels.append(batch.labels)
        return super().__call__(model, batch)


def test_a_stage_may_train_a_part_of_the_schedule(probe):
    told = Told()

    def method(session: Session) -> nn.Module:
        model = session.train("first", session.model(), told, epochs=range(1))
        return session.train("rest", model, told, epochs=range(1, 3))

    done = probe(method)
    assert done.rates == pytest.approx(rates(BRIEF))
    assert told.epochs == [(0, 3), (1, 3), (2, 3)]
    assert sorted(done.recorded("train/loss")) == [1, 2, 3]
    loader = open_loader(FEW_DIGITS, 0, "cpu")
    expected = [*loader.epoch("first", 0, 64, frozenset()), *loader.epoch("rest", 1, 64, frozenset())]
    assert all(torch.equal(labels, batch.labels) for labels, batch in zip(told.labels, expected, strict=False))
    assert done.recorded("cost/rest_flops")[0] == pytest.approx(2 * done.recorded("cost/first_flops")[0])


def test_a_part_without_epochs_leaves_everything_as_it_is(probe):
    def method(session: Session) -> nn.Module:
        model = session.model()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model = session.train("none", model, CrossEntropy(), epochs=range(0))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return session.train("train", model, CrossEntropy(), epochs=range(1))

    done = probe(method)
    assert len(done.steps) == BRIEF_STEPS
    assert {path.name for path in done.folder.stage("none").parent.iterdir()} == {"train"}
    assert sorted(done.recorded("train/loss")) == [1]


def test_parameter_groups_have_their_own_learning_rate_and_weight_decay(probe):
    found = {}

    def method(session: Session) -> nn.Module:
        model = session.model()
        found["before"] = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        layers = [list(model.get_submodule(name).parameters()) for name in ("fc", "conv1")]
        own = {id(parameter) for layer in layers for parameter in layer}
        groups = [
            {"params": [parameter for parameter in model.parameters() if id(parameter) not in own]},
            {"params": layers[0], "lr_scale": 3.0, "weight_decay": 0.0},
            {"params": layers[1], "lr_scale": 0.0},
        ]
        found["model"] = session.train("train", model, CrossEntropy(), param_groups=groups)
        return found["model"]

    done = probe(method)
    assert [step[0] for step in done.steps] == [(pytest.approx(rate), 5e-4) for rate in rates(BRIEF)]
    assert [step[1] for step in done.steps] == [(pytest.approx(3 * rate), 0.0) for rate in rates(BRIEF)]
    assert [step[2] for step in done.steps] == [(0.0, 5e-4)] * len(done.steps)
    for name, parameter in found["model"].named_parameters():
        assert torch.equal(parameter, found["before"][name]) is name.startswith("conv1.")


def test_a_stage_cannot_train_in_another_precision_than_its_network(probe):
    exact = dataclasses.replace(BRIEF, precision="float64")

    def method(session: Session) -> nn.Module:
        with pytest.raises(ValueError, match=r"stage train is to train in float64, .* torch.float32"):
            session.train("train", session.model(), CrossEntropy(), schedule=exact)
        return session.model()

    assert probe(method).steps == []


def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path):
    storage = open_storage(tmp_path)
    wild = Experiment(Dense(), training=dataclasses.replace(SHORT, optimizer=SGD(lr=1e30)))
    calm = Experiment(Dense(), training=SHORT)
    broken, fine = run_here(storage, wild, calm)
    assert "not finite at step 1 " in str(broken.error)
    assert fine.error is None
    assert RunFolder(storage, wild.identity).checkpoints("train").latest() is None


def test_a_layer_pruned_to_nothing_is_an_error_before_training(tmp_path: Path):
    storage = open_storage(tmp_path)
    strict = Experiment(EarlyPruning(sparsity=0.9995), training=SHORT)
    allowed = Experiment(EarlyPruning(sparsity=0.9995, allow_empty=True), training=SHORT)
    refused, ran = run_here(storage, strict, allowed)
    assert "nothing is left of" in str(refused.error)
    assert "allow_empty" in str(refused.error)
    assert ran.error is None
    assert ran.value["metrics"]["empty_layers"] >= 1


def test_an_optimiser_that_is_not_elementwise_is_refused_with_masks(tmp_path: Path):
    training = dataclasses.replace(SHORT, epochs=1, optimizer=TorchOptimizer("Adafactor"))
    with pytest.raises(ValueError, match="Adafactor"):
        Experiment(EPSD(), training=training)
    [dense] = run_here(open_storage(tmp_path), Experiment(Dense(), training=training))
    assert dense.error is None


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path):
    [outcome] = run_here(open_storage(tmp_path), Experiment(training=dataclasses.replace(SHORT, batch_size=5000)))
    assert "5000" in str(outcome.error)


# The driver and MLflow


def histories(client: MlflowClient, run_id: str) -> dict[tuple[str, int], float]:
    found = [m for key in client.get_run(run_id).data.metrics for m in client.get_metric_history(run_id, key)]
    assert len({(m.key, m.step) for m in found}) == len(found)
    return {(m.key, m.step): m.value for m in found if not m.key.startswith(("test_", "val_"))}


def recorded(folder: RunFolder) -> dict[tuple[str, int], float]:
    return {(r["key"], r["step"]): r["value"] for r in folder.read_history()}


def test_runs_are_tracked_whole_and_only_once(tmp_path: Path):
    experiments = [
        Experiment(Dense(), training=dataclasses.replace(SHORT, epochs=1)),
        Experiment(EarlyPruning(objective=PSKDConfig(), sparsity=0.9), training=SHORT, seed=5),
    ]
    placement = Placement(storage=str(tmp_path))
    ended = run_experiments(experiments, placement, "suite", "recipe", quiet())
    assert [end.error for end in ended] == [None, None]
    assert not any(end.before for end in ended)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    suite = client.get_experiment_by_name("suite")
    assert suite is not None
    assert ended[1].run_id is not None
    assert len(client.search_runs([suite.experiment_id])) == 2

    run = client.get_run(ended[1].run_id)
    folder = RunFolder(tmp_path, experiments[1].identity)
    assert run.info.status == "FINISHED"
    assert histories(client, run.info.run_id) == pytest.approx(recorded(folder))
    keys = {key for key, _ in recorded(folder)}
    assert keys >= {"train/loss", "train/ps_kd", "val/accuracy", "test/accuracy", "cost/macs", "cost/train_seconds"}
    assert keys >= {f"cost/latency_seconds_batch_{size}" for size in (1, 8, 64)}
    assert run.data.params["method.sparsity"] == "0.9"
    assert run.data.params["training.optimizer.lr"] == "0.05"
    tags = run.data.tags
    assert tags["orchard.identity"] == experiments[1].identity
    assert tags["orchard.seed"] == "5"
    assert tags["orchard.recipe"] == "recipe"
    assert tags["orchard.method"] == "early_pruning"
    assert tags["orchard.dirty"] in ("true", "false", "unknown")
    assert len(tags["orchard.commit"]) == 40 or tags["orchard.commit"] == "unknown"
    assert json.loads(tags["orchard.versions"])["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert tags["orchard.hardware"]
    paths = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert paths == {"model.safetensors", "arch.json"}

    shown = io.StringIO()
    again = run_experiments(experiments, placement, "suite", "recipe", Console(file=shown))
    assert all(end.before for end in again)
    assert "already finished" in shown.getvalue()
    assert [end.run_id for end in again] == [end.run_id for end in ended]
    assert len(client.search_runs([suite.experiment_id])) == 2


def test_a_run_that_ended_without_its_driver_is_tracked_at_the_next_start(tmp_path: Path):
    experiment = Experiment(Dense(), training=SHORT)
    storage = open_storage(tmp_path)
    [outcome] = run_here(storage, experiment)
    assert outcome.error is None
    [ended] = run_experiments([experiment], Placement(storage=str(storage)), "late", "recipe", quiet())
    assert ended.before
    assert ended.run_id is not None
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert histories(client, ended.run_id) == pytest.approx(recorded(RunFolder(storage, experiment.identity)))
    assert client.get_run(ended.run_id).info.status == "FINISHED"


def test_a_failed_run_is_tracked_as_failed_with_what_it_has(tmp_path: Path):
    wild = Experiment(EPSD(sparsity=0.9), training=dataclasses.replace(SHORT, optimizer=SGD(lr=1e30)))
    [ended] = run_experiments([wild], Placement(storage=str(tmp_path)), "failing", "recipe", quiet())
    assert "not finite" in str(ended.error)
    assert ended.run_id is not None
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(ended.run_id).info.status == "FAILED"
    assert ("cost/score_seconds", 0) in histories(client, ended.run_id)


def test_side_by_side_gives_what_one_after_the_other_gives(tmp_path: Path):
    experiments = [Experiment(Dense(CrossEntropyConfig()), training=SHORT, seed=seed) for seed in range(2)]
    placement = Placement(storage=str(tmp_path / "a"), parallel=2)
    ended = run_experiments(experiments, placement, "parallel", "recipe", quiet())
    assert [end.error for end in ended] == [None, None]
    storage = open_storage(tmp_path / "b")
    assert [outcome.error for outcome in run_here(storage, *experiments)] == [None, None]
    for experiment, end in zip(experiments, ended, strict=True):
        other = RunFolder(storage, experiment.identity).path / "model.safetensors"
        assert (end.folder / "model.safetensors").read_bytes() == other.read_bytes()


def test_other_data_of_the_same_name_is_refused(tmp_path: Path):
    storage = open_storage(tmp_path)
    experiment = Experiment(Dense(), training=SHORT)
    folder = RunFolder(storage, experiment.identity)
    write_json(folder.description, {"data": "something else", "placement": {}})
    [outcome] = run_here(storage, experiment)
    assert "other data" in str(outcome.error)


def test_two_drivers_do_not_run_one_experiment_at_once(tmp_path: Path):
    experiment = Experiment(Dense(), training=SHORT)
    storage = open_storage(tmp_path)
    work = [Work(experiment, Placement(storage=str(storage)), storage, {})] * 2
    waited = []
    outcomes = launch(
        execute,
        work,
        Group(storage=str(storage), parallel=2),
        lambda number, event: waited.append(number) if event["kind"] == "waiting" else None,
    )
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert outcomes[0].value == outcomes[1].value
    assert len(waited) == 1
