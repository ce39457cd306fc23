"""CUB-200-2011 (200 kinds of birds) from its official folder, or prepared for FFCV."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compression.methods import EPSD
from compression.objectives import CSKDConfig
from pipelines.data.config import CUB
from pipelines.data.preparing.digits_folder import prepared, write_digits_as_cub
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, MultiStep
from pipelines.recipes import parts


def cub_epsd(
    method: parts.Method = "epsd",
    distillation: parts.Distillation = None,
    criterion: parts.Criterion = None,
    teacher: parts.ObjectiveTeacher = None,
    optimizer: parts.Optimizer = "sgd",
    smoke: parts.Smoke = False,
    scratch: Path = Path(),
) -> Experiment:
    """ResNet-18 from scratch on CUB-200-2011 at 224 pixels and 90 % sparsity, with the schedule of CS-KD's code.

    200 epochs, batch 32, learning rate 0.1 divided by 10 at 50 and 75 %, weight decay 1e-4. CS-KD's term has weight 3,
    as its authors use here. It is not known which schedule and sparsity EPSD's own table used. Expected accuracy,
    hardware and time: unknown until it is run and tabulated.

        python pipelines/run.py cub_epsd --data.root DIR     # DIR holds CUB_200_2011
        python pipelines/run.py cub_epsd --data.root BETON --data.backend ffcv      # BETON: prepare's output

    With --smoke: scikit-learn's digits in CUB's layout, through the same readers.
    """
    compression = parts.build_method(method, 0.9, distillation, criterion)
    if isinstance(compression, EPSD) and isinstance(compression.distillation, CSKDConfig):
        compression = replace(compression, distillation=CSKDConfig(weight=3.0))
    sgd = parts.build_optimizer(optimizer, SGD(lr=0.1, weight_decay=1e-4))
    training = Training(1 if smoke else 200, 32, sgd, MultiStep((0.5, 0.75)))
    network = ("resnet20", smoke_data(scratch)) if smoke else ("resnet18", CUB())
    return parts.with_teacher(Experiment(compression, *network, training), teacher)


def smoke_data(scratch: Path) -> CUB:
    """Real digits in CUB's layout, and in FFCV's if that is installed."""
    root, name = write_digits_as_cub(scratch / "digits-as-cub"), "digits-as-cub"
    return CUB(root=str(prepared(root, "cub", name)), name=name, image_size=16, resize=20)
