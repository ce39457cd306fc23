"""Weights from a file, a folder or a hub, and the method that uses them."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compression import artifact, models, pretrained
from compression.methods.pretrained import Pretrained
from compression.methods.pretrained import pretrained as run_method
from compression.session import Session


def network(seed: int, name: str = "resnet20", num_classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, num_classes)


def equal(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_safetensors_file(tmp_path: Path):
    source, model = network(0), network(1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert not equal(model, source)
    assert pretrained.load_weights(model, str(tmp_path / "w.safetensors")) is model
    assert equal(model, source)


def test_prefixes_of_parallel_training_and_old_files_are_accepted(tmp_path: Path):
    source, model = network(0), network(1)
    state = {f"module.{k}": v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    assert equal(pretrained.load_weights(model, str(tmp_path / "w.safetensors")), source)


def test_the_folder_of_a_finished_run(tmp_path: Path):
    source, model = network(0), network(1)
    artifact.save(source, tmp_path)
    assert equal(pretrained.load_weights(model, str(tmp_path)), source)


def test_an_error_lists_weights_that_do_not_fit(tmp_path: Path):
    file = str(tmp_path / "w.safetensors")
    state = network(0, num_classes=7).state_dict()
    state["head.weight"] = state.pop("conv1.weight")
    save_file(state, file)
    model, before = network(1), network(1)
    with pytest.raises(ValueError, match="does not fit resnet20") as caught:
        pretrained.load_weights(model, file)
    text = str(caught.value)
    assert "1 missing: conv1.weight" in text
    assert "1 unexpected: head.weight" in text
    assert "2 of another shape: fc.weight (7, 64), not (4, 64), fc.bias (7,), not (4,)" in text
    assert equal(model, before)


def test_long_lists_are_shortened():
    with pytest.raises(ValueError, match=r"missing: conv1.weight, bn1.weight, bn1.bias\.\.\."):
        pretrained._fitting(network(0), {"x": torch.zeros(1)}, "w")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin", ".ckpt", ".pth.tar"])
def test_pickles_are_refused_with_a_command_to_convert_them(suffix: str, tmp_path: Path):
    source = network(0)
    torch.save({"state_dict": source.state_dict()}, tmp_path / f"w{suffix}")
    with pytest.raises(ValueError, match="is a pickle") as caught:
        pretrained.load_weights(network(1), str(tmp_path / f"w{suffix}"))
    if suffix == ".pth":
        command = str(caught.value).split("convert it: python ")[1]
        done = subprocess.run(f"{sys.executable} {command}", shell=True, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert equal(pretrained.load_weights(network(1), str(tmp_path / "w.safetensors")), source)


@pytest.mark.parametrize("name", ["nothing.safetensors", "runs/nothing", "nothing/"])
def test_errors_name_a_missing_file(name: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        pretrained.load_weights(network(0), str(tmp_path / name))


def test_without_a_name_the_error_asks_for_one():
    with pytest.raises(ValueError, match="name the weights"):
        pretrained.load_weights(network(0), "")


def test_networks_without_a_hub_are_refused():
    with pytest.raises(ValueError, match=r"no hub has weights for resnet20.*resnet18.*timm"):
        pretrained.load_weights(network(0), "hub")


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The download cache of torchvision; there is no network."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("name", "weights", "file"),
    [
        ("resnet18", "hub", "resnet18-f37072fd.pth"),
        ("torchvision/resnet18", "IMAGENET1K_V1", "resnet18-f37072fd.pth"),
        ("torchvision/googlenet", "default", "googlenet-1378be20.pth"),
    ],
)
def test_torchvisions_weights(name: str, weights: str, file: str, torch_cache: Path):
    source, model = network(0, name, 1000), network(1, name, 1000)
    extra = {"aux1.fc1.weight": torch.zeros(2)} if "googlenet" in name else {}
    torch.save({**source.state_dict(), **extra}, torch_cache / file)
    assert equal(pretrained.load_weights(model, weights), source)


def test_old_names_of_densenet_are_converted(torch_cache: Path):
    name = "torchvision/densenet121"
    source, model = network(0, name, 1000), network(1, name, 1000)
    old = {re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", k): v for k, v in source.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, torch_cache / "densenet121-a639ec97.pth")
    assert equal(pretrained.load_weights(model, "hub"), source)


class Harm:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_a_hubs_file_runs_no_code(torch_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(torch_cache)
    torch.save({"conv1.weight": Harm()}, torch_cache / "resnet18-f37072fd.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        pretrained.load_weights(network(0, "resnet18", 1000), "hub")
    assert not Path("harm").exists()


def test_an_unreachable_hub_is_an_error(torch_cache: Path):
    assert not list(torch_cache.iterdir())
    with pytest.raises(
        ConnectionError, match=r"IMAGENET1K_V1 of resnet50 could not be downloaded.*safetensors.*no network"
    ):
        pretrained.load_weights(network(0, "resnet50", 1000), "IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenet_v2", "hub, IMAGENET1K_V1, IMAGENET1K_V2"),
        ("timm/test_resnet", "hub, r160_in1k"),
    ],
)
def test_unknown_weights_are_refused_with_the_available_ones(name: str, message: str):
    with pytest.raises(ValueError, match=f"no weights 'imagenet'.*{message}"):
        pretrained.load_weights(network(0, name, 1000), "imagenet")


@pytest.mark.parametrize("weights", ["hub", "default", "r160_in1k"])
def test_timms_weights(weights: str, monkeypatch: pytest.MonkeyPatch):
    from timm.models import _builder

    source, asked = network(0, "timm/test_resnet", 1000), []

    def fetch(name: str, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(name)
        return source.state_dict()

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", fetch)
    assert equal(pretrained.load_weights(network(1, "timm/test_resnet", 1000), weights), source)
    assert asked == ["timm/test_resnet.r160_in1k"]
    with pytest.raises(ValueError, match=r"of another shape: fc.weight"):
        pretrained.load_weights(network(1, "timm/test_resnet", 10), weights)


def test_unreachable_timm_weights_are_an_error(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="hub of timm/test_resnet could not be downloaded"):
        pretrained.load_weights(network(0, "timm/test_resnet", 1000), "hub")


class OneStage:
    """A Session with only a network and a stage."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def model(self) -> nn.Module:
        return network(1)

    def stage(self, name: str, fn: Any) -> Any:
        self.stages.append(name)
        return fn()


def test_the_method_loads_weights_and_trains_nothing(tmp_path: Path):
    save_file(network(0).state_dict(), tmp_path / "w.safetensors")
    session = OneStage()
    model = run_method(cast(Session, session), Pretrained(str(tmp_path / "w.safetensors")))
    assert equal(model, network(0))
    assert session.stages == ["load"]
    assert Pretrained().label == "pretrained"
    with pytest.raises(ValueError, match="name the weights"):
        run_method(cast(Session, session), Pretrained())


def test_weights_are_read_completely_and_keep_their_precision(tmp_path: Path):
    file = tmp_path / "w.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in network(0).state_dict().items()}, file)
    state = pretrained.read_weights(network(1).double(), str(file))
    assert {name: t.dtype for name, t in state.items()} == {name: t.dtype for name, t in load_file(file).items()}
