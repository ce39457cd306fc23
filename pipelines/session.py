"""Run: the Session of one experiment on one worker, with durable stages.

A stage that has ended is read back, not run again; a training goes on from its last checkpoint. So a method is a plain
function, and a killed run that is started again ends where it would have ended undisturbed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from cluster.checkpoints import load_tensors, read_json, save_tensors, write_json
from cluster.strategy import Strategy, strategy
from cluster.worker import Worker
from cluster.zero_config import ZeroSettings
from compression import cost, models
from compression.batch import Batch, Info
from compression.masks import Masks
from compression.methods import Dense
from compression.objectives.base import Objective
from pipelines import training
from pipelines.checkpointer import Part
from pipelines.data.loader import Loader
from pipelines.data.loading.draws import stream
from pipelines.evaluation import evaluate
from pipelines.experiment import Experiment, Placement, Training
from pipelines.run_folder import Record, RunFolder, record

T = TypeVar("T")


class Run:
    """What one worker knows while it runs one experiment."""

    def __init__(
        self,
        experiment: Experiment,
        placement: Placement,
        worker: Worker,
        loader: Loader,
        folder: RunFolder,
        obtain: Callable[[Run, Experiment], nn.Module],
    ) -> None:
        """obtain: the finished network of another experiment (`pipelines.teachers`)."""
        self.experiment = experiment
        self.placement = placement
        self.worker = worker
        self.loader = loader
        self.folder = folder
        self.strategy = placement.strategy or ("ddp" if worker.world_size > 1 else "single")
        self.seed = experiment.seed
        self.device = worker.device
        self.info: Info = loader.info
        self.epochs = experiment.training.epochs
        self.dtype = torch.float64 if experiment.training.precision == "float64" else torch.float32
        self.history: dict[tuple[str, int], Record] = {}
        self.epochs_done = 0
        self._obtain = obtain

    def model(self, spec: Mapping[str, Any] | None = None) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(stream(self.seed, "model"))
            model = models.build(**(spec or {"name": self.experiment.model}), num_classes=self.info.num_classes)
        layout = torch.channels_last if self.experiment.training.channels_last else torch.contiguous_format
        return model.to(device=self.device, dtype=self.dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]

    def teacher(self, experiment: Experiment | None = None, *, method: Any = None) -> nn.Module:
        asked = experiment or dataclasses.replace(self.experiment, method=Dense())
        return self._obtain(self, asked if method is None else dataclasses.replace(asked, method=method))

    def batches(self, objective: Objective, num: int, size: int | None = None) -> Sequence[Batch]:
        objective.setup(self.info, self.device)
        return self.loader.batches("score", num, size or self.experiment.training.batch_size, objective.needs)

    def stage(self, name: str, fn: Callable[[], Any]) -> Any:
        folder = self.folder.stage(name)

        def run_or_read() -> tuple[Any, list[Record]]:
            if not (folder / "stage.json").exists():
                self.emit(kind="stage", stage=name)
                start = time.perf_counter()
                result, flops = cost.count_flops(fn)
                seconds = time.perf_counter() - start
                costs = {f"cost/{name}_seconds": seconds, f"cost/{name}_flops": flops}
                _store(folder, result, [record(key, 0, value) for key, value in costs.items()])
            return _read(folder)

        result, history = self.on_first_worker(run_or_read)
        self.remember(history)
        return _to(result, self.device)

    def train(
        self,
        name: str,
        model: nn.Module,
        objective: Objective,
        *,
        masks: Masks | None = None,
        schedule: Training | None = None,
        epochs: range | None = None,
        param_groups: Sequence[dict[str, Any]] | None = None,
    ) -> nn.Module:
        settings = schedule or self.experiment.training
        if (settings.precision == "float64") != (self.dtype == torch.float64):
            raise ValueError(
                f"stage {name} is to train in {settings.precision}, the experiment's network is {self.dtype}"
            )
        span = range(settings.epochs) if epochs is None else epochs
        part = Part(settings, span, self.loader.steps_per_epoch(settings.batch_size), self.epochs_done)
        model = training.train(self, name, model, objective, masks, part, param_groups)
        self.epochs_done += len(span)
        return model

    def strategy_for(self, settings: Training) -> Strategy:
        """How the workers share a training; ValueError for one that this strategy cannot do."""
        zero = None
        if self.strategy == "deepspeed":
            stage, own = self.placement.zero_stage, self.placement.deepspeed_config
            zero = ZeroSettings(stage, settings.batch_size, settings.precision, settings.compile, own)
        return strategy(self.strategy, self.worker.world_size, zero)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return evaluate(model, self.loader, split, self.experiment.training, self.worker)

    def log(self, **metrics: float) -> None:
        self.remember([record(key, 0, value) for key, value in metrics.items()])

    def note(self, text: str) -> None:
        self.emit(kind="note", text=text)

    def remember(self, records: Sequence[Record]) -> None:
        """Take numbers into the history of the run; the same key and step is the same number."""
        self.history.update({(r["key"], r["step"]): r for r in records})

    def emit(self, **event: Any) -> None:
        """Tell the driver; all workers do the same, so the first speaks for them."""
        if self.worker.rank == 0:
            self.worker.emit(event)

    def on_first_worker(self, fn: Callable[[], T]) -> T:
        """`fn()` of rank 0 on every worker, or its error: one that stayed there would leave the others waiting."""
        if self.worker.world_size == 1:
            return fn()
        box: list[Any] = [None, None]
        if self.worker.rank == 0:
            try:
                box[0] = fn()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.worker.control)
        if box[1] is not None:
            raise box[1]
        return box[0]


def _store(folder, result: Any, history: list[Record]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(result, Masks):
        kind, value = "masks", None
        save_tensors(folder / "result.safetensors", dict(result))
    elif isinstance(result, dict) and result and all(isinstance(v, Tensor) for v in result.values()):
        kind, value = "tensors", None
        save_tensors(folder / "result.safetensors", result)
    else:
        kind, value = "json", result
    write_json(folder / "stage.json", {"kind": kind, "value": value, "order": _order(result), "history": history})


def _order(result: Any) -> list[str]:
    # safetensors sorts by name; the order of parameters decides between equal scores.
    return list(result) if isinstance(result, (dict, Masks)) else []


def _read(folder) -> tuple[Any, list[Record]]:
    stage = read_json(folder / "stage.json")
    if stage["kind"] == "json":
        return stage["value"], stage["history"]
    tensors = load_tensors(folder / "result.safetensors")
    tensors = {name: tensors[name] for name in stage["order"]}
    return (Masks(tensors) if stage["kind"] == "masks" else tensors), stage["history"]


def _to(result: Any, device: torch.device) -> Any:
    if isinstance(result, Masks):
        return Masks({name: mask.to(device) for name, mask in result.items()})
    if isinstance(result, dict):
        return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in result.items()}
    return result
