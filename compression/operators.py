"""Operators: whether single channels can be followed through a forward pass."""

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from compression.masks import PRUNABLE_LAYERS
from compression.models.resnet_cifar import ChannelShortcut
from compression.modules import in_mode

LAYERS = (*PRUNABLE_LAYERS, _BatchNorm, nn.GroupNorm, ChannelShortcut)
"""Modules that make, carry or read channels, and that can be made smaller."""

ARITHMETIC = {"abs", "add", "div", "exp", "maximum", "minimum", "mul", "neg", "pow", "rsub", "sqrt", "sub"}
COPIES = {"_to_copy", "alias", "clone", "detach", "dropout"}
LIMITS = {"clamp", "clamp_max", "clamp_min", "hardsigmoid", "hardswish", "hardtanh", "relu", "relu6"}
ACTIVATIONS = {"elu", "gelu", "leaky_relu", "mish", "sigmoid", "silu", "softplus", "tanh"}
AVERAGES = {"_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "avg_pool1d", "avg_pool2d"}
MAXIMA = {"adaptive_max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices"}
UPSAMPLING = {"upsample_bilinear2d", "upsample_nearest2d"}
FACTORIES = {"arange", "empty", "empty_like", "full", "full_like", "ones", "ones_like", "zeros", "zeros_like"}
APART = ARITHMETIC | COPIES | LIMITS | ACTIVATIONS | AVERAGES | MAXIMA | UPSAMPLING | FACTORIES
"""ATen operators that keep every channel separate and in its position, for any arguments."""

REDUCTIONS = {"amax", "max", "mean", "sum"}
SHAPES = {"_unsafe_view", "constant_pad_nd", "reshape", "select", "slice", "squeeze", "unsqueeze", "view"}
NORMS = {"_native_batch_norm_legit_no_training", "native_batch_norm", "native_group_norm"}
PRODUCTS = NORMS | {"addmm", "convolution", "mm", "t", "transpose"}
"""Operators that mix channels: supported inside layers only."""
VALUES = {"_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero"}


def check(model: nn.Module, images: Tensor) -> None:
    """ValueError that names the operator or module through which single channels of `model` cannot be followed.

    Supported are convolutions, linear layers, BatchNorm, GroupNorm, element-wise operators, pooling, concatenation of
    channels, flattening, and option A's shortcut; not weights that are used twice, nor networks without a layer to
    prune.
    images: (N, C, H, W), for one forward pass in eval mode.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE_LAYERS)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer: there is no channel to remove")
    watch = _Watch(model)
    for name, module in layers.items():
        if isinstance(module, nn.Linear) or module.groups in (1, module.in_channels):
            continue
        if module.groups == module.out_channels:
            raise watch.refusal(f"the convolution {name!r} has groups of several inputs and one output")
    taken = [name for name, module in model.named_modules() if parametrize.is_parametrized(module)]
    if taken:
        raise watch.refusal(f"{', '.join(taken)} has a parametrization")
    seen: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in seen:
            raise watch.refusal(f"{seen[parameter]!r} and {name!r} are the same parameter")
        seen[parameter] = name
    with in_mode(model, training=False), watch.modules(), torch.no_grad(), watch:
        output = model(images)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise watch.refusal("its output is not one tensor of logits (N, K)")


class _Watch(TorchDispatchMode):
    """Checks every operator of a forward pass, and tracks in which module it runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.stack: list[tuple[str, nn.Module]] = [("", model)]
        self.calls: dict[str, int] = {}

    def refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"the channels of {type(self.model).__name__} cannot be removed one by one: {reason}. Choose a network of "
            "convolutions, BatchNorm and linear layers, or prune weights without removing channels"
        )

    def modules(self) -> contextlib.ExitStack:
        """Track which module runs until the returned stack is closed."""
        hooks = contextlib.ExitStack()
        for name, module in self.model.named_modules():
            enter = functools.partial(self._enter, name)
            hooks.enter_context(module.register_forward_pre_hook(enter, prepend=True))
            hooks.enter_context(module.register_forward_hook(self._leave, always_call=True))
        return hooks

    def _enter(self, name: str, module: nn.Module, _: Any) -> None:
        self.stack.append((name, module))
        own = {key: p for key, p in module.named_parameters(recurse=False) if p.numel() > 1}
        if own and not isinstance(module, LAYERS):
            raise self.refusal(f"{name!r} ({type(module).__name__}) has a parameter {', '.join(own)} of its own")
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.calls[name] > 1 and isinstance(module, LAYERS):
            raise self.refusal(f"{name!r} ({type(module).__name__}) runs more than once in a forward pass")

    def _leave(self, *_: Any) -> None:
        self.stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name, module = self.stack[-1]
        if isinstance(module, LAYERS) and any(type(module).forward is one.forward for one in OWN_FORWARD):
            return result
        operator = func.overloadpacket.__name__
        where = f"in {name!r} ({type(module).__name__})" if name else f"in {type(module).__name__} itself"
        if operator.removesuffix("_") in VALUES:
            raise self.refusal(f"{where} the path depends on values ({operator})")
        if not _follows(operator, args, dict(kwargs or {}), result, isinstance(module, LAYERS)):
            raise self.refusal(f"{where} the operator {operator} mixes or moves channels in an unknown way")
        return result


OWN_FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm1d, nn.GroupNorm, ChannelShortcut)


def _follows(operator: str, args: Sequence[Any], kwargs: dict[str, Any], result: Any, in_layer: bool) -> bool:
    """Whether every channel (dimension 1) of the inputs stays separate and in its position."""
    plain = operator if operator.startswith("_") else operator.removesuffix("_")
    if plain in APART or (in_layer and plain in PRODUCTS):
        return True
    if plain == "cat":
        return (args[1] if len(args) > 1 else kwargs.get("dim", 0)) in (1, 1 - args[0][0].dim())
    if not args or not isinstance(args[0], Tensor):
        return False
    before = args[0]
    if plain in REDUCTIONS:
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else list(dims or [])
        return bool(dims) and all(dim % before.dim() >= 2 for dim in dims)
    if plain == "as_strided":  # pooling to one pixel in channels_last writes the strides of its result anew
        return list(args[1][2:]) == [1] * (len(args[1]) - 2) and list(args[2][:2]) == [args[1][1], 1]
    if plain not in SHAPES or before.dim() < 2 or not isinstance(result, Tensor):
        return False
    flat = result.dim() == 2 and tuple(result.shape) == (len(before), math.prod(before.shape[1:]))
    return flat or result.shape[:2] == before.shape[:2]
