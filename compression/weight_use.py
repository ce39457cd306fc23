"""Weight use: which tensors multiply a network's activations, how often, and whether they act as they are stored.

Convolutions and matrix products are watched below autograd in one forward pass, whatever the modules around them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compression.modules import in_mode

OPERANDS = {"convolution": (0, 1), "mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}
"""Operator -> the places of its two factors."""
COPIES = {"_to_copy", "clone", "copy", "lift_fresh"}
"""Operators whose result has the values of their first argument in other memory."""


@dataclass(frozen=True)
class Use:
    """One product of activations with a tensor made of parameters or buffers, or a convolution with a computed kernel.

    parameter: the name of the first of them; "" for a kernel that depends on the image. exact: the factor holds its
        values, not results of arithmetic.
    macs: multiply-accumulates. effective: those with a factor that is not zero.
    """

    parameter: str
    exact: bool
    macs: int
    effective: int


def weight_use(model: nn.Module, images: Tensor) -> list[Use]:
    """Every use in a forward pass of `images` (N, C, H, W) in eval mode. The model is not changed.

    Products of activations with each other, as in attention, are none.
    """
    watch, fused = _Watch(model), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused attention is one operation that hides its products
    try:
        with in_mode(model, training=False), torch.no_grad(), watch:
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return watch.uses


class _Watch(TorchDispatchMode):
    """Follows what is computed from parameters alone, until it meets activations in a product."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self._names: dict[int, str] = {}
        self._exact: dict[int, bool] = {}
        self._alive: list[Tensor] = []
        """derived tensors, so that no other one gets their address"""
        self._parameters = dict(model.named_parameters())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._mark(tensor, name, True)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__
        if operator in OPERANDS:
            self._product(operator, args, result)
            return result
        tensors = [one for argument in args for one in _tensors(argument)]
        if tensors and all(_address(one) in self._names for one in tensors):
            first = max(map(_address, tensors), key=lambda address: self._names[address] in self._parameters)
            exact = operator in COPIES and self._exact[first]
            for one in _tensors(result):
                if _address(one) not in self._names:  # else it is a view
                    self._mark(one, self._names[first], exact)
        return result

    def _mark(self, tensor: Tensor, name: str, exact: bool) -> None:
        self._alive.append(tensor)
        self._names.setdefault(_address(tensor), name)
        self._exact.setdefault(_address(tensor), exact)

    def _product(self, operator: str, args: Sequence[Any], result: Tensor) -> None:
        factors = [args[place] for place in OPERANDS[operator]]
        weights = [factor for factor in factors if _address(factor) in self._names]
        constant = [factor for factor in weights if self._names[_address(factor)] not in self._parameters]
        # A table of parameters, looked up by fixed matrices; a layer on fixed positions (mm, addmm) is a use.
        if operator in ("bmm", "baddbmm") and len(weights) == 2 and len(constant) == 1:
            [table] = [factor for factor in weights if factor is not constant[0]]
            self._mark(result, self._names[_address(table)], False)
            return
        if not weights and operator == "convolution":
            self._mark(factors[1], "", False)
            weights = factors[1:]
        if not weights:
            return
        weight = weights[-1]  # of a learned query and its projection, the projection
        if operator == "convolution":
            positions = args[0] if args[6] else result  # transposed: one use of each weight per position of the input
            macs = weight.numel() * (positions.numel() // positions.shape[1])
        else:
            macs = result.numel() * factors[0].shape[-1]
        address = _address(weight)
        effective = macs // weight.numel() * int(weight.count_nonzero())
        self.uses.append(Use(self._names[address], self._exact[address], macs, effective))


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in an argument or result of an operator."""
    if isinstance(value, Tensor):
        return [value]
    return [one for one in value if isinstance(one, Tensor)] if isinstance(value, (list, tuple)) else []


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
