"""Experiment: everything that can change a result. Placement: where and how it runs."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch

from cluster.zero_config import read_own
from compression.config import added
from compression.methods import EPSD, MethodConfig
from compression.models import check_name
from compression.spaces import Choices
from pipelines import identity, precision
from pipelines.data.config import Data, Digits
from pipelines.optimizers import SGD, AdamW, Cosine, Linear, MultiStep, TorchOptimizer, check_elementwise
from pipelines.precision import Precision


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    epochs: int = 15
    """passes over the training split"""
    batch_size: int = 128
    """images per step over all workers together"""
    optimizer: SGD | AdamW | TorchOptimizer = field(default_factory=SGD)
    schedule: MultiStep | Cosine | Linear = field(default_factory=Cosine)
    warmup_epochs: float = 0.0
    """epochs of linear warm-up of the learning rate"""
    precision: Precision = "float32"
    """auto: bfloat16 where the machine that starts the command computes in it, else float32; bfloat16: autocast with
    float32 weights; float64: for checks"""
    channels_last: bool = True
    """memory layout of images and convolutions"""
    compile: bool = False
    """compile the network with torch.compile: slower to start, faster to run"""
    freeze_batchnorm: bool = added(False)
    """train with fixed running statistics of BatchNorm (in a new network: mean 0, variance 1)"""
    decay_vectors: bool = added(True, Choices((True, False)))
    """weight decay also on BatchNorm and biases, as in the papers' code"""

    def __post_init__(self) -> None:
        if self.precision == "auto":
            object.__setattr__(self, "precision", precision.best()[0])
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be 1 or more, not {self.epochs} and {self.batch_size}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must lie in [0, {self.epochs}], not {self.warmup_epochs}")

    @property
    def dtype(self) -> torch.dtype:
        """Of images and weights."""
        return torch.float64 if self.precision == "float64" else torch.float32


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the result of a run: equal values give equal results on every machine."""

    method: MethodConfig = field(default_factory=EPSD)
    model: str = "resnet20"
    """resnet20, vgg16, timm/NAME, torchvision/NAME... (an unknown name lists them all), or your own network as
    package.module:function"""
    data: Data = field(default_factory=Digits)
    training: Training = field(default_factory=Training)
    seed: int = 0
    """decides initial weights, data order, augmentation and the validation split"""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed}")
        check_name(self.model)
        if self.method.sparsity is not None:
            check_elementwise(self.training.optimizer)
        teacher = self.method.same_model_as
        if teacher is not None and teacher.model != self.model:
            raise ValueError(
                f"a derived student has its teacher's architecture: set model to {teacher.model}, or for the student "
                f"{self.model} set method.student to given"
            )
        if self.method.objective.cache:
            self._check_cache()

    def _check_cache(self) -> None:
        """ValueError if an image differs between epochs: the teacher's answer to it cannot be stored then."""
        augmentation = getattr(self.data, "augmentation", None)
        changes = augmentation is None or augmentation.crop_padding or augmentation.flip
        if changes:
            raise ValueError(
                f"cache needs images that are the same in every epoch, but {self.data.label} is augmented: do not set "
                "cache, or set data.augmentation.crop_padding to 0 and data.augmentation.flip to off"
            )

    @property
    def identity(self) -> str:
        """16 hexadecimal digits, equal for experiments with the same result."""
        return identity.identity(self)

    @property
    def sparsity(self) -> float:
        """Share of convolution and linear weights removed."""
        return self.method.sparsity or 0.0

    @property
    def name(self) -> str:
        """One readable line."""
        sparsity = f" at {self.sparsity:.4g}" if self.sparsity else ""
        return f"{self.method.label}{sparsity}, {self.model} on {self.data.label}, seed {self.seed}"


@dataclass(frozen=True)
class Placement:
    """Where and how experiments run. It is not part of their identity."""

    workers: int | None = None
    """worker processes that train one experiment together; 0: this process trains; None: 0, in a Ray job one per GPU"""
    launcher: Literal["local", "ray"] | None = None
    """local: worker processes on this machine; ray: Ray Train; None: ray in a Ray job, else local"""
    strategy: Literal["single", "ddp", "deepspeed"] | None = None
    """how workers share the training; None: ddp for 2 or more workers"""
    zero_stage: Literal[1, 2, 3] = 2
    """with deepspeed, shard over the workers: 1: optimiser state; 2: also gradients; 3: also weights"""
    deepspeed_config: str | None = None
    """with deepspeed: a JSON file with values that replace ours (e.g. bucket sizes), but not those of the experiment"""
    parallel: int = 1
    """number of single-process experiments that run at the same time"""
    threads: int = 1
    """CPU threads of each process; another number changes the order of sums, so a run does not resume bit for bit"""
    storage: str = os.environ.get("ORCHARD_STORAGE", "storage")
    """folder for everything of every run (or ORCHARD_STORAGE); every worker must see it under this path; the same
    command with the same folder resumes a run"""
    tracking_uri: str | None = os.environ.get("MLFLOW_TRACKING_URI") or None
    """MLflow: sqlite:///FILE or http://HOST:PORT (or MLFLOW_TRACKING_URI); None: mlflow.db in the storage folder"""
    checkpoint_steps: int = 0
    """training steps between checkpoints; 0: only after each epoch"""
    keep: int = 2
    """number of checkpoints kept for each training"""
    loader_workers: int | None = None
    """image-decoding processes of each worker, for data not held in memory; None: one per core, at most 8"""
    max_failures: int | None = None
    """how often dead workers are replaced before the command fails; -1: no limit; None: 3 on Ray, else 0"""
    min_workers: int | None = None
    """on Ray, continue with this many workers while machines are missing, and with up to `workers` when they come back
    (with another number of workers the run is not bit for bit the same); None: wait for all"""
    timeout: float = 900.0
    """seconds after which workers that do not answer each other, or machines that are missing, end the command"""
    accept_placement: bool = False
    """resume an unfinished run with other workers, threads or strategy (then it is not bit for bit the same run)"""

    def __post_init__(self) -> None:
        for name, least in (("keep", 1), ("checkpoint_steps", 0), ("loader_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        if self.deepspeed_config is not None:
            if self.strategy != "deepspeed":
                raise ValueError(
                    "--deepspeed-config needs --strategy deepspeed: add that option, or leave this one out"
                )
            # The content replaces the path: workers on other machines may not see the file.
            object.__setattr__(self, "deepspeed_config", read_own(self.deepspeed_config))


def parameters(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, plain value) of every field, and (name, class name) of every field that is a dataclass."""
    for item in fields(value):
        part = getattr(value, item.name)
        if is_dataclass(part):
            yield prefix + item.name, type(part).__name__
            yield from parameters(part, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, part
