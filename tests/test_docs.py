"""The documents are correct: examples run, commands parse, every name has a card with its sources, labels and costs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.checkpoints import load_tensors
from compression import cost, models
from compression.allocation import ALLOCATIONS, global_topk
from compression.batch import Batch
from compression.criteria import CRITERIA, magnitude, prospr
from compression.criteria.base import Criterion
from compression.methods import METHODS
from compression.models.registry import MODELS
from compression.objectives import OBJECTIVES, CrossEntropy
from compression.objectives.base import Objective
from pipelines import cli, prepare
from pipelines.recipes import RECIPES
from pipelines.search import options as search

ROOT = Path(__file__).resolve().parent.parent
CONTRIBUTING, CARDS = ((ROOT / name).read_text() for name in ("CONTRIBUTING.md", "docs/methods.md"))
PAGES = {
    "README": (ROOT / "README.md").read_text(),
    "manifests": (ROOT / "cluster/manifests/README.md").read_text(),
    "recipes": "\n".join(recipe.__doc__ or "" for recipe in RECIPES.values()),
    **{path.stem: path.read_text() for path in ROOT.glob("docs/*.md")},
}
"""Texts that show commands."""

CHAPTERS = {
    "Criteria": CRITERIA,
    "Allocations": ALLOCATIONS,
    "Objectives": OBJECTIVES,
    "Methods": METHODS,
}
"""Chapter of docs/methods.md -> what it must have a card for."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def commands(text: str) -> list[list[str]]:
    """The words of each command in `text` that starts an experiment, from "pipelines/..." on."""
    found = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        # Indented code, or a whole command between backticks.
        for code in [line[4:]] if line.startswith("    ") else re.findall(r"`([^`]*)`", line):
            words = shlex.split(code, comments=True) if "pipelines/" in code else []
            place = next((n for n, word in enumerate(words) if re.fullmatch(r"pipelines/\w+\.py", word)), None)
            if place and words[place - 1].endswith("python"):
                found.append(words[place:])
    return found


def recipe_of(words: list[str]) -> tuple[cli.Recipe | None, list[str]]:
    """The recipe that a command runs (None: it lists the recipes), and its options."""
    name, *options = [Path(words[0]).stem, *words[1:]]
    assert (ROOT / words[0]).exists(), f"there is no {words[0]}"
    if name == "run":
        if not options:
            return None, []
        name, *options = options
    return RECIPES[name], options


def cards(chapter: str) -> dict[str, str]:
    """Name -> text of each card of a chapter."""
    [body] = re.findall(rf"^## {chapter}\n(.*?)(?=^## |\Z)", CARDS, re.MULTILINE | re.DOTALL)
    headed = re.split(r"^### `(\w+)`", body, flags=re.MULTILINE)[1:]
    return dict(zip(headed[::2], headed[1::2], strict=True))


def tables(text: str) -> Iterator[list[str]]:
    """The cells of each row of the Markdown tables in a text."""
    for line in text.splitlines():
        if line.lstrip().startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


# Cards


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_name_has_a_card_and_every_card_a_name(chapter: str):
    assert set(cards(chapter)) == set(CHAPTERS[chapter])


@pytest.mark.parametrize("chapter", ["Criteria", "Objectives", "Methods"])
def test_a_card_names_the_sources_of_its_code(chapter: str):
    for name, card in cards(chapter).items():
        code = sys.modules[CHAPTERS[chapter][name].__module__].__doc__ or ""
        sources = re.findall(r"\d{4}\.\d{5}|10\.\d{4,}/[\w./-]+\w", code)
        assert [source for source in sources if source not in card] == [], name


def shown(value: Any) -> str:
    """A default as the table writes it."""
    if value is None or isinstance(value, bool):
        return {None: "none", False: "off", True: "on"}[value]
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def settings(config: Any) -> str:
    """The settings of a criterion or objective and their defaults, without its teacher."""
    fields = [field for field in dataclasses.fields(config) if field.name != "teacher"]
    return ", ".join(f"{field.name.replace('_', '-')} {shown(getattr(config, field.name))}" for field in fields)


def test_the_table_of_names_has_every_name_label_and_default():
    options = {
        "--method": {name: [config().label, ""] for name, config in METHODS.items()},
        "--criterion": {name: [config().label, settings(config())] for name, config in CRITERIA.items()},
        "--distillation": {name: [config().label, settings(config())] for name, config in OBJECTIVES.items()},
        "--method.allocation": {name: [f"({name})" if name != "global" else "", ""] for name in ALLOCATIONS},
    }
    wanted = [[f"`{option}`", f"`{name}`", *rest] for option, of in options.items() for name, rest in of.items()]
    found = [row for row in tables(CARDS) if row[0].strip("`") in options and len(row) == 4]
    assert sorted(found) == sorted(wanted)


def test_the_pages_are_short_enough_to_read():
    assert len(CONTRIBUTING.splitlines()) < 225
    assert len(CARDS.splitlines()) < 480


# Commands


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_pages_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    best = tmp_path / "storage/sweeps/IDENTITY/best.toml"
    best.parent.mkdir(parents=True)
    best.write_text("[kinds]\n[values]\n")
    given = commands(PAGES[page])
    assert len(given) >= {"README": 8, "methods": 15, "data": 4, "recipes": 20, "search": 5}.get(page, 0)
    for words in given:
        if words[0] == "pipelines/prepare.py":
            prepare._parser().parse_args(words[1:])
            continue
        if words[0] == "pipelines/sweep.py":
            assert search.sweeps(*search.parser().parse_known_args(words[1:]))
            continue
        recipe, options = recipe_of(words)
        if recipe is None or "--help" in options:
            continue
        named = {"NAME": "snip" if "--criterion" in options else "cs_kd"}
        try:
            cli.parse(recipe, [named.get(word, word) for word in options])
        except (ValueError, SystemExit) as error:
            pytest.fail(f"{shlex.join(words)}: {error}")


def test_commands_are_found_and_wrong_ones_fail():
    text = "    ray job submit -- python pipelines/a.py --x 1   # why\n`python pipelines/b.py`\nsee `pipelines/c.py`\n"
    assert commands(text) == [["pipelines/a.py", "--x", "1"], ["pipelines/b.py"]]
    with pytest.raises(AssertionError, match=r"there is no pipelines/a\.py"):
        recipe_of(["pipelines/a.py"])
    with pytest.raises(SystemExit):
        cli.parse(RECIPES["digits_epsd"], ["--method.no-such-thing", "1"])
    with pytest.raises(ValueError, match=r"did you mean method\.sparsity"):
        search.sweeps(*search.parser().parse_known_args(["digits_epsd", "--vary", "method.sparsty"]))


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/methods.md", "docs/search.md", "ARCHITECTURE.md"])
def test_files_that_a_page_names_exist(name: str):
    text = (ROOT / name).read_text()
    paths = {*re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.md)`", text), *re.findall(r"\]\((?!http)([^)#]+)", text)}
    ours = {path for path in paths if path.split("/")[0] in {item.name for item in ROOT.iterdir()}}
    new = {path for path, _ in examples()}
    inside = {"compression", "cluster", "pipelines", "benchmarks"}
    beside = [ROOT, *(ROOT / package for package in inside)]
    assert len(ours) >= 2
    assert [path for path in sorted(ours - new) if not any((folder / path).exists() for folder in beside)] == []


# What things cost


def batch() -> Batch:
    """Two images of half the width: the ratios of FLOPs are the same."""
    images = torch.randn(3, 2, 3, 16, 16)
    return Batch(images[0], torch.arange(2), torch.arange(2), images[1], images[2])


def costs_in_the_page() -> Iterator[tuple[str, list[float]]]:
    """(name, its numbers) from the tables of the last chapter."""
    for row in tables(CARDS[CARDS.index("## What scoring and training cost") :]):
        numbers = [float(cell) for cell in row if re.fullmatch(r"[\d.]+", cell)]
        yield from ((name, numbers) for name in re.findall(r"`(\w+)`", row[0]) if numbers)


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, float]:
    """The network of the page, and the FLOPs of its dense training step."""
    model = models.build("resnet20", num_classes=10)
    return model, cost.training_flops(model, CrossEntropy(), batch()) * 2


def test_the_costs_in_the_page_are_those_counted(network: tuple[nn.Module, float]):
    model, step = network
    stated = {name: numbers[0] for name, numbers in costs_in_the_page() if len(numbers) == 1}
    assert set(stated) == {*OBJECTIVES, *CRITERIA} - {"synflow"}
    teacher = models.build("resnet20", num_classes=10)
    for name, config in OBJECTIVES.items():
        objective = config().objective(teacher) if hasattr(config, "teacher") else config().objective()
        assert cost.training_flops(model, objective, batch()) * 2 / step == pytest.approx(stated[name], abs=0.006)
    for name in set(CRITERIA) - {"synflow"}:
        config = CRITERIA[name]()
        flops = scoring_flops(model, config.score, CrossEntropy(), config.num_batches(CrossEntropy()))
        assert config.rounds * flops / step == pytest.approx(stated[name], rel=0.005)


def scoring_flops(model: nn.Module, score: Criterion, objective: Objective, num: int) -> int:
    given = [batch() for _ in range(num)]
    return cost.count_flops(lambda: score(model, given, objective))[1]


def test_the_costs_of_scoring_by_self_distillation_are_those_counted(network: tuple[nn.Module, float]):
    model, step = network
    stated = {name: numbers for name, numbers in costs_in_the_page() if len(numbers) == 2}
    assert set(stated) == {"cross_entropy", "ps_kd", "cs_kd", "dlb"}
    for name, numbers in stated.items():
        objective = OBJECTIVES[name]().objective()
        for number, first_order in zip(numbers, (False, True), strict=True):
            score = functools.partial(prospr, first_order=first_order)
            flops = scoring_flops(model, score, objective, objective.scoring_batches(3))
            assert flops / step == pytest.approx(number, rel=0.005)


# The worked example


def examples() -> list[tuple[str, str]]:
    """(file, contents) of each Python example; the text before it names the file."""
    parts = re.split(r"^```python\n(.*?)^```$", CONTRIBUTING, flags=re.MULTILINE | re.DOTALL)
    return [
        (re.findall(r"`([\w/]+\.py)`", before)[-1], code) for before, code in zip(parts[::2], parts[1::2], strict=False)
    ]


def changes() -> dict[str, list[str]]:
    """File -> lines of the diff that belong to it."""
    [diff] = re.findall(r"^```diff\n(.*?)^```$", CONTRIBUTING, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^# (.+)\n", diff, flags=re.MULTILINE)[1:]
    return {path: text.splitlines() for path, text in zip(parts[::2], parts[1::2], strict=True)}


def changed(text: str, lines: list[str]) -> str:
    """`text` after the lines of a diff; each old line is searched for after the previous one."""
    old, new, waiting = text.splitlines(), [], []
    for mark, line in ((line[0], line[1:]) for line in lines):
        if mark == "+":
            # Added lines before the first old line go above it.
            (new if new else waiting).append(line)
            continue
        assert line in old, f"there is no line {line!r}, or it comes earlier"
        place = old.index(line)
        new += [*old[:place], *waiting, *([line] if mark == " " else [])]
        old, waiting = old[place + 1 :], []
    return "\n".join([*new, *old]) + "\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with everything that CONTRIBUTING.md adds."""
    root = tmp_path_factory.mktemp("copy")
    for package in ("compression", "cluster", "pipelines"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for path, code in examples():
        assert not (root / path).exists()
        (root / path).write_text(code)
    for path, lines in changes().items():
        (root / path).write_text(changed((root / path).read_text(), lines))
    return root


RUN = """
import sys
from pathlib import Path

import compression
from cluster.checkpoints import save_tensors
from cluster.group import Group
from cluster.launch import launch
from compression import artifact
from pipelines import cli
from pipelines.execute import Work, execute
from pipelines.experiment import Placement
from pipelines.recipes import RECIPES

assert Path(compression.__file__).is_relative_to(Path.cwd())
storage = Path.cwd() / "storage"
works = []
for line in sys.stdin:
    recipe, *options = line.split()
    experiment = cli.parse(RECIPES[recipe], options).experiment
    works.append(Work(experiment, Placement(), storage, {}))
for outcome in launch(execute, works, Group(storage=str(storage)), lambda number, event: None):
    assert outcome.error is None, outcome.traceback
folders = [storage / "runs" / work.experiment.identity for work in works]
for folder in folders:
    weights = {name: weight.detach() for name, weight in artifact.load(folder).named_parameters()}
    save_tensors(folder / "loaded.safetensors", weights)
print(*folders)
"""


@pytest.fixture(scope="module")
def runs(copy: Path) -> list[Path]:
    """The folders of the runs that CONTRIBUTING.md starts, in its order, run in the copy."""
    given = [words[1:] if words[0] == "pipelines/run.py" else words for words in commands(CONTRIBUTING)]
    lines = [" ".join([Path(recipe).stem, *options]) for recipe, *options in given]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input="\n".join(lines),
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [Path(folder) for folder in done.stdout.split()]


def test_the_examples_are_five_files_and_their_registration():
    assert [path for path, _ in examples()] == [
        "compression/criteria/gradient.py",
        "compression/objectives/confidence.py",
        "compression/methods/shuffled.py",
        "compression/models/small.py",
        "pipelines/recipes/small.py",
    ]
    added = [line for lines in changes().values() for line in lines if line.startswith("+")]
    assert len(added) == 5 * 2, "an import and a line in the registry"


def test_a_diff_is_applied_in_the_right_place():
    assert changed("a\nb\nc\n", ["+0", " a", "-b", "+B", " c", "+d"]) == "0\na\nB\nc\nd\n"
    with pytest.raises(AssertionError, match="no line 'a'"):
        changed("a\nb\n", [" b", " a"])


def test_ruff_accepts_the_examples(copy: Path):
    files = [*(path for path, _ in examples()), *changes()]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *files], cwd=copy, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def defined(path: str) -> dict[str, Any]:
    """What an example's file defines, without registering it."""
    space: dict[str, Any] = {"__name__": "example"}
    exec(compile(dict(examples())[path], path, "exec", dont_inherit=True), space)
    return space


def test_the_criterion_of_the_example_scores_by_the_gradient():
    linear = nn.Linear(2, 2, bias=False).double()
    nn.init.zeros_(linear.weight)
    model = nn.Sequential(nn.Flatten(), linear)
    one = Batch(torch.tensor([[[[3.0, -5.0]]]], dtype=torch.float64), torch.tensor([1]), torch.tensor([0]))
    scores = defined("compression/criteria/gradient.py")["gradient"](model, [one], CrossEntropy())
    # softmax - onehot is (1/2, -1/2) at equal logits.
    torch.testing.assert_close(scores["1.weight"], torch.tensor([[1.5, 2.5], [1.5, 2.5]], dtype=torch.float64))


def test_the_objective_of_the_example_rewards_uncertainty():
    objective = defined("compression/objectives/confidence.py")["Confidence"](weight=0.25)
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    losses = objective(lambda images: logits, Batch(torch.zeros(2, 1), torch.tensor([0, 0]), torch.arange(2)))
    entropy = (math.log(2) + (0.75 * math.log(4 / 3) + 0.25 * math.log(4))) / 2
    assert float(losses["cross_entropy"]) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert float(losses["confidence"]) == pytest.approx(-0.25 * entropy)


def test_the_method_of_the_example_keeps_the_number_of_weights_of_each_layer_but_not_their_places():
    model = models.build("resnet20", num_classes=10)
    masks = global_topk(magnitude(model), 0.9)
    shuffle = defined("compression/methods/shuffled.py")["shuffle"]
    drawn, again, other = shuffle(masks, 0), shuffle(masks, 0), shuffle(masks, 1)
    assert {name: int(mask.sum()) for name, mask in drawn.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert all(torch.equal(drawn[name], again[name]) for name in masks)
    assert not any(torch.equal(drawn[name], other[name]) for name in masks)
    assert not any(torch.equal(drawn[name], masks[name]) for name in masks)


def stored_masks(run: Path, sparsity: float) -> Mapping[str, torch.Tensor]:
    """The masks that follow from the stored scores of a run."""

    order = json.loads((run / "stages" / "score" / "stage.json").read_text())["order"]
    scores = load_tensors(run / "stages" / "score" / "result.safetensors")
    return global_topk({name: scores[name] for name in order}, sparsity)


def test_criterion_and_objective_of_the_example_prune_and_train(runs: list[Path]):
    result = json.loads((runs[0] / "result.json").read_text())
    assert result["name"] == "gradient + confidence at 0.95, resnet20 on digits, seed 0"
    assert result["metrics"]["test/accuracy"] > 0.1
    network = load_tensors(runs[0] / "loaded.safetensors")
    masks = stored_masks(runs[0], 0.95)
    assert all(not network[name][~mask].any() for name, mask in masks.items())
    assert sum(int(network[name].count_nonzero()) for name in masks) >= 0.99 * sum(int(m.sum()) for m in masks.values())


def test_method_and_model_of_the_example_train_and_their_artefact_loads(runs: list[Path]):
    result = json.loads((runs[1] / "result.json").read_text())
    assert result["name"] == "SNIP, shuffled + CE at 0.5, small on digits, seed 0"
    shuffle = defined("compression/methods/shuffled.py")["shuffle"]
    masks = shuffle(stored_masks(runs[1], 0.5), 0)
    network = load_tensors(runs[1] / "loaded.safetensors")
    assert {name: int(network[name].count_nonzero()) for name in masks} == {n: int(m.sum()) for n, m in masks.items()}
    assert all(not network[name][~mask].any() for name, mask in masks.items())


def test_a_recipe_of_the_example_has_its_own_options(runs: list[Path]):
    result = json.loads((runs[2] / "result.json").read_text())
    assert result["name"] == "magnitude, shuffled + CE at 0.5, small on digits, seed 0"
    assert result["experiment"]["training"]["epochs"] == 1


def test_the_examples_are_registered_only_in_the_copy(runs: list[Path]):
    assert len(runs) == 3
    assert "gradient" not in CRITERIA
    assert "confidence" not in OBJECTIVES
    assert "small" not in MODELS
