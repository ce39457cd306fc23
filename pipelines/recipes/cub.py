"""CUB-200-2011 (200 kinds of birds) from its official folder, or what prepare wrote for FFCV."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compression.methods import EPSD
from compression.objectives import CSKDConfig
from pipelines.data.config import CUB
from pipelines.data.preparing.digits_folder import prepared, write_digits_as_cub
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, MultiStep
from pipelines.recipes.parts import Choices


def cub_epsd(choices: Choices, scratch: Path) -> Experiment:
    """ResNet-18 from scratch on CUB-200-2011 at 224 pixels and 90 % sparsity, on the training schedule of CS-KD's code.

    200 epochs, batch 32, learning rate 0.1 divided by 10 at 50 and 75 %, weight decay 1e-4; CS-KD's term counts three
    times, as its authors have it here. Which schedule and sparsity EPSD's own table used is not known. Expected
    accuracy, hardware and time: unknown until it is run and tabulated.

        python pipelines/cub_epsd.py --data.root DIR     # DIR holds CUB_200_2011
        python pipelines/cub_epsd.py --data.root BETON --data.backend ffcv      # what prepare wrote

    With --smoke: scikit-learn's digits in CUB's layout, through the same readers.
    """
    choices.refuse_schedule()
    compress = choices.compress(0.9)
    if isinstance(compress, EPSD) and isinstance(compress.distillation, CSKDConfig):
        compress = replace(compress, distillation=CSKDConfig(weight=3.0))
    schedule, optimizer = MultiStep((0.5, 0.75)), choices.optimise(SGD(lr=0.1, weight_decay=1e-4))
    if choices.smoke:
        root, name = write_digits_as_cub(scratch / "digits-as-cub"), "digits-as-cub"
        training = Training(epochs=1, batch_size=32, optimizer=optimizer, schedule=schedule)
        data = CUB(root=str(prepared(root, "cub", name)), name=name, image_size=16, resize=20)
        return choices.taught(Experiment(compress, "resnet20", data, training))
    training = Training(epochs=200, batch_size=32, optimizer=optimizer, schedule=schedule)
    return choices.taught(Experiment(compress, "resnet18", CUB(), training))
