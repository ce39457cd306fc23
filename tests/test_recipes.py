"""Recipes: the published settings that they name, checked by hand; and the errors for wrong choices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compression.criteria import ProsPrConfig, SNIPConfig
from compression.methods import EPSD, PDD, Dense, EarlyPruning, PruneThenDistill
from compression.objectives import CrossEntropyConfig, CSKDConfig, LabelSmoothingConfig
from pipelines.data.config import CUB, ImageNet, TinyImageNet
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Linear, MultiStep, factor_at, parameter_groups, without_vector_decay
from pipelines.recipes import RECIPES
from pipelines.recipes.imagenet import SCHEDULES


def experiment(recipe: str, **choices: str) -> Experiment:
    return RECIPES[recipe](**choices)


def sizes(data: ImageNet, epochs: int) -> list[int | None]:
    return [data.resolution.at(epoch / epochs) for epoch in range(epochs)]


def test_the_standard_schedule_of_imagenet() -> None:
    asked = experiment("imagenet_dense")
    assert asked.method == Dense(objective=CrossEntropyConfig())
    assert asked.model == "resnet50"
    assert asked.data == ImageNet()
    assert asked.training == Training(
        90, 256, SGD(0.1, weight_decay=1e-4), MultiStep((1 / 3, 2 / 3)), precision="bfloat16"
    )


def test_the_settings_of_ffcv_imagenet() -> None:
    """Image sizes computed by hand: multiples of 32 during the ramp, halves rounded to the even multiple."""
    asked = experiment("imagenet_dense", schedule="ffcv16")
    assert isinstance(asked.data, ImageNet)
    assert asked.method == Dense(objective=LabelSmoothingConfig(epsilon=0.1))
    assert (asked.model, asked.data.backend) == ("resnet50", "ffcv")
    assert sizes(asked.data, 16) == [160] * 12 + [192] * 4
    training = asked.training
    assert (training.epochs, training.batch_size, training.optimizer) == (16, 4096, SGD(1.7, weight_decay=1e-4))
    assert (training.schedule, training.warmup_epochs, training.decay_vectors) == (Linear(), 2.0, False)

    longest = experiment("imagenet_dense", schedule="ffcv88_resnet18")
    assert isinstance(longest.data, ImageNet)
    assert longest.model == "resnet18"
    assert sizes(longest.data, 88) == [160] * 71 + [192] * 17
    assert (longest.training.batch_size, longest.training.optimizer) == (1024, SGD(0.5, weight_decay=5e-5))
    assert {schedule.epochs for schedule in SCHEDULES.values()} == {16, 40, 88, 90}


def test_methods_on_the_schedules() -> None:
    epsd = experiment("imagenet_epsd", schedule="ffcv40", distillation="cs_kd")
    assert isinstance(epsd.method, EPSD)
    assert epsd.training.epochs == 40
    pruned = experiment("imagenet_epsd", schedule="ffcv16", method="early_pruning", criterion="snip")
    assert isinstance(pruned.method, EarlyPruning)
    distilled = experiment("imagenet_prune_then_distill", schedule="ffcv16")
    assert isinstance(distilled.method, PruneThenDistill)
    assert distilled.method.retraining.epochs == 8
    assert distilled.method.teacher.data == distilled.data
    gated = experiment("imagenet_pdd")
    assert isinstance(gated.method, PDD)
    assert (gated.method.gating.epochs, gated.training.epochs, gated.method.teacher.training.epochs) == (20, 70, 90)
    short = experiment("imagenet_pdd", schedule="ffcv16")
    assert isinstance(short.method, PDD)
    assert (short.method.gating.epochs, short.training.epochs) == (4, 12)


def test_imagenet_is_scored_by_what_fits_into_a_gpu() -> None:
    """The full meta-gradient of ResNet-50 with 256 images of 224 pixels needs more than 200 GiB."""
    assert experiment("imagenet_epsd").method == EPSD(sparsity=0.9, first_order=True)
    assert experiment("imagenet_epsd", schedule="ffcv16").method == EPSD(sparsity=0.9, first_order=True, chunk_size=256)
    pruned = experiment("imagenet_dense", method="early_pruning").method
    assert isinstance(pruned, EarlyPruning)
    assert pruned.criterion == ProsPrConfig(first_order=True)
    snip = experiment("imagenet_epsd", method="early_pruning", criterion="snip").method
    assert isinstance(snip, EarlyPruning)
    assert snip.criterion == SNIPConfig()
    for recipe in ("cub_epsd", "cifar10_epsd", "tiny_imagenet_epsd"):
        assert not experiment(recipe).method.first_order, "the full one fits"  # pyright: ignore[reportAttributeAccessIssue]


def test_birds_and_small_images() -> None:
    birds = experiment("cub_epsd")
    assert isinstance(birds.method, EPSD)
    assert birds.method.distillation == CSKDConfig(weight=3.0)
    assert isinstance(birds.data, CUB)
    assert (birds.data.image_size, birds.training.batch_size, birds.data.label) == (224, 32, "cub200")
    assert replace(birds, data=CUB(subset=True)).data.label == "cub200-subset"
    assert isinstance(experiment("tiny_imagenet_epsd").data, TinyImageNet)
    assert experiment("tiny_imagenet_prune_then_distill").data == TinyImageNet()


def test_wrong_choices_are_errors_that_say_what_to_type() -> None:
    with pytest.raises(ValueError, match=r"no schedule 'ffcv17'; did you mean ffcv16"):
        experiment("imagenet_epsd", schedule="ffcv17")
    with pytest.raises(ValueError, match=r"method dense has no --criterion; these methods have it: early_pruning"):
        experiment("digits_epsd", method="dense", criterion="snip")
    with pytest.raises(ValueError, match=r"method pdd has no --distillation; these .*: dense, early_pruning, epsd, it"):
        experiment("digits_epsd", method="pdd", distillation="kd")
    wanted = "set --distillation to kd or tf_kd_self, or --method to prune_then_distill or pdd"
    for method in ("epsd", "dense", "iterative_magnitude", "pretrained"):
        with pytest.raises(ValueError, match=wanted):
            experiment("digits_epsd", method=method, teacher="resnet56")
    with pytest.raises(TypeError, match="schedule"):
        experiment("cifar10_epsd", schedule="ffcv16")


@pytest.mark.parametrize("method", ["epsd", "dense", "early_pruning", "iterative_magnitude"])
def test_the_teacher_of_an_objective_is_trained_like_the_student(method: str) -> None:
    student = experiment("digits_epsd", method=method, distillation="kd", teacher="resnet56")
    assert student.method.objective.teacher == replace(student, method=Dense(), model="resnet56")


@pytest.mark.parametrize("method", ["pdd", "prune_then_distill"])
def test_the_teacher_of_a_method_is_trained_like_the_student(method: str) -> None:
    own = experiment("digits_epsd", method=method)
    student = experiment("digits_epsd", method=method, teacher="resnet56")
    assert getattr(student.method, "teacher", None) == replace(own, method=Dense(), model="resnet56")
    assert student.model == "resnet20"
    assert getattr(student.method, "student", "given") == "given", "another network implies no widths of the student"
    same = experiment("digits_epsd", method=method, teacher="resnet20")
    assert getattr(same.method, "student", "derived") == "derived"


def test_linear_schedule_after_warm_up() -> None:
    """Up over two of eight steps, then down to half of the peak."""
    factors = [factor_at(step, 8, 2, Linear(final=0.5)) for step in range(8)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 11 / 12, 10 / 12, 9 / 12, 8 / 12, 7 / 12])


def test_vectors_without_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2, bias=False))
    groups = without_vector_decay([{**parameter_groups(model)[0], "lr_scale": 5.0}])
    assert [[p.ndim for p in group["params"]] for group in groups] == [[4, 2], [1, 1, 1]]
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    assert [group["lr_scale"] for group in groups] == [5.0, 5.0]
    optimizer = SGD(lr=0.1, momentum=0.0, weight_decay=0.5).build(groups)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert [float(p.detach().mean()) for p in model.parameters()] == pytest.approx([0.95, 1, 1, 1, 0.95])
