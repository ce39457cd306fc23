"""Numbers that papers and their authors' repositories print, to stand beside ours: only what was read there.

A number that was not found is not here: its cell says "not available". That holds for the tables of EPSD and of
Prune-then-Distill, and for all of PDD's but the two results in its abstract.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.rows import Row, Run

PSKD = "README of github.com/lgcnsai/PS-KD-Pytorch at 9aa0828"
TFKD = "README of github.com/yuanli2333/Teacher-free-Knowledge-Distillation at d000ab3"
AKAMASTER = "README of github.com/akamaster/pytorch_resnet_cifar10"
CHENYAOFO = "README of github.com/chenyaofo/pytorch-cifar-models"
PDD = "abstract of Dan et al., Cognitive Computation 16 (2024), doi 10.1007/s12559-024-10350-9"

BEST_EPOCH = "the epoch that is best on the test set"


@dataclass(frozen=True)
class Published:
    """One number, as it is printed.

    where: what a run must have: fields of runs.parquet, or parameters.
    printed: in percent or percentage points.
    kind: "accuracy"; "error": 100 minus that is shown; "change": of the accuracy, in points, by the method.
    source: where it is printed.
    about: what differs from ours, or is not known.
    """

    where: Mapping[str, str | float]
    printed: float
    kind: str
    source: str
    about: str = ""

    @property
    def text(self) -> str:
        """As cells show it: an accuracy in percent, or a change in points."""
        if self.kind == "change":
            return f"{self.printed:+.2f} points"
        return f"{100 - self.printed if self.kind == 'error' else self.printed:.2f}"

    def fits(self, run: Run) -> bool:
        """Whether the number is of what this run is of."""
        if any(run[name] != value for name, value in self.where.items() if name in run):
            return False
        params = json.loads(run.get("params") or "{}")
        return all(params.get(name) == value for name, value in self.where.items() if name not in run)


def _dense(dataset: str, model: str, label: str = "dense") -> dict[str, str | float]:
    return {"dataset": dataset, "model": model, "method_label": label}


def _pdd(teacher: str, student: str) -> dict[str, str | float]:
    method = {"method.distill": "True", "method.distill_finetune": "False", "method.teacher.model": teacher}
    return {"method": "pdd", "dataset": "cifar10", "model": student, **method}


_PREACT = f"pre-activation ResNet-18, 300 epochs, {BEST_EPOCH}"
_RESNET152 = f"top-1 error of ResNet-152, {BEST_EPOCH}"
_OWN = f"their own network of this name, 200 epochs, {BEST_EPOCH}"

PUBLISHED: tuple[Published, ...] = (
    Published(_dense("cifar10", "resnet20"), 8.27, "error", AKAMASTER),
    Published(_dense("cifar10", "resnet56"), 6.61, "error", AKAMASTER),
    Published(_dense("cifar10", "vgg11_mlp"), 92.79, "accuracy", CHENYAOFO),
    Published(_dense("cifar10", "vgg16_mlp"), 94.16, "accuracy", CHENYAOFO),
    Published(_dense("cifar100", "resnet18_small"), 75.87, "accuracy", TFKD, _OWN),
    Published(_dense("cifar100", "resnet50_small"), 78.16, "accuracy", TFKD, _OWN),
    Published(_dense("cifar100", "resnet18_small"), 24.18, "error", PSKD, _PREACT),
    Published(_dense("cifar100", "resnet18_small", "dense (LS)"), 20.94, "error", PSKD, _PREACT),
    Published(_dense("cifar100", "resnet18_small", "dense (CS-KD)"), 21.30, "error", PSKD, _PREACT),
    Published(_dense("cifar100", "resnet18_small", "dense (PS-KD)"), 20.82, "error", PSKD, _PREACT),
    Published(_dense("imagenet", "timm/resnet152"), 22.19, "error", PSKD, _RESNET152),
    Published(_dense("imagenet", "timm/resnet152", "dense (LS)"), 21.73, "error", PSKD, _RESNET152),
    Published(_dense("imagenet", "timm/resnet152", "dense (CS-KD)"), 21.61, "error", PSKD, _RESNET152),
    Published(_dense("imagenet", "timm/resnet152", "dense (PS-KD)"), 21.41, "error", PSKD, _RESNET152),
    Published(
        _pdd("resnet56", "resnet20"),
        0.17,
        "change",
        PDD,
        "with 39.53 % fewer FLOPs and 32.77 % fewer parameters; the ResNet-20 of their code is larger than usual",
    ),
    Published(
        _pdd("vgg16_mlp", "vgg11_mlp"), -1.34, "change", PDD, "with 74.96 % fewer FLOPs and 76.43 % fewer parameters"
    ),
)


def of(row: Row) -> list[Published]:
    """All numbers for a row; a row is asked the same of all its runs."""
    return [each for each in PUBLISHED if each.fits(row.runs[0])]


def sources(rows: Sequence[Row]) -> dict[str, int]:
    """What has to be said of the numbers for these rows -> its number in brackets, from 1."""
    used = {id(each) for row in rows for each in of(row)}
    told = dict.fromkeys(source_of(each) for each in PUBLISHED if id(each) in used)
    return {text: number for number, text in enumerate(told, 1)}


def source_of(published: Published) -> str:
    return f"{published.source}: {published.about}" if published.about else published.source
