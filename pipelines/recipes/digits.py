"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels that come with the package."""

from __future__ import annotations

from pipelines.data.config import Digits
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Cosine
from pipelines.recipes import parts


def digits_epsd(
    method: parts.Method = "epsd",
    distillation: parts.Distillation = None,
    criterion: parts.Criterion = None,
    teacher: parts.ObjectiveTeacher = None,
    optimizer: parts.Optimizer = "sgd",
    smoke: parts.Smoke = False,
) -> Experiment:
    """ResNet-20 on handwritten digits at 95 % sparsity: the whole path in seconds, on any machine.

    Too small to compare methods: at 95 % all of them end within a point of each other. Expected: 98 % (the demo's
    table, results/tables/demo.md). Hardware and time: one CPU core, 15 to 40 seconds.

        python pipelines/digits_epsd.py --workers 2
    """
    training = Training(2 if smoke else 15, 128, parts.build_optimizer(optimizer, SGD(lr=0.1)), Cosine())
    compression = parts.build_method(method, 0.95, distillation, criterion)
    return parts.with_teacher(Experiment(compression, "resnet20", Digits(), training), teacher)
