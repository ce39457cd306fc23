"""Artefact: a finished network as arch.json and model.safetensors. Loading needs no method code and no pickle."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from compression import models, slicing

FORMAT = 2
"""Format 2 added "layers": the layers of a compacted network that are smaller than in its architecture."""


def save(model: nn.Module, folder: Path | str) -> None:
    """Write `model` into `folder`, which must exist.

    ValueError unless the model was made by `compression.models.build` (and perhaps made smaller by
    `compression.compaction.compact`): nothing else could be built again.
    """
    folder = Path(folder)
    architecture = vars(model).get("arch")
    if architecture is None:
        raise ValueError(f"this {type(model).__name__} does not say how it is built: use compression.models.build")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    description = {"format": FORMAT, "architecture": architecture}
    (folder / "arch.json").write_text(json.dumps(description, indent=2) + "\n")


def load(folder: Path | str) -> nn.Module:
    """The network saved in `folder` (or in the folder of the given file), in eval mode on the CPU.

    Each tensor has the precision in which it was saved. Errors: FileNotFoundError for a missing file; ValueError for an
    unknown format, or for a layer that the architecture does not have.
    """
    folder = Path(folder)
    folder = folder.parent if folder.suffix in (".safetensors", ".json") else folder
    for name in ("arch.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} contains no {name}: give the folder of a finished run")
    description = json.loads((folder / "arch.json").read_text())
    if (found := description.get("format")) not in range(1, FORMAT + 1):
        raise ValueError(f"{folder}/arch.json has format {found!r}; this version reads formats 1 to {FORMAT}")
    state = load_file(folder / "model.safetensors")
    model = build(description["architecture"])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)
    return model.eval()


def build(architecture: dict[str, Any]) -> nn.Module:
    """The network that an arch.json describes, with random weights: its architecture, with some layers smaller."""
    layers = architecture.get("layers", {})
    model = models.build(**{key: value for key, value in architecture.items() if key != "layers"})
    present = slicing.shapes(model)
    unknown = [name for name in layers if name not in present]
    if unknown:
        raise ValueError(f"{architecture['name']} has no layer {', '.join(unknown)}, which arch.json describes")
    for name, shape in layers.items():
        slicing.resize(model.get_submodule(name), shape)
    vars(model)["arch"] = architecture
    return model
