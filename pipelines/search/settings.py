"""The file of a sweep's best settings, best.toml: written for people, read back exactly by `--from`."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cluster.atomic import write_atomically
from compression.criteria import CRITERIA
from compression.methods import METHODS
from compression.objectives import OBJECTIVES
from pipelines.experiment import Experiment, parameters
from pipelines.optimizers import SGD, AdamW
from pipelines.search.spaces import at
from pipelines.search.trial import Point, Trial

FIRST_LINE = "The best settings of a sweep. Give them to a recipe with --from and this file's name."

TORCH = "torch.optim."
"""Before the name of an optimiser that has no config of its own: the classes of torch.optim share one."""

OPTIONS: Mapping[str, Mapping[str, type]] = {
    "method": METHODS,
    "distillation": OBJECTIVES,
    "criterion": CRITERIA,
    "optimizer": {"sgd": SGD, "adamw": AdamW},
}
"""Option of recipes -> name that it takes -> what is then in the experiment."""


@dataclass(frozen=True)
class Settings:
    """What such a file says.

    kinds: dotted name of a part of the experiment -> class name of its config, or torch.optim.NAME.
    values: dotted name -> value.
    """

    kinds: Mapping[str, str]
    values: Point


def write_settings(path: Path, trial: Trial, experiment: Experiment, about: Mapping[str, str]) -> None:
    """Write the settings of a trial of this experiment. about: what a comment says of them, title -> text.

    TOML has no None: the names of such settings are in the list `none`. The file has either its old or its new content.
    OSError if it cannot be written.
    """
    comments = ["# " + _line(text) for text in (FIRST_LINE, *(f"{title}: {text}" for title, text in about.items()))]
    none = [name for name, value in trial.point.items() if value is None]
    lines = [*comments, "", *([f"none = [{', '.join(map(_quoted, none))}]", ""] if none else [])]
    lines += [
        "[kinds]",
        *(f"{_quoted(name)} = {_quoted(kind)}" for name, kind in _kinds(trial.point, experiment).items()),
    ]
    lines += ["", "[values]"]
    lines += [f"{_quoted(name)} = {_toml(value)}" for name, value in trial.point.items() if value is not None]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_settings(path: Path) -> Settings:
    """The settings of a file. ValueError, in one line, if it is not what `write_settings` writes; OSError."""
    try:
        found = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}. Give a best.toml of a sweep") from error
    for table in ("kinds", "values"):
        if not isinstance(found.get(table), dict):
            raise ValueError(f"{path} has no table [{table}]: give a best.toml of a sweep")
    kinds, values, none = found["kinds"], found["values"], found.get("none", [])
    for name, kind in kinds.items():
        if not isinstance(kind, str):
            raise ValueError(f'{path}: the kind of {name} must be a name in quotes, like "EPSD", not {kind!r}')
    for name, value in values.items():
        if isinstance(value, dict):
            raise ValueError(f'{path}: write whole names in quotes, like "method.sparsity" = 0.9, not {name}.')
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"{path}: {name} must be a number, a word in quotes, true or false, not {value!r}")
    if not isinstance(none, list) or not all(isinstance(name, str) and name not in values for name in none):
        raise ValueError(f"{path}: none must list the names of settings that have no value, not {none!r}")
    return Settings(kinds, values | dict.fromkeys(none))


def apply(settings: Settings, experiment: Experiment, path: Path) -> Experiment:
    """The experiment with these settings; teachers follow its data and training. path: the file, for the errors.

    ValueError, in one line, if the settings are of another method, objective or optimiser, which says the option that
    is missing; if the experiment has no such value; or if a value is of a wrong type or refused.
    """
    known, hints = dict(parameters(experiment)), _hints(experiment)
    for name, kind in sorted(settings.kinds.items(), key=lambda item: item[0].count(".")):
        here = _kind(name, {**known, **settings.values})
        if here is None:
            raise ValueError(f"{path} has values of {kind} for {name}, and this command's experiment has no {name}")
        if here != kind:
            raise ValueError(
                f"{path} has values of {kind} for {name}, but this command's {name} is {here}: {_remedy(name, kind)}"
            )
    try:
        values = {
            name: _typed(name, value, hints[name]) if name in hints else value
            for name, value in settings.values.items()
        }
        return at(experiment, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _kinds(point: Point, experiment: Experiment) -> dict[str, str]:
    """The kinds of what has the values; a value of the method's parts also needs the same method."""
    known = {**dict(parameters(experiment)), **point}
    owners = [name.rpartition(".")[0] for name in point]
    methods = ["method"] if any(owner.startswith("method.") for owner in owners) else []
    found = {owner: _kind(owner, known) for owner in sorted({*methods, *owners}) if owner}
    return {owner: kind for owner, kind in found.items() if kind is not None}


def _kind(name: str, known: Mapping[str, Any]) -> str | None:
    """What a part of the experiment is; known: the experiment's `parameters`. None: there is no such part."""
    kind = known.get(name)
    return f"{TORCH}{known[f'{name}.name']}" if kind == "TorchOptimizer" else kind


def _remedy(name: str, kind: str) -> str:
    """What to type for a part of this kind."""
    if kind.startswith(TORCH):
        return f"add --optimizer {kind.removeprefix(TORCH).lower()}"
    for option, offered in OPTIONS.items():
        for word, config in offered.items():
            if config.__name__ == kind:
                return f"add --{option} {word}"
    return f"give the command that the sweep had for {name}"


def _hints(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type hint of every field that holds no dataclass."""
    hints, found = get_type_hints(type(value)), {}
    for item in fields(value):
        part = getattr(value, item.name)
        inner = _hints(part, f"{prefix}{item.name}.") if is_dataclass(part) else {prefix + item.name: hints[item.name]}
        found.update(inner)
    return found


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value, as a float where only floats can be: people write 1 for 1.0. ValueError for another type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if type(value) is int and int not in kinds and float in kinds:
        return float(value)
    for kind in kinds:
        if value in get_args(kind) if get_origin(kind) is Literal else type(value) is kind:
            return value
    raise ValueError(f"{name} cannot be {value!r}: its type is {' or '.join(map(_called, kinds))}")


def _called(kind: Any) -> str:
    """A type as people read it."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return "None" if kind is NoneType else getattr(kind, "__name__", str(kind))


def _toml(value: Any) -> str:
    """A value of TOML that reads back exactly. TypeError for one that a setting cannot have."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _quoted(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be a setting: use plain values")


def _quoted(text: str) -> str:
    """A string of TOML: as in JSON, and without the one control character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _line(text: str) -> str:
    """A text that can be a comment: one line, without control characters."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
