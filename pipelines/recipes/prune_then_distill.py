"""Prune-then-Distill (Park & No, ECCV 2022) on CIFAR-100, Tiny-ImageNet and ImageNet."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from compression.choose import choose
from compression.methods import Dense, PruneThenDistill
from pipelines.data.config import CIFAR100, Data, Digits, TinyImageNet
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Cosine, MultiStep
from pipelines.recipes.imagenet import SCHEDULES, ScheduleName, data_of, smoke_data, training_of
from pipelines.recipes.parts import Optimizer, Smoke, Teacher, build_optimizer

Student = Annotated[
    str, arg(help="network of the student; derived: the teacher's, with the widths that the pruning implies")
]


def cifar100_prune_then_distill(
    teacher: Teacher = None, student: Student = "derived", optimizer: Optimizer = "sgd", smoke: Smoke = False
) -> Experiment:
    """VGG-19 pruned to 79 % in seven rounds, and the narrower VGG-19 that it implies, on CIFAR-100.

    The schedules of the authors' code: 200 epochs for teacher and student, 130 after each round; 1,310 epochs in all
    for the first student, 200 for each further one. The authors publish no accuracy with the code. Expected accuracy,
    and time on any hardware: unknown until it is run and tabulated.

        python pipelines/cifar100_prune_then_distill.py --data.root DIR     # DIR holds cifar-100-python.tar.gz
        python pipelines/cifar100_prune_then_distill.py --data.root DIR --student vgg11 --method.rounds 4

    The controls run too: the same student from the dense teacher, from labels alone and from smoothed labels.
    """
    if smoke:
        return smoke_test(Digits(), teacher, student, optimizer)
    sgd = build_optimizer(optimizer, SGD(0.1, nesterov=True))
    training = Training(200, 128, sgd, MultiStep((0.3, 0.6, 0.8), gamma=0.2))
    retraining = Training(130, 128, SGD(0.1, weight_decay=2e-4, nesterov=True), MultiStep((0.3, 84 / 130)))
    dense = Experiment(Dense(), teacher or "vgg19_ptd", CIFAR100(), training)
    return prune_then_distill(dense, 7, retraining, student, training)


def tiny_imagenet_prune_then_distill(
    teacher: Teacher = None, student: Student = "derived", optimizer: Optimizer = "sgd", smoke: Smoke = False
) -> Experiment:
    """ResNet-18 (3x3 stem) pruned to 59 % in four rounds, and the narrower ResNet-18, on Tiny-ImageNet at 64 pixels.

    The schedules of the authors' code: 100 epochs for teacher and student, 50 after each round. Expected accuracy,
    and time on any hardware: unknown until it is run and tabulated.

        python pipelines/run.py tiny_imagenet_prune_then_distill --data.root DIR      # DIR holds the zip
        python pipelines/run.py tiny_imagenet_prune_then_distill --data.root DIR --student mobilenet_v2
    """
    if smoke:
        return smoke_test(Digits(), teacher, student, optimizer)
    teaching = Training(100, 128, SGD(0.01, weight_decay=1e-4, nesterov=True), MultiStep((0.3, 0.6, 0.8)))
    retraining = Training(50, 512, SGD(0.04, weight_decay=1e-4, nesterov=True), MultiStep((0.2, 0.6)))
    sgd = build_optimizer(optimizer, SGD(0.01, nesterov=True))
    training = Training(100, 256, sgd, MultiStep((0.3, 0.6, 0.8), gamma=0.2))
    dense = Experiment(Dense(), teacher or "resnet18_small", TinyImageNet(), teaching)
    return prune_then_distill(dense, 4, retraining, student, training)


def imagenet_prune_then_distill(
    teacher: Teacher = None,
    student: Student = "derived",
    optimizer: Optimizer = "sgd",
    schedule: ScheduleName = "standard",
    smoke: Smoke = False,
    scratch: Path = Path(),
) -> Experiment:
    """ResNet-50 pruned to 59 % in four rounds, and the narrower ResNet-50 that it implies, on ImageNet.

    The paper has no ImageNet protocol. Here: the standard 90 epochs everywhere, 45 after each round; or another
    --schedule of imagenet_dense and half of it. Expected accuracy, hardware and time: unknown until it is run and
    tabulated. The controls run too.

        ray job submit -- python pipelines/run.py imagenet_prune_then_distill
        python pipelines/run.py imagenet_prune_then_distill --data.root DIR --workers 8     # DIR holds train/ and val/

    With --smoke: scikit-learn's digits in ImageNet's layouts, through the same readers.
    """
    if smoke:
        return smoke_test(smoke_data(scratch), teacher, student, optimizer)
    published = choose("schedule", schedule, SCHEDULES)
    network = teacher or published.network or "resnet50"
    dense = Experiment(Dense(), network, data_of(published), training_of(published))
    return prune_then_distill(dense, 4, training_of(published, share=0.5), student, training_of(published, optimizer))


def smoke_test(data: Data, teacher: str | None, student: str, optimizer: str) -> Experiment:
    """Two rounds of one epoch each with ResNet-20 on real digits."""
    training = Training(1, 64, build_optimizer(optimizer, SGD(0.05)), Cosine())
    dense = Experiment(Dense(), teacher or "resnet20", data, training)
    return prune_then_distill(dense, 2, training, student, training)


def prune_then_distill(
    teacher: Experiment, rounds: int, retraining: Training, student: str, training: Training
) -> Experiment:
    """The student's experiment. Its teacher has seed 0, so that students of all seeds share it."""
    derived = student == "derived"
    method = PruneThenDistill(teacher, rounds, retraining, student="derived" if derived else "given")
    return Experiment(method, teacher.model if derived else student, teacher.data, training)
