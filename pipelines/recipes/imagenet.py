"""ImageNet (ILSVRC-2012) from the usual train/ and val/ folders."""

from __future__ import annotations

from pathlib import Path

from pipelines.data.config import ImageNet
from pipelines.data.digits_folder import write_digits_as_imagenet
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, MultiStep
from pipelines.recipes.parts import Choices


def imagenet_epsd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-50 on ImageNet at 90 % sparsity: 90 epochs, batch 256, learning rate 0.1 divided by 10 every 30.

    The standard schedule; which one EPSD's own tables used is not known. Expected accuracy: unknown until it is run and
    tabulated. An epoch reads 1.28 million JPEG files: give --loader-workers what the machine has. The meta-gradient of
    ResNet-50 at 224 pixels needs much memory; --method.first-order takes far less, and gives another score.

        ray job submit -- python pipelines/imagenet_epsd.py
        python pipelines/imagenet_epsd.py --data.root DIR --workers 8     # DIR holds train/ and val/

    With --smoke: scikit-learn's digits, written as JPEG files in ImageNet's layout, through the same reader.
    """
    compress, optimizer, schedule = choices.compress(0.9), SGD(lr=0.1, weight_decay=1e-4), MultiStep((1 / 3, 2 / 3))
    optimizer = choices.optimise(optimizer)
    if choices.smoke:
        root = write_digits_as_imagenet(scratch / "digits-as-imagenet")
        training = Training(epochs=1, batch_size=64, optimizer=optimizer, schedule=schedule)
        data = ImageNet(str(root), name="digits-as-imagenet", image_size=16, resize=20)
        return choices.taught(Experiment(compress, "resnet20", data, training))
    training = Training(epochs=90, batch_size=256, optimizer=optimizer, schedule=schedule, precision="bfloat16")
    return choices.taught(Experiment(compress, "resnet50", ImageNet(), training))
