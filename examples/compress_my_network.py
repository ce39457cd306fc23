"""Compress your own network in your own training loop: learn which channels to keep, remove the others, export.

python examples/compress_my_network.py [FILE.onnx]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from compression import channels, compaction, cost, export, gates

SHAPE = (1, 8, 8)

# Your data: here scikit-learn's handwritten digits, 1,500 for training and 297 for testing.
pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, *SHAPE) / 16
labels = torch.tensor(digits)


class MyNetwork(nn.Module):
    """Your network: convolutions, BatchNorm and linear layers, with shortcuts if you like."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.head = nn.Linear(4 * 32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.narrow(self.wide(x)))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def fit(model: nn.Module, epochs: int) -> None:
    """Your training loop. It needs no change: gates are parameters like any other."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(epochs):
        for batch in torch.randperm(1500).split(100):
            loss = F.cross_entropy(model.train()(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return (model.eval()(images[1500:]).argmax(dim=1) == labels[1500:]).float().mean().item()


torch.manual_seed(0)
model = MyNetwork()
dense = cost.count(model, SHAPE)

# A gate for each channel that can be removed. Channels that are added, here those of stem and narrow, share a gate.
handle = gates.attach(model, channels.channel_groups(model, SHAPE), SHAPE)
fit(model, epochs=5)
print(f"with gates: accuracy {accuracy(model):.3f}, {dense.macs:,} multiply-accumulates if all channels are kept")

# Close the gates with the smallest values until half of the multiply-accumulates are left; remove these channels.
# `compact` compares the outputs of the two networks before it returns.
gates.project(handle, "macs", 0.5 * dense.macs)
small = compaction.compact(model, SHAPE)
fit(small, epochs=5)
print(f"compacted: accuracy {accuracy(small):.3f}, {cost.count(small, SHAPE).macs:,} multiply-accumulates")

path = sys.argv[1] if len(sys.argv) > 1 else "small.onnx"
print(f"{path}: outputs differ by at most {export.to_onnx(small, SHAPE, path):.1e}")
