"""PDD: pruning during distillation (Dan et al., Cognitive Computation 2024) on CIFAR-10, CIFAR-100 and ImageNet."""

from __future__ import annotations

from pathlib import Path

from compression.methods import PDD, Dense
from pipelines.data.config import CIFAR10, CIFAR100, Data, Digits
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Cosine, MultiStep
from pipelines.recipes.imagenet import data_of, smoke_data, training_of
from pipelines.recipes.parts import Choices

REDUCTIONS = {"resnet20": 0.3953, "vgg11_mlp": 0.7496}
"""Share of multiply-accumulates that the paper's abstract reports as removed, by student. The paper counts ResNet-20's
from a wider network than the standard one, to which our target refers."""


def cifar10_pdd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-56 teaches ResNet-20, which loses channels while it learns, on CIFAR-10.

    The schedules of the authors' code: 50 epochs with gates, 150 of fine-tuning. The paper reports 39.53 % fewer FLOPs
    and 32.77 % fewer parameters at +0.17 points for this pair, 74.96 and 76.43 % at -1.34 for VGG-16 -> VGG-11, from
    counts and test-set choices that are not ours (docs/methods.md); expected accuracy here, and
    time on any hardware: unknown until tabulated.

        python pipelines/cifar10_pdd.py --data.root DIR      # DIR holds cifar-10-python.tar.gz
        python pipelines/cifar10_pdd.py --data.root DIR --teacher vgg16_mlp --student vgg11_mlp
        python pipelines/cifar10_pdd.py --data.root DIR --teacher resnet56 --student vgg11_mlp

    Beside it runs the control without a teacher.
    """
    return small_images(choices, CIFAR10())


def cifar100_pdd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-56 teaches ResNet-20, which loses channels while it learns, on CIFAR-100.

    As cifar10_pdd, with the same pairs; what the paper reports for CIFAR-100 could not be found. Expected accuracy, and
    time on any hardware: unknown until tabulated.

        python pipelines/run.py cifar100_pdd --data.root DIR --teacher vgg16_mlp --student vgg11_mlp
    """
    return small_images(choices, CIFAR100())


def imagenet_pdd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-50 teaches ResNet-18, which loses 30 % of its multiply-accumulates while it learns, on ImageNet.

    The paper's ImageNet settings could not be found: 20 epochs with gates, 70 of fine-tuning, on the standard schedule;
    or these shares of another --schedule of imagenet_dense. Expected accuracy, hardware and time: unknown until it is
    run and tabulated. Beside it runs the control without a teacher.

        ray job submit -- python pipelines/imagenet_pdd.py
        python pipelines/imagenet_pdd.py --data.root DIR --workers 8     # DIR holds train/ and val/

    With --smoke: scikit-learn's digits in ImageNet's layouts, through the same readers.
    """
    if choices.smoke:
        return smoke(choices, smoke_data(scratch))
    gating = training_of(choices, 2 / 9, others=True)
    training, teaching = training_of(choices, 7 / 9), training_of(choices, others=True)
    return pdd(choices, data_of(choices), ("resnet50", "resnet18"), training, gating, teaching)


def small_images(choices: Choices, data: CIFAR10 | CIFAR100) -> Experiment:
    """The schedules that the CIFAR recipes share; the teacher's is ours, the authors took finished ones."""
    choices.refuse_schedule()
    if choices.smoke:
        return smoke(choices)
    sgd = SGD(0.01, weight_decay=5e-3)
    training = Training(150, 256, choices.optimise(sgd), MultiStep((1 / 3, 2 / 3)))
    gating = Training(50, 256, sgd, MultiStep((0.4, 0.8)))
    teaching = Training(200, 256, SGD(0.1), MultiStep((0.5, 0.75)))
    return pdd(choices, data, ("resnet56", "resnet20"), training, gating, teaching)


def pdd(
    choices: Choices, data: Data, networks: tuple[str, str], training: Training, gating: Training, teaching: Training
) -> Experiment:
    """The student's experiment; its teacher is of seed 0, so that students of all seeds share it."""
    choices.only("pdd")
    teacher, student = choices.teacher or networks[0], choices.student or networks[1]
    method = PDD(
        teacher=Experiment(Dense(), teacher, data, teaching),
        reduction=REDUCTIONS.get(student, 0.3),
        gating=gating,
    )
    return Experiment(method, student, data, training)


def smoke(choices: Choices, data: Data | None = None) -> Experiment:
    """One epoch of each stage with ResNet-20 on real digits."""
    training = Training(1, 64, choices.optimise(SGD(0.05)), Cosine())
    return pdd(choices, data or Digits(), ("resnet20", "resnet20"), training, training, training)
