"""Your own network in any recipe: a function or class that is called with num_classes=... and takes batches of images.

    python pipelines/digits_epsd.py --model examples.my_network:MyNetwork
    python pipelines/run.py images_epsd --data.root FOLDER --data.name mine --model my_file:MyNetwork

The module is looked for in the current folder and among the installed packages. The network of a finished run is loaded
with `artifact.load(folder, allow_import=True)`, because that runs your code.
"""

import torch
from torch import nn
from torch.nn import functional as F


class MyNetwork(nn.Module):
    """Two convolutions with a shortcut, for colour images of any size: (N, 3, H, W) -> logits (N, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.block(x))
        return self.head(x.mean(dim=(2, 3)))
