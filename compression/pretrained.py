"""Pretrained weights: from a safetensors file, an artefact's folder, or a hub by name. No pickle is loaded."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from compression import artifact
from compression.models.hubs import AUXILIARY

DEFAULT = ("hub", "default")
PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
TORCHVISION = ("resnet18", "resnet34", "resnet50", "mobilenet_v2")
"""Names of `compression.models` that are unchanged torchvision networks."""

CONVERT = (
    "python -c \"import torch; from safetensors.torch import save_file; s = torch.load('{old}', map_location='cpu', "
    "weights_only=True); s = s.get('state_dict', s); save_file({{k: v.contiguous() for k, v in s.items()}}, '{new}')\""
)


def load_weights(model: nn.Module, weights: str) -> nn.Module:
    """`model` (made by `compression.models.build`) with `weights`; see `read_weights`."""
    model.load_state_dict(read_weights(model, weights))
    return model


def read_weights(model: nn.Module, weights: str) -> dict[str, Tensor]:
    """The complete state of `model` from `weights`, on the CPU, in the stored precision.

    weights: a .safetensors file; the folder of a finished run (arch.json and model.safetensors); or a hub's weights for
    the architecture: "hub" for the default, otherwise torchvision's name (IMAGENET1K_V1) or timm's tag (a1_in1k). Names
    in files may have the prefix "module." of parallel training.

    Errors: ValueError for weights of another network (with names and shapes), for pickles, and for names that the hub
    does not have; FileNotFoundError; ConnectionError if the hub cannot be reached.
    """
    if not weights:
        raise ValueError("name the weights: a .safetensors file, the folder of a finished run, or hub")
    path = Path(weights)
    if path.suffix in PICKLES:
        convert = CONVERT.format(old=weights, new=path.with_suffix(".safetensors"))
        raise ValueError(
            f"{weights} is a pickle, which can run code when loaded. If you trust it, convert it: {convert}"
        )
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {weights}")
        state = load_file(path)
    elif path.is_dir():
        state = artifact.load(path, allow_import=vars(model)["arch"]["name"]).state_dict()
    elif len(path.parts) > 1:
        raise FileNotFoundError(f"there is neither a file nor a folder {weights}")
    else:
        state = _from_hub(vars(model)["arch"], weights)
    return _fitting(model, state, weights)


def files(weights: str) -> list[Path]:
    """The files of which `read_weights` reads `weights`; none for weights of a hub."""
    path = Path(weights)
    if weights and path.is_dir():
        return [path / name for name in artifact.FILES]
    return [path] if path.suffix == ".safetensors" else []


def _fitting(model: nn.Module, state: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """`state` with the model's names; ValueError with the names and shapes that do not fit."""
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    own = model.state_dict()
    # Old files lack BatchNorm's num_batches_tracked, which is not used here.
    counts = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    state = {**counts, **state}
    wrong = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    dots = {kind: "..." * (len(names) > 3) for kind, names in wrong.items()}
    found = [f"{len(names)} {kind}: {', '.join(names[:3])}{dots[kind]}" for kind, names in wrong.items() if names]
    if found:
        name = vars(model).get("arch", {}).get("name", type(model).__name__)
        raise ValueError(f"{weights} does not fit {name} for these classes; {'; '.join(found)}")
    return {name: state[name].detach().cpu() for name in own}


def _from_hub(arch: Mapping[str, Any], weights: str) -> Mapping[str, Tensor]:
    prefix, _, name = arch["name"].rpartition("/")
    hub = "torchvision" if not prefix and name in TORCHVISION else prefix
    if hub not in HUBS:
        raise ValueError(
            f"there is no file or folder {weights}, and no hub has weights for {arch['name']}: name a .safetensors "
            f"file, or use one of {', '.join(TORCHVISION)}, torchvision/... or timm/... as the model"
        )
    arguments = {key: value for key, value in arch.items() if key not in ("name", "num_classes")}
    try:
        return HUBS[hub](name, weights, arguments)
    except OSError as error:
        raise ConnectionError(
            f"{weights} of {arch['name']} could not be downloaded: download it into the hub's cache on a machine "
            f"with a network, or name a .safetensors file. {type(error).__name__}: {error}"
        ) from error


def _torchvision(name: str, weights: str, _: Mapping[str, Any]) -> Mapping[str, Tensor]:
    from torchvision import models

    known = models.get_model_weights(name)
    if weights not in DEFAULT and weights not in known.__members__:
        names = ", ".join(["hub", *known.__members__])
        raise ValueError(f"torchvision has no weights {weights!r} for {name}; it has {names}")
    chosen = known["DEFAULT" if weights in DEFAULT else weights]
    state = chosen.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    # DenseNet's files have older names of its layers.
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): value for key, value in state.items()}
    extra = ("aux1.", "aux2.", "AuxLogits.") if name in AUXILIARY else ()
    return {key: value for key, value in state.items() if not key.startswith(extra)}


def _timm(name: str, weights: str, arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
    import timm

    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}*") if full.partition(".")[0] == name]
    if not known or weights not in (*DEFAULT, *known):
        names = ", ".join(["hub", *known]) if known else "none"
        raise ValueError(f"timm has no weights {weights!r} for {name}; it has {names}")
    full = name if weights in DEFAULT else f"{name}.{weights}"
    return timm.create_model(full, pretrained=True, **arguments).state_dict()


HUBS: dict[str, Callable[..., Mapping[str, Tensor]]] = {"timm": _timm, "torchvision": _torchvision}
"""The part of a model's name before its slash -> function that loads weights of that hub."""
