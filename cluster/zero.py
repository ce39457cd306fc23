"""ZeRO: several workers share the optimiser's state (stage 1), the gradients (2) and the weights (3), by DeepSpeed."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from cluster.zero_config import ZeroSettings


@dataclass(frozen=True)
class Piece:
    """What this worker updates of a parameter: `num` entries of it, flattened, from `start` on (0 of it: nothing).

    flat: the tensor that the optimiser holds; there the piece begins at `place`.
    """

    flat: Tensor
    place: int
    start: int
    num: int


class Zero:
    """DeepSpeed's engine around a torch optimiser; a network comes out of it as it went in.

    While it trains, weights lie in a row, channels_last or not. At stage 3 a copy of the network is kept beside it, to
    evaluate and to store: DeepSpeed's own gathers weights layer by layer, on all workers at once, and evaluation gives
    the workers unequal numbers of batches.
    """

    def __init__(self, world_size: int, settings: ZeroSettings) -> None:
        check_installed()
        self._world_size, self._settings = world_size, settings
        self._engine: Any = None

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        device = next(model.parameters()).device
        if isinstance(optimizer, torch.optim.Adagrad):
            raise ValueError("DeepSpeed makes an Adagrad of its own, without our learning rates: use --strategy ddp")
        self._before = _Photograph(model)
        self._whole = copy.deepcopy(model) if self._settings.stage == 3 else None
        for parameter in model.parameters():
            # DeepSpeed takes weights for numbers in a row; `contiguous()` leaves channels_last where it cannot be told.
            parameter.data = parameter.new_empty(parameter.shape).copy_(parameter.detach()).data
        _around.close()  # where a training has failed
        _around.enter_context(_environment(device))
        _around.enter_context(_meeting(device))
        import deepspeed

        config = self._settings.config(self._world_size)
        with _quiet():
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=config, dist_init_required=False
            )
        wrapped: Any = self._engine.optimizer
        assert wrapped.optimizer is optimizer, "the loop sets learning rates there"
        self._pieces = _pieces(wrapped, model)
        if self._settings.stage == 3 and wrapped.persistent_parameters:
            # Small parameters that stay whole: there before the first step too, where an objective may read them.
            wrapped.persistent_parameters[0].all_gather(wrapped.persistent_parameters)
        return self._engine

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self._engine.step()
        if not self._engine.was_step_applied():
            raise FloatingPointError(
                f"the gradients are not finite at step {self._engine.global_steps - 1} of this start: lower "
                "--training.optimizer.lr, or give the training a warm-up"
            )

    def whole(self, model: nn.Module) -> nn.Module:
        if self._whole is None:
            return model  # before stage 3 each worker has all weights
        weights = self._gathered(lambda flat: flat.detach())
        with torch.no_grad():
            for name, parameter in self._whole.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
            for buffer, current in zip(self._whole.buffers(), model.buffers(), strict=True):
                buffer.copy_(current)
        return self._whole

    def state(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
        state, found = optimizer.state, {}
        keys = {key: None for piece in self._pieces.values() for key in state[piece.flat]}
        for key in keys:
            having = {name: piece for name, piece in self._pieces.items() if state[piece.flat].get(key) is not None}
            split = any(_is_split(state[piece.flat][key], piece) for piece in having.values())
            if split:
                found[key] = self._gathered(lambda flat, key=key: state[flat][key], having)
            else:
                found[key] = {name: torch.as_tensor(state[piece.flat][key]) for name, piece in having.items()}
        return {f"{name}/{key}": found[key][name] for name in self._pieces for key in keys if name in found[key]}

    def load_state(self, optimizer: torch.optim.Optimizer, model: nn.Module, stored: dict[str, Tensor]) -> None:
        fused = optimizer.defaults.get("fused")
        for full_name, value in stored.items():
            name, key = full_name.rsplit("/", 1)
            piece = self._pieces[name]
            state = optimizer.state[piece.flat]
            if value.shape == self._before.shape(name):
                if key not in state:
                    state[key] = torch.zeros_like(piece.flat, dtype=value.dtype)
                part = value.flatten()[piece.start : piece.start + piece.num]
                state[key][piece.place : piece.place + piece.num] = part.to(piece.flat.device)
            else:
                state[key] = value.to(piece.flat.device) if fused else value.clone()

    def unwrap(self, model: nn.Module) -> nn.Module:
        inner = self._engine.module
        whole = self.whole(inner)
        values = {name: parameter.detach() for name, parameter in whole.named_parameters()}
        inner.train(whole.training)
        self._engine.destroy()
        self._engine.module_forward_pre_hook.remove()
        self._engine.module_forward_post_hook.remove()
        self._before.restore(inner, values)
        self._engine = self._whole = None
        self._pieces = {}
        _around.close()
        return inner

    def _gathered(
        self, source: Callable[[Tensor], Tensor], pieces: dict[str, Piece] | None = None
    ) -> dict[str, Tensor]:
        """Parameter name -> full tensor, put together of every worker's pieces of `source(flat)`; one collective."""
        pieces = self._pieces if pieces is None else pieces
        if not pieces:
            return {}
        sizes = [self._before.shape(name).numel() for name in pieces]
        first = source(next(iter(pieces.values())).flat)
        # Each entry is one worker's and zero elsewhere, so the sum is exact.
        total = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        for part, piece in zip(total.split(sizes), pieces.values(), strict=True):
            part[piece.start : piece.start + piece.num] = source(piece.flat)[piece.place : piece.place + piece.num]
        dist.all_reduce(total)
        return {
            name: part.view(self._before.shape(name)) for name, part in zip(pieces, total.split(sizes), strict=True)
        }


class _Photograph:
    """A network as it was: parameters with their memory layout, and what its modules and parameters had as attributes.

    DeepSpeed hangs a lot onto both, and gives weights a memory of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, set(vars(module)), module._parameters) for module in model.modules()]
        self._attributes = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
        self._layouts = {n: torch.empty_like(p, device="meta").detach() for n, p in model.named_parameters()}

    def shape(self, name: str) -> torch.Size:
        return self._layouts[name].shape

    def restore(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        """Put all back, in place, with `values` as the parameters' values."""
        for module, attributes, parameters in self._modules:
            module._parameters = parameters
            for added in set(vars(module)) - attributes:
                delattr(module, added)
        for name, parameter in model.named_parameters():
            vars(parameter).clear()
            vars(parameter).update(self._attributes[name])
            layout = self._layouts[name]
            parameter.data = torch.empty_like(layout, device=values[name].device).copy_(values[name])
            parameter.grad = None


def _pieces(zero: Any, model: nn.Module) -> dict[str, Piece]:
    """Name -> piece of every parameter that the optimiser has."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Piece] = {}
    rank = dist.get_rank()
    if hasattr(zero, "fp16_groups"):  # stage 3 cuts every parameter into equal parts, the last of which is padded
        for number, group in enumerate(zero.fp16_groups):
            for parameter in group:
                _, place, size = zero.grad_position[zero.get_param_id(parameter)]
                start = min(size * rank, parameter.ds_numel)
                num = min(size, parameter.ds_numel - start)
                found[names[id(parameter)]] = Piece(zero.fp32_partitioned_groups_flat[number], place, start, num)
    else:  # before it lays all parameters of a group end to end and cuts that
        for number, group in enumerate(zero.bit16_groups):
            flat = zero.single_partition_of_fp32_groups[number]
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is None:
                    found[names[id(parameter)]] = Piece(flat, 0, 0, 0)
                    continue
                inside, here = mapping.lp_fragment_address, mapping.hp_fragment_address
                found[names[id(parameter)]] = Piece(flat, here.start, inside.start, inside.numel)
    return {name: found[name] for name in names.values() if name in found}


def _is_split(value: Any, piece: Piece) -> bool:
    return isinstance(value, Tensor) and value.shape == piece.flat.shape


def check_installed() -> None:
    """ValueError where DeepSpeed is not there."""
    import importlib.util

    try:
        found = importlib.util.find_spec("deepspeed") is not None
    except ValueError:  # it is blocked
        found = False
    if not found:
        raise ValueError(
            "--strategy deepspeed needs the package deepspeed: pip install deepspeed, or use --strategy ddp"
        )


@contextlib.contextmanager
def _environment(device: torch.device) -> Iterator[None]:
    """The variables by which DeepSpeed knows this worker's device."""
    wanted = {"LOCAL_RANK": str(device.index or 0), "DS_ACCELERATOR": device.type}
    before = {name: os.environ.pop(name, None) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Errors alone: a torch optimiser is to DeepSpeed an untested one, of which it warns."""
    logger = logging.getLogger("DeepSpeed")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


_around = contextlib.ExitStack()
"""What a training has changed in the process, to be put back: only one trains at a time."""

_known_world: Any = None
"""The default group on which DeepSpeed's own groups stand."""


@contextlib.contextmanager
def _meeting(device: torch.device) -> Iterator[None]:
    """DeepSpeed on the default group of now, or on one of this worker alone where there is none."""
    global _known_world
    alone = not dist.is_initialized()
    if alone:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    from deepspeed import ops
    from deepspeed.comm import comm
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.utils import groups

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled for minutes, to add up past gloo in its own way
    if _known_world is not dist.group.WORLD:  # the launcher opens the groups anew after a failed item
        comm.cdb = None
        groups._WORLD_GROUP = None
        _known_world = dist.group.WORLD
    yield
    parameter_offload.FWD_MODULE_STACK.clear()
    if alone:
        dist.destroy_process_group()
