"""Prune and train on your own images: one folder for each class in train/ and in test/.

    python examples/my_data_set.py                            # the digits, written as PNG files into ./my-images
    python examples/my_data_set.py --data.root FOLDER --data.image-size 64 --model resnet18_small --workers 2

A recipe is a function that returns an Experiment. `main` turns each of its values into an option (see --help), runs it,
resumes it after a kill, and tracks it in MLflow.
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from compression.methods import EPSD
from pipelines.cli import main
from pipelines.data.config import Augmentation, Images
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD


def my_images() -> Experiment:
    """EPSD at 90 % sparsity on a folder of images."""
    data = Images(
        root="my-images", name="my-images", image_size=16, augmentation=Augmentation(crop_padding=2, flip=False)
    )
    return Experiment(EPSD(sparsity=0.9), "resnet20", data, Training(epochs=5, batch_size=64, optimizer=SGD(lr=0.1)))


def write_digits(root: Path) -> None:
    """Write scikit-learn's digits as train/<class>/*.png and test/<class>/*.png, 16x16 pixels."""
    pixels, digits = load_digits(return_X_y=True)
    for number, (values, digit) in enumerate(zip(pixels.reshape(-1, 8, 8), digits, strict=True)):
        folder = root / ("train" if number < 1500 else "test") / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((values * 15).astype("uint8"))
        image.resize((16, 16)).convert("RGB").save(folder / f"{number}.png")


if __name__ == "__main__":
    if len(sys.argv) == 1 and not Path("my-images").exists():
        write_digits(Path("my-images"))
    sys.exit(main(my_images))
