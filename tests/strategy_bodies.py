"""What the strategies' tests run in the workers: whole runs whose losses are written down, and trainings by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch import distributed as dist

from cluster.strategy import Strategy, strategy
from cluster.worker import Worker
from cluster.zero_config import ZeroSettings
from compression import channels, gates
from compression.batch import Batch
from compression.masks import Masks
from compression.methods.pdd import Budgeted
from compression.objectives import CSKD, DLB, KD, PSKD, CrossEntropy, Objective
from pipelines import training
from pipelines.execute import Work, execute
from tests.small_networks import SMALL, sequence

SPLIT_ALL = '{"zero_optimization": {"stage3_param_persistence_threshold": 0}}'
"""At stage 3 DeepSpeed leaves small parameters whole, and here all are small."""

WAYS = {"ddp": None, "zero 1": 1, "zero 2": 2, "zero 3": 3}
"""Name -> ZeRO's stage."""


def act(item: Any, worker: Worker) -> Any:
    """A run to watch, or the function of this name."""
    return watch(item, worker) if isinstance(item, Watched) else ACTS[item](worker)


@dataclass(frozen=True)
class Watched:
    """A run whose losses are wanted; it fails before step `stop`, counted from this start."""

    work: Work
    stop: int | None = None


def watch(item: Watched, worker: Worker) -> list[float]:
    """Execute, and give the loss of each step: the mean over the workers."""
    losses: list[Tensor] = []
    apply = training.optimizer_step

    def watched(way: Strategy, optimizer: torch.optim.Optimizer, parts: dict[str, Tensor]) -> None:
        if len(losses) == item.stop:
            raise RuntimeError("stopped")
        losses.append(torch.stack([*parts.values()]).sum().detach())
        apply(way, optimizer, parts)

    with mock.patch("pipelines.training.optimizer_step", watched), mock.patch("pipelines.costs.LATENCY_BATCHES", (1,)):
        execute(item.work, worker)
    return mean(torch.stack(losses), worker)


def mean(values: Tensor, worker: Worker) -> list[float]:
    values = values.double()
    if worker.world_size > 1:
        dist.all_reduce(values)
    return (values / worker.world_size).tolist()


@dataclass
class Trained:
    """What came out of a training by hand."""

    losses: list[float]
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    left: list[str]
    """what the strategy has left on the network that it gave back"""


def way_for(name: str, worker: Worker, batch_size: int = 8) -> Strategy:
    stage = WAYS[name]
    if stage is None:
        return strategy("ddp", worker.world_size)
    return strategy("deepspeed", worker.world_size, ZeroSettings(stage, batch_size, own=SPLIT_ALL))


def batch_of(step: int, rank: int) -> Batch:
    """Four images and all that an objective may ask for; sample 4 * rank + n is the same in every step."""
    draw = torch.Generator().manual_seed(100 * step + rank)
    images, paired, second = (torch.randn(4, *SMALL, generator=draw) for _ in range(3))
    index = 4 * rank + torch.arange(4)
    return Batch(images, index % 7, index, paired, second)


def network() -> nn.Module:
    """With sizes that two workers cannot halve, and in the memory layout of fast convolutions."""
    torch.manual_seed(0)
    return sequence(bias=True).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def train(
    worker: Worker,
    way: Strategy,
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    steps: range,
    stored: dict[str, Tensor] | None = None,
) -> Trained:
    """As the training loop does it: another learning rate at each step, `lr_scale` times that for some."""
    before = plain(model)
    wrapped = way.prepare(model, optimizer)
    way.load_state(optimizer, model, stored or {})
    losses = []
    for step in steps:
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = 0.02 / (1 + step) * group.get("lr_scale", 1.0)
        parts = objective(wrapped, batch_of(step, worker.rank))
        losses.append(torch.stack([*parts.values()]).sum().detach())
        training.optimizer_step(way, optimizer, parts)
    state = {name: value.clone() for name, value in way.state(optimizer, model).items()}
    whole = {name: p.detach().clone() for name, p in way.whole(model).named_parameters()}
    assert way.unwrap(wrapped) is model
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    copy.deepcopy(model)(batch_of(0, 0).images)
    after = plain(model)
    left = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return Trained(mean(torch.stack(losses), worker), weights, state, left)


def plain(model: nn.Module) -> dict[str, Any]:
    """What can be seen on a network, but for the values of its weights."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
        found[f"module {name}"] = (sorted(vars(module)), type(module._parameters), [len(each) for each in hooks])
    for name, p in model.named_parameters():
        hooks = (len(p._backward_hooks or {}), len(getattr(p, "_post_accumulate_grad_hooks", None) or {}))
        found[f"parameter {name}"] = (sorted(vars(p)), hooks, p.shape, p.stride(), p.requires_grad)
    return found


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices with weight decay; vectors without, and three times as fast."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr_scale": 3.0}]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups_of(model), lr=0.1, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups_of(model), lr=0.1)


def masks_of(model: nn.Module) -> Masks:
    draw = torch.Generator().manual_seed(1)
    return Masks(
        {name: torch.rand(p.shape, generator=draw) > 0.5 for name, p in model.named_parameters() if p.ndim > 1}
    )


def objectives(worker: Worker) -> dict[str, dict[str, Trained]]:
    """Objective -> way -> a short training, masked, of each that calls the network several times or remembers."""
    teacher = network().eval().requires_grad_(False)
    made: dict[str, Callable[[], Objective]] = {
        "CS-KD": CSKD,
        "DLB": DLB,
        "PS-KD": PSKD,
        "KD": lambda: KD(teacher),
    }

    def one(make: Callable[[], Objective], name: str) -> Trained:
        model = network()
        with masks_of(model).attach(model):
            trained = train(worker, way_for(name, worker), model, make(), sgd(model), range(5))
        masks_of(model).verify(model)
        return trained

    return {objective: {name: one(make, name) for name in WAYS} for objective, make in made.items()}


def gated(worker: Worker) -> dict[str, Trained]:
    """Way -> a training of a gated network towards a budget, which asks the gates outside of the network too."""

    def one(name: str) -> Trained:
        model = network()
        found = gates.attach(model, channels.channel_groups(model, SMALL), SMALL)
        own = gates.gate_parameters(model)
        known = {id(parameter) for parameter in own}
        weights = [parameter for parameter in model.parameters() if id(parameter) not in known]
        target = 0.5 * found.reachable("macs")[1]
        groups = [{"params": weights}, {"params": own, "lr_scale": 5.0, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-3)
        objective = Budgeted(CrossEntropy(), found, "macs", target, 10.0)
        return train(worker, way_for(name, worker), model, objective, optimizer, range(5))

    return {name: one(name) for name in WAYS}


def handed_over(worker: Worker) -> dict[str, tuple[Trained, Trained]]:
    """Optimiser and two ways -> a training through DDP alone, and one that goes on the other way after three steps."""
    found = {}
    for make in (sgd, adamw):
        for first, second in (("ddp", "zero 1"), ("zero 1", "zero 3"), ("zero 3", "ddp"), ("zero 2", "zero 2")):
            through = network()
            way = way_for("ddp", worker)
            undisturbed = train(worker, way, through, CrossEntropy(), make(through), range(6))
            model = network()  # trained twice: nothing of the first strategy may be left on it
            half = train(worker, way_for(first, worker), model, CrossEntropy(), make(model), range(3))
            way = way_for(second, worker)
            rest = train(worker, way, model, CrossEntropy(), make(model), range(3, 6), half.state)
            rest.losses = half.losses + rest.losses
            found[f"{make.__name__}: {first}, {second}"] = (undisturbed, rest)
    return found


def alone(worker: Worker) -> dict[str, Trained]:
    """One worker: each stage, and plain torch."""
    assert worker.world_size == 1
    found = {}
    for name in WAYS:
        model = network()
        found[name] = train(worker, way_for(name, worker, 4), model, DLB(), sgd(model), range(4))
        assert not dist.is_initialized()
    return found


def exploding(worker: Worker) -> None:
    """Gradients that are not finite."""
    model = network()
    way = way_for("zero 3", worker)
    optimizer = sgd(model)
    wrapped = way.prepare(model, optimizer)
    way.backward(wrapped(batch_of(0, worker.rank).images).sum() * 1e38 * 1e38)
    way.step(optimizer)


ACTS = {function.__name__: function for function in (objectives, gated, handed_over, alone, exploding)}
