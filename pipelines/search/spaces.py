"""What a sweep searches: the spaces of an experiment's values, and the experiment at one of their points.

Names are those of the command line: method.sparsity, training.optimizer.lr.
"""

import ast
import difflib
import functools
import inspect
import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, NamedTuple, get_type_hints

from rich.markup import escape
from rich.table import Table

from compression.spaces import Space, word
from pipelines.experiment import Experiment, Training
from pipelines.identity import PLACE
from pipelines.recipes import RECIPES
from pipelines.search.syntax import can_be_searched, example, parse
from pipelines.search.trial import Point
from pipelines.teachers import with_followers

MOST_POINTS = 10_000
"""Of a grid."""

NEAR = 0.7
"""Likeness, from 0 to 1, from which on a name is taken for a misspelt one."""


class _Value(NamedTuple):
    """A field that holds a value, and the dataclass that has it."""

    owner: Any
    field: Field[Any]

    @property
    def now(self) -> Any:
        return getattr(self.owner, self.field.name)

    @property
    def space(self) -> Space | None:
        return self.field.metadata.get("space")

    @property
    def hint(self) -> Any:
        return get_type_hints(type(self.owner))[self.field.name]


def declared(experiment: Experiment) -> dict[str, Space]:
    """Dotted name -> space of every value that has one beside its field.

    Those of teachers, and of trainings that only teachers go through, are left out.
    """
    trainings = (experiment.training, *experiment.method.trainings(experiment.training))

    def of_others(part: Any) -> bool:
        return isinstance(part, Experiment) or (
            isinstance(part, Training) and all(part is not own for own in trainings)
        )

    return _spaces(_values(experiment, "", of_others))


def own(experiment: Experiment) -> dict[str, Space]:
    """The declared spaces of the method itself, without its trainings; if it has none, those of the optimiser.

    ValueError if the experiment trains nothing.
    """
    if not experiment.method.trainings(experiment.training):
        raise ValueError(f"{experiment.method.label} trains nothing: give a --method that has settings to search")
    found = _spaces(_values(experiment.method, "method.", lambda part: isinstance(part, (Experiment, Training))))
    return found or _spaces(_values(experiment.training.optimizer, "training.optimizer."))


def vary(texts: Sequence[str], experiment: Experiment) -> dict[str, Space]:
    """The spaces that texts like method.sparsity=0.8,0.9 mean; a name alone means its declared space.

    ValueError for a name that the experiment cannot vary, and for a space that the type of its value cannot have.
    """
    found: dict[str, Space] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if name in found:
            raise ValueError(f"{name} is given twice: give all its values at once")
        if not name:
            raise ValueError(f"{text!r} names no value: write e.g. method.sparsity=0.8,0.9")
        value = _find(name, experiment)
        if not equals:
            if value.space is None:
                raise ValueError(f"{name} has no space of its own: write its values, e.g. {name}={example(value.hint)}")
            found[name] = value.space
            continue
        try:
            found[name] = parse(values.strip(), value.hint)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def at(experiment: Experiment, point: Point) -> Experiment:
    """The experiment with the values of a point: dotted name -> value. Teachers follow its data and training.

    ValueError, with the point's text in front, for values that exclude each other or that a config refuses.
    """
    for name in point:
        _find(name, experiment)
    try:
        return with_followers(_replaced(experiment, point), experiment)
    except ValueError as error:
        raise ValueError(f"{' '.join(f'{name}={word(value)}' for name, value in point.items())}: {error}") from error


def num_points(space: Mapping[str, Space], per_range: int) -> int:
    """Number of points of a grid with `per_range` values of each continuous range."""
    return math.prod(per_range if each.size is None else each.size for each in space.values())


def grid(space: Mapping[str, Space], per_range: int) -> Iterator[dict[str, Any]]:
    """Every point of the grid, the last name's values changing first. ValueError, at once, for too many points."""
    if (num := num_points(space, per_range)) > MOST_POINTS:
        raise ValueError(
            f"a grid of {num:,} points is more than {MOST_POINTS:,}: vary fewer settings, list fewer values, or take "
            "fewer of each range"
        )
    columns = [each.grid(per_range) for each in space.values()]
    return (dict(zip(space, row, strict=True)) for row in itertools.product(*columns))


def table(space: Mapping[str, Space], experiment: Experiment) -> Table:
    """What is searched: each name with its meaning, its value in the experiment, its space and the number of values."""
    shown = Table(box=None, pad_edge=False)
    for title in ("setting", "meaning", "default", "values", "number"):
        shown.add_column(title, overflow="fold", no_wrap=title == "setting")
    for name, each in space.items():
        value = _find(name, experiment)
        size = "any" if each.size is None else f"{each.size:,}"
        meaning = _meanings(type(value.owner)).get(value.field.name, "")
        shown.add_row(*map(escape, (name, meaning, word(value.now), str(each), size)))
    return shown


def _values(
    value: Any, prefix: str = "", closed: Callable[[Any], bool] = lambda part: False
) -> Iterator[tuple[str, _Value]]:
    """(dotted name, value) of each field that is no dataclass. closed: dataclasses not to look into."""
    for item in fields(value):
        part = getattr(value, item.name)
        if not is_dataclass(part):
            yield prefix + item.name, _Value(value, item)
        elif not closed(part):
            yield from _values(part, f"{prefix}{item.name}.", closed)


def _spaces(values: Iterator[tuple[str, _Value]]) -> dict[str, Space]:
    return {name: value.space for name, value in values if value.space is not None}


def _find(name: str, experiment: Experiment) -> _Value:
    """The value with this name. ValueError that says what to type if it cannot be searched."""
    values = dict(_values(experiment))
    if name == "seed":
        raise ValueError("the seed is no setting to search: --confirm repeats the best over several seeds")
    if name not in values:
        raise ValueError(_unknown(name, values, declared(experiment)))
    value = values[name]
    if value.field.metadata.get("identity") is PLACE["identity"]:
        raise ValueError(f"{name} is a place, which cannot change a result: give it as --{name.replace('_', '-')}")
    if not can_be_searched(value.hint):
        raise ValueError(f"{name} is neither a number nor a word, so no search can vary it: give it as an option")
    return value


def _unknown(name: str, values: Mapping[str, _Value], spaced: Mapping[str, Space]) -> str:
    """What to say of a name that is no value. spaced: the values that have a space."""
    inside = [each for each in values if each.startswith(f"{name}.")]
    options = {option for recipe in RECIPES.values() for option in inspect.signature(recipe).parameters} - {"scratch"}
    last = name.rpartition(".")[2]
    named = [each for each in values if each.rpartition(".")[2] == name and can_be_searched(values[each].hint)]
    if name in options and not named:
        compare = "; to compare methods, give --methods" if name in ("method", "distillation", "criterion") else ""
        return f"{name} is no value of the experiment: give it as --{name}{compare}"
    if inside:
        one = next((each for each in inside if each in spaced), inside[0])
        return f"{name} is a group of values: vary one of them, e.g. {one}"

    def likeness(known: str) -> tuple[float, int]:
        ends = difflib.SequenceMatcher(None, last, known.rpartition(".")[2]).ratio()
        return max(ends, difflib.SequenceMatcher(None, name, known).ratio()), -known.count(".")

    near = max(values, key=likeness)
    hint = f"did you mean {near}?" if likeness(near)[0] >= NEAR else f"these have a space: {', '.join(spaced)}"
    return f"the experiment has no value {name!r}; {hint}"


def _replaced(value: Any, point: Point) -> Any:
    """The dataclass with the values of a point. One replace for each dataclass: its checks see all of them."""
    new: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, each in point.items():
        head, _, rest = name.partition(".")
        if rest:
            parts.setdefault(head, {})[rest] = each
        else:
            new[head] = each
    return replace(value, **new, **{head: _replaced(getattr(value, head), inner) for head, inner in parts.items()})


@functools.cache
def _meanings(kind: type) -> dict[str, str]:
    """Field -> the docstring after it, as in --help, of a dataclass and those that it inherits from."""
    found: dict[str, str] = {}
    for base in (each for each in reversed(kind.__mro__) if "__dataclass_fields__" in vars(each)):
        [of] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(of, ast.ClassDef)
        for item, after in itertools.pairwise(of.body):
            match item, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
