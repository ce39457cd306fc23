"""ImageNet (ILSVRC-2012) from the official archives, the usual folders, or prepared for FFCV."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from compression.choose import choose
from pipelines.data.config import ImageNet, Resolution
from pipelines.data.preparing.digits_folder import prepared, write_digits_as_imagenet
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import SGD, Linear, MultiStep
from pipelines.recipes import parts


@dataclass(frozen=True)
class Schedule:
    """A published setting: how long, with which optimiser, and between which epochs images grow from 160 to 192 pixels.

    network: the network of this setting; None: any.
    """

    epochs: int
    batch_size: int
    optimizer: SGD
    grows: tuple[int, int] | None = None
    network: str | None = None


SCORED_AT_ONCE = 256
"""Images whose first-order gradient, with the partners of CS-KD, fits into 80 GB for ResNet-50 at 224 pixels."""

LARGE = SGD(lr=1.7, weight_decay=1e-4)
SMALL = SGD(lr=0.5, weight_decay=5e-5)

SCHEDULES = {
    "standard": Schedule(90, 256, SGD(lr=0.1, weight_decay=1e-4)),
    "ffcv16": Schedule(16, 4096, LARGE, (11, 13)),
    "ffcv40": Schedule(40, 4096, LARGE, (29, 34)),
    "ffcv88": Schedule(88, 4096, LARGE, (65, 76)),
    "ffcv16_resnet18": Schedule(16, 1024, SMALL, (11, 13), "resnet18"),
    "ffcv40_resnet18": Schedule(40, 1024, SMALL, (29, 34), "resnet18"),
    "ffcv88_resnet18": Schedule(88, 1024, SMALL, (65, 76), "resnet18"),
}
"""The usual 90 epochs at 224 pixels; and the settings of ffcv-imagenet for ResNet-50 and ResNet-18 at three lengths."""

ScheduleName = Annotated[str, arg(help=f"published training setting: {', '.join(SCHEDULES)}")]


def imagenet_dense(
    method: parts.Method = "dense",
    distillation: parts.Distillation = None,
    criterion: parts.Criterion = None,
    teacher: parts.ObjectiveTeacher = None,
    optimizer: parts.Optimizer = "sgd",
    schedule: ScheduleName = "standard",
    smoke: parts.Smoke = False,
    scratch: Path = Path(),
) -> Experiment:
    """ResNet-50 or ResNet-18 on ImageNet, dense: the baseline of the other recipes.

    --schedule standard (the default): 90 epochs, batch 256, learning rate 0.1 divided by 10 every 30, decay 1e-4, 224
    pixels. Expected: 76.13 % (ResNet-50) and 69.76 % (ResNet-18), as torchvision reports for this setting.
    Hardware and time: unknown until it is run.

    --schedule ffcv16, ffcv40, ffcv88, each also with _resnet18: ffcv-imagenet's settings. Images grow from 160 to 192
    pixels, evaluation at 224; two epochs of warm-up, then a linear decay of the learning rate; label smoothing 0.1; no
    weight decay on BatchNorm and biases. ResNet-50: batch 4,096, learning rate 1.7, decay 1e-4; ResNet-18: 1,024, 0.5,
    5e-5. They report 73.8, 77.2 and 78.4 % (ResNet-50; 15, 36 and 77 minutes on eight A100) and 66.9, 70.6 and 72.4 %
    (ResNet-18; 35, 86 and 187 minutes on one A100), with BlurPool and averaged over flipped images. We have neither;
    expected here: unknown until it is run and tabulated.

        python pipelines/prepare.py imagenet --source TARS --out BETON
        python pipelines/run.py imagenet_dense --data.root BETON --schedule ffcv16 --workers 8
        python pipelines/run.py imagenet_dense --data.root DIR --model resnet18 --workers 8   # DIR: train/, val/

    --method takes any other. With --smoke: scikit-learn's digits in ImageNet's layouts, through the same readers.
    """
    published = choose("schedule", schedule, SCHEDULES)
    if published.grows and method == "dense" and distillation is None and not smoke:
        distillation = "label_smoothing"
    compression = parts.build_method(method, 0.9, distillation, criterion)
    if smoke:
        sgd = parts.build_optimizer(optimizer, SGD(lr=0.1, weight_decay=1e-4))
        training = Training(1, 64, sgd, MultiStep((1 / 3, 2 / 3)))
        experiment = Experiment(compression, "resnet20", smoke_data(scratch), training)
    else:
        network, training = published.network or "resnet50", training_of(published, optimizer)
        compression = parts.first_order(compression, SCORED_AT_ONCE if training.batch_size > SCORED_AT_ONCE else None)
        experiment = Experiment(compression, network, data_of(published), training)
    return parts.with_teacher(experiment, teacher)


@parts.options_of(imagenet_dense)
def imagenet_epsd(method: parts.Method = "epsd", *given: Any, **options: Any) -> Experiment:
    """ResNet-50 on ImageNet at 90 % sparsity: 90 epochs, batch 256, learning rate 0.1 divided by 10 every 30.

    The standard schedule; it is not known which one EPSD's own tables used. Expected accuracy: unknown until it is run
    and tabulated. An epoch reads 1.28 million images: prepare them for FFCV, or set --loader-workers to the number of
    cores. The full meta-gradient of 256 images needs about 210 GiB of memory, more than a GPU has: weights are scored
    to first order, in chunks of 256 images. With --method.no-first-order and a small --method.scoring-batch-size it is
    full. For --schedule see imagenet_dense. Hardware and time: eight GPUs; unknown until it is run.

        ray job submit -- python pipelines/imagenet_epsd.py
        python pipelines/imagenet_epsd.py --data.root DIR --workers 8     # DIR holds train/ and val/, or the tars
        python pipelines/imagenet_epsd.py --data.root BETON --data.backend ffcv --workers 8   # BETON: prepare's output

    With --smoke: scikit-learn's digits in ImageNet's layouts, through the same readers.
    """
    return imagenet_dense(method, *given, **options)


def data_of(schedule: Schedule) -> ImageNet:
    """ImageNet as the schedule reads it."""
    if schedule.grows is None:
        return ImageNet()
    start, end = (epoch / schedule.epochs for epoch in schedule.grows)
    return ImageNet(backend="ffcv", resolution=Resolution(160, 192, start, end))


def training_of(schedule: Schedule, optimizer: str = "sgd", share: float = 1.0) -> Training:
    """The schedule, shortened to `share` of its epochs."""
    epochs = max(1, round(schedule.epochs * share))
    rapid = schedule.grows is not None
    return Training(
        epochs,
        schedule.batch_size,
        parts.build_optimizer(optimizer, schedule.optimizer),
        Linear() if rapid else MultiStep((1 / 3, 2 / 3)),
        min(2.0, epochs / 2) if rapid else 0.0,
        precision="bfloat16",
        decay_vectors=not rapid,
    )


def smoke_data(scratch: Path) -> ImageNet:
    """Real digits in ImageNet's layouts: folders of JPEG files, and FFCV's if that is installed."""
    root, name = write_digits_as_imagenet(scratch / "digits-as-imagenet"), "digits-as-imagenet"
    return ImageNet(root=str(prepared(root, "imagenet", name)), name=name, image_size=16, resize=20)
