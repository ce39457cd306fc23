"""ExperimentSession: the Session (`compression/session.py`) of one experiment on one worker, with durable stages.

A finished stage is read from disk, not run again. A training resumes from its last checkpoint. So a method needs no
resume logic, and a killed run that is started again ends with the same weights as an undisturbed one.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.checkpoints import load_tensors, save_tensors
from cluster.records import write_record
from compression import cost, models
from compression.batch import Batch
from compression.masks import Masks
from compression.objectives.base import Objective
from pipelines.context import EpochRange, RunContext
from pipelines.data.loading.draws import stream
from pipelines.evaluation import evaluate
from pipelines.experiment import Experiment, Training
from pipelines.run_folder import Record, read_stage, record
from pipelines.teachers import teacher_of
from pipelines.training import Trainer

Groups = Sequence[dict[str, Any]]
"""Parameter groups of an optimizer."""

ObtainTeacher = Callable[[RunContext, Experiment], nn.Module]
"""Returns the finished network of another experiment, and runs that first if needed (`pipelines/teachers.py`)."""


@dataclasses.dataclass(eq=False)
class ExperimentSession(RunContext):
    """What a method sees of its run. The methods are documented in `compression.session.Session`."""

    obtain_teacher: ObtainTeacher

    def __post_init__(self) -> None:
        super().__post_init__()
        self.epochs, self.epochs_done = self.experiment.training.epochs, 0

    def model(self, spec: Mapping[str, Any] | None = None) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(stream(self.seed, "model"))
            spec = spec or {"name": self.experiment.model}
            allow_import = spec["name"] == self.experiment.model
            model = models.build(**spec, num_classes=self.info.num_classes, allow_import=allow_import)
        return self.place(model)

    def teacher(self, experiment: Experiment | None = None, *, method: Any = None) -> nn.Module:
        teacher = teacher_of(self.experiment, experiment, method)
        return self.place(self.obtain_teacher(self, teacher)).eval().requires_grad_(False)

    def place(self, model: nn.Module) -> nn.Module:
        """The network on the run's device, in its precision and memory layout."""
        layout = torch.channels_last if self.experiment.training.channels_last else torch.contiguous_format
        return model.to(device=self.device, dtype=self.dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]

    def batches(self, objective: Objective, num: int, size: int | None = None) -> Sequence[Batch]:
        objective.setup(self.info, self.device)
        return self.loader.batches("score", num, size or self.experiment.training.batch_size, objective.needs)

    def stage(self, name: str, fn: Callable[[], Any]) -> Any:
        store = StageStore(self.folder.stage(name))

        def run_or_read() -> tuple[Any, list[Record]]:
            if not store.finished:
                self.emit(kind="stage", stage=name)
                start = time.perf_counter()
                result, flops = cost.count_flops(fn)
                seconds = time.perf_counter() - start
                store.write(
                    result, [record(f"cost/{name}_seconds", 0, seconds), record(f"cost/{name}_flops", 0, flops)]
                )
            return store.read()

        result, history = self.on_first_worker(run_or_read)
        self.remember(history)
        return to_device(result, self.device)

    def train(
        self,
        name: str,
        model: nn.Module,
        objective: Objective,
        *,
        masks: Masks | None = None,
        schedule: Training | None = None,
        epochs: range | None = None,
        param_groups: Groups | None = None,
    ) -> nn.Module:
        settings = schedule or self.experiment.training
        if settings.dtype != self.dtype:
            raise ValueError(
                f"stage {name} is to train in {settings.precision}, the experiment's network is {self.dtype}"
            )
        epochs = range(settings.epochs) if epochs is None else epochs
        steps_per_epoch = self.loader.steps_per_epoch(settings.batch_size)
        stage = EpochRange(name, settings, epochs, steps_per_epoch, self.epochs_done)
        self.epochs_done += len(epochs)
        return self.train_stage(stage, model, objective, masks, param_groups)

    def train_stage(
        self, stage: EpochRange, model: nn.Module, objective: Objective, masks: Masks | None, groups: Groups | None
    ) -> nn.Module:
        """What `train` does with a stage; the planner replaces it."""
        return Trainer(self, stage, model, objective, masks, groups).train()

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return evaluate(model, self.loader, split, self.experiment.training, self.worker)

    def log(self, **metrics: float) -> None:
        self.remember([record(key, 0, value) for key, value in metrics.items()])


class StageStore:
    """stage.json and, for tensors and masks, result.safetensors in the folder of one stage."""

    def __init__(self, folder: Path) -> None:
        self._stage = folder / "stage.json"
        self._tensors = folder / "result.safetensors"

    @property
    def finished(self) -> bool:
        return self._stage.exists()

    def write(self, result: Any, history: list[Record]) -> None:
        """Store a dict of tensors, Masks or plain JSON. stage.json is written last and marks the stage as finished."""
        kind, value = "json", None
        if isinstance(result, Masks):
            kind = "masks"
        elif isinstance(result, dict) and result and all(isinstance(v, Tensor) for v in result.values()):
            kind = "tensors"
        else:
            value = result
        files = {} if kind == "json" else {self._tensors.name: save_tensors(self._tensors, dict(result))}
        # safetensors sorts by name, but allocation prunes equal scores in the order of the parameters.
        order = list(result) if isinstance(result, (dict, Masks)) else []
        write_record(self._stage, {"kind": kind, "value": value, "order": order, "history": history, "files": files})

    def read(self) -> tuple[Any, list[Record]]:
        """The result, its tensors on the CPU, and the recorded costs. ValueError: a file is missing or damaged."""
        stage = read_stage(self._stage.parent)
        if stage["kind"] == "json":
            return stage["value"], stage["history"]
        try:
            stored = load_tensors(self._tensors, stage.get("files", {}).get(self._tensors.name))
            tensors = {name: stored[name] for name in stage["order"]}
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{self._tensors} is missing or damaged ({error}): delete {self._stage.parent} and start the same "
                "command again: it is computed anew"
            ) from error
        return (Masks(tensors) if stage["kind"] == "masks" else tensors), stage["history"]


def to_device(result: Any, device: torch.device) -> Any:
    """The result of a stage with its tensors on `device`."""
    if isinstance(result, Masks):
        return Masks({name: mask.to(device) for name, mask in result.items()})
    if isinstance(result, dict):
        return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in result.items()}
    return result
