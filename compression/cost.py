"""Cost: what a network weighs, what a forward pass and a training step take, how fast it is, how much memory it needs.

A multiply-accumulate (MAC) is one multiplication and one addition: two floating-point operations (FLOPs).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from compression.batch import Batch
from compression.masks import PRUNABLE_LAYERS
from compression.objectives.base import Objective

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a network weighs and what one forward pass of one image takes.

    params: all parameters. nonzero_params: those that are not exactly zero.
    macs: multiply-accumulates of convolutions and linear layers (no bias, BatchNorm, activation or pooling).
    effective_macs: those whose weight is not zero: what a perfect sparse kernel would do. Dense kernels do `macs`.
    """

    params: int
    nonzero_params: int
    macs: int
    effective_macs: int


def count(model: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """The cost of `model` for one image of shape (C, H, W), counted in a real forward pass in eval mode."""
    macs = effective = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, effective
        weight = module.get_parameter("weight")
        # A weight is used once per output position: (C, positions...) for convolutions, (K,) for linear layers.
        positions = output[0].numel() // weight.shape[0]
        macs += weight.numel() * positions
        effective += int(weight.count_nonzero()) * positions

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, PRUNABLE_LAYERS)]
    example = next(model.parameters())
    try:
        with _eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=example.dtype, device=example.device))
    finally:
        for hook in hooks:
            hook.remove()
    parameters = list(model.parameters())
    return Cost(
        params=sum(p.numel() for p in parameters),
        nonzero_params=sum(int(p.detach().count_nonzero()) for p in parameters),
        macs=macs,
        effective_macs=effective,
    )


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode and give each its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


IMAGES = 2
"""Images of the step that `training_flops` runs: the least for which BatchNorm in train mode has statistics."""


def training_flops(model: nn.Module, objective: Objective, batch: Batch) -> float:
    """FLOPs of one training step for one image: all forwards that `objective` makes, its teacher's too, and backward.

    Counted (see `count_flops`) while a step runs on copies of model and objective with the first images of `batch`,
    which is where the model is and in its precision: model, memory, hooks and random numbers stay as they are. The
    optimiser's own operations, element-wise, are not counted.

    It is the second step that counts: DLB has no last batch in the first. A KD with a cache counts as one that still
    fills it, teacher's forward and all.
    """
    few = _first(batch, IMAGES)
    # Together: an objective may hold parts of the model. A compiled model's copy is not compiled.
    model, objective = copy.deepcopy((model, objective))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        loss = torch.stack(list(objective(model, few).values())).sum()
        torch.autograd.grad(loss, parameters, allow_unused=True)

    devices = [few.images.device] if few.images.is_cuda else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        step()
        _, flops = count_flops(step)
    return flops / len(few)


def _first(batch: Batch, num: int) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{name: value[:num] for name, value in values.items() if value is not None})


def count_flops(fn: Callable[[], T]) -> tuple[T, int]:
    """(result of `fn`, FLOPs of what it executed in this thread, backward passes included).

    Counted are convolutions, matrix products and attention, 2 for a multiply-accumulate, dense whatever the values;
    not element-wise operations, normalisation or pooling. A network in `torch.compile` is out of sight: give the
    original.
    """
    counter = _Counter()
    fused = torch.backends.mha.get_fastpath_enabled()
    # The fused kernel of nn.MultiheadAttention is one operation without a formula.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter:
            result = fn()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return result, counter.flops


class _Counter(TorchDispatchMode):
    """Adds up the FLOPs of every operation below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None and _is_composite(func):
            # In inference mode operations arrive whole (linear) that are made of others (addmm).
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


@functools.cache
def _is_composite(func: Any) -> bool:
    return func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _convolution_backward(
    grad_output: Tensor,
    images: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
    *,
    out_val: Any,
) -> int:
    """As many as the forward pass for each gradient, of images and of weight (PyTorch's formula forgets the groups)."""
    positions = math.prod((images if transposed else grad_output).shape[2:])
    return 2 * len(images) * positions * weight.numel() * sum(output_mask[:2])


_aten = torch.ops.aten
FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
"""Operation -> FLOPs from its arguments and result: PyTorch's own, and those that it lacks or has wrong."""


def latency(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    batch_sizes: Sequence[int] = (1, 8, 64),
    seconds: float = 1.0,
) -> dict[int, float]:
    """Batch size -> median seconds of one forward pass, in eval mode, on the model's device and in its precision.

    input_shape: (C, H, W). seconds: to spend on each batch size; at least 3 passes are timed, after one that is not.
    The images lie in memory as the model's weights do (channels_last or not). Threads are the process's.
    """
    example = next(model.parameters())
    layout = torch.channels_last if _is_channels_last(model) else torch.contiguous_format
    draw = torch.Generator().manual_seed(0)
    found = {}
    with _eval_mode(model), torch.inference_mode():
        for size in batch_sizes:
            images = torch.randn(size, *input_shape, generator=draw).to(example).contiguous(memory_format=layout)
            model(images)
            _wait(example.device)
            timings: list[float] = []
            while len(timings) < 3 or sum(timings) < seconds:
                start = time.perf_counter()
                model(images)
                _wait(example.device)
                timings.append(time.perf_counter() - start)
            found[size] = statistics.median(timings)
    return found


def _is_channels_last(model: nn.Module) -> bool:
    """Whether a convolution's weight lies in memory channels last (and could lie otherwise)."""
    return any(
        p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in model.parameters()
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device | str) -> int:
    """Bytes: the most that tensors took on a CUDA device, or on the CPU that this whole process took (resident).

    Since `reset_peak_memory`, or else since the process began.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    import resource  # no part of Python on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device | str) -> bool:
    """Let `peak_memory` start again from what is in use now; whether that could be done.

    On the CPU the kernel is asked by /proc/self/clear_refs, which containers and other systems than Linux may not
    offer. If it could not be done, peak memory is the process's since its start: right for the first run in a process,
    an upper bound for later ones.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
