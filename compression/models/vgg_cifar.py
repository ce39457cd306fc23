"""VGG with BatchNorm for small images (Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556), with any widths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from compression.choose import check_widths


@dataclass(frozen=True)
class Layout:
    """The differences between VGGs.

    widths: output channels of each convolution.
    pools: the convolutions (counted from 1) that are followed by a 2x2 max-pool.
    grid: the classifier gets grid x grid averages of the last features.
    hidden: width of the classifier's two hidden layers; 0: a single linear layer.
    """

    widths: tuple[int, ...]
    pools: tuple[int, ...]
    grid: int = 1
    hidden: int = 0


VGG11 = Layout((64, 128, 256, 256, 512, 512, 512, 512), pools=(1, 2, 4, 6, 8))
VGG16 = Layout((64, 64, 128, 128, 256, 256, 256, *[512] * 6), pools=(2, 4, 7, 10, 13))
VGG19 = Layout((64, 64, 128, 128, 256, 256, 256, 256, *[512] * 8), pools=(2, 4, 8, 12, 16))
# Prune-then-Distill has no max-pool after the last stage, only the average.
VGG19_PTD = replace(VGG19, pools=VGG19.pools[:-1])
LAYOUTS = {
    "vgg3": Layout((16, 32, 64), pools=(1, 2)),
    "vgg11": VGG11,
    "vgg13": Layout((64, 64, 128, 128, 256, 256, 512, 512, 512, 512), pools=(2, 4, 6, 8, 10)),
    "vgg16": VGG16,
    "vgg19": VGG19,
    "vgg11_mlp": replace(VGG11, hidden=512),
    "vgg16_mlp": replace(VGG16, hidden=512),
    "vgg11_ptd": replace(VGG11, pools=VGG11.pools[:-1]),
    "vgg19_ptd": VGG19_PTD,
    "vgg19_ptd_double": replace(VGG19_PTD, widths=(64, 128, 256, 256, *[512] * 4, *[1024] * 7, 512)),
    "vgg16_tiny": replace(VGG16, grid=2, hidden=1024),
}


class VGG(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, then the classifier: (N, in_channels, H, W) -> logits (N, num_classes).

    The max-pools keep a last odd row or column, so that 8x8 images pass through all five of them. This makes no
    difference for even sizes, such as 32x32.
    """

    def __init__(
        self, layout: Layout, num_classes: int, widths: Sequence[int] | None = None, in_channels: int = 3
    ) -> None:
        """widths: output channels of each convolution; None: the layout's. Hidden layers keep their widths."""
        super().__init__()
        widths = check_widths("widths", "convolution", layout.widths if widths is None else widths, len(layout.widths))
        layers: list[nn.Module] = []
        for place, width in enumerate(widths, 1):
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            if place in layout.pools:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.grid = layout.grid
        self.pool = nn.AdaptiveAvgPool2d(layout.grid)
        self.classifier = _classifier(in_channels * layout.grid**2, layout.hidden, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _classifier(in_features: int, hidden: int, num_classes: int) -> nn.Module:
    if not hidden:
        return nn.Linear(in_features, num_classes)
    first = (nn.Linear(in_features, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5))
    second = (nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5))
    return nn.Sequential(*first, *second, nn.Linear(hidden, num_classes))
