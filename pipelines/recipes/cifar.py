"""CIFAR-10, CIFAR-100 and Tiny-ImageNet from the official archives, and any other small images in folders."""

from typing import Any

from pipelines.data.config import CIFAR10, CIFAR100, Digits, Images, TinyImageNet
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, MultiStep
from pipelines.recipes import parts


def small_images(
    data: CIFAR10 | CIFAR100 | TinyImageNet | Images,
    method: parts.Method = "epsd",
    distillation: parts.Distillation = None,
    criterion: parts.Criterion = None,
    teacher: parts.ObjectiveTeacher = None,
    optimizer: parts.Optimizer = "sgd",
    smoke: parts.Smoke = False,
) -> Experiment:
    """The schedule that these recipes share; a smoke run is two epochs of a smaller network on the digits."""
    compression = parts.build_method(method, 0.95, distillation, criterion)
    sgd = parts.build_optimizer(optimizer, SGD(0.1))
    training = Training(2 if smoke else 200, 128 if smoke else 256, sgd, MultiStep((0.5, 0.75)))
    network = ("resnet20", Digits()) if smoke else ("resnet18_small", data)
    return parts.with_teacher(Experiment(compression, *network, training), teacher)


@parts.options_of(small_images)
def cifar10_epsd(*given: Any, **options: Any) -> Experiment:
    """ResNet-18 (3x3 stem) on CIFAR-10 at 95 % sparsity, with the schedule of ProsPr's code.

    200 epochs, batch 256, SGD with momentum 0.9, weight decay 5e-4, learning rate 0.1 divided by 10 at 50 and 75 %.
    It is not known which schedule EPSD's own tables used. Expected accuracy, and time on any hardware: unknown until
    it is run and tabulated.

        python pipelines/cifar10_epsd.py --data.root DIR     # DIR holds cifar-10-python.tar.gz

    With --smoke: ResNet-20 for two epochs on scikit-learn's digits, which need no download.
    """
    return small_images(CIFAR10(), *given, **options)


@parts.options_of(small_images)
def cifar100_epsd(*given: Any, **options: Any) -> Experiment:
    """ResNet-18 (3x3 stem) on CIFAR-100 at 95 % sparsity, with the schedule of ProsPr's code.

    As cifar10_epsd. Expected accuracy, and time on any hardware: unknown until it is run and tabulated.

        python pipelines/run.py cifar100_epsd --data.root DIR     # DIR holds cifar-100-python.tar.gz
    """
    return small_images(CIFAR100(), *given, **options)


@parts.options_of(small_images)
def tiny_imagenet_epsd(*given: Any, **options: Any) -> Experiment:
    """ResNet-18 (3x3 stem) on Tiny-ImageNet at 64 pixels and 95 % sparsity, with the schedule of ProsPr's code.

    As cifar10_epsd: ProsPr's code trains both in the same way. Other repositories use 32 pixels: another benchmark.
    Expected accuracy, hardware and time: unknown until it is run and tabulated.

        python pipelines/run.py tiny_imagenet_epsd --data.root DIR     # DIR holds tiny-imagenet-200.zip
        python pipelines/run.py tiny_imagenet_epsd --data.root DIR --data.subset     # a subset, named as such
    """
    return small_images(TinyImageNet(), *given, **options)


@parts.options_of(small_images)
def images_epsd(*given: Any, **options: Any) -> Experiment:
    """ResNet-18 (3x3 stem) at 95 % sparsity on any folder of small images, held in memory.

    As cifar10_epsd. Expected accuracy, and time on any hardware: they depend on your data. Give it a name, so that
    results say which data they are of.

        python pipelines/run.py images_epsd --data.root DIR --data.name flowers --data.image-size 64

    DIR holds train/<class>/* and test/<class>/* (or val/<class>/*, which is then the test split).
    """
    return small_images(Images(), *given, **options)
