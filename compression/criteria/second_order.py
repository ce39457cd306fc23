"""Faster second derivatives of convolution and BatchNorm.

PyTorch's general second derivatives of these two layers double the cost of a meta-gradient (ResNet-18 on a CPU). Here
are the same derivatives in closed form, computed with the kernels that training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
_batch_norm_backward = aten.native_batch_norm_backward


def fast_layout(tensor: Tensor) -> Tensor:
    """Images and convolution weights in channels_last on a CPU, which avoids a copy around each convolution."""
    if tensor.ndim != 4 or tensor.device.type != "cpu":
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


class CheapSecondOrder(TorchFunctionMode):
    """In this context, 2-d convolutions and train-mode BatchNorm have the second derivatives of this file.

    Attention uses a kernel that has them. No third derivatives. BatchNorm does not update its running statistics. Other
    cases use PyTorch's derivatives.
    """

    def __enter__(self) -> CheapSecondOrder:
        self._attention = sdpa_kernel(SDPBackend.MATH)  # the fused kernels have no second derivatives
        self._attention.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d or func is torch.conv2d:
            return _conv2d(func, *args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _conv2d(
    func: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or x.ndim != 4:
        return func(x, weight, bias, stride, padding, dilation, groups)
    pairs = [[v, v] if isinstance(v, int) else list(v) for v in (stride, padding, dilation)]
    return _Convolution.apply(x, weight, bias, (*pairs, False, [0, 0], groups))  # pyright: ignore[reportReturnType]


class _Convolution(Function):
    """y = x * w + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return aten.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        [gy] = gradients
        return *_ConvolutionBackward.apply(gy, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:3]), None  # pyright: ignore[reportGeneralTypeIssues]


class _ConvolutionBackward(Function):
    """gx, gw and gb of one gy: bilinear in each pair of gy, x and w."""

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Any, ...], wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(gy, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _convolution_backward(gy, x, weight, geometry, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        vx, vw, vb = gradients
        gy, x, weight = ctx.saved_tensors
        ggy = gx = gw = None
        if vx is not None:
            ggy = aten.convolution(vx, weight, None, *ctx.geometry)
            gw = _convolution_backward(gy, vx, weight, ctx.geometry, (False, True, False))[1]
        if vw is not None:
            more = aten.convolution(x, vw, None, *ctx.geometry)
            ggy = more if ggy is None else ggy.add_(more)
            if ctx.needs_input_grad[1]:
                gx = _convolution_backward(gy, x, vw, ctx.geometry, (True, False, False))[0]
        if vb is not None:
            more = vb.view(1, -1, 1, 1)
            ggy = more.expand_as(gy) if ggy is None else ggy.add_(more)
        return ggy, gx, gw, None, None


def _convolution_backward(
    gy: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Any, ...], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    return aten.convolution_backward(gy, x, weight, [len(weight)] if wanted[2] else None, *geometry, list(wanted))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if x.numel() == x.shape[1]:
        raise ValueError("BatchNorm in train mode needs more than 1 value per channel: score more images at once")
    return _BatchNorm.apply(x, weight, bias, eps)  # pyright: ignore[reportReturnType]


class _BatchNorm(Function):
    """y = w * (x - mean) * r + b over all but dimension 1, r = 1 / sqrt(variance + eps)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, r = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        [gy] = gradients
        gx, gw, gb = _BatchNormBackward.apply(gy, *ctx.saved_tensors, ctx.eps)  # pyright: ignore[reportGeneralTypeIssues]
        _, weight, bias, _ = ctx.needs_input_grad
        return gx, gw if weight else None, gb if bias else None, None


class _BatchNormBackward(Function):
    """gx = w r P(gy), gw = sum(gy xhat), gb = sum(gy); xhat = (x - mean) r, P(a) = a - mean(a) - xhat mean(a xhat).

    With C = sum(vx xhat), D = gw and Q = sum(vx P(gy)) the gradients of sum(vx gx) + vw gw + vb gb are
    for gy: w r P(vx) + vw xhat + vb, for w: r Q,
    for x: P(gy) (vw r - w r^2 C / M) - P(vx) w r^2 D / M - xhat w r^2 Q / M, M the number of values a channel.
    """

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor | None, ...]:
        gx, gw, gb = _batch_norm_backward(gy, x, weight, None, None, mean, r, True, eps, [True] * 3)
        ctx.save_for_backward(gy, x, weight, mean, r, gw, gb)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return gx, gw, gb

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        vx, vw, vb = gradients
        gy, x, weight, mean, r, d, b = ctx.saved_tensors
        num, per_channel = x.numel() // x.shape[1], [1, -1] + [1] * (x.ndim - 2)
        w = torch.ones_like(r) if weight is None else weight
        vx = torch.zeros_like(x) if vx is None else vx
        vw = torch.zeros_like(r) if vw is None else vw
        shift = torch.zeros_like(r) if vb is None else vb
        wrp, c, a = _batch_norm_backward(vx, x, weight, None, None, mean, r, True, ctx.eps, [True] * 3)
        q = _channel_products(vx, gy) - (a * b + c * d) / num
        ggy = wrp.addcmul_(x, (vw * r).view(per_channel)).add_((shift - vw * r * mean).view(per_channel))
        # With P written out, the gradient of x is a sum of gy, vx and x with one factor per channel each.
        of_gy, of_vx = vw * r - w * r.square() * c / num, -w * r.square() * d / num
        of_xhat = -(of_gy * d + of_vx * c + w * r.square() * q) / num
        constant = -(of_gy * b + of_vx * a) / num - of_xhat * r * mean
        gx = torch.addcmul(constant.view(per_channel), gy, of_gy.view(per_channel))
        gx.addcmul_(vx, of_vx.view(per_channel)).addcmul_(x, (of_xhat * r).view(per_channel))
        return ggy, gx, None if weight is None else r * q, None, None, None


def _channel_products(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a * b over all but dimension 1, without the product in memory: BatchNorm's gradient of a weight."""
    zeros, ones = a.new_zeros(a.shape[1]), a.new_ones(a.shape[1])
    return _batch_norm_backward(b, a, ones, None, None, zeros, ones, True, 0.0, [False, True, False])[1]
