"""What a full meta-gradient needs of memory, told before it is computed, and what there is."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from compression.batch import Batch
from compression.criteria.chunks import take
from compression.criteria.functional import detached_buffers, total_loss, training_mode
from compression.criteria.second_order import CheapSecondOrder
from compression.objectives.base import Objective

HEADROOM = 1.5
"""Peak over what the graphs hold: gradients on their way through them, and what the allocator cannot use again.

Measured on ResNets of 18, 20 and 50 layers: 1.2 to 1.7."""

GIB = 2**30


def check_memory(model: nn.Module, batch: Batch, objective: Objective, steps: int) -> None:
    """ValueError with both figures if a full meta-gradient through `steps` steps will not fit into free memory."""
    needed, free = meta_gradient_bytes(model, batch, objective, steps), free_bytes(batch.images.device)
    if needed > free:
        raise ValueError(
            f"the full meta-gradient over {steps} steps with {len(batch)} images needs about {needed / GIB:.1f} GiB of "
            f"memory, of which {free / GIB:.1f} GiB are free: use first_order (chunk_size then bounds its memory too), "
            "or a smaller scoring_batch_size"
        )


def meta_gradient_bytes(model: nn.Module, batch: Batch, objective: Objective, steps: int) -> int:
    """Estimated peak, beyond what is held now, of a full meta-gradient through `steps` steps of `batch`.

    Found from what autograd keeps for the loss and for its gradient on 2 and on 4 of the images, which gives the part
    that grows with their number and the part that does not. `batch` is not changed and no random number is drawn.
    """
    devices = [batch.images.device] if batch.images.is_cuda else []
    with torch.random.fork_rng(devices), training_mode(model):
        sizes = [min(2, len(batch)), min(4, len(batch))]
        kept = [_kept_bytes(model, take(batch, range(size)), objective) for size in sizes]
    growth = [(b - a) / max(1, sizes[1] - sizes[0]) for a, b in zip(*kept, strict=True)]
    loss, both = (a + g * (len(batch) - sizes[0]) for a, g in zip(kept[0], growth, strict=True))
    return round(HEADROOM * (steps * both + loss))


def _kept_bytes(model: nn.Module, batch: Batch, objective: Objective) -> tuple[int, int]:
    """Bytes kept by the graph of the loss, and by it and the graph of its gradient together."""
    objective = copy.deepcopy(objective)
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    buffers = detached_buffers(model)
    with torch.no_grad():
        # The second call of an objective that remembers is the one that stands for all others.
        total_loss(model, parameters, buffers, objective, batch)
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Held, so that no other tensor can take its place in memory and be taken for it.
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    def num_bytes() -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    with torch.enable_grad(), CheapSecondOrder(), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = total_loss(model, parameters, buffers, objective, batch)
        of_loss = num_bytes()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
        # The weights after the step are the step's own, and as large as their gradients.
        step = sum(g.untyped_storage().nbytes() for g in gradients if g is not None)
        return of_loss, num_bytes() + step


def free_bytes(device: torch.device) -> int:
    """Memory of `device` that this process can still have, within the limits of its control groups."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([_available_bytes(), *control_group_bytes()])


def _available_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    [line] = [line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024


def control_group_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What each limit on this process leaves: its own control group's and those above it (versions 1 and 2)."""
    if not own.exists():
        return []
    left = []
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files, base = ("memory.max", "memory.current", "inactive_file"), root
        elif "memory" in controllers.split(","):
            files, base = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), root / "memory"
        else:
            continue
        here = Path(path.lstrip("/"))
        for group in (here, *here.parents):
            left += _left_in(base / group, *files)
    return left


def _left_in(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """[limit - usage], the page cache that can be dropped not counted as used; [] where there is no limit."""
    if not (folder / limit).exists() or (text := (folder / limit).read_text().strip()) == "max":
        return []
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return [int(text) - int((folder / usage).read_text()) + int(statistics.get(cache, 0))]
