"""Artefacts of compacted networks, and exported files for other runtimes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from compression import artifact, export, models, predict, slicing
from compression.compaction import compact
from compression.models.resnet_cifar import ChannelShortcut
from tests.small_networks import SMALL, close_half, half_of_the_filters, images, sequence, settle


def compacted(name: str, *, gated: bool, shape: tuple[int, int, int] = SMALL) -> nn.Module:
    model = settle(models.build(name, 7), shape)
    if gated:
        close_half(model, shape)
    else:
        half_of_the_filters(model).attach(model).close()
    return compact(model.float(), shape)


@pytest.mark.parametrize(
    ("name", "gated", "size"),
    [
        ("resnet20", True, 8),
        ("resnet20", False, 8),
        ("vgg11_mlp", False, 8),
        ("timm/regnetx_002", True, 32),
    ],
)
def test_a_compacted_network_is_loaded_equal(name: str, gated: bool, size: int, tmp_path: Path):
    shape = (3, size, size)
    model = compacted(name, gated=gated, shape=shape)
    artifact.save(model, tmp_path)
    loaded = artifact.load(tmp_path)
    assert not loaded.training
    assert [key for key, _ in loaded.named_parameters()] == [key for key, _ in model.named_parameters()]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    x = images(shape).float()
    assert torch.equal(loaded(x), model.eval()(x))
    assert vars(loaded)["arch"] == vars(model)["arch"]
    assert slicing.shapes(loaded) == slicing.shapes(model)


def test_arch_json_lists_the_smaller_layers(tmp_path: Path):
    model = models.build("resnet20", 10).eval()
    with torch.no_grad():
        model.get_parameter("stage1.0.conv2.weight")[:, 3] = 0
    artifact.save(compact(model, SMALL), tmp_path)
    assert artifact.describe(tmp_path)["architecture"] == {
        "name": "resnet20",
        "num_classes": 10,
        "layers": {
            "stage1.0.conv1": {"in_channels": 16, "out_channels": 15, "groups": 1, "bias": False},
            "stage1.0.bn1": {"num_features": 15},
            "stage1.0.conv2": {"in_channels": 15, "out_channels": 16, "groups": 1, "bias": False},
        },
    }


def test_shortcuts_are_described_even_if_only_they_change(tmp_path: Path):
    model = models.build("resnet20", 10).eval()
    gated = close_half(model, SMALL)
    with torch.no_grad():
        for m in gated.parameters():
            m.fill_(0.5)
        gated.of("conv1").m[-1] = -0.5
    small = compact(model, SMALL)
    artifact.save(small, tmp_path)
    shortcut = artifact.load(tmp_path).get_submodule("stage2.0.shortcut")
    assert isinstance(shortcut, ChannelShortcut)
    assert shortcut.source.tolist() == list(range(15))


def test_artefacts_of_the_first_format_are_read(tmp_path: Path):
    model = models.build("resnet20", 10)
    artifact.save(model, tmp_path)
    arch = tmp_path / "arch.json"
    arch.write_text('{"format": 1, "architecture": {"name": "resnet20", "num_classes": 10}}')
    assert torch.equal(artifact.load(tmp_path)(torch.ones(1, *SMALL)), model.eval()(torch.ones(1, *SMALL)))
    arch.write_text('{"format": 4}')
    with pytest.raises(ValueError, match="format 4; this version reads formats 1 to 3"):
        artifact.load(tmp_path)


def test_unknown_layers_are_refused(tmp_path: Path):
    artifact.save(models.build("resnet20", 10), tmp_path)
    architecture = {"name": "resnet20", "num_classes": 10}
    for layers, message in (
        ({"stage9": {"num_features": 3}}, "resnet20 has no layer stage9"),
        ({"bn1": {"width": 3}}, r"BatchNorm2d is described by \['num_features'\], not \['width'\]"),
    ):
        description = {"format": 2, "architecture": {**architecture, "layers": layers}}
        (tmp_path / "arch.json").write_text(json.dumps(description))
        with pytest.raises(ValueError, match=message):
            artifact.load(tmp_path)


def test_each_tensor_keeps_its_precision(tmp_path: Path):
    model = models.build("resnet20", 10).bfloat16()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    artifact.save(model, tmp_path)
    loaded = artifact.load(tmp_path).state_dict()
    assert {name: value.dtype for name, value in loaded.items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }


def test_networks_that_cannot_be_rebuilt_are_not_saved(tmp_path: Path):
    with pytest.raises(ValueError, match=r"Sequential does not say how it is built.*models\.build"):
        artifact.save(sequence(), tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    artifact.save(compacted("resnet20", gated=True), folder, about={"inputs": INPUTS, "classes": list("abcdefg")})
    return folder


INPUTS = {"shape": [3, 8, 8], "resize": 8, "mean": [0.5, 0.25, 0.0], "std": [0.5, 0.25, 1.0]}


def test_a_picture_is_classified_in_three_lines(run: Path):
    picture = Image.fromarray(np.arange(8 * 12, dtype=np.uint8).reshape(8, 12) * 2)
    classify = predict.load(run)
    found = classify(picture, most=3)
    # By hand: the middle eight of twelve columns, grey as three channels.
    grey = torch.arange(96).view(8, 12)[:, 2:10] * 2 / 255
    x = torch.stack([(grey - 0.5) / 0.5, (grey - 0.25) / 0.25, grey])[None]
    torch.testing.assert_close(classify.inputs(picture), x)
    with torch.no_grad():
        expected, places = artifact.load(run)(x).softmax(1)[0].topk(3)
    assert list(found) == ["abcdefg"[place] for place in places]
    assert list(found.values()) == pytest.approx(expected.tolist(), rel=1e-4)
    assert len(classify(picture.resize((30, 20)))) == 5


def test_an_artefact_without_inputs_says_so(tmp_path: Path):
    artifact.save(models.build("vgg3", 10), tmp_path)
    with pytest.raises(ValueError, match="does not say how images become inputs"):
        predict.load(tmp_path)
    with pytest.raises(SystemExit, match="give --input-shape C H W"):
        export.main([str(tmp_path), "--torch-export", str(tmp_path / "a.pt2")])


@pytest.mark.parametrize("name", ["timm/coat_tiny", "torchvision/mnasnet0_5", "timm/test_vit"])
def test_networks_come_home(name: str, tmp_path: Path):
    """Shared tensors, and modules that read the version in a state's metadata."""
    model = models.build(name, 3)
    artifact.check_round_trip(model)
    artifact.save(model, tmp_path)
    state = artifact.load(tmp_path).state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_what_cannot_come_home_is_refused_before_training():
    model = models.build("vgg3", 10)
    model.register_buffer("more", torch.zeros(1))
    with pytest.raises(ValueError, match=r"(?s)VGG cannot be saved and loaded again: .*more"):
        artifact.check_round_trip(model)


def test_torch_export_gives_the_same_outputs(run: Path, tmp_path: Path):
    model = artifact.load(run)
    assert export.to_torch_export(model, SMALL, tmp_path / "small.pt2") <= 1e-5
    loaded = torch.export.load(tmp_path / "small.pt2").module()
    for shape in (SMALL, (3, 20, 13)):
        x = images(shape, num=11).float()
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_network_of_one_size_is_exported_for_it(tmp_path: Path):
    model = models.build("timm/test_vit", 5).eval()
    shape = (3, *vars(model).get("default_cfg", {"input_size": (3, 160, 160)})["input_size"][1:])
    export.to_torch_export(model, shape, tmp_path / "vit.pt2")
    assert torch.export.load(tmp_path / "vit.pt2").module()(torch.zeros(3, *shape)).shape == (3, 5)


def test_onnx_gives_the_same_outputs(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    import onnxruntime

    model = artifact.load(run)
    assert export.to_onnx(model, SMALL, tmp_path / "small.onnx") <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"], "one file, including the weights"
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    for shape in (SMALL, (3, 20, 13)):
        x = images(shape, num=11).float()
        [logits] = session.run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.as_tensor(logits), model(x), rtol=1e-4, atol=1e-5)
    assert capfd.readouterr().out == ""


class AlwaysDropout(nn.Module):
    """Dropout also in eval mode: no file can reproduce its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(x.flatten(1), training=True))


def test_a_file_with_other_outputs_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"does not agree with the AlwaysDropout.*differ by \d"):
        export.to_torch_export(AlwaysDropout(), SMALL, tmp_path / "dropout.pt2")


@pytest.mark.parametrize(("write", "ending"), [(export.to_onnx, ".onnx"), (export.to_torch_export, ".pt2")])
def test_the_file_suffix_must_match_the_format(write, ending: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"name the file .*model{ending}"):
        write(sequence(), SMALL, tmp_path / "model.bin")


def test_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    export.main([str(run), "--torch-export", str(tmp_path / "a.pt2")])
    assert f"{tmp_path}/a.pt2: outputs agree within" in capsys.readouterr().out
    assert torch.export.load(tmp_path / "a.pt2").module()(torch.zeros(2, *SMALL)).shape == (2, 7)
    with pytest.raises(SystemExit, match=r"error: .* contains no arch\.json"):
        export.main([str(tmp_path), "--onnx", "a.onnx"])
    with pytest.raises(SystemExit, match=r"error: name the file .*a\.onnx"):
        export.main([str(run), "--onnx", "a.bin"])
    with pytest.raises(SystemExit):
        export.main([str(run)])
    assert "name a file to write" in capsys.readouterr().err


def test_the_help_of_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "compression.export", "--help"], capture_output=True, text=True, check=True, timeout=120
    )
    for word in ("--onnx FILE", "--torch-export FILE", "--input-shape C H W", "Example: python -m compression.export"):
        assert word in done.stdout
