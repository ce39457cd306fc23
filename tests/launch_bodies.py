"""Bodies that the launcher's tests run in other processes: each is found there by its name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import cluster.process_group
from cluster.strategy import DDP, Strategy, strategy
from cluster.worker import Worker


def play(item: Any, worker: Worker) -> Any:
    """Run the act of this name, or of the first of a tuple with the rest as arguments."""
    name, *arguments = item if isinstance(item, tuple) else (item,)
    return ACTS[name](worker, *arguments)


def reduce(worker: Worker) -> dict[str, Any]:
    total = torch.tensor([float(worker.rank + 1)])
    dist.all_reduce(total)
    ranks: list[Any] = [None] * worker.world_size
    dist.all_gather_object(ranks, worker.rank, group=worker.control)
    dist.monitored_barrier(worker.control)
    return {"total": total.item(), "ranks": ranks, "device": worker.device.type}


def fail(worker: Worker) -> None:
    raise ValueError("wrong on purpose")


def fail_in_flight(worker: Worker) -> None:
    """All fail, but the first has begun a collective by then."""
    if worker.rank == 0:
        dist.all_reduce(torch.full((1,), 100.0), async_op=True)
    raise ValueError("wrong in flight")


def fail_last(worker: Worker) -> str:
    """Only the last worker fails, and nobody waits for it."""
    if worker.rank == worker.world_size - 1:
        raise ValueError("wrong here only")
    return "fine"


def desert(worker: Worker) -> None:
    """The last worker fails while the others wait for it in a collective."""
    cluster.process_group.BARRIER_AFTER_FAILURE = timedelta(seconds=2)
    if worker.rank == worker.world_size - 1:
        raise ValueError("left the others")
    dist.all_reduce(torch.ones(1))


def unpicklable(worker: Worker) -> Any:
    return lambda: None


def die(worker: Worker, at: float = 0.0) -> None:
    """The last worker is killed while the others wait for it."""
    if worker.rank == worker.world_size - 1:
        time.sleep(at)
        os.kill(os.getpid(), signal.SIGKILL)
    if worker.world_size > 1:
        dist.all_reduce(torch.ones(1))


def surroundings(worker: Worker) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "threads": torch.get_num_threads(),
        "rank": worker.rank,
        "world_size": worker.world_size,
        "control": worker.control is not None,
        "group": dist.is_initialized(),
    }


def count(worker: Worker, upto: int) -> str:
    if worker.rank == 0:
        for number in range(upto):
            worker.emit({"count": number})
    return "counted"


def flood(worker: Worker, folder: str) -> None:
    """Emit far more than a pipe holds, then leave a file."""
    for _ in range(3000):
        worker.emit({"text": "x" * 1000})
    (Path(folder) / "flooded").touch()


def linger(worker: Worker) -> None:
    worker.emit({"pid": os.getpid()})
    time.sleep(600)


def meet_in(worker: Worker, folder: str, name: str, other: str) -> int:
    """Wait for another item to be at work too."""
    (Path(folder) / name).touch()
    deadline = time.monotonic() + 60
    while not (Path(folder) / other).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{other} did not come")
        time.sleep(0.01)
    return os.getpid()


class Net(nn.Module):
    """Registered in another order than its gradients arrive in, so that DDP has something to rearrange."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.middle = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.middle(F.relu(self.first(images))))
        return self.head(F.relu(self.last(features)).mean((2, 3)))


def make(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net().to(dtype)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loss_of(model: Callable[[Tensor], Tensor], rank: int, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Calls the model twice, as an objective with a second view does."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    images = torch.randn(6, 1, 8, 8, generator=generator).to(dtype)
    labels = torch.randint(0, 4, (6,), generator=generator)
    return F.cross_entropy(model(images), labels) + (model(images.flip(3)) - model(images).detach()).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, way: Strategy, rank: int, steps: range) -> None:
    wrapped = way.prepare(model, optimizer)
    assert way.unwrap(wrapped) is model
    for step in steps:
        optimizer.zero_grad()
        way.backward(loss_of(wrapped, rank, step))
        way.step(optimizer)


def resume(worker: Worker) -> list[bool]:
    """For each worker: whether 2 + 2 steps give the bits of 4."""
    way = DDP(worker.world_size, bucket_mb=0.004)
    through, optimizer = make()
    train(through, optimizer, way, worker.rank, range(4))

    half, optimizer = make()
    train(half, optimizer, way, worker.rank, range(2))
    again, again_optimizer = make()
    again.load_state_dict(half.state_dict())
    again_optimizer.load_state_dict(optimizer.state_dict())
    train(again, again_optimizer, way, worker.rank, range(2, 4))

    same = all(torch.equal(a, b) for a, b in zip(through.parameters(), again.parameters(), strict=True))
    everywhere: list[Any] = [None] * worker.world_size
    dist.all_gather_object(everywhere, same, group=worker.control)
    return everywhere


def gradients(worker: Worker) -> dict[str, Any]:
    """The gradients under DDP of a masked model, beside the mean of what each worker's data give by themselves."""
    model, optimizer = make(torch.float64)
    masks = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) > 0.5 for name, p in named(model)}
    for name, parameter in named(model):
        parameter.register_hook(lambda gradient, mask=masks[name]: torch.where(mask, gradient, 0))
    plain, _ = make(torch.float64)
    way = strategy("ddp", worker.world_size)
    wrapped = way.prepare(model, optimizer)
    way.backward(loss_of(wrapped, worker.rank, 0, torch.float64))
    for rank in range(worker.world_size):
        (loss_of(plain, rank, 0, torch.float64) / worker.world_size).backward()
    pairs = [(p.grad, q.grad, masks[name]) for (name, p), (_, q) in zip(named(model), named(plain), strict=True)]
    report = {
        "masked entries that are not zero": sum(int((ours[~mask] != 0).sum()) for ours, _, mask in pairs),
        "entries": sum(int((ours != 0).sum()) for ours, _, mask in pairs),
        "largest error": max(float((ours - theirs)[mask].abs().max()) for ours, theirs, mask in pairs),
    }
    everywhere: list[Any] = [None] * worker.world_size
    dist.all_gather_object(everywhere, report, group=worker.control)
    return {key: [each[key] for each in everywhere] for key in report}


def named(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if name.endswith("weight")]


ACTIONS: tuple[Callable[..., Any], ...] = (
    *(reduce, fail, fail_in_flight, fail_last, desert, unpicklable, die),
    *(surroundings, count, flood, linger, meet_in, resume, gradients),
)
ACTS = {act.__name__: act for act in ACTIONS}
