"""Checks before cost: what would end a run in its middle is found before workers start, or before it scores."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from compression import artifact, models
from compression.masks import check_maskable
from pipelines.context import RunContext
from pipelines.data.loader import Loader, open_loader
from pipelines.experiment import Experiment
from pipelines.identity import canonical
from pipelines.run_folder import RunFolder
from pipelines.teachers import needed


def check_before_workers(experiments: Iterable[Experiment], storage: Path, num_workers: int) -> None:
    """What the driver can see without reading the data, for every run that is to come, teachers too.

    ValueError: a batch that the workers cannot share. FileNotFoundError: the data's folder is not there.
    """
    for each in _unfinished(experiments, storage):
        for settings in each.method.trainings(each.training):
            if settings.batch_size % num_workers:
                raise ValueError(
                    f"{each.name}: batch_size {settings.batch_size} does not divide by {num_workers} workers: use a "
                    f"multiple of {num_workers}, or another number of --workers"
                )
        if not os.path.isdir(getattr(each.data, "root", ".")):
            open_loader(each.data, each.seed, "cpu").close()  # its error names the files that the folder must hold


def check_before_scoring(context: RunContext) -> None:
    """What needs the data, for a run and its teachers, on one worker.

    ValueError: a training that the strategy or the number of images does not allow, a network that does not take the
    images, or a teacher of other classes.
    """
    own = context.experiment
    todo = _unfinished([own], context.folder.storage)
    for each in (own, *needed(own)):
        with contextlib.ExitStack() as opened:
            loader = context.loader
            if canonical(each.data) != canonical(own.data):
                loader = opened.enter_context(contextlib.closing(open_loader(each.data, each.seed, "cpu")))
            if loader.info.num_classes != context.info.num_classes:
                raise ValueError(
                    f"the teacher {each.name} knows {loader.info.num_classes} classes, the student's data have "
                    f"{context.info.num_classes}: give a teacher of the same data"
                )
            if each in todo:
                with _naming(each, own):
                    _check_trainings(context, each, loader)
                    _check_network(context, each, loader)


def _unfinished(experiments: Iterable[Experiment], storage: Path) -> list[Experiment]:
    """Each experiment that has no result, and the teachers without one that it needs."""
    todo: dict[str, Experiment] = {}
    for experiment in experiments:
        if not RunFolder(storage, experiment.identity).result.exists():
            todo |= {each.identity: each for each in (*needed(experiment), experiment)}
    return [each for each in todo.values() if not RunFolder(storage, each.identity).result.exists()]


@contextlib.contextmanager
def _naming(experiment: Experiment, own: Experiment) -> Iterator[None]:
    """A ValueError says that it is of a teacher; the report names the run itself."""
    try:
        yield
    except ValueError as error:
        raise error if experiment is own else ValueError(f"the teacher {experiment.name}: {error}") from error


def _check_trainings(context: RunContext, experiment: Experiment, loader: Loader) -> None:
    for settings in experiment.method.trainings(experiment.training):
        context.strategy_for(settings)
        if settings.dtype != experiment.training.dtype:
            raise ValueError(
                f"one of the trainings has precision {settings.precision}, another "
                f"{experiment.training.precision}: choose float64 for all of them or for none"
            )
        loader.steps_per_epoch(settings.batch_size)
    scoring = getattr(experiment.method, "scoring_batch_size", None)
    if scoring is not None and scoring > loader.info.sizes["train"]:
        num = loader.info.sizes["train"]
        raise ValueError(f"scoring_batch_size is {scoring}, but there are {num} training images")


def _check_network(context: RunContext, experiment: Experiment, loader: Loader) -> None:
    """A forward pass at each size of the data; a round trip through an artefact; masks that reach the weights."""
    channels, height, width = loader.info.input_shape
    epochs = experiment.training.epochs
    growing = {size for epoch in range(epochs) if (size := loader.size_at(epoch / epochs))}
    batches = [settings.batch_size for settings in experiment.method.trainings(experiment.training)]
    with torch.random.fork_rng(devices=[]):
        model = models.build(experiment.model, num_classes=loader.info.num_classes)
        for shape in [(channels, height, width), *((channels, size, size) for size in sorted(growing))]:
            _check_forward(model.eval(), experiment.model, loader.info.num_classes, (2, *shape))
            if min(batches, default=0) == context.worker.world_size:
                _check_forward(model.train(), experiment.model, loader.info.num_classes, (1, *shape))
    artifact.check_round_trip(model)
    if experiment.method.sparsity is not None:
        check_maskable(model.eval(), torch.zeros(1, channels, height, width))


@torch.no_grad()
def _check_forward(model: nn.Module, name: str, num_classes: int, shape: tuple[int, ...]) -> None:
    """ValueError: the network refuses images of a shape (N, channels, height, width), or answers with no logits."""
    size = " x ".join(map(str, shape[1:]))
    how = ", one at a time in training," if shape[0] == 1 else ""
    try:
        logits = model(torch.zeros(shape))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name} cannot take images of {size} (channels x height x width){how} as these data have: choose another "
            f"size of images, {'a larger batch, ' if how else ''}or another --model ({reason})"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (shape[0], num_classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(
            f"{name} answers {shape[0]} images of {size} with {found}, not {(shape[0], num_classes)} logits"
        )
