"""Artefact: a finished network as arch.json + model.safetensors, loaded without method code and without pickle."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from compression import models

FORMAT = 1


def save(model: nn.Module, folder: Path | str) -> None:
    """Write `model` (made by `compression.models.build`) into `folder`, which must exist."""
    folder = Path(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    description = {"format": FORMAT, "architecture": vars(model)["arch"]}
    (folder / "arch.json").write_text(json.dumps(description, indent=2) + "\n")


def load(folder: Path | str) -> nn.Module:
    """The network that was saved in `folder` (or whose model.safetensors is named), in eval mode on the CPU.

    Floating-point weights keep the precision they were saved in. Errors: FileNotFoundError for a missing file,
    ValueError for another format.
    """
    folder = Path(folder)
    folder = folder.parent if folder.suffix in (".safetensors", ".json") else folder
    for name in ("arch.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: name the folder of a finished run")
    description = json.loads((folder / "arch.json").read_text())
    if description.get("format") != FORMAT:
        raise ValueError(f"{folder}/arch.json has format {description.get('format')!r}; this version reads {FORMAT}")
    state = load_file(folder / "model.safetensors")
    model = models.build(**description["architecture"])
    floating = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    model.to(dtype=max(floating, key=lambda dtype: dtype.itemsize))
    model.load_state_dict(state)
    return model.eval()
