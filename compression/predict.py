"""Predict: a finished network with all that it needs to classify pictures.

classify = predict.load("storage/runs/IDENTITY")
classify(Image.open("cat.jpg"))  # {"cat": 0.93, "dog": 0.04, ...}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compression import artifact

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Classifier:
    """A network in eval mode, and how its artefact says that images become inputs.

    shape: (C, H, W) of an input. resize: the short side in pixels before the centre is cropped.
    mean, std: per channel, of pixel values / 255. classes: names, in the order of the logits.
    """

    network: nn.Module
    shape: tuple[int, int, int]
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def inputs(self, image: Image.Image) -> Tensor:
        """(1, C, H, W): what the network sees of a PIL image, as in evaluation."""
        from PIL import Image

        _, height, width = self.shape
        short = min(image.size)
        # The long side is rounded down, as by torchvision.
        scaled = (self.resize * image.width // short, self.resize * image.height // short)
        left, top = (round((of - to) / 2) for of, to in zip(scaled, (width, height), strict=True))
        whole = image.convert("RGB")
        whole = whole if scaled == image.size else whole.resize(scaled, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(whole.crop((left, top, left + width, top + height))))
        like = next(self.network.parameters())
        mean, std = (torch.tensor(values, dtype=torch.float64) * 255 for values in (self.mean, self.std))
        return ((pixels.double() - mean) / std).permute(2, 0, 1)[None].to(like.device, like.dtype)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, most: int = 5) -> dict[str, float]:
        """The `most` probable classes of a PIL image, with their probabilities, the highest first."""
        probabilities = self.network(self.inputs(image)).double().softmax(1)[0]
        values, places = probabilities.topk(min(most, len(probabilities)))
        return {self.classes[place]: value for place, value in zip(places.tolist(), values.tolist(), strict=True)}


def load(folder: Path | str, allow_import: bool | str = False) -> Classifier:
    """The classifier of an artefact. allow_import, errors: as for `artifact.load`; ValueError also without inputs."""
    found: dict[str, Any] = artifact.describe(folder)
    if "inputs" not in found:
        raise ValueError(
            f"{folder} does not say how images become inputs, as an earlier version saved it: use "
            "compression.artifact.load, and prepare the images yourself"
        )
    inputs, classes = found["inputs"], tuple(found["classes"])
    mean, std = tuple(inputs["mean"]), tuple(inputs["std"])
    return Classifier(artifact.load(folder, allow_import), tuple(inputs["shape"]), inputs["resize"], mean, std, classes)
