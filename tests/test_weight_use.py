"""Which weights multiply a network's activations: counts as PyTorch's own, and what masks cannot cover is refused."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from compression import cost, models
from compression.masks import check_maskable, prunable
from compression.models.registry import HUBS
from compression.weight_use import weight_use


def counted_by_torch(model: nn.Module, images: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and of products of matrices; products of batches of them are attention's."""
    with FlopCounterMode(display=False) as counter:  # without gradients it refuses tokens that are parameters
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            model.eval()(images)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    return sum(flops for one, flops in counts.items() if str(one) in ("aten.convolution", "aten.mm", "aten.addmm")) // 2


@pytest.mark.parametrize(
    ("name", "giga"),
    [("torchvision/vit_b_16", 16.85), ("torchvision/swin_t", 4.35), ("torchvision/resnet18", 1.81)],
)
def test_networks_of_papers_have_their_operations(name: str, giga: float):
    assert cost.count(models.build(name, 1000), (3, 224, 224)).macs / 1e9 == pytest.approx(giga, abs=0.01)


@pytest.mark.parametrize(
    "name",
    [
        "timm/densenetblur121d",
        "timm/mobilevit_xxs",
        "timm/mixer_s32_224",
        "timm/resnetv2_50x1_bit",
        "timm/swinv2_cr_tiny_224",
    ],
)
def test_operations_are_those_that_torch_counts(name: str):
    model = models.build(name, 10)
    assert cost.count(model, (3, 224, 224)).macs == counted_by_torch(model, torch.zeros(1, 3, 224, 224)) > 0


def test_pruned_projections_of_attention_are_not_effective():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Attention())
    whole = cost.count(model, (3, 16, 16))
    projections = model.get_parameter("2.attention.in_proj_weight")
    with torch.no_grad():
        projections[:12] = 0
    assert whole.macs == 3 * 16 * 8 * 16 + 4 * 8 * 8 * 16
    assert cost.count(model, (3, 16, 16)).effective_macs == whole.macs - 12 * 8 * 16
    assert "2.attention.in_proj_weight" in prunable(model)
    check_maskable(model, torch.zeros(1, 3, 16, 16))


class Attention(nn.Module):
    """Self-attention over positions: (N, 8, positions) -> (N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class Standardised(nn.Conv2d):
    """A convolution that subtracts the mean of its weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class Matrix(nn.Module):
    """A parameter that is no layer's weight multiplies the input."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix


def test_what_masks_cannot_cover_is_refused_by_name():
    images = torch.randn(1, 3, 2, 2)
    recomputed = nn.Sequential(Standardised(3, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match=r"computes what it multiplies with from 0\.weight \(weight standardisation"):
        check_maskable(recomputed, images)
    outside = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), Matrix())
    with pytest.raises(ValueError, match=r"multiplies with 2\.matrix, outside .* 100\.0% as many"):
        check_maskable(outside, images)
    check_maskable(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)), images)


@pytest.mark.parametrize("name", ["timm/resnetv2_50x1_bit", "timm/nf_resnet26", "timm/dm_nfnet_f0"])
def test_networks_with_standardised_weights_are_refused(name: str):
    with pytest.raises(ValueError, match=r"from .* and \d+ more"):
        check_maskable(models.build(name, 10), torch.zeros(1, 3, 64, 64))


def test_a_parametrization_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    parametrize.register_parametrization(model[0], "weight", Halved())
    with pytest.raises(ValueError, match=r"0 \(ParametrizedConv2d\) computes its weight from other parameters"):
        check_maskable(model, torch.zeros(1, 3, 2, 2))


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


class Conditional(nn.Module):
    """A kernel for each image, mixed from two; and a table of parameters that a fixed matrix looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.randn(2, 4 * 3 * 3 * 3))
        self.table = nn.Parameter(torch.randn(5, 7))
        self.register_buffer("lookup", torch.eye(5)[[0, 1, 2, 3, 4, 0]])
        self.head = nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        routing = images.mean((2, 3))[:, :2]
        kernel = (routing @ self.bank).view(4, 3, 3, 3)
        assert isinstance(self.lookup, torch.Tensor)
        return self.head(
            nn.functional.conv2d(images, kernel).mean((2, 3)) + (self.lookup[None] @ self.table[None]).sum()
        )


def test_kernels_that_depend_on_the_image_are_counted_and_tables_are_not():
    uses = weight_use(Conditional(), torch.ones(1, 3, 8, 8))
    assert [(use.parameter, use.macs, use.exact) for use in uses] == [
        ("bank", 2 * 108, True),
        ("", 108 * 36, False),
        ("head.weight", 40, True),
    ]


DIFFERENT = {"timm": {"csatv2", "csatv2_21m", "lambda_resnet26rpt_256"}, "torchvision": set()}
"""Their fixed matrices, or positions, multiply batches of matrices, which torch's count cannot tell from attention."""


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["timm", "torchvision"])
def test_every_classifier_has_the_operations_that_torch_counts(hub: str):
    """Every classifier below 100 M parameters; those that differ are in docs/networks.md."""
    different = []
    for name in HUBS[hub].names():
        model = None
        try:
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in models.build(f"{hub}/{name}", 10).parameters())
        except NotImplementedError:  # some read the values of their weights
            size = 0
        if size < 100e6:
            model = models.build(f"{hub}/{name}", 10)
            shape = getattr(model, "default_cfg", {}).get(
                "input_size", (3, 299 if name == "inception_v3" else 224, 224)
            )
            images = torch.zeros(1, shape[0], shape[1], shape[1])
            if sum(use.macs for use in weight_use(model, images)) != counted_by_torch(model, images):
                different.append(name)
        del model
        gc.collect()
    assert set(different) == DIFFERENT[hub]
