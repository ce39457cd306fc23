"""Networks and students compared with published widths and counts (see tests/reference)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compression import cost, models, students
from compression.masks import Masks, prunable
from tests.reference_cases import Case

NETWORKS = {
    "cifar_resnet20": ("resnet20", 10),
    "cifar_resnet56": ("resnet56", 10),
    "cifar_vgg11_bn_3linear": ("vgg11_mlp", 10),
    "cifar_vgg16_bn_3linear": ("vgg16_mlp", 10),
    "cifar_vgg16_bn_1linear": ("vgg16", 10),
    "torchvision_resnet18": ("resnet18", 1000),
    "torchvision_resnet50": ("resnet50", 1000),
}


def num_weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in prunable(model).values())


def place_of(case: Case, name: str) -> int:
    return [str(one) for one in case.arrays["names"]].index(name)


def test_all_networks_with_counts_are_available():
    assert {str(name) for name in Case("cost_facts_p").arrays["names"]} == set(NETWORKS)


@pytest.mark.parametrize("fact", NETWORKS)
def test_counts_of_networks(fact: str):
    case = Case("cost_facts_p")
    place = place_of(case, fact)
    size = int(case.arrays["input_size"][place])
    model = models.build(*NETWORKS[fact])
    found = cost.count(model, (3, size, size))
    assert found.params == int(case.arrays["expect/params"][place])
    assert found.macs == int(case.arrays["expect/macs"][place])
    assert num_weights(model) == int(case.arrays["expect/conv_linear_weights"][place])


@pytest.mark.parametrize("fact", [fact for fact in NETWORKS if fact not in ("cifar_resnet56", "torchvision_resnet50")])
def test_counts_of_layers(fact: str):
    case = Case("cost_facts_p")
    size = int(case.arrays["input_size"][place_of(case, fact)])
    model = models.build(*NETWORKS[fact]).eval()
    found: list[tuple[int, int]] = []

    def note(module: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = module.get_parameter("weight")
        found.append((weight.numel(), weight.numel() * output[0].numel() // len(weight)))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    assert [weights for weights, _ in found] == case[f"layers/{fact}/weights"].tolist()
    assert [macs for _, macs in found] == case[f"layers/{fact}/macs"].tolist()


@pytest.mark.parametrize("name", [str(name) for name in Case("ptd_plan_facts_p").arrays["names"]])
def test_published_widths_have_the_published_costs(name: str):
    case = Case("ptd_plan_facts_p")
    place = place_of(case, name)
    model = models.build("vgg19_ptd", int(case.arrays["classes"]), widths=case["plans"][place].tolist())
    found = cost.count(model, tuple(case["input_size"].tolist()))
    assert found.params == int(case["expect/params"][place])
    assert found.macs == int(case["expect/macs"][place])
    assert num_weights(model) == int(case["expect/conv_linear_weights"][place])


def masks_with(model: nn.Module, survivors: list[int]) -> Masks:
    """Masks that keep this many weights of each layer."""
    kept = {}
    for (name, weight), num in zip(prunable(model).items(), survivors, strict=True):
        kept[name] = (torch.arange(weight.numel()) < num).view(weight.shape)
    return Masks(kept)


@pytest.mark.parametrize("rounds", [2, 4, 7])
def test_student_widths_of_vgg11(rounds: int):
    case = Case("ptd_student_widths_vgg11_p")
    survivors = case[f"input/k{rounds}/survivors_conv_then_fc"].tolist()
    expected = case[f"expect/k{rounds}/student_widths"].tolist()
    assert students.vgg_widths(survivors[:-1]) == expected
    model = models.build("vgg11", 100)
    plan = students.plan(model, masks_with(model, survivors))
    assert plan["arch"] == {"name": "vgg11", "num_classes": 100, "widths": expected}
    assert [row["survivors"] for row in plan["rows"]] == survivors[:-1]
    weights = case[f"expect/k{rounds}/student_conv_weights_per_layer"].tolist()
    assert [row["student_weights"] for row in plan["rows"]] == weights
    assert plan["student_weights"] == sum(weights) + int(case[f"expect/k{rounds}/student_fc_weights"])
