"""Rehearsal: a Session that trains nothing and writes down which trainings, scorings and evaluations a run consists of.

A method is a function of its Session; so a plan asks the method itself what it does. Networks keep their first weights.
Where it matters which weights survive (a derived student's widths, the channels that gates keep), every layer is
taken to lose the same share: untrained weights could not say, and `EVENLY` tells readers so.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.planning.data import Found
from compression import allocation, gates, models
from compression.batch import Batch, Info
from compression.masks import Masks
from compression.methods import Dense
from compression.objectives.base import Objective
from pipelines.data.config import Data
from pipelines.data.loader import Loader
from pipelines.data.loading.draws import stream
from pipelines.experiment import Experiment, Training
from pipelines.teachers import with_data_of

EVENLY = (
    "what is pruned before a student is derived, and which channels gates close, is taken to be the same share of "
    "every layer: a trained network decides otherwise"
)


@dataclass(frozen=True)
class Part:
    """A training that a run consists of, with what has to be known to time it.

    sizes: height of the training images in pixels -> how many epochs have it.
    found: the data.
    """

    experiment: Experiment
    name: str
    model: nn.Module
    objective: Objective
    masks: Masks | None
    settings: Training
    sizes: Mapping[int, int]
    steps_per_epoch: int
    info: Info
    found: Found

    @property
    def epochs(self) -> int:
        return sum(self.sizes.values())


class Given(Sequence[Batch]):
    """Batches for scoring, of `num_images` each; a plan may ask for fewer, and sees whether they were looked at."""

    def __init__(self, draw: Callable[[int], list[Batch]], num: int, num_images: int) -> None:
        self._draw, self._num = draw, num
        self.num_images = num_images
        self._drawn: dict[int, list[Batch]] = {}
        self.at_hand = num_images
        self.was_read = False

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, place: Any) -> Any:
        self.was_read = True
        if self.at_hand not in self._drawn:
            self._drawn = {self.at_hand: self._draw(self.at_hand)}
        return self._drawn[self.at_hand][place]


class Witness(Protocol):
    """Who is told what happens, in order."""

    def train(self, part: Part) -> None:
        """A training; the network is as it is when that begins, and masked."""
        ...

    def stage(self, experiment: Experiment, name: str, fn: Callable[[], Any], given: Sequence[Given]) -> Any:
        """The result of `fn`, which the first worker computes from these batches. `fn` may be run several times."""
        ...

    def evaluate(self, experiment: Experiment, model: nn.Module, split: str, found: Found, info: Info) -> None:
        """An evaluation of `model` outside of a training."""
        ...


class Theatre:
    """Rehearses experiments, each once however many ask for it, before one witness."""

    def __init__(self, witness: Witness, find: Callable[[Data], Found], device: torch.device) -> None:
        self.witness, self.device = witness, device
        self._find = find
        self._data: dict[Data, Found] = {}
        self._done: dict[str, nn.Module] = {}

    def rehearse(self, experiment: Experiment) -> nn.Module:
        """Go through the whole run, its teachers first; the network it would leave, with first weights."""
        if experiment.identity not in self._done:
            if experiment.data not in self._data:
                self._data[experiment.data] = self._find(experiment.data)
            session = Rehearsal(self, experiment, self._data[experiment.data])
            model = experiment.method.run(session)
            session.evaluate(model, "test")
            self._done[experiment.identity] = model
        return self._done[experiment.identity]


class Rehearsal:
    """The Session of one experiment in a Theatre."""

    def __init__(self, theatre: Theatre, experiment: Experiment, found: Found) -> None:
        self.experiment, self.seed, self.epochs = experiment, experiment.seed, experiment.training.epochs
        self.device = theatre.device
        self._theatre, self._found = theatre, found
        self._loader = Loader(
            found.opened, experiment.data.val_fraction, experiment.seed, getattr(experiment.data, "resolution", None)
        )
        self.info: Info = self._loader.info
        self._given: list[Given] = []
        self._models: list[nn.Module] = []

    def model(self, spec: Mapping[str, Any] | None = None) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(stream(self.seed, "model"))
            built = models.build(**(spec or {"name": self.experiment.model}), num_classes=self.info.num_classes)
        self._models.append(placed(built, self.experiment.training, self.device))
        return self._models[-1]

    def teacher(self, experiment: Experiment | None = None, *, method: Any = None) -> nn.Module:
        asked = experiment or dataclasses.replace(self.experiment, method=Dense())
        asked = asked if method is None else dataclasses.replace(asked, method=method)
        model = self._theatre.rehearse(with_data_of(self.experiment, asked))
        return placed(model, self.experiment.training, self.device).eval().requires_grad_(False)

    def batches(self, objective: Objective, num: int, size: int | None = None) -> Sequence[Batch]:
        objective.setup(self.info, self.device)

        def draw(images: int) -> list[Batch]:
            return self._loader.batches("score", num, images, objective.needs)

        size = size or self.experiment.training.batch_size
        self._loader.steps_per_epoch(size)  # as many images as there are
        self._given.append(Given(draw, num, size))
        return self._given[-1]

    def stage(self, name: str, fn: Callable[[], Any]) -> Any:
        given, self._given = self._given, []
        if given:
            return even_result(self._theatre.witness.stage(self.experiment, name, fn, given))
        with even_weights(self._models):
            return self._theatre.witness.stage(self.experiment, name, fn, ())

    def train(
        self,
        name: str,
        model: nn.Module,
        objective: Objective,
        *,
        masks: Masks | None = None,
        schedule: Any = None,
        epochs: range | None = None,
        param_groups: Sequence[dict[str, Any]] | None = None,
    ) -> nn.Module:
        settings: Training = schedule or self.experiment.training
        span = range(settings.epochs) if epochs is None else epochs
        sizes: dict[int, int] = {}
        for epoch in span:
            size = self._loader.size_at(epoch / settings.epochs) or self.info.input_shape[1]
            sizes[size] = sizes.get(size, 0) + 1
        with masks.attach(model) if masks is not None else contextlib.nullcontext():
            pass  # what is pruned is zero from here on, as after a training
        steps = self._loader.steps_per_epoch(settings.batch_size)
        if span:
            part = Part(self.experiment, name, model, objective, masks, settings, sizes, steps, self.info, self._found)
            self._theatre.witness.train(part)
        even_gates(model)
        return model

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        if self.info.sizes[split]:
            self._theatre.witness.evaluate(self.experiment, model, split, self._found, self.info)
        return {}

    def log(self, **metrics: float) -> None:
        """Numbers of a network that was not trained mean nothing."""

    def note(self, text: str) -> None:
        """The same of what is said of it."""


def placed(model: nn.Module, training: Training, device: torch.device) -> nn.Module:
    """The network as a run with this training has it on its device."""
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    dtype = torch.float64 if training.precision == "float64" else torch.float32
    return model.to(device=device, dtype=dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]


def even_values(like: Tensor, seed: int = 0) -> Tensor:
    """1/n, 2/n ... 1 in some order, in the shape of `like`: of each such tensor the same share lies below any value."""
    n = like.numel()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return ((order + 1) / n).view(like.shape).to(like)


@contextlib.contextmanager
def even_weights(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block the smallest weights of the networks are the same share of every layer."""
    weights = [weight for network in networks for weight in network.parameters() if weight.dim() > 1]
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(even_values(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def even_gates(model: nn.Module) -> None:
    """Gates, if there are any, open and at different heights, so that a budget closes the same share of each group."""
    handle = gates.of(model)
    for group in handle.groups if handle is not None else ():
        m = handle.of(group).m  # pyright: ignore[reportOptionalMemberAccess]
        with torch.no_grad():
            m.copy_(even_values(m))


def even_result(result: Any) -> Any:
    """Scores or masks of a scoring, spread evenly over the layers; anything else as it is."""
    if isinstance(result, Masks):
        scores = {name: even_values(mask.float()) for name, mask in result.items()}
        whole = Masks({name: torch.ones_like(mask) for name, mask in result.items()})
        return allocation.remove_lowest(scores, whole, result.num_weights - result.num_kept)
    if isinstance(result, dict) and all(isinstance(v, Tensor) and v.is_floating_point() for v in result.values()):
        return {name: even_values(scores) for name, scores in result.items()}
    return result
