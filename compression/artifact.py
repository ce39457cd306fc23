"""Artefact: a finished network as arch.json and model.safetensors. Loading needs no method code and no pickle."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from compression import models, slicing
from compression.models.own import ALLOW

FILES = ("model.safetensors", "arch.json")

FORMAT = 3
"""Format 2 added "layers": the layers of a compacted network that are smaller than in its architecture; format 3 what
`save` is told about the network."""


def save(
    model: nn.Module,
    folder: Path | str,
    write: Callable[[Path, bytes], object] = Path.write_bytes,
    about: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Write `model` into `folder`, which must exist; returns the sha256 of each file.

    write: writes one file, for example atomically. arch.json, the last, holds checksums of both files.
    about: JSON values for arch.json. "inputs" ({"shape": [C, H, W], "resize": pixels of the short side before the
    centre is cropped, "mean" and "std": per channel, of pixel values / 255}) and "classes" (names, in the order of the
    logits) are what `compression.predict` and `compression.export` need; others ("sparsity"...) are for readers.
    ValueError unless the model was made by `compression.models.build` (and perhaps made smaller by
    `compression.compaction.compact`): nothing else could be built again.
    """
    folder, weights = Path(folder), _serialised(model)
    known = {"format": FORMAT, "architecture": _architecture(model), **(about or {})}
    description = {**known, "weights_sha256": _sha256(weights)}
    description["checksum"] = _sha256(_plain(description))
    contents = (weights, json.dumps(description, indent=2).encode() + b"\n")
    for name, content in zip(FILES, contents, strict=True):
        write(folder / name, content)
    return {name: _sha256(content) for name, content in zip(FILES, contents, strict=True)}


def load(folder: Path | str, allow_import: bool | str = False) -> nn.Module:
    """The network saved in `folder` (or in the folder of the given file), in eval mode on the CPU.

    allow_import: whether a network of a person's own ("package.module:function") may be imported, which runs its code;
    a name: only that one. ORCHARD_ALLOW_IMPORT=1 in the environment allows all.
    Each tensor has the precision in which it was saved. Errors: FileNotFoundError for a missing file; ValueError for a
    damaged or edited one (artefacts of earlier versions have no checksums), for an unknown format, or for a layer that
    the architecture does not have.
    """
    folder = _folder(folder)
    description = describe(folder)
    architecture = description["architecture"]
    allowed = allow_import is True or allow_import == architecture["name"] or os.environ.get(ALLOW) == "1"
    return _filled(architecture, _weights(folder / FILES[0], description.get("weights_sha256")), allowed)


def describe(folder: Path | str) -> dict[str, Any]:
    """The content of the folder's arch.json: "architecture", and what `save` was told. Errors as for `load`."""
    folder = _folder(folder)
    for name in reversed(FILES):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} contains no {name}: give the folder of a finished run")
    description = _description(folder / "arch.json")
    if (found := description.get("format")) not in range(1, FORMAT + 1):
        raise ValueError(f"{folder}/arch.json has format {found!r}; this version reads formats 1 to {FORMAT}")
    return description


def check_round_trip(model: nn.Module) -> None:
    """ValueError unless the model comes back from its artefact with the same tensors. To be called before training."""
    try:
        state = _filled(_architecture(model), safetensors.load(_serialised(model)), allow_import=True).state_dict()
        different = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), state[name])]
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be saved and loaded again: {error}") from error
    if different:
        raise ValueError(f"{type(model).__name__} comes back from its artefact with other values of {different[0]}")


def _folder(folder: Path | str) -> Path:
    folder = Path(folder)
    return folder.parent if folder.suffix in (".safetensors", ".json") else folder


def _architecture(model: nn.Module) -> dict[str, Any]:
    if (architecture := vars(model).get("arch")) is None:
        raise ValueError(f"this {type(model).__name__} does not say how it is built: use compression.models.build")
    return architecture


def _serialised(model: nn.Module) -> bytes:
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if (address := tensor.untyped_storage().data_ptr()) in seen:
            tensor = tensor.clone()  # a tensor that modules share; safetensors takes each once
        seen.add(address)
        state[name] = tensor
    return safetensors.save(state)


def _filled(architecture: dict[str, Any], state: dict[str, Tensor], allow_import: bool) -> nn.Module:
    """The network of an architecture with these tensors, in their precision, in eval mode on the CPU."""
    model = build(architecture, allow_import)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    # Some networks (MNASNet) read the versions of their modules from a state's metadata.
    with_versions = model.state_dict()
    with_versions.clear()
    with_versions.update(state)
    model.load_state_dict(with_versions)
    return model.eval()


def _description(path: Path) -> dict[str, Any]:
    """The content of an arch.json, compared with its checksum."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no complete JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not describe a network: give the folder of a finished run")
    checksum = found.pop("checksum", None)
    if checksum is not None and checksum != _sha256(_plain(found)):
        raise ValueError(f"{path} is damaged or was edited: its content does not fit its checksum")
    return found


def _weights(path: Path, expected: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file. expected: its sha256; None: not known."""
    content = path.read_bytes()
    if expected is not None and (found := _sha256(content)) != expected:
        raise ValueError(f"{path} is damaged: its sha256 is {found[:16]}..., recorded was {expected[:16]}...")
    try:
        return safetensors.load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error


def _plain(description: dict[str, Any]) -> bytes:
    return json.dumps(description, sort_keys=True).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def build(architecture: dict[str, Any], allow_import: bool = False) -> nn.Module:
    """The network that an arch.json describes, with random weights: its architecture, with some layers smaller."""
    layers = architecture.get("layers", {})
    model = models.build(
        **{key: value for key, value in architecture.items() if key != "layers"}, allow_import=allow_import
    )
    present = slicing.shapes(model)
    unknown = [name for name in layers if name not in present]
    if unknown:
        raise ValueError(f"{architecture['name']} has no layer {', '.join(unknown)}, which arch.json describes")
    for name, shape in layers.items():
        slicing.resize(model.get_submodule(name), shape)
    vars(model)["arch"] = architecture
    return model
