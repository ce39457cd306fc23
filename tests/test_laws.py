"""The laws of the code: direction of imports, late imports, module names, and lengths of files and functions."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.blocked import BLOCK

ROOT = Path(__file__).parent.parent
PACKAGES = ("compression", "cluster", "pipelines", "benchmarks")
FORBIDDEN = {
    "compression": {"cluster", "pipelines", "benchmarks"},
    "cluster": {"compression", "pipelines", "benchmarks"},
    "pipelines": {"benchmarks"},
    "benchmarks": set(),
}
LATE = {"ray", "mlflow", "deepspeed", "ffcv", "pyarrow", "optuna", "matplotlib"}
"""Imported inside functions only: training works without them."""

TABLES = "tables"
"""benchmarks/tables.py has the name of the package PyTables, which none of our dependencies imports."""

MAX_FILE, MAX_FUNCTION = 300, 62


def product_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported with the file) for each import, except imports for type checkers only."""

    def visit(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            children: list[ast.AST] = [*node.orelse]
        else:
            children = [*ast.iter_child_nodes(node)]
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "use absolute imports"
            yield node.module or "", at_once
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            [module, *_] = node.args
            assert isinstance(module, ast.Constant), "import modules by a literal name"
            yield str(module.value), at_once
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in children:
            yield from visit(child, at_once and not inside)

    return visit(tree, True)


def broken_import_laws(package: str, source: str) -> list[str]:
    """The imports in a file of `package` that break the laws."""
    found = []
    for module, at_once in imports(ast.parse(source)):
        top = module.partition(".")[0]
        if top in FORBIDDEN[package]:
            found.append(f"imports {module}")
        if top in LATE and (at_once or package == "compression"):
            found.append(f"imports {module} {'at once' if at_once else 'late'}")
    return found


def too_long(source: str) -> list[str]:
    found = [f"{lines} lines"] if (lines := len(source.splitlines())) > MAX_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{node.name} has {length} lines")
    return found


def taken_names(names: set[str]) -> set[str]:
    """The `names` that a module of the standard library or an installed package has."""
    return names & (set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions()))


def test_product_files_are_found():
    files = product_files()
    assert {path.relative_to(ROOT).parts[0] for path in files} == set(PACKAGES)
    assert len(files) > 50
    assert ROOT / "pipelines" / "data" / "loader.py" in files


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_product_files_keep_the_laws(path: Path):
    source = path.read_text()
    assert broken_import_laws(path.relative_to(ROOT).parts[0], source) == []
    assert too_long(source) == []


@pytest.mark.parametrize(
    ("package", "source", "broken"),
    [
        ("compression", "import torch\nfrom compression.batch import Batch", []),
        ("compression", "from cluster.launch import Worker", ["imports cluster.launch"]),
        ("compression", "import torch, pipelines.cli as c", ["imports pipelines.cli"]),
        ("compression", "def f():\n    import benchmarks", ["imports benchmarks"]),
        ("compression", "def f():\n    import ray.train", ["imports ray.train late"]),
        ("compression", "compressions = 1\nimport clusterfuzz", []),
        ("cluster", "from compression import masks", ["imports compression"]),
        ("cluster", "def f():\n    import ray\n    from mlflow import MlflowClient", []),
        ("cluster", "import ray", ["imports ray at once"]),
        ("cluster", "try:\n    import pyarrow.fs\nexcept ImportError:\n    raise", ["imports pyarrow.fs at once"]),
        ("cluster", "class A:\n    from mlflow import x", ["imports mlflow at once"]),
        ("cluster", "if TYPE_CHECKING:\n    import ray", []),
        ("cluster", "if typing.TYPE_CHECKING:\n    pass\nelse:\n    import ray", ["imports ray at once"]),
        ("cluster", "if not TYPE_CHECKING:\n    import ray", ["imports ray at once"]),
        ("cluster", "if DEBUG:\n    import deepspeed", ["imports deepspeed at once"]),
        ("cluster", "import importlib\nx = importlib.import_module('ffcv')", ["imports ffcv at once"]),
        ("cluster", "f = lambda: __import__('ffcv')", []),
        ("pipelines", "import compression, cluster.launch", []),
        ("pipelines", "def f():\n    from benchmarks import tables", ["imports benchmarks"]),
        ("benchmarks", "from pipelines import cli\nimport mlflow", ["imports mlflow at once"]),
    ],
)
def test_the_import_law_is_checked(package: str, source: str, broken: list[str]):
    assert broken_import_laws(package, source) == broken


def test_lengths_are_checked():
    assert too_long("x = 1\n" * MAX_FILE) == []
    assert too_long("x = 1\n" * (MAX_FILE + 1)) == [f"{MAX_FILE + 1} lines"]
    assert too_long("def f():\n" + "    x = 1\n" * (MAX_FUNCTION - 1)) == []
    assert too_long("class A:\n  async def f():\n" + "    x\n" * MAX_FUNCTION) == [f"f has {MAX_FUNCTION + 1} lines"]


@pytest.mark.parametrize("package", ["pipelines", "benchmarks"])
def test_modules_beside_scripts_hide_no_package(package: str):
    # Python puts the folder of a script first on sys.path, so a module there hides other modules of that name.
    names = {p.stem for p in (ROOT / package).iterdir() if p.suffix == ".py" or p.is_dir()} - {
        "__init__",
        "__pycache__",
    }
    assert len(names) > 3
    assert taken_names(names - {TABLES}) == set()


def test_taken_names_are_detected():
    taken = {"compression", "torch", "tyro", "yaml", "PIL", "json", "profile", "queue"}
    assert taken_names(taken | {"digits_epsd", "sweep"}) == taken


WITHOUT = (
    BLOCK
    + """
for name in BLOCKED:
    try:
        __import__(name)
    except ImportError as error:
        assert "is blocked" in str(error)
    else:
        sys.exit(f"{name} is not blocked")

from pathlib import Path

import torch

from cluster.checkpoints import open_storage
from cluster.group import Group
from cluster.launch import launch
from compression import artifact
from compression.methods import EPSD
from pipelines.data.config import Digits
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement, Training
from pipelines.run_folder import RunFolder

storage = open_storage(Path(sys.argv[1]))
experiment = Experiment(EPSD(sparsity=0.9), "resnet20", Digits(), Training(epochs=1))
events = []
work = Work(experiment, Placement(storage=str(storage)), storage, {})
[outcome] = launch(execute, [work], Group(storage=str(storage)), lambda number, event: events.append(event["kind"]))
assert outcome.error is None, outcome.traceback
assert "epoch" in events
model = artifact.load(RunFolder(storage, experiment.identity).path)
assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
print("sparsity", outcome.value["metrics"]["cost/achieved_sparsity"], BLOCKED & set(sys.modules))
"""
)


def test_an_experiment_trains_without_the_optional_packages(tmp_path: Path):
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "storage")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    word, sparsity, left = done.stdout.split()
    assert (word, left) == ("sparsity", "set()")
    assert float(sparsity) == pytest.approx(0.9, abs=1e-4)
