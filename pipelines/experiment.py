"""Experiment: everything that can change a result. Placement: where and how it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from cluster.zero_config import read_own
from compression.methods import EPSD, MethodConfig
from compression.models import check_name
from pipelines import identity
from pipelines.data.config import CIFAR10, CIFAR100, CUB, Digits, ImageNet, Images, TinyImageNet
from pipelines.optimizers import SGD, AdamW, Cosine, Linear, MultiStep, TorchOptimizer, check_elementwise

Precision = Literal["float32", "bfloat16", "float64"]


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
    """epochs over which the learning rate rises linearly to its full value"""
    precision: Precision = "float32"
    """bfloat16 is autocast with float32 weights; float64 is for checks"""
    channels_last: bool = True
    """memory layout of images and convolutions"""
    compile: bool = False
    """torch.compile the network: slower to start, faster to run"""
    freeze_batchnorm: bool = field(default=False, metadata=identity.ADDED)
    """train with BatchNorm's running statistics as they are (in a new network: mean 0, variance 1)"""
    decay_vectors: bool = field(default=True, metadata=identity.ADDED)
    """weight decay also on what is no matrix or kernel: BatchNorm and biases, as the papers' code has it"""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be 1 or more, not {self.epochs} and {self.batch_size}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must lie in [0, {self.epochs}], not {self.warmup_epochs}")


@dataclass(frozen=True)
class Experiment:
    """One run, whole: the same values give the same result, wherever it runs."""

    method: MethodConfig = field(default_factory=EPSD)
    model: str = "resnet20"
    """architecture by name: resnet20, resnet56, vgg11, vgg16, vgg19, vgg11_mlp, resnet18_small, resnet18, resnet50,
    mobilenet_v2, timm/NAME, torchvision/NAME... (a wrong name lists them all)"""
    data: Digits | CIFAR10 | CIFAR100 | TinyImageNet | Images | ImageNet | CUB = field(default_factory=Digits)
    training: Training = field(default_factory=Training)
    seed: int = 0
    """decides initial weights, data order, augmentation and the validation split"""

    def __post_init__(self) -> None:
        check_name(self.model)
        if hasattr(self.method, "sparsity"):
            check_elementwise(self.training.optimizer)
        self._check_cache()
        teacher = getattr(self.method, "teacher", None)
        if getattr(self.method, "student", None) == "derived" and teacher is not None and teacher.model != self.model:
            raise ValueError(
                f"a derived student is a narrower {teacher.model}, its teacher's architecture: set model to that, or "
                f"method.student to given, so that {self.model} is the student"
            )

    def _check_cache(self) -> None:
        """A teacher's answers can be remembered only where an image is the same in every epoch."""
        augmentation = getattr(self.data, "augmentation", None)
        changes = augmentation is None or augmentation.crop_padding or augmentation.flip
        if getattr(self.method.objective, "cache", False) and changes:
            raise ValueError(
                f"cache needs images that are the same in every epoch, and {self.data.label} is augmented: leave it "
                "out, or set data.augmentation.crop_padding 0 and data.augmentation.flip off"
            )

    @property
    def identity(self) -> str:
        """16 hexadecimal digits: equal for experiments that must give the same result."""
        return identity.identity(self)

    @property
    def sparsity(self) -> float:
        """Share of convolution and linear weights removed."""
        return getattr(self.method, "sparsity", 0.0)

    @property
    def name(self) -> str:
        """One readable line: what is run."""
        sparsity = f" at {self.sparsity:.4g}" if self.sparsity else ""
        return f"{self.method.label}{sparsity}, {self.model} on {self.data.label}, seed {self.seed}"


@dataclass(frozen=True)
class Placement:
    """Where and how experiments run. Not part of what they are."""

    workers: int | None = None
    """processes that train one experiment together; 0: in this one; None: 0, or inside a Ray job one per GPU"""
    launcher: Literal["local", "ray"] | None = None
    """who starts the workers: this machine's processes, or Ray Train; None: ray inside a Ray job, else local"""
    strategy: Literal["single", "ddp", "deepspeed"] | None = None
    """how workers share the training; None: ddp for 2 or more"""
    zero_stage: Literal[1, 2, 3] = 2
    """with deepspeed: split the optimiser's state over the workers (1), gradients too (2), weights too (3)"""
    deepspeed_config: str | None = None
    """with deepspeed: a JSON file whose values go over ours (bucket sizes, say; not what the experiment decides)"""
    parallel: int = 1
    """single-process experiments side by side"""
    threads: int = 1
    """CPU threads of each process; more change the order of sums, so they are part of a bit-exact resume"""
    storage: str = os.environ.get("ORCHARD_STORAGE", "storage")
    """folder that holds everything of every run (or ORCHARD_STORAGE), seen by every worker under this path; start the
    same command with the same folder to go on"""
    tracking_uri: str | None = os.environ.get("MLFLOW_TRACKING_URI") or None
    """MLflow: sqlite:///FILE or http://HOST:PORT (or MLFLOW_TRACKING_URI); None: mlflow.db in the storage folder"""
    checkpoint_steps: int = 0
    """training steps between checkpoints, beside the one after each epoch; 0 = after epochs only"""
    keep: int = 2
    """checkpoints kept of each training"""
    loader_workers: int | None = None
    """image-decoding processes of each worker, where data is not held in memory; None: one per core, 8 at most"""
    max_failures: int | None = None
    """how often workers that die are replaced, and the run goes on, before the command ends; -1: without end; None: 3
    on Ray, 0 on local processes"""
    min_workers: int | None = None
    """on Ray, go on with as few as these where machines are missing, up to `workers` when they come (another number of
    workers is not bit for bit the same run); None: wait for all"""
    timeout: float = 900.0
    """seconds after which workers that do not answer each other, or machines that are missing, end the command"""
    accept_placement: bool = False
    """let a partial run go on under other workers, threads or strategy (not bit for bit the same run any more)"""

    def __post_init__(self) -> None:
        for name, least in (("keep", 1), ("checkpoint_steps", 0), ("loader_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        if self.deepspeed_config is not None:
            if self.strategy != "deepspeed":
                raise ValueError("--deepspeed-config is for --strategy deepspeed: give that too, or leave it out")
            # What it says, in place of its path: workers elsewhere may not see the file.
            object.__setattr__(self, "deepspeed_config", read_own(self.deepspeed_config))


def parameters(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, plain value) of every field, and (name, class name) of every part that has alternatives."""
    for item in fields(value):
        part = getattr(value, item.name)
        if is_dataclass(part):
            yield prefix + item.name, type(part).__name__
            yield from parameters(part, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, part
