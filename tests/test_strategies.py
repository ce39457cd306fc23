"""DDP and the three stages of ZeRO: one training, one loss curve, one form of checkpoint, whoever shares the work."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster import zero
from cluster.checkpoints import open_storage
from cluster.group import Group
from cluster.launch import launch
from cluster.strategy import strategy
from cluster.worker import Outcome
from cluster.zero_config import OF_THE_EXPERIMENT, ZeroSettings, read_own
from compression.criteria import MagnitudeConfig
from compression.methods import Dense, EarlyPruning
from pipelines.data.config import Digits
from pipelines.execute import Work
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import AdamW
from pipelines.run_folder import RunFolder
from tests.strategy_bodies import SPLIT_ALL, WAYS, Trained, Watched, act

DIGITS = Digits(val_fraction=0.55)
TRAINING = Training(epochs=5, batch_size=64, warmup_epochs=1)
"""50 steps, ten in each epoch. Two workers' gradients have one order in which to be added, their mean is exact, and the
optimiser rounds each entry alike wherever it lies: so the curves are equal in every bit, whatever the learning rate."""

PRUNED = Experiment(EarlyPruning(MagnitudeConfig(), sparsity=0.9), "resnet20", DIGITS, TRAINING)
BY_ADAMW = dataclasses.replace(PRUNED, training=dataclasses.replace(TRAINING, optimizer=AdamW(1e-3), epochs=2))
IN_BFLOAT16 = Experiment(Dense(), "resnet20", DIGITS, dataclasses.replace(TRAINING, precision="bfloat16", epochs=1))

PLACEMENTS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "zero 1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3, "deepspeed_config": SPLIT_ALL},
}

STOP = 23
"""Steps after which a run is ended; its checkpoints are five steps apart."""


class Storages:
    """Runs in storages by name: the same name is the same storage."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, name: str, experiment: Experiment, way: str, stop: int | None = None, **placement: Any) -> Watched:
        storage = open_storage(self.root / name)
        asked = Placement(storage=str(storage), checkpoint_steps=5, keep=99, **PLACEMENTS[way], **placement)
        return Watched(Work(experiment, asked, storage, {}), stop)

    def folder(self, name: str, experiment: Experiment) -> RunFolder:
        return RunFolder(self.root / name, experiment.identity)


@dataclasses.dataclass
class Done:
    """What came of every item, in one launch of two workers."""

    storages: Storages
    outcomes: dict[str, Outcome]

    def __getitem__(self, name: str) -> Any:
        outcome = self.outcomes[name]
        assert outcome.error is None, outcome.traceback
        return outcome.value


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    storages = Storages(tmp_path_factory.mktemp("runs"))
    moved = {"accept_placement": True}
    items: dict[str, Any] = {name: storages.run(name, PRUNED, name) for name in PLACEMENTS}
    items |= {f"adamw {name}": storages.run(name, BY_ADAMW, name) for name in ("ddp", "zero 2")}
    items |= {f"bfloat16 {name}": storages.run(name, IN_BFLOAT16, name) for name in ("ddp", "zero 2", "zero 3")}
    items |= {"objectives": "objectives", "gated": "gated", "handed over": "handed_over", "exploding": "exploding"}
    for name in ("zero 2", "zero 3"):
        items[f"{name}, stopped"] = storages.run(f"{name} again", PRUNED, name, STOP)
        items[f"{name}, gone on"] = storages.run(f"{name} again", PRUNED, name)
    items |= {
        "moved 1": storages.run("moved", PRUNED, "zero 3", STOP),
        "moved unasked": storages.run("moved", PRUNED, "ddp"),
        "moved 2": storages.run("moved", PRUNED, "ddp", 10, **moved),
        "moved 3": storages.run("moved", PRUNED, "zero 2", **moved),
    }
    group = Group(storage=str(storages.root), workers=2)
    outcomes = launch(act, list(items.values()), group, lambda *_: None)
    return Done(storages, dict(zip(items, outcomes, strict=True)))


def furthest(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("way", ["zero 1", "zero 2", "zero 3"])
class TestAsUnderDDP:
    def test_fifty_steps_have_the_same_losses(self, done: Done, way: str):
        assert len(done[way]) == 50
        assert done["ddp"][-1] < 0.5 * done["ddp"][0]
        assert done[way] == done["ddp"]

    def test_checkpoints_have_one_form(self, done: Done, way: str):
        def early(name: str) -> dict[str, torch.Tensor]:
            path = done.storages.folder(name, PRUNED).checkpoints("train").folder / "step-00000010"
            weights, state = (load_file(path / f"{part}.safetensors") for part in ("weights", "optimizer"))
            return weights | {f"optimizer {name}": value for name, value in state.items()}

        theirs, ours = early("ddp"), early(way)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            assert torch.equal(ours[name], tensor)

    @pytest.mark.parametrize("objective", ["CS-KD", "DLB", "PS-KD", "KD"])
    def test_objectives_that_call_again_or_remember(self, done: Done, way: str, objective: str):
        ours, theirs = (done["objectives"][objective][name] for name in (way, "ddp"))
        assert len(ours.losses) == len(theirs.losses) > 0
        same(ours, theirs)

    def test_gates_with_a_group_and_a_budget_of_their_own(self, done: Done, way: str):
        same(done["gated"][way], done["gated"]["ddp"])
        assert any(name.endswith("m/momentum_buffer") for name in done["gated"][way].state)


def same(ours: Trained, theirs: Trained) -> None:
    assert furthest(ours.losses, theirs.losses) < 1e-5
    assert ours.weights.keys() == theirs.weights.keys()
    assert ours.state.keys() == theirs.state.keys()
    for name, value in (theirs.weights | theirs.state).items():
        torch.testing.assert_close((ours.weights | ours.state)[name], value, rtol=1e-4, atol=1e-5)
    assert ours.left == []


@pytest.mark.parametrize("way", PLACEMENTS)
def test_pruned_weights_are_zero_in_every_checkpoint(done: Done, way: str):
    assert done[way]
    paths = sorted(done.storages.folder(way, PRUNED).path.rglob("weights.safetensors"))
    assert len(paths) == 10
    first, *others = ({n: t == 0 for n, t in load_file(path).items() if t.dim() in (2, 4)} for path in paths)
    assert sum(int(zero.sum()) for zero in first.values()) == 241_502  # of 268,336
    assert all(torch.equal(zero, first[name]) for each in others for name, zero in each.items())


def test_adamw_and_its_steps(done: Done):
    assert done["adamw zero 2"] == done["adamw ddp"]
    checkpoint = done.storages.folder("zero 2", BY_ADAMW).checkpoints("train").latest()
    assert checkpoint is not None
    assert {float(v) for name, v in checkpoint.tensors["optimizer"].items() if name.endswith("/step")} == {20.0}


@pytest.mark.parametrize("way", ["zero 2", "zero 3"])
def test_bfloat16_is_the_same_autocast(done: Done, way: str):
    ours, theirs = done[f"bfloat16 {way}"], done["bfloat16 ddp"]
    assert furthest(ours[:3], theirs[:3]) < 1e-4
    assert furthest(ours, theirs) < 0.02
    assert furthest(ours[:1], done["ddp"][:1]) > 1e-4  # it is no float32


@pytest.mark.parametrize("way", ["zero 2", "zero 3"])
def test_an_ended_run_goes_on_bit_for_bit(done: Done, way: str):
    assert done.outcomes[f"{way}, stopped"].error == "RuntimeError: stopped"
    assert done[f"{way}, gone on"] == done[way][20:]
    one, other = (done.storages.folder(name, PRUNED).path / "model.safetensors" for name in (way, f"{way} again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_run_moves_from_zero_to_ddp_and_back(done: Done):
    assert done.outcomes["moved 1"].error == done.outcomes["moved 2"].error == "RuntimeError: stopped"
    assert "--accept-placement" in (done.outcomes["moved unasked"].error or "")
    assert len(done["moved 3"]) == 20  # from step 20 ten under DDP, whose last checkpoint is at 30
    assert done["moved 3"] == done["ddp"][30:]
    result = done.storages.folder("moved", PRUNED).read_result()
    assert result is not None
    assert [p["strategy"] for p in result["earlier_placements"]] == ["deepspeed", "ddp"]
    assert (result["placement"]["strategy"], result["placement"]["zero_stage"]) == ("deepspeed", 2)


def test_optimizer_states_are_handed_over(done: Done):
    for name, (undisturbed, moved) in done["handed over"].items():
        assert furthest(moved.losses, undisturbed.losses) < 1e-5, name
        same(dataclasses.replace(moved, losses=undisturbed.losses), undisturbed)


def test_gradients_that_are_not_finite_are_an_error(done: Done):
    assert "FloatingPointError: the gradients are not finite" in (done.outcomes["exploding"].error or "")


def test_one_worker_may_use_it_too():
    [outcome] = launch(act, ["alone"], Group(storage="/nowhere", workers=1), lambda *_: None)
    assert outcome.error is None, outcome.traceback
    for way in WAYS:
        same(outcome.value[way], outcome.value["ddp"])


def test_epsd_end_to_end(tmp_path: Path):
    words = ["--smoke", "--workers", "2", "--strategy", "deepspeed", "--zero-stage", "3", "--storage", str(tmp_path)]
    line = [sys.executable, "-m", "pipelines.digits_epsd", *words]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "test accuracy" in ran.stdout
    assert "deepspeed" not in ran.stdout.lower().replace("strategy", "")
    assert ran.stderr == ""
    [description] = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert description["placement"]["strategy"] == "deepspeed"


# What cannot be


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"precision": "float64"}, "cannot train in float64: use --strategy ddp"),
        ({"stage": 3, "compile": True}, "use --zero-stage 2"),
        ({"stage": 0}, "--zero-stage must be 1, 2 or 3"),
    ],
)
def test_what_zero_cannot_do_is_refused_with_advice(values: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        ZeroSettings(**values)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        *[({key: 1}, f"{key} \\(") for key in OF_THE_EXPERIMENT],
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage \\(set --zero-stage\\)"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "zero_optimization.offload_optimizer"),
        ([1], "must be"),
    ],
)
def test_a_configuration_that_contradicts_the_experiment_is_refused(own: Any, words: str, tmp_path: Path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    with pytest.raises(ValueError, match=words):
        Placement(strategy="deepspeed", deepspeed_config=str(path))


def test_a_users_configuration_goes_over_ours(tmp_path: Path):
    path = tmp_path / "own.json"
    path.write_text('{"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": true}')
    placement = Placement(strategy="deepspeed", deepspeed_config=str(path))
    assert placement.deepspeed_config is not None
    path.unlink()  # workers elsewhere need not see it
    assert dataclasses.replace(placement, keep=3).deepspeed_config == placement.deepspeed_config
    config = ZeroSettings(1, 64, own=placement.deepspeed_config).config(4)
    assert config["zero_optimization"] == {"stage": 1, "compute_grad_norm": False, "reduce_bucket_size": 1000}
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (64, 16)
    assert config["wall_clock_breakdown"] is True
    with pytest.raises(FileNotFoundError, match="give a JSON file"):
        read_own(str(path))
    with pytest.raises(ValueError, match="is no JSON"):
        read_own("{")
    with pytest.raises(ValueError, match="needs --strategy deepspeed"):
        Placement(deepspeed_config="{}")


def test_a_missing_deepspeed_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match="needs the package deepspeed"):
        strategy("deepspeed", 2)


def test_adagrad_is_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Adagrad"):
        zero.Zero(1, ZeroSettings()).prepare(model, torch.optim.Adagrad(model.parameters()))
