"""StageStore: the result of one stage on disk, with its order and its costs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.checkpoints import load_tensors, read_json, save_tensors, write_json
from compression.masks import Masks
from pipelines.run_folder import Record


class StageStore:
    """stage.json and, for tensors and masks, result.safetensors in the folder of one stage."""

    def __init__(self, folder: Path) -> None:
        self._stage = folder / "stage.json"
        self._tensors = folder / "result.safetensors"

    @property
    def finished(self) -> bool:
        return self._stage.exists()

    def write(self, result: Any, history: list[Record]) -> None:
        """Store a dict of tensors, Masks or plain JSON. stage.json is written last and marks the stage as finished."""
        kind, value = "json", None
        if isinstance(result, Masks):
            kind = "masks"
        elif isinstance(result, dict) and result and all(isinstance(v, Tensor) for v in result.values()):
            kind = "tensors"
        else:
            value = result
        if kind != "json":
            save_tensors(self._tensors, dict(result))
        # safetensors sorts by name, but allocation prunes equal scores in the order of the parameters.
        order = list(result) if isinstance(result, (dict, Masks)) else []
        write_json(self._stage, {"kind": kind, "value": value, "order": order, "history": history})

    def read(self) -> tuple[Any, list[Record]]:
        """The result, its tensors on the CPU, and the recorded costs."""
        stage = read_json(self._stage)
        if stage["kind"] == "json":
            return stage["value"], stage["history"]
        stored = load_tensors(self._tensors)
        tensors = {name: stored[name] for name in stage["order"]}
        return (Masks(tensors) if stage["kind"] == "masks" else tensors), stage["history"]


def to_device(result: Any, device: torch.device) -> Any:
    """The result of a stage with its tensors on `device`."""
    if isinstance(result, Masks):
        return Masks({name: mask.to(device) for name, mask in result.items()})
    if isinstance(result, dict):
        return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in result.items()}
    return result
