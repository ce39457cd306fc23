"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels that come with the package."""

from __future__ import annotations

from pipelines.data.config import Digits
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Cosine
from pipelines.recipes.parts import (
    Criterion,
    Distillation,
    Method,
    ObjectiveTeacher,
    Optimizer,
    Smoke,
    build_method,
    build_optimizer,
    with_teacher,
)


def digits_epsd(
    method: Method = "epsd",
    distillation: Distillation = None,
    criterion: Criterion = None,
    teacher: ObjectiveTeacher = None,
    optimizer: Optimizer = "sgd",
    smoke: Smoke = False,
) -> Experiment:
    """ResNet-20 on handwritten digits at 95 % sparsity: the whole path in seconds, on any machine.

    Too small to compare methods: at 95 % all of them end within a point of each other. Expected: 98 % (the demo's
    table, results/tables/demo.md). Hardware and time: one CPU core, 15 to 40 seconds.

        python pipelines/digits_epsd.py --workers 2
    """
    training = Training(2 if smoke else 15, 128, build_optimizer(optimizer, SGD(lr=0.1)), Cosine())
    compression = build_method(method, 0.95, distillation, criterion)
    return with_teacher(Experiment(compression, "resnet20", Digits(), training), teacher)
