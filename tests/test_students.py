"""The student derived from a pruned teacher: widths, plans and inherited weights."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from torch import nn

from compression import allocation, models, students
from compression.masks import Masks, prunable
from compression.students import inherit


def pruned(model: nn.Module, sparsity: float) -> Masks:
    """Prune the smallest weights of all layers; returns the masks."""
    masks = allocation.global_topk({name: w.detach().abs() for name, w in prunable(model).items()}, sparsity)
    masks.attach(model).close()
    return masks


def thinned(model: nn.Module, density: float) -> Masks:
    """Random masks with about this density; later layers keep fewer weights."""
    layers = prunable(model).items()
    return Masks({n: torch.rand_like(w) < density * (1.2 - 0.4 * i / len(layers)) for i, (n, w) in enumerate(layers)})


def test_widths_by_hand():
    # 54 / (9 * 3) = 2; 36 / (9 * 2) = 2; 80 / (9 * 2) = 4.4 -> 4; 1 / (9 * 4) -> at least 1
    assert students.vgg_widths([54, 36, 80, 1]) == [2, 2, 4, 1]
    assert students.vgg_widths([8, 6], in_channels=2, kernel=1) == [4, 2]


def test_the_next_layer_divides_by_the_rounded_width():
    # 40 / 27 = 1.48 -> 1, so 20 / 9 = 2.2 -> 2; divided by the unrounded 1.48 it would be 1.5.
    assert students.vgg_widths([40, 20]) == [1, 2]


def test_an_error_names_the_layer_without_weights():
    with pytest.raises(ValueError, match="layer 2 of 3"):
        students.vgg_widths([54, 0, 36])
    model = models.build("vgg11", 10)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()}
    masks["features.4.weight"][:] = False
    with pytest.raises(ValueError, match=r"features\.4: its width would be 0"):
        students.plan(model, Masks(masks))


def test_stage_widths_by_hand():
    def count(widths):
        return 10 * widths[0] ** 2 + widths[1] ** 2

    # Square roots of the densities: 1/2 and 1. 10 * 4 ** 2 + 10 ** 2 = 260; a factor of 2 gives 4 times as many.
    assert students.resnet_stage_widths([8, 10], [1, 9], [4, 9], count, 260) == [4, 10]
    assert students.resnet_stage_widths([8, 10], [1, 9], [4, 9], count, 1040) == [8, 20]
    # 265 is between two pairs: of all pairs within 1 of (4, 10), 10 * 4 ** 2 + 10 ** 2 = 260 is nearest.
    assert students.resnet_stage_widths([8, 10], [1, 9], [4, 9], count, 265) == [4, 10]


def test_an_error_names_the_stage_without_weights():
    with pytest.raises(ValueError, match="stage 2 of 2"):
        students.resnet_stage_widths([8, 8], [5, 0], [10, 10], sum, 5)
    with pytest.raises(ValueError, match="stages of width 1"):
        students.resnet_stage_widths([8, 8], [5, 5], [10, 10], sum, 1)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("resnet20", 0.005),
        ("resnet56", 0.005),
        ("resnet18_small", 5e-4),
        ("resnet18_small_double", 5e-4),
        ("resnet34_small", 5e-4),
        ("resnet50", 5e-4),
    ],
)
def test_a_resnet_student_has_as_many_weights_as_pruning_kept(name: str, tolerance: float):
    torch.manual_seed(0)
    model = models.build(name, 20)
    for rounds in (2, 7):
        masks = thinned(model, 0.8**rounds)
        plan = students.plan(model, masks)
        student = models.build(**plan["arch"])
        weights = sum(w.numel() for w in prunable(student).values())
        assert plan["student_weights"] == weights
        assert plan["survivors"] == masks.num_kept
        assert weights == pytest.approx(masks.num_kept, rel=tolerance)
        assert student.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 20)


@pytest.mark.parametrize("name", ["resnet20", "resnet18_small", "resnet50", "vgg16", "vgg16_tiny"])
def test_the_student_of_an_unpruned_teacher_is_the_teacher(name: str):
    model = models.build(name, 10)
    masks = Masks({n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable(model).items()})
    plan = students.plan(model, masks)
    assert [row["student_width"] for row in plan["rows"]] == [row["dense_width"] for row in plan["rows"]]
    assert plan["student_weights"] == plan["survivors"] == plan["dense_weights"] == masks.num_weights


def test_a_plan_of_a_narrower_teacher_starts_from_its_widths():
    model = models.build("resnet18_small", 10, stage_widths=[40, 80, 120, 160])
    plan = students.plan(model, pruned(model, 0.36))
    assert [row["dense_width"] for row in plan["rows"]] == [40, 80, 120, 160]
    assert all(row["student_width"] < row["dense_width"] for row in plan["rows"])


def test_a_plan_is_json_draws_no_random_numbers_and_prints_a_table():
    torch.manual_seed(0)
    model = models.build("vgg11_mlp", 10)
    masks, state = pruned(model, 0.59), torch.get_rng_state()
    plan = students.plan(model, masks)
    assert torch.equal(torch.get_rng_state(), state)
    assert json.loads(json.dumps(plan)) == plan
    head, columns, *rows, total = students.describe(plan).split("\n")
    assert "vgg11_mlp" in head
    assert columns.split()[0] == "part"
    assert [row.split()[0] for row in rows] == [row["part"] for row in plan["rows"]]
    assert rows[0].split()[1:] == [str(v) for k, v in plan["rows"][0].items() if k != "part"][:1] + [
        str(plan["rows"][0][k]) for k in ("student_width", "dense_weights", "survivors", "student_weights")
    ]
    assert total.split() == ["all", str(masks.num_weights), str(masks.num_kept), str(plan["student_weights"])]


def test_families_without_a_rule_and_masks_of_another_network_are_refused():
    model = models.build("mobilenet_v2", 10)
    with pytest.raises(ValueError, match=r"no rule derives a student from 'mobilenet_v2'.*resnet18_small"):
        students.plan(model, pruned(model, 0.5))
    vgg = models.build("vgg11", 10)
    with pytest.raises(ValueError, match="not those of this vgg11"):
        students.plan(vgg, pruned(model, 0.5))


def test_a_vgg_student_takes_the_strongest_channels_by_hand():
    torch.manual_seed(0)
    teacher = models.build("vgg11", 4, widths=[3, 2, 2, 2, 2, 2, 2, 2])
    student = models.build("vgg11", 4, widths=[2, 2, 2, 2, 2, 2, 2, 2])
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(teacher).items()}
    first = teacher.get_parameter("features.0.weight")
    with torch.no_grad():
        first[0], first[1], first[2] = 1.0, 9.0, 2.0
    masks["features.0.weight"][1, :, :, 1:] = False  # channel 1: 81 of 243 remain
    masks["features.0.weight"][1, 1:] = False  # 27 remain, as many as in channel 0
    masks["features.0.weight"][0, 0, 0, 0] = False  # channel 0: 26 remain, now the weakest
    teacher.get_buffer("features.1.running_mean").copy_(torch.tensor([1.0, 2.0, 3.0]))
    inherit(student, teacher, Masks(masks))
    assert torch.equal(student.get_parameter("features.0.weight"), (first * masks["features.0.weight"])[1:])
    assert student.get_buffer("features.1.running_mean").tolist() == [2, 3]
    second = teacher.get_parameter("features.4.weight")
    assert torch.equal(student.get_parameter("features.4.weight"), second[:, 1:])
    assert torch.equal(student.get_parameter("classifier.weight"), teacher.get_parameter("classifier.weight"))


def random_statistics(model: nn.Module) -> None:
    """Random BatchNorm statistics, so that a channel with the wrong ones gives another output."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)


def silence(layer: nn.Conv2d, norm: nn.BatchNorm2d, channels: torch.Tensor) -> None:
    """Make these channels exactly zero after the norm."""
    for tensor in (layer.weight, layer.bias, norm.bias, norm.running_mean):
        if tensor is not None:
            tensor[channels] = 0


def everything(model: nn.Module) -> Masks:
    return Masks({name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()})


@torch.no_grad()
@pytest.mark.parametrize("name", ["vgg11", "vgg11_mlp", "vgg16_tiny"])
def test_a_vgg_student_equals_its_teacher_if_other_channels_are_dead(name: str):
    torch.manual_seed(0)
    num = 13 if "16" in name else 8
    teacher = models.build(name, 5, widths=[12] * num).double().eval()
    student = models.build(name, 5, widths=[7] * num).double().eval()
    random_statistics(teacher)
    features: Any = teacher.get_submodule("features")
    for layer, norm in itertools.pairwise(features):
        if isinstance(layer, nn.Conv2d):
            silence(layer, norm, torch.randperm(12)[:5])
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    inherit(student, teacher, everything(teacher))
    assert teacher(images).std() > 1e-6
    torch.testing.assert_close(student(images), teacher(images), rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(("name", "expansion"), [("resnet18_small", 1), ("resnet34_small", 1), ("resnet50", 4)])
def test_a_resnet_student_equals_its_teacher_if_other_channels_are_dead(name: str, expansion: int):
    torch.manual_seed(0)
    teacher: Any = models.build(name, 5, stage_widths=[64, 12, 12, 12]).double().eval()
    student = models.build(name, 5, stage_widths=[40, 8, 8, 8]).double().eval()
    random_statistics(teacher)
    dead = torch.randperm(64)[:24]
    if expansion == 1:  # the stem writes to the residual stream of the first stage
        silence(teacher.conv1, teacher.bn1, dead)
    for stage, (width, left) in zip(("layer1", "layer2", "layer3", "layer4"), [(64, 40), *[(12, 8)] * 3], strict=True):
        blocks = getattr(teacher, stage)
        stream = dead if (stage, expansion) == ("layer1", 1) else torch.randperm(width * expansion)[left * expansion :]
        for block in blocks:
            convolutions = [n for n, layer in block.named_children() if isinstance(layer, nn.Conv2d)]
            for n in convolutions:
                inner = torch.randperm(width)[left:]
                gone = stream if n == convolutions[-1] else inner
                silence(getattr(block, n), getattr(block, n.replace("conv", "bn")), gone)
            if block.downsample:
                silence(block.downsample[0], block.downsample[1], stream)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    inherit(student, teacher, everything(teacher))
    assert teacher(images).std() > 1e-6
    # Only students of basic blocks have this projection; the BatchNorm after it adds its epsilon.
    rtol = 1e-9 if expansion == 4 else 1e-4
    torch.testing.assert_close(student(images), teacher(images), rtol=rtol, atol=rtol * float(teacher(images).std()))


@torch.no_grad()
def test_additional_channels_keep_their_random_weights():
    torch.manual_seed(0)
    teacher, student = (models.build("vgg11", 4, widths=[n] * 8) for n in (3, 5))
    before = student.get_parameter("features.4.weight").clone()
    inherit(student, teacher, everything(teacher))
    after = student.get_parameter("features.4.weight")
    assert torch.equal(after[:3, :3], teacher.get_parameter("features.4.weight"))
    assert torch.equal(after[3:], before[3:])
    assert torch.equal(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet20", "resnet20"), ("vgg11", "vgg16"), ("resnet18", "resnet34")]
)
def test_weights_are_inherited_only_within_a_family(student: str, teacher: str):
    pair = models.build(student, 4), models.build(teacher, 4)
    with pytest.raises(ValueError, match=f"{student} and {teacher}: weights are inherited only between"):
        inherit(*pair, everything(pair[1]))
