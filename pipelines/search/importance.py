"""How much each setting of a sweep matters: fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compression.spaces import Choices, IntRange, LogRange, Space
from pipelines.search.axes import covering
from pipelines.search.trial import Trial

FEWEST = 4
"""Finished trials from which on something can be said."""


def importance(trials: Sequence[Trial], space: Mapping[str, Space]) -> dict[str, float] | str:
    """Setting -> share of the variance of the accuracy that it explains, the largest first; the shares add up to 1.

    Computed from the finished trials, the same for the same trials. A text: why it cannot be computed.
    """
    done = [trial for trial in trials if trial.values is not None]
    if len(done) < FEWEST:
        return f"it needs {FEWEST} finished trials (finished: {len(done)})"
    names = [name for name in done[0].point if all(name in trial.point for trial in done)]
    names = [name for name in names if len({repr(trial.point[name]) for trial in done}) > 1]
    if len(names) < 2:
        return "it compares settings, and fewer than two of them vary between the finished trials"
    if len({trial.values[0] for trial in done if trial.values}) < 2:
        return "no setting is important: all finished trials have the same accuracy"
    return _fanova(done, {name: _distribution(name, done, space.get(name)) for name in names})


def _fanova(done: Sequence[Trial], distributions: Mapping[str, Any]) -> dict[str, float]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it reports each study that it makes
    try:
        study = optuna.create_study(direction="maximize")
        for trial in done:
            assert trial.values is not None
            params = {name: _plain(trial.point[name]) for name in distributions}
            study.add_trial(
                optuna.create_trial(value=trial.values[0], params=params, distributions=dict(distributions))
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(before)


def _distribution(name: str, done: Sequence[Trial], space: Space | None) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = covering(space, [trial.point[name] for trial in done])
    if isinstance(space, Choices):
        return CategoricalDistribution([_plain(value) for value in space.values])
    if isinstance(space, IntRange):
        return IntDistribution(space.low, space.high)
    return FloatDistribution(space.low, space.high, log=isinstance(space, LogRange))


def _plain(value: Any) -> Any:
    """A choice that Optuna can store: others by their text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
