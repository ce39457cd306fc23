"""The witness of a plan's rehearsal: writes every act down, and measures what of it has not been measured yet."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.planning import measure
from benchmarks.planning.data import Found
from benchmarks.planning.model import Act, Evaluate, Measured, Stage, Train
from benchmarks.planning.rehearsal import Given, Part
from cluster.worker import Worker
from compression.batch import Info
from pipelines import identity
from pipelines.data.config import Resolution
from pipelines.experiment import Experiment, Training


@dataclass(frozen=True)
class Setting:
    """How a plan is measured.

    gpus: the numbers of devices that are asked for. most_images: at once on the device; None: what each one gets.
    seconds: for each measurement, about. loader_given: its rate was given, and is not measured.
    folder: for checkpoints.
    """

    gpus: tuple[int, ...]
    most_images: int | None
    seconds: float
    loader_given: bool
    device: torch.device
    folder: Path


@dataclass
class Meter:
    """Sees a rehearsal. measured: what is known, and grows unless it is `fixed`; acts: what happened, in order."""

    setting: Setting
    measured: Measured
    fixed: bool
    say: Callable[[str], None]
    acts: list[Act] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    def train(self, part: Part) -> None:
        evaluated = {n: self._evaluation(part, n) for n in self.setting.gpus}
        steps = {
            gpus: {size: self._step(part, self._images(part.settings, gpus), size) for size in part.sizes}
            for gpus in self.setting.gpus
        }
        self.acts.append(
            Train(
                run=part.experiment.name,
                stage=part.name,
                network=network_label(part.model),
                gradient_bytes=gradient_bytes(part.model),
                batch_size=part.settings.batch_size,
                views=1 + len(part.objective.needs & {"paired", "second_view"}),
                steps=part.steps_per_epoch,
                val_images=part.info.sizes["val"],
                sizes=part.sizes,
                step_keys=steps,
                evaluation_keys=evaluated,
                loader_keys={size: key for size in part.sizes if (key := self._loader(part, size))},
                in_step=part.found.in_step,
            )
        )

    def stage(self, experiment: Experiment, name: str, fn: Callable[[], Any], given: Sequence[Given]) -> Any:
        images = max((batches.num_images for batches in given), default=0)
        # The name leaves out what a method's options and the images' size change.
        digest = identity.identity([experiment.method, experiment.data])[:8]
        words = [f"{name} of {experiment.name} ({digest})", f"{images} images", *how(experiment.training)]
        key = ", ".join(words)
        self.acts.append(Stage(experiment.name, name, key))
        if key in self.measured.stages or self.fixed:
            self._known(self.measured.stages, key)
            for batches in given:
                batches.at_hand = min(measure.COUNTED, batches.num_images)
            return fn()
        self.say(key)
        most = max(1, images // max(self.setting.gpus))
        most = min(most, self.setting.most_images or most)
        result, self.measured.stages[key] = measure.time_stage(fn, list(given), most)
        return result

    def evaluate(self, experiment: Experiment, model: nn.Module, split: str, found: Found, info: Info) -> None:
        keys = {n: self._evaluate(model, found, experiment.training, n) for n in self.setting.gpus}
        # The loader's own rate stands for both splits: it was measured on train.
        known = f"{experiment.data.label}, {info.input_shape[1]} px"
        key = known if known in self.measured.loaders and not self.setting.loader_given else None
        self.acts.append(Evaluate(experiment.name, split, info.sizes[split], keys, key, found.in_step))

    def _step(self, part: Part, images: int, size: int) -> str:
        settings = part.settings
        words = [
            network_label(part.model),
            objective_label(part.objective),
            "masked" if part.masks is not None else "dense",
            f"{images} images",
            f"{size} px",
            *how(settings),
            type(settings.optimizer).__name__ if not hasattr(settings.optimizer, "name") else settings.optimizer.name,  # pyright: ignore[reportAttributeAccessIssue]
        ]
        key = ", ".join(words)
        if not self._known(self.measured.steps, key):
            self.say(f"step: {key}")
            folder = self.setting.folder / str(next(self._numbers))
            self.measured.steps[key] = measure.time_training(
                part, images, size, self.setting.seconds, self._worker(), folder
            )
        return key

    def _evaluation(self, part: Part, gpus: int) -> str:
        return self._evaluate(part.model, part.found, part.experiment.training, gpus)

    def _evaluate(self, model: nn.Module, found: Found, training: Training, gpus: int) -> str:
        images, size = self._images(training, gpus), found.opened.input_shape[1]
        key = ", ".join([network_label(model), f"{images} images", f"{size} px", *how(training)])
        if not self._known(self.measured.evaluations, key):
            self.say(f"evaluation: {key}")
            self.measured.evaluations[key] = measure.time_evaluation(
                model, found.opened, training, images, self.setting.seconds / 4, self._worker()
            )
        return key

    def _loader(self, part: Part, size: int) -> str | None:
        """Key of the loader's rate for images of this size; None where it was given, or the data are not there."""
        if self.setting.loader_given or part.found.in_step:
            return None
        key = f"{part.experiment.data.label}, {size} px"
        if key not in self.measured.loaders:
            if self.fixed or part.found.real is None:
                return None
            self.say(f"loader: {key}")
            resolution = Resolution(size, size) if size != part.info.input_shape[1] else None
            batch = self._images(part.settings, max(self.setting.gpus))
            rate = measure.time_loader(part.found.real, batch, resolution, self.setting.seconds)
            self.measured.loaders[key] = rate
        return key

    def _images(self, settings: Training, gpus: int) -> int:
        """Images at once on one of so many devices, as far as they are measured."""
        if settings.batch_size % gpus:
            raise ValueError(
                f"batch_size {settings.batch_size} does not divide by {gpus} GPUs: use a multiple of {gpus} for "
                "--training.batch-size, or another number of GPUs"
            )
        share = settings.batch_size // gpus
        return min(share, self.setting.most_images or share)

    def _known(self, among: dict[str, Any], key: str) -> bool:
        if self.fixed and key not in among:
            raise ValueError(
                f"the measurements do not hold {key!r}: measure again there, with the same recipe, options and --gpus"
            )
        return key in among

    def _worker(self) -> Worker:
        return Worker(0, 1, self.setting.device, None, lambda event: None)


def how(settings: Training) -> list[str]:
    """Of a training's settings, what its speed depends on."""
    words = [settings.precision, "channels last" if settings.channels_last else "contiguous"]
    words += ["compiled"] if settings.compile else []
    return words + (["BatchNorm frozen"] if settings.freeze_batchnorm else [])


def network_label(model: nn.Module) -> str:
    """Architecture and parameters: students of one architecture differ in their widths."""
    name = vars(model).get("arch", {}).get("name", type(model).__name__)
    return f"{name} ({sum(p.numel() for p in model.parameters()):,} parameters)"


def objective_label(objective: Any) -> str:
    """The class of an objective, of the one inside it, and its teacher's network."""
    name, inner = type(objective).__name__, getattr(objective, "_inner", None)
    if inner is not None:
        return f"{name} {objective_label(inner)}"
    teacher = getattr(getattr(objective, "_teacher", None), "network", None)
    return f"{name} from {network_label(teacher)}" if isinstance(teacher, nn.Module) else name


def gradient_bytes(model: nn.Module) -> int:
    """What the devices exchange in a step."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
