"""CIFAR-10, CIFAR-100 and Tiny-ImageNet from the official archives, and any other small images in folders."""

from __future__ import annotations

from pathlib import Path

from pipelines.data.config import CIFAR10, CIFAR100, Digits, Images, TinyImageNet
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, MultiStep
from pipelines.recipes.parts import Choices


def cifar10_epsd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-18 (3x3 stem) on CIFAR-10 at 95 % sparsity, on the training schedule of ProsPr's code.

    200 epochs, batch 256, SGD with momentum 0.9, weight decay 5e-4, learning rate 0.1 divided by 10 at 50 and 75 %.
    Which schedule EPSD's own tables used is not known. Expected accuracy, and time on any hardware: unknown until it is
    run and tabulated.

        python pipelines/cifar10_epsd.py --data.root DIR     # DIR holds cifar-10-python.tar.gz

    With --smoke: ResNet-20 for two epochs on scikit-learn's digits, which need no download.
    """
    return small_images(choices, CIFAR10())


def cifar100_epsd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-18 (3x3 stem) on CIFAR-100 at 95 % sparsity, on the training schedule of ProsPr's code.

    As cifar10_epsd. Expected accuracy, and time on any hardware: unknown until it is run and tabulated.

        python pipelines/run.py cifar100_epsd --data.root DIR     # DIR holds cifar-100-python.tar.gz
    """
    return small_images(choices, CIFAR100())


def tiny_imagenet_epsd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-18 (3x3 stem) on Tiny-ImageNet at 64 pixels and 95 % sparsity, on the training schedule of ProsPr's code.

    As cifar10_epsd: ProsPr's code trains both alike. Other repositories take 32 pixels, which is another benchmark.
    Expected accuracy, hardware and time: unknown until it is run and tabulated.

        python pipelines/run.py tiny_imagenet_epsd --data.root DIR     # DIR holds tiny-imagenet-200.zip
        python pipelines/run.py tiny_imagenet_epsd --data.root DIR --data.subset     # a part of it, named as such
    """
    return small_images(choices, TinyImageNet())


def images_epsd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-18 (3x3 stem) at 95 % sparsity on any folder of small images, held in memory.

    As cifar10_epsd. Expected accuracy, and time on any hardware: your data's. Name it, so that results say what they
    are of.

        python pipelines/run.py images_epsd --data.root DIR --data.name flowers --data.image-size 64

    DIR holds train/<class>/* and test/<class>/* (or val/<class>/*, which is then the test split).
    """
    return small_images(choices, Images())


def small_images(choices: Choices, data: CIFAR10 | CIFAR100 | TinyImageNet | Images) -> Experiment:
    """The schedule that these recipes share; a smoke run is two epochs of a smaller network on the digits."""
    choices.refuse_schedule()
    compress, optimizer, schedule = choices.compress(0.95), choices.optimise(SGD(lr=0.1)), MultiStep((0.5, 0.75))
    if choices.smoke:
        training = Training(epochs=2, batch_size=128, optimizer=optimizer, schedule=schedule)
        return choices.taught(Experiment(compress, "resnet20", Digits(), training))
    training = Training(epochs=200, batch_size=256, optimizer=optimizer, schedule=schedule)
    return choices.taught(Experiment(compress, "resnet18_small", data, training))
