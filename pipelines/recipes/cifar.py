"""CIFAR-10 from the official python archive."""

from __future__ import annotations

from pathlib import Path

from pipelines.data.config import CIFAR10, Digits
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, MultiStep
from pipelines.recipes.parts import Choices


def cifar10_epsd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-18 (3x3 stem) on CIFAR-10 at 95 % sparsity, on the training schedule of ProsPr's code.

    200 epochs, batch 256, SGD with momentum 0.9, weight decay 5e-4, learning rate 0.1 divided by 10 at 50 and 75 %.
    Which schedule EPSD's own tables used is not known. Expected accuracy: unknown until it is run and tabulated.

        python pipelines/cifar10_epsd.py --data.root DIR     # DIR holds cifar-10-python.tar.gz

    With --smoke: ResNet-20 for two epochs on scikit-learn's digits, which need no download.
    """
    compress, optimizer, schedule = choices.compress(0.95), choices.optimise(SGD(lr=0.1)), MultiStep((0.5, 0.75))
    if choices.smoke:
        training = Training(epochs=2, batch_size=128, optimizer=optimizer, schedule=schedule)
        return Experiment(compress, "resnet20", Digits(), training)
    training = Training(epochs=200, batch_size=256, optimizer=optimizer, schedule=schedule)
    return Experiment(compress, "resnet18_small", CIFAR10(), training)
