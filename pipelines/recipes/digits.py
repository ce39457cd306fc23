"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels that come with the package."""

from __future__ import annotations

from pathlib import Path

from pipelines.data.config import Digits
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Cosine
from pipelines.recipes.parts import Choices


def digits_epsd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-20 on handwritten digits at 95 % sparsity: the whole path in seconds, on any machine.

    Too small to tell methods apart: at 95 % all of them end within a point of each other. Expected: 98 % (the demo's
    table, results/tables/demo.md); hardware and time: one CPU core, 15 to 40 seconds.

        python pipelines/digits_epsd.py --workers 2
    """
    training = Training(
        epochs=2 if choices.smoke else 15, batch_size=128, optimizer=choices.optimise(SGD(lr=0.1)), schedule=Cosine()
    )
    return choices.taught(Experiment(choices.compress(0.95), "resnet20", Digits(), training))
