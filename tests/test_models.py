"""Architectures by name: sizes, widths, descriptions, and refused names."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from compression import models
from compression.masks import prunable
from compression.models.resnet_cifar import ChannelShortcut


def num_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def num_weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in prunable(model).values())


def meta(name: str, num_classes: int, **arguments) -> nn.Module:
    """The network on the meta device: shapes without memory."""
    with torch.device("meta"):
        return models.build(name, num_classes, **arguments)


FROZEN = {
    "resnet20": ("31f582c993462df8", 1284243.1594340387),
    "resnet32": ("72c498117d305a07", 3529810.955505593),
    "resnet56": ("70dac499483be551", 11367095.631747171),
    "resnet18_small": ("024f6ceb81c7f5a4", 20568603.33466863),
    "resnet18": ("c7c722106ec47e96", 20568711.0151477),
    "resnet34": ("153dbf5a2d719203", 70859824.30549723),
    "resnet50": ("6578c7ca66f805d4", 178667980.1566123),
}
"""Hash of names, shapes and dtypes; position-weighted sum of |weights| for seed 7. Stored artefacts depend on both."""


@pytest.mark.parametrize("name", FROZEN)
def test_names_shapes_and_initial_weights_are_unchanged(name: str):
    torch.manual_seed(7)
    names, total = hashlib.sha256(), 0.0
    for place, (key, tensor) in enumerate(models.build(name, 10).state_dict().items(), 1):
        names.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}\n".encode())
        total += place * float(tensor.double().abs().sum())
    assert (names.hexdigest()[:16], total) == (FROZEN[name][0], pytest.approx(FROZEN[name][1], rel=1e-7))


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_runs_and_is_rebuilt_from_its_description(name: str):
    torch.manual_seed(0)
    model = models.build(name, 7).eval()
    assert vars(model)["arch"] == {"name": name, "num_classes": 7}
    size = 64 if name in ("mobilenet_v2", "vgg16_tiny") else 32
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        logits = model(images)
    assert logits.shape == (1, 7)
    again = models.build(**vars(model)["arch"]).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images), logits)


@pytest.mark.parametrize("name", ["vgg11", "vgg16_mlp", "vgg19", "resnet18_small", "resnet44"])
def test_eight_pixels_are_enough(name: str):
    assert models.build(name, 10).eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "num_classes", "params"),
    [
        ("vgg11_mlp", 10, 9_756_426),
        ("vgg16_mlp", 10, 15_253_578),
        ("vgg11_ptd", 100, 9_277_284),
        ("vgg19_ptd_double", 100, 75_360_612),
        ("resnet44", 10, 658_586),
        ("resnet110", 10, 1_727_962),
        ("mobilenet_v2", 1000, 3_504_872),
        ("mobilenet_v2_small", 10, 2_236_682),
        ("torchvision/vgg11_bn", 1000, 132_868_840),
    ],
)
def test_numbers_of_parameters(name: str, num_classes: int, params: int):
    assert num_params(meta(name, num_classes)) == params


PUBLISHED_STAGES = [
    ("resnet18_small", 11.272, 1, [64, 128, 256, 512]),
    ("resnet18_small", 7.269, 0.645, [58, 113, 216, 398]),
    ("resnet18_small", 4.694, 0.416, [54, 102, 184, 305]),
    ("resnet18_small", 2.364, 0.209, [49, 85, 140, 198]),
    ("resnet18_small_double", 44.792, 1, [128, 256, 512, 1024]),
    ("resnet18_small_double", 28.617, 0.639, [116, 224, 427, 796]),
    ("resnet18_small_double", 18.229, 0.407, [104, 192, 353, 618]),
    ("resnet18_small_double", 9.484, 0.212, [86, 148, 262, 432]),
    ("resnet50_small", 23.921, 1, [64, 128, 256, 512]),
    ("resnet50_small", 15.522, 0.648, [58, 110, 210, 402]),
    ("resnet50_small", 10.168, 0.424, [48, 90, 164, 330]),
    ("resnet50_small", 5.278, 0.220, [36, 60, 110, 246]),
]
"""Prune-then-Distill's students on 200 classes: millions of parameters, and weights relative to the dense network."""


@pytest.mark.parametrize(("name", "millions", "density", "widths"), PUBLISHED_STAGES)
def test_published_stage_widths_give_the_published_sizes(name: str, millions: float, density: float, widths: list[int]):
    dense, student = meta(name, 200), meta(name, 200, stage_widths=widths)
    assert round(num_weights(student) / num_weights(dense), 3) == density
    # The authors' projections have biases, which the following BatchNorm cancels. For networks of basic blocks they
    # explain the whole difference.
    biases = sum(len(w) for n, w in prunable(student).items() if n.endswith("downsample.0.weight"))
    if "50" in name:
        assert millions * 1e6 == pytest.approx(num_params(student), rel=1.1e-3)
    else:
        assert round((num_params(student) + biases) / 1e6, 3) == millions


@pytest.mark.parametrize(("name", "projections"), [("resnet18", 3), ("resnet18_small_double", 4), ("resnet50", 4)])
def test_shortcuts_have_a_projection_where_shapes_differ(name: str, projections: int):
    model = meta(name, 10)
    assert sum(n.endswith("downsample.0") for n, _ in model.named_modules()) == projections
    assert model.get_submodule("conv1").out_channels == 64


def test_the_default_stage_widths_change_nothing():
    torch.manual_seed(3)
    usual = models.build("resnet18", 10).state_dict()
    torch.manual_seed(3)
    named = models.build("resnet18", 10, stage_widths=[64, 128, 256, 512]).state_dict()
    assert all(torch.equal(named[name], tensor) for name, tensor in usual.items())


def test_other_stage_widths_are_initialised_as_in_torchvision():
    torch.manual_seed(0)
    model = models.build("resnet18", 10, stage_widths=[48, 128, 256, 512])
    weight = model.get_parameter("layer1.0.conv1.weight")
    assert weight.shape == (48, 64, 3, 3)
    assert float(weight.detach().std()) == pytest.approx((2 / (48 * 9)) ** 0.5, rel=0.02)


def test_vgg_widths_are_those_of_the_convolutions():
    widths = [35, 69, 195, 96, 300, 109, 227, 368]
    model = models.build("vgg11_mlp", 10, widths=tuple(widths))
    assert vars(model)["arch"] == {"name": "vgg11_mlp", "num_classes": 10, "widths": widths}
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == widths
    assert [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)] == [
        (368, 512),
        (512, 512),
        (512, 10),
    ]
    # For these widths the published reduction of parameters is 76.41 %.
    assert 1 - num_params(model) / 9_756_426 == pytest.approx(0.7641, abs=5e-5)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_other_input_channels():
    assert models.build("vgg11", 10, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert models.build("resnet20", 10, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_the_last_pooling_of_prune_then_distill_is_an_average():
    torch.manual_seed(0)
    ours, theirs = models.build("vgg19", 10).eval(), models.build("vgg19_ptd", 10).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    features = theirs.get_submodule("features")(images := torch.randn(1, 3, 32, 32))
    assert features.shape == (1, 512, 2, 2)
    logits = theirs.get_submodule("classifier")(features.mean(dim=(2, 3)))
    torch.testing.assert_close(theirs(images), logits)
    torch.testing.assert_close(ours(images), theirs.get_submodule("classifier")(features.amax(dim=(2, 3))))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg11", {"widths": [64, 128, 256, 256, 512, 0, 512, 512]}, "convolution 6 of 8 has width 0"),
        ("vgg11", {"widths": [64, 128]}, "each of the 8 convolutions"),
        ("vgg19_ptd", {"widths": [64] * 15 + [-3]}, "convolution 16 of 16 has width -3"),
        ("resnet18", {"stage_widths": [64, 128, 0, 512]}, "stage 3 of 4 has width 0"),
        ("resnet50_small", {"stage_widths": [64, 128, 256]}, "each of the 4 stages"),
        ("resnet56", {"stage_widths": [16, 0, 64]}, "stage 2 of 3 has width 0"),
        ("resnet56", {"stage_widths": [16, 32.5, 64]}, "stage 2 of 3 has width 32.5"),
    ],
)
def test_impossible_widths_name_the_layer(name: str, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        models.build(name, 10, **arguments)


def test_option_a_keeps_the_middle_channels_where_a_stage_is_narrower():
    x = torch.arange(5.0).view(1, 5, 1, 1)
    assert ChannelShortcut.padded(5, 2, 1)(x).flatten().tolist() == [1, 2]
    assert ChannelShortcut.padded(2, 5, 1)(x[:, :2]).flatten().tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("widths", [[13, 20, 51], [30, 10, 7]])
def test_cifar_resnets_with_other_widths(widths: list[int]):
    model = models.build("resnet20", 10, stage_widths=widths)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model.get_submodule("conv1").out_channels == widths[0]


@pytest.mark.parametrize(
    "name", ["timm/test_resnet", "timm/test_vit", "torchvision/mnasnet0_5", "torchvision/googlenet"]
)
def test_classifiers_of_timm_and_torchvision(name: str):
    torch.manual_seed(0)
    model = models.build(name, 7)
    assert vars(model)["arch"] == {"name": name, "num_classes": 7}
    size = 160 if name.startswith("timm") else 64
    assert model(torch.randn(2, 3, size, size)).shape == (2, 7)
    assert models.build(**vars(model)["arch"]).load_state_dict(model.state_dict())


def test_arguments_of_a_hub_are_kept_in_the_description():
    model = models.build("timm/test_vit", 5, img_size=(32, 32))
    assert vars(model)["arch"]["img_size"] == [32, 32]
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg11mlp", "did you mean vgg11_mlp"),
        ("timm/resnett18", "timm/resnet18"),
        ("timm/resnet18.a1_in1k", "timm/resnet18"),
        ("torchvision/vgg11bn", "torchvision/vgg11_bn"),
        ("torchvision/fasterrcnn_resnet50_fpn", "no classifier 'fasterrcnn_resnet50_fpn'"),
        ("torchvision/deeplabv3_resnet50", "no classifier"),
        ("torchvision/r3d_18", "no classifier"),
        ("timn/resnet18", "did you mean timm"),
        ("hf-hub:someone/model", "There are: timm, torchvision"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(name: str, message: str):
    for refuse in (models.check_name, lambda name: models.build(name, 10)):
        with pytest.raises(ValueError, match=message):
            refuse(name)


def test_a_name_imports_only_its_own_hub():
    script = (
        "import sys; from compression import models; models.check_name('vgg19'); models.build('vgg11', 10)\n"
        "print(sorted({'timm', 'torchvision'} & set(sys.modules)))\n"
        "models.check_name('torchvision/resnet18'); print('timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stderr


@pytest.mark.parametrize(
    ("name", "argument"),
    [("timm/resnet10t", "checkpoint_path"), ("timm/resnet10t", "pretrained_cfg"), ("torchvision/resnet18", "weights")],
)
def test_an_artefact_cannot_make_a_hub_open_files(name: str, argument: str):
    arguments: dict[str, Any] = {argument: "/etc/passwd"}
    with pytest.raises(ValueError, match=f"{argument} is no argument that .* use .*drop"):
        models.build(name, 10, **arguments)
