"""Your own pruning criterion: a function that scores weights, and its config. Compared here with plain magnitude.

python examples/my_criterion.py [STORAGE]

Started again with the same STORAGE, finished runs are not repeated. With a line in `compression/criteria/__init__.py`
the criterion would also be an option of every command (see CONTRIBUTING.md).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria import MagnitudeConfig
from compression.criteria.base import CriterionConfig
from compression.masks import prunable
from compression.methods import EarlyPruning
from compression.objectives import Objective
from pipelines.driver import run_experiments
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD


def relative_magnitude(model: nn.Module, batches: Sequence[Batch], objective: Objective) -> dict[str, Tensor]:
    """|w| relative to the layer's mean |w|. Returns parameter name -> score; weights with a high score are kept.

    Criteria that use data or gradients take them from `batches` and `objective`: see compression/criteria/snip.py.
    """
    return {name: w.detach().abs() / w.detach().abs().mean() for name, w in prunable(model).items()}


@dataclass(frozen=True)
class RelativeMagnitudeConfig(CriterionConfig):
    """Its fields would be options and part of a run's identity; this criterion has none."""

    label = "relative magnitude"
    score = staticmethod(relative_magnitude)

    def num_batches(self, objective: Objective) -> int:
        return 0


if __name__ == "__main__":
    storage = sys.argv[1] if len(sys.argv) > 1 else "storage"
    training = Training(epochs=5, batch_size=64, optimizer=SGD(lr=0.1))
    criteria = [RelativeMagnitudeConfig(), MagnitudeConfig()]
    # ResNet-20 on scikit-learn's digits, 90 % of the weights removed at initialisation.
    experiments = [Experiment(EarlyPruning(each, sparsity=0.9), "resnet20", training=training) for each in criteria]
    for ended in run_experiments(experiments, Placement(storage=storage), suite="my criterion", recipe="my_criterion"):
        if ended.result is None:
            sys.exit(f"{ended.experiment.name}: {ended.error}")
        print(f"{ended.experiment.method.label}: test accuracy {ended.result['metrics']['test/accuracy']:.3f}")
