"""Prune-then-Distill (Park & No, ECCV 2022) on CIFAR-100, Tiny-ImageNet and ImageNet."""

from __future__ import annotations

from pathlib import Path

from compression.methods import Dense, PruneThenDistill
from pipelines.data.config import CIFAR100, Data, Digits, TinyImageNet
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Cosine, MultiStep
from pipelines.recipes.imagenet import data_of, schedule_of, smoke_data, training_of
from pipelines.recipes.parts import Choices


def cifar100_prune_then_distill(choices: Choices, scratch: Path) -> Experiment:
    """VGG-19 pruned to 79 % in seven rounds, and the narrower VGG-19 that it implies, on CIFAR-100.

    The schedules of the authors' code: 200 epochs for teacher and student, 130 after each round; 1,310 epochs in all
    for the first student, 200 for each further one. No accuracy of theirs is published with the code; expected
    accuracy, and time on any hardware: unknown until it is run and tabulated.

        python pipelines/cifar100_prune_then_distill.py --data.root DIR     # DIR holds cifar-100-python.tar.gz
        python pipelines/cifar100_prune_then_distill.py --data.root DIR --student vgg11 --method.rounds 4

    Beside it run the controls: the same student from the dense teacher, from labels alone and from smoothed labels.
    """
    choices.refuse_schedule()
    if choices.smoke:
        return smoke(choices)
    steps = MultiStep((0.3, 0.6, 0.8), gamma=0.2)
    training = Training(200, 128, choices.optimise(SGD(0.1, nesterov=True)), steps)
    retraining = Training(130, 128, SGD(0.1, weight_decay=2e-4, nesterov=True), MultiStep((0.3, 84 / 130)))
    return prune_then_distill(choices, CIFAR100(), "vgg19_ptd", training, training, retraining, rounds=7)


def tiny_imagenet_prune_then_distill(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-18 (3x3 stem) pruned to 59 % in four rounds, and the narrower ResNet-18, on Tiny-ImageNet at 64 pixels.

    The schedules of the authors' code: 100 epochs for teacher and student, 50 after each round. Expected accuracy,
    and time on any hardware: unknown until it is run and tabulated.

        python pipelines/run.py tiny_imagenet_prune_then_distill --data.root DIR      # DIR holds the zip
        python pipelines/run.py tiny_imagenet_prune_then_distill --data.root DIR --student mobilenet_v2
    """
    choices.refuse_schedule()
    if choices.smoke:
        return smoke(choices)
    teaching = Training(100, 128, SGD(0.01, weight_decay=1e-4, nesterov=True), MultiStep((0.3, 0.6, 0.8)))
    retraining = Training(50, 512, SGD(0.04, weight_decay=1e-4, nesterov=True), MultiStep((0.2, 0.6)))
    optimizer = choices.optimise(SGD(0.01, nesterov=True))
    training = Training(100, 256, optimizer, MultiStep((0.3, 0.6, 0.8), gamma=0.2))
    return prune_then_distill(choices, TinyImageNet(), "resnet18_small", training, teaching, retraining, rounds=4)


def imagenet_prune_then_distill(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-50 pruned to 59 % in four rounds, and the narrower ResNet-50 that it implies, on ImageNet.

    The paper has no ImageNet protocol: the standard 90 epochs everywhere, 45 after each round; or another --schedule of
    imagenet_dense and half of it. Expected accuracy, hardware and time: unknown until it is run and tabulated.

        ray job submit -- python pipelines/imagenet_prune_then_distill.py
        python pipelines/imagenet_prune_then_distill.py --data.root DIR --workers 8     # DIR holds train/ and val/

    With --smoke: scikit-learn's digits in ImageNet's layouts, through the same readers.
    """
    if choices.smoke:
        return smoke(choices, smoke_data(scratch))
    training, teaching = training_of(choices), training_of(choices, others=True)
    retraining = training_of(choices, 0.5, others=True)
    network = schedule_of(choices).network or "resnet50"
    return prune_then_distill(choices, data_of(choices), network, training, teaching, retraining, rounds=4)


def prune_then_distill(
    choices: Choices,
    data: Data,
    teacher: str,
    training: Training,
    teaching: Training,
    retraining: Training,
    rounds: int,
) -> Experiment:
    """The student's experiment; its teacher is of seed 0, so that students of all seeds share it."""
    choices.only("prune_then_distill")
    network = choices.teacher or teacher
    derived = choices.student in (None, "derived")
    method = PruneThenDistill(
        teacher=Experiment(Dense(), network, data, teaching),
        rounds=rounds,
        retraining=retraining,
        student="derived" if derived else "given",
    )
    return Experiment(method, network if derived else str(choices.student), data, training)


def smoke(choices: Choices, data: Data | None = None) -> Experiment:
    """Two rounds of one epoch each with ResNet-20 on real digits."""
    training = Training(1, 64, choices.optimise(SGD(0.05)), Cosine())
    return prune_then_distill(choices, data or Digits(), "resnet20", training, training, training, rounds=2)
