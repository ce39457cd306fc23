"""Suites: their runs are what the papers' tables ask for, and a suite that was cut short ends with the same table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from benchmarks.collect import read_runs
from benchmarks.suites import SUITES, TABLES, Suite, experiments
from compression.batch import Batch
from compression.masks import Masks, shuffled
from compression.methods import EPSD, PDD, Dense, EarlyPruning, PruneThenDistill
from compression.objectives import CSKDConfig, Objective
from compression.session import Session
from pipelines.data.config import CIFAR10, CUB, Digits, Images
from pipelines.experiment import Experiment
from pipelines.teachers import needed

ROOT = Path(__file__).resolve().parent.parent

BOTH = [(name, reduced) for name in SUITES for reduced in (False, True)]


def method_of(suite: Suite, label: str) -> object:
    [line] = [line for line in suite.lines if line.label == label]
    return line.experiment.method


@pytest.mark.parametrize(("name", "reduced"), BOTH)
def test_a_suite_is_whole(name: str, reduced: bool):
    suite = SUITES[name](reduced=reduced)
    found = experiments(suite)
    assert len(found) == len(suite.lines) * len(suite.seeds) >= 6
    assert len({each.identity for each in found}) == len(found)
    labels = [line.label for line in suite.lines]
    assert len(set(labels)) == len(labels)
    assert {line.control for line in suite.lines if line.control} <= set(labels)
    assert [line.label for line in suite.lines if line.control == line.label] == []
    assert any(line.control for line in suite.lines)
    if TABLES[suite.name].controls:
        by_label = {line.label: line.experiment.method.label for line in suite.lines}
        controls = {by_label[line.label]: by_label[line.control] for line in suite.lines if line.control}
        assert TABLES[suite.name].controls == controls
    else:
        assert [line.label for line in suite.lines if line not in TABLES[suite.name].lines] == []
    assert {line.experiment.seed for line in suite.lines} == {suite.seeds[0]}
    assert [each.seed for each in found[: len(suite.seeds)]] == list(suite.seeds)
    table = TABLES[suite.name]
    assert table.suite == suite.name
    if table.columns[-1].field == "dense_epochs" and name not in ("demo", "every_method"):
        assert "0 trials for every method" in "\n".join(table.notes)
        assert suite.question in table.notes[0]


def test_a_control_differs_in_what_the_line_claims_alone():
    """Same data, network and training as the line that is compared with it."""
    suite = SUITES["epsd_cifar10"]()
    lines = {line.label: line for line in suite.lines}
    epsd = lines["EPSD (DLB), 0.9"]
    assert epsd.control == "ProsPr + DLB, 0.9"
    assert lines["ProsPr + DLB, 0.9"].control == "ProsPr + CE, 0.9"
    assert lines["ProsPr + CE, 0.9"].control == "random + CE, 0.9"
    assert lines["random + CE, 0.9"].control == "dense"
    assert lines["dense (PS-KD)"].control == "dense"
    for line in suite.lines:
        if line.control is not None:
            other = lines[line.control].experiment
            assert (other.model, other.data, other.training) == (
                line.experiment.model,
                line.experiment.data,
                line.experiment.training,
            )
    # {dense, dense + 3 SD} and, at five sparsities, {7 criteria x {CE, 3 SD}, 3 EPSD}
    assert len(suite.lines) == 4 + 5 * (7 * 4 + 3)


def test_self_distillation_is_the_same_in_every_line_of_a_suite():
    for name in SUITES:
        if name.startswith("epsd_"):
            methods = [line.experiment.method for line in SUITES[name]().lines]
            assert len({method.objective for method in methods if isinstance(method.objective, CSKDConfig)}) == 1, name
    [cs_kd] = {
        line.experiment.method.objective
        for line in SUITES["epsd_cub"]().lines
        if isinstance(line.experiment.method.objective, CSKDConfig)
    }
    assert cs_kd.weight == 3.0


def test_ablations_change_one_thing_each():
    suite = SUITES["epsd_ablations"]()
    own = EPSD(CSKDConfig(), 0.9)
    assert method_of(suite, "EPSD (CS-KD), 0.9") == own
    assert method_of(suite, "EPSD (CS-KD, 0 inner steps), 0.9") == EPSD(CSKDConfig(), 0.9, inner_steps=0)
    assert method_of(suite, "EPSD (CS-KD, first order), 0.9") == EPSD(CSKDConfig(), 0.9, first_order=True)
    assert method_of(suite, "EPSD (CS-KD, shuffled), 0.9") == EPSD(CSKDConfig(), 0.9, shuffle=True)
    masks = method_of(suite, "EPSD (CS-KD) masks + CE, 0.9")
    assert masks == EPSD(CSKDConfig(), 0.9, trained_by="cross_entropy")
    plain = method_of(suite, "ProsPr + CE, 0.9")
    assert isinstance(plain, EarlyPruning)
    assert plain.objective.label == "CE"


def test_a_longer_teacher_is_trained_as_long_as_the_pruned_one_in_all():
    suite = SUITES["prune_then_distill"]()
    longer = [line.experiment for line in suite.lines if "trained longer" in line.label]
    epochs = set()
    for each in longer:
        method = each.method
        assert isinstance(method, PruneThenDistill)
        assert method.longer_teacher.training.epochs == (
            method.teacher.training.epochs + method.rounds * method.retraining.epochs
        )
        assert method.longer_teacher.identity in {teacher.identity for teacher in needed(each)}
        epochs.add(method.longer_teacher.training.epochs)
        # Against the student of the pruned teacher: so pruning and longer training are told apart.
        [line] = [line for line in suite.lines if line.experiment is each]
        [own] = [other.experiment.method for other in suite.lines if other.label == line.control]
        assert own == replace(method, source="pruned", longer_teacher=None)
    # VGG-19: 200 + 130 a round; ResNets: 100 + 50 a round; 2, 4 and 7 rounds.
    assert epochs == {460, 720, 1110, 200, 300, 450}
    assert len(longer) == 3 * 2 * 3


def test_distillation_alone_has_the_whole_student_for_as_many_epochs():
    suite = SUITES["pdd"]()
    for line in suite.lines:
        if isinstance(line.experiment.method, PDD) and line.control and line.control.startswith("dense (KD)"):
            [alone] = [other.experiment for other in suite.lines if other.label == line.control]
            assert isinstance(alone.method, Dense)
            assert alone.model == line.experiment.model
            assert alone.training.epochs == sum(
                each.epochs for each in line.experiment.method.trainings(line.experiment.training)
            )
            assert {each.identity for each in needed(alone)} == {each.identity for each in needed(line.experiment)}


def test_the_runs_of_the_two_old_suites_are_what_they_were():
    rows = read_runs(ROOT / "results/runs.parquet")
    for name, others in {"demo": 1, "every_method": 0}.items():  # the demo's run on Ray has a seed of its own
        recorded = {row["identity"] for row in rows if row["suite"] == name}
        own = {each.identity for each in experiments(SUITES[name]())}
        assert own <= recorded
        assert len(recorded - own) == others


def test_places_reach_data_and_teachers():
    suite = SUITES["pdd"](root="/data")
    for line in suite.lines:
        for each in [line.experiment, *needed(line.experiment)]:
            assert getattr(each.data, "root", None) == "/data"
    assert experiments(suite)[0].identity == experiments(SUITES["pdd"]())[0].identity
    [data] = {line.experiment.data for line in SUITES["epsd_cub"](root="/d", backend="ffcv").lines}
    assert data == CUB(root="/d", backend="ffcv")
    assert {line.experiment.data for line in SUITES["epsd_cifar10"]().lines} == {CIFAR10()}
    reduced = SUITES["epsd_cub"](reduced=True, root="/d", name="flowers", epochs=7, model="vgg3", sparsities=(0.5, 0.8))
    first = reduced.lines[0].experiment
    assert (first.data, first.model, first.training.epochs) == (
        Images(root="/d", name="flowers", image_size=16),
        "vgg3",
        7,
    )
    assert {line.experiment.sparsity for line in reduced.lines} == {0.0, 0.5, 0.8}
    assert {line.experiment.data for line in SUITES["epsd_cub"](reduced=True).lines} == {Digits()}
    with pytest.raises(ValueError, match=r"there is no option of cifar10 'rot'; did you mean root\?"):
        SUITES["epsd_cifar10"](rot="/data")


def test_options_that_controls_need_mean_as_before_when_left_out():
    assert Experiment(EPSD()).identity == Experiment(EPSD(shuffle=False, trained_by="distillation")).identity
    assert Experiment(EPSD(shuffle=True)).identity != Experiment(EPSD()).identity
    with pytest.raises(ValueError, match="longer_teacher needs source dense, not pruned"):
        PruneThenDistill(longer_teacher=Experiment(Dense()))


# The controls that the suites need, on tiny arrays


def test_shuffled_masks_keep_as_many_weights_in_each_layer():
    masks = Masks({"a": torch.tensor([[True] * 5, [False] * 5]), "b": torch.tensor([True]), "c": torch.zeros(3) > 0})
    found = shuffled(masks, seed=0)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"a": 5, "b": 1, "c": 0}
    assert {name: mask.shape for name, mask in found.items()} == {name: mask.shape for name, mask in masks.items()}
    assert not torch.equal(found["a"], masks["a"])
    assert torch.equal(found["a"], shuffled(masks, seed=0)["a"])
    assert not torch.equal(found["a"], shuffled(masks, seed=1)["a"])


class OneTraining:
    """A session that trains nothing and keeps what it was to train."""

    seed = 1

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))

    def batches(self, objective: Objective, num: int, size: int | None) -> list[Batch]:
        torch.manual_seed(1)
        images = torch.randn(num, 2, 6, 3, 2, 2)
        return [Batch(own, torch.arange(6) % 3, torch.arange(6), paired) for own, paired in images]

    def stage(self, name: str, fn: Any) -> Any:
        return fn()

    def log(self, **metrics: float) -> None: ...

    def note(self, text: str) -> None: ...

    def train(self, name: str, model: nn.Module, objective: Objective, *, masks: Masks) -> nn.Module:
        self.masks, self.objective, self.weights = masks, objective, list(model.parameters())
        return model


def trained(method: EPSD) -> tuple[dict[str, Tensor], str]:
    """The masks and the class of the objective of the only training."""
    session = OneTraining()
    method.run(cast(Session, session))
    return dict(session.masks), type(session.objective).__name__


def test_epsd_shuffled_and_trained_by_cross_entropy():
    own, objective = trained(EPSD(sparsity=0.5))
    assert objective == "CSKD"
    masks, objective = trained(EPSD(sparsity=0.5, trained_by="cross_entropy"))
    assert objective == "CrossEntropy"
    assert all(torch.equal(masks[name], own[name]) for name in own)
    masks, objective = trained(EPSD(sparsity=0.5, shuffle=True))
    assert objective == "CSKD"
    assert all(masks[name].sum() == own[name].sum() for name in own)
    assert any(not torch.equal(masks[name], own[name]) for name in own)
