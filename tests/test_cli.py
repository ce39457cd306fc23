"""The command line as a user sees it: help, options, misspellings, bad values, missing data, and whole smoke runs."""

from __future__ import annotations

import json
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import plan
from compression import artifact
from compression.methods import EPSD, Dense, EarlyPruning
from compression.objectives import CrossEntropyConfig, CSKDConfig, PSKDConfig
from pipelines import cli, run
from pipelines.experiment import Experiment, parameters
from pipelines.optimizers import SGD, AdamW, TorchOptimizer
from pipelines.progress import refusing
from pipelines.recipes import (
    RECIPES,
    cifar10_epsd,
    cifar10_pdd,
    cifar100_prune_then_distill,
    digits_epsd,
    imagenet_epsd,
)
from pipelines.teachers import needed
from tests.terminal import run_in_terminal, screen

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem: path for path in sorted((ROOT / "pipelines").glob("*.py")) if path.stem in RECIPES}
"""The entry scripts, each a recipe of the same name."""

WATCHED_SOCKETS = """
import os, socket

def watched(name):
    original = getattr(socket.socket, name)
    def call(self, address):
        if self.family != socket.AF_UNIX:
            with open(os.environ["ASKED_THE_NETWORK"], "a") as file:
                file.write(f"{address}\\n")
            raise ConnectionRefusedError(f"no network in this test: {address}")
        return original(self, address)
    setattr(socket.socket, name, call)

watched("connect")
watched("connect_ex")
"""
"""A sitecustomize.py that records every use of the network, also if the program ignores the error."""


IN_TURN = """
import contextlib, os, pathlib, sys
from pipelines import run

outputs, *runs = sys.argv[1:]
for name, folder in (each.split("=") for each in runs):
    os.chdir(folder)
    with open(pathlib.Path(outputs, name), "w") as file:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            status = run.main([name, "--smoke"])
    if status:
        sys.exit(f"{name}: status {status}\\n{pathlib.Path(outputs, name).read_text()}")
"""
"""Smoke runs of the arguments "recipe=folder", whose output goes to files of the recipe's name."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Standard error without the frames and line breaks of boxes."""
        return re.sub(r"[\s│─╭╮╰╯]+", " ", self.err)


@pytest.fixture
def say(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs `main` with a command line, in an empty working directory."""

    def main(recipe: cli.Recipe | None, *argv: str) -> Said:
        try:
            status: Any = run.main(argv) if recipe is None else cli.main(recipe, argv)
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return Said(status, said.out, said.err)

    return main


def environment(folder: Path) -> dict[str, str]:
    """The environment of a script: no network, a fixed terminal width."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(WATCHED_SOCKETS)
    dropped = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    return {
        **{name: value for name, value in os.environ.items() if name not in dropped},
        "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
        "ASKED_THE_NETWORK": str(folder / "asked"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }


def processor_seconds() -> float:
    """CPU time of all finished child processes; the load of the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# Help


def test_a_script_answers_help_after_little_more_than_its_imports(tmp_path: Path):
    began = processor_seconds()
    command = [sys.executable, SCRIPTS["cifar10_epsd"], "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pipelines/cifar10_epsd.py" in done.stdout
    assert processor_seconds() - began < 10
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_answers_help(
    name: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert len(SCRIPTS) == 5
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS[name]), "--help"])
    monkeypatch.setattr("cluster.exit.exit_process", sys.exit)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS[name]), run_name="__main__")
    assert not ended.value.code
    out = capsys.readouterr().out
    assert f"pipelines/{name}.py" in out
    assert (RECIPES[name].__doc__ or "").splitlines()[0] in out
    assert len(out.splitlines()) <= 60
    for option in ("--method", "--training.optimizer.lr", "--training.epochs", "--seeds", "--help-all"):
        assert option in out
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_help_explains_every_option(recipe: cli.Recipe, say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    said = say(recipe, "--help")
    assert said.status == 0
    assert len(said.out.splitlines()) <= 60, "what people need first"
    assert max(map(len, said.out.splitlines())) <= 120
    for option in (*(item.name for item in fields(cli.options_of(recipe))), "training.epochs", "workers", "help-all"):
        assert re.search(rf"^  --{option.replace('_', '-')}[ ,]", said.out, re.MULTILINE), option
    said = say(recipe, "--help-all")
    assert said.status == 0
    plain = re.sub(r"[│─╭╮╰╯]", " ", said.out)
    options = dict(re.findall(r"^ +--([a-z][\w.-]*)(.*?)(?=^ +--|^ +$)", plain, re.DOTALL | re.MULTILINE))
    for name in leaves(recipe()):
        group, _, last = name.replace("_", "-").rpartition(".")
        assert {f"{group}.{last}".lstrip("."), f"{group}.no-{last}"} & options.keys(), name
    for option, text in options.items():
        explanation = re.sub(r"\(default:.*?\)|\{.*?\}", "", " ".join(text.split()))
        assert re.search(r"[a-z]{3}", explanation), f"--{option} is not explained"


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all values that are not dataclasses."""
    for item in fields(value):
        part = getattr(value, item.name)
        yield from leaves(part, f"{prefix}{item.name}.") if is_dataclass(part) else [prefix + item.name]


def test_help_knows_the_options_of_the_choice(say: Callable[..., Said]):
    words = "--method early_pruning --distillation ps_kd --optimizer adamw"
    said = say(digits_epsd, "--help-all", *words.split())
    assert said.status == 0
    assert "--method.objective.alpha" in said.out
    assert "--training.optimizer.beta1" in said.out
    assert "--method.inner-steps" not in said.out


# Correct options


def parsed(*argv: str, recipe: cli.Recipe = digits_epsd) -> Experiment:
    return cli.parse(recipe, argv).experiment


def test_without_options_the_experiment_is_the_recipes():
    assert parsed() == digits_epsd()
    command = cli.parse(digits_epsd, [])
    assert command.suite == "digits"
    assert command.placement == cli.Placement()


def test_options_change_the_recipes_values():
    experiment = parsed(
        *("--method.sparsity", "0.9", "--seed", "2", "--training.optimizer.lr", "0.05", "--model", "resnet32"),
        *("--training.no-channels-last", "--training.epochs=3", "--data.augmentation.flip"),
    )
    assert isinstance(experiment.method, EPSD)
    assert (experiment.sparsity, experiment.seed, experiment.model) == (0.9, 2, "resnet32")
    assert experiment.training.optimizer == SGD(lr=0.05)
    assert (experiment.training.epochs, experiment.training.channels_last) == (3, False)
    assert experiment.data.augmentation.flip  # pyright: ignore[reportAttributeAccessIssue]
    assert experiment.identity != parsed().identity


def test_placement_is_not_part_of_the_experiment(tmp_path: Path):
    command = cli.parse(digits_epsd, ["--workers", "2", "--storage", str(tmp_path), "--suite", "mine", "--keep", "5"])
    assert (command.placement.workers, command.placement.storage, command.placement.keep) == (2, str(tmp_path), 5)
    assert command.suite == "mine"
    assert command.experiment.identity == parsed().identity
    placed = cli.parse(cifar10_epsd, ["--data.root", str(tmp_path)])
    assert placed.experiment.data.root == str(tmp_path)  # pyright: ignore[reportAttributeAccessIssue]
    assert placed.experiment.identity == parsed(recipe=cifar10_epsd).identity


def test_a_switch_can_be_set_either_way_whatever_its_default():
    assert parsed("--method.first-order", recipe=imagenet_epsd) == parsed(recipe=imagenet_epsd)
    assert not parsed("--method.no-first-order", recipe=imagenet_epsd).method.first_order  # pyright: ignore[reportAttributeAccessIssue]
    assert parsed("--training.channels-last") == parsed()


def test_a_schedule_reaches_the_teacher_or_says_that_it_does_not(capsys: pytest.CaptureFixture[str]):
    epochs = ["--training.epochs", "3"]
    for argv in (["--distillation", "kd"], ["--method", "pdd"], ["--method", "prune_then_distill"]):
        student = parsed(*argv, "--teacher", "resnet32", *epochs)
        [teacher, *_] = needed(student)
        assert (teacher.model, teacher.training) == ("resnet32", student.training)
    assert capsys.readouterr().err == ""
    assert parsed(*epochs, recipe=cifar10_pdd).method.teacher.training.epochs == 200  # pyright: ignore[reportAttributeAccessIssue]
    assert "the teacher keeps its own training (200 epochs): options" in capsys.readouterr().err
    parsed(*epochs, "--method.teacher.training.epochs", "5", recipe=cifar10_pdd)
    parsed("--seed", "3", recipe=cifar10_pdd)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [("fpu avx512f", "float32"), ("fpu avx512_bf16 avx512f", "bfloat16"), ("amx_bf16", "bfloat16")],
)
def test_automatic_precision_is_what_the_processor_computes_in(
    flags: str, chosen: str, here: Path, say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (here / "cpuinfo").write_text(f"model name : avx512_bf16\nflags\t\t: {flags}\n")
    monkeypatch.setattr("pipelines.precision.CPUINFO", here / "cpuinfo")
    argv = ["--training.precision", "auto"]
    assert parsed(*argv) == parsed("--training.precision", chosen), "the stored experiment names what it stands for"
    assert parsed(*argv).identity == parsed("--training.precision", chosen).identity
    assert say(digits_epsd, *argv, "--workers", "-1").out.startswith(f"precision auto is {chosen}: this processor has")
    assert "precision auto" not in say(digits_epsd, "--workers", "-1").out
    given = parsed("--method.gating.precision=auto", recipe=cifar10_pdd).method.gating  # pyright: ignore[reportAttributeAccessIssue]
    assert given.precision == chosen


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_automatic_precision_is_what_the_gpu_computes_in(supported: bool, chosen: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: supported)
    assert parsed("--training.precision", "auto").training.precision == chosen


def test_several_seeds_in_one_command():
    runs = cli.parse(digits_epsd, ["--seeds", "0", "2", "5", "--training.epochs", "3"]).experiments()
    assert runs == [parsed("--training.epochs", "3", "--seed", str(seed)) for seed in (0, 2, 5)]
    runs = cli.parse(cifar10_pdd, ["--seeds", "1", "0"]).experiments()
    assert [(run.seed, run.method.label[:11]) for run in runs] == [
        (1, "PDD, 0.3953"),
        (1, "PDD control"),
        (0, "PDD, 0.3953"),
        (0, "PDD control"),
    ]
    assert [run.seed for run in cli.parse(cifar10_pdd, ["--seeds", "1", "0", "--no-controls"]).experiments()] == [1, 0]
    assert cli.parse(digits_epsd, ["--seed", "4"]).experiments() == [parsed("--seed", "4")]


@pytest.mark.parametrize(
    ("argv", "method"),
    [
        ("--distillation ps_kd", EPSD(PSKDConfig())),
        ("--distillation ps_kd --method.distillation.alpha 0.5", EPSD(PSKDConfig(alpha=0.5))),
        ("--method dense --distillation cross_entropy", Dense(CrossEntropyConfig())),
        ("--method=dense", Dense(CrossEntropyConfig())),
        ("--method=dense --distillation cs_kd", Dense(CSKDConfig())),
        ("--method early_pruning --criterion snip --method.sparsity 0.8", "SNIP + CS-KD"),
        ("--method early_pruning --distillation cross_entropy", "ProsPr + CE"),
    ],
)
def test_a_choice_brings_its_own_options(argv: str, method: Any):
    chosen = parsed(*argv.split()).method
    if isinstance(method, str):
        assert isinstance(chosen, EarlyPruning)
        assert chosen.label == method
    else:
        assert chosen == method


@pytest.mark.parametrize(
    ("argv", "optimizer"),
    [
        ("--optimizer adamw --training.optimizer.lr 0.002", AdamW(lr=0.002)),
        ("--optimizer RMSprop", TorchOptimizer("RMSprop")),
        ("--optimizer adam", TorchOptimizer("Adam")),
        ("--optimizer SGD", SGD(lr=0.1)),
        ("--optimizer Adafactor --method dense", TorchOptimizer("Adafactor")),
    ],
)
def test_optimisers_by_name(argv: str, optimizer: Any):
    assert parsed(*argv.split()).training.optimizer == optimizer


def test_the_experiment_is_shown_whole_before_it_starts(say: Callable[..., Said]):
    argv = ["--method.sparsity", "0.9", "--distillation", "ps_kd"]
    said = say(digits_epsd, *argv, "--verbose", "--workers", "-1")
    assert said.status == 2
    experiment = parsed(*argv)
    first, *lines = said.out.splitlines()
    assert first.startswith(experiment.name)
    assert experiment.identity in first
    assert lines == [f"  {name} = {value}" for name, value in parameters(experiment)]
    assert "  method.sparsity = 0.9" in lines
    assert "  method.distillation = PSKDConfig" in lines


def test_all_runs_are_shown_in_a_few_lines_before_the_first_starts(say: Callable[..., Said]):
    said = say(cifar10_pdd, "--seeds", "3", "4", "--workers", "-1")
    assert said.status == 2
    first, teacher, main, control = said.out.splitlines()
    assert first == "4 runs and 1 for teachers (--verbose: every value)"
    taught = parsed(recipe=cifar10_pdd).method.teacher  # pyright: ignore[reportAttributeAccessIssue]
    assert teacher == (
        f"  teacher: dense, resnet56 on cifar10, seed 0   (identity {taught.identity}): 200 epochs, batch 256, "
        "SGD lr 0.1, float32"
    )
    assert main == (
        "  PDD, 0.3953 of macs removed, resnet20 on cifar10, seeds 3 4: 50 epochs, batch 256, SGD lr 0.01, float32 + "
        "150 epochs, batch 256, SGD lr 0.01, float32"
    )
    assert control == "  PDD control: no teacher, 0.3953 of macs removed, resnet20 on cifar10, seeds 3 4"
    assert "scored to first order; --method.no-first-order" in say(imagenet_epsd, "--workers", "-1").out
    pruned = say(cifar100_prune_then_distill, "--workers", "-1").out
    assert pruned.startswith("4 runs and 2 for teachers")
    assert "  teacher: IMP, restart at 0.7903, vgg19_ptd on cifar100, seed 0" in pruned
    alone = say(digits_epsd, "--workers", "-1").out.splitlines()
    assert alone == [
        "1 run (--verbose: every value)",
        f"  {digits_epsd().name}   (identity {digits_epsd().identity}): 15 epochs, batch 128, SGD lr 0.1, float32",
    ]


def test_old_names_of_options_work_with_a_warning(capsys: pytest.CaptureFixture[str]):
    assert cli.parse(digits_epsd, ["--alone"]).controls is False
    assert "warning: --alone is now --no-controls" in capsys.readouterr().err
    assert cli.renamed(["--alone=1", "--seed", "--alone"]) == ["--no-controls=1", "--seed", "--no-controls"]
    assert cli.parse(digits_epsd, ["--patience=3"]).placement.timeout == 3
    assert cli.parse(digits_epsd, ["--no-alone"]).controls is True


def test_a_smoke_run_has_controls_only_on_request(tmp_path: Path):
    smoke = ["--smoke", "--storage", str(tmp_path)]
    given = {option: cli.parse(digits_epsd, [*smoke, *option]).controls for option in ((), ("--controls",))}
    assert given == {(): False, ("--controls",): True}
    assert cli.parse(digits_epsd, [*smoke, "--no-controls"]).controls is False
    assert cli.parse(digits_epsd, []).controls is True


# Wrong options: status 2, a message that says what to type, and nothing is started


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--method.sparsty 0.9", "--method.sparsity"),
        ("--trainig.epochs 3", "--training.epochs"),
        ("--method epds", "no method 'epds'; did you mean epsd?"),
        ("--distillation cs_k", "no distillation 'cs_k'; did you mean cs_kd?"),
        ("--method early_pruning --criterion prosper", "no criterion 'prosper'; did you mean prospr?"),
        ("--criterion snip", "method epsd has no --criterion; these methods have it: early_pruning"),
        ("--student resnet20", "Unrecognized options: --student"),
        ("--student resnet20", "digits_epsd's own options are --method, --distillation, --criterion, --teacher, --opt"),
        ("--optimizer sdg", "no optimizer 'sdg'; did you mean sgd?"),
        ("--optimizer Rprop", "no optimizer 'rprop'; did you mean rmsprop?"),
        ("--model resnt20", "no model 'resnt20'; did you mean resnet20?"),
        ("--model transformer", "There are: resnet20, "),
        ("--optimizer Muon", "Muon does not update each weight from its own gradient alone"),
        ("--optimizer Adafactor --method early_pruning", "Adafactor does not update"),
        ("--optimizer adam --training.optimizer.name Adan", "did you mean Adam?"),
        ("--method.sparsity 1.0", "must lie in [0, 1), not 1.0"),
        ("--method.sparsity -0.1", "must lie in [0, 1), not -0.1"),
        ("--method.sparsity 95", "for 95.0 % write 0.95"),
        ("--method.sparsity nan", "must lie in [0, 1), not nan"),
        ("--method.inner-lr inf", "--method.inner-lr must be a finite number, not inf"),
        ("--method dense --method.sparsity 0.9", "Unrecognized options: --method.sparsity"),
        ("--training.epochs 0", "must be 1 or more, not 0"),
        ("--training.batch-size 0", "must be 1 or more"),
        ("--training.warmup-epochs 16", "must lie in [0, 15], not 16"),
        ("--training.optimizer.lr -1", "lr must be 0 or more, not -1"),
        ("--training.optimizer.lr nan", "lr must be 0 or more, not nan"),
        ("--training.optimizer.momentum 0 --training.optimizer.nesterov", "above 0 with nesterov"),
        ("--optimizer adamw --training.optimizer.beta2 1", "must lie in [0, 1)"),
        ("--training.precision float16", "bfloat16"),
        ("--data.val-fraction 1", "val_fraction must be at least 0 and below 1"),
        ("--seed two", "--seed: invalid literal for int() with base 10: 'two'"),
        ("--seed -1", "seed must be a whole number from 0 to 2^63 - 1, not -1"),
        ("--seed 9223372036854775808", "seed must be a whole number from 0 to 2^63 - 1, not 9223372036854775808"),
        ("--seeds 0 -1", "seed must be a whole number from 0 to 2^63 - 1, not -1"),
        ("--seeds 0 1 0", "--seeds 0 1 0 names a seed twice"),
        ("--seeds 0 1 --seed 2", "--seed and --seeds exclude each other"),
        ("--seed", "Missing value for argument '--seed'"),
        ("digits", "Unrecognized options: digits"),
        ("--keep 0", "keep must be 1 or more, not 0"),
        ("--checkpoint-steps -1", "checkpoint_steps must be 0 or more, not -1"),
        ("--loader-workers -1", "loader_workers must be 0 or more, not -1"),
        ("--launcher rey", "'ray'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(argv: str, words: str, say: Callable[..., Said], here: Path):
    said = say(digits_epsd, *argv.split())
    assert said.status == 2
    assert words in said.error
    assert said.out == ""
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--strategy deepspeed --deepspeed-config x.json", "there is no DeepSpeed configuration x.json"),
        ("--strategy single --workers 2", "use --strategy ddp"),
        ("--launcher ray --workers 0", "--launcher ray needs --workers 1 or more"),
        ("--workers 2 --parallel 2", "--workers 2 --parallel 1"),
        ("--workers -1", "use 0 or more workers"),
        ("--threads 0", "1 or more for the other two"),
        ("--storage /proc/x", "storage /proc/x cannot be written"),
        ("--storage s3://bucket/x", "is not a local folder: mount it"),
        ("--storage= --smoke", "storage is empty"),
        ("--storage a%20b", "a%20b/mlflow.db: it takes no path with % or ?"),
        ("--storage what?x=1", "what?x=1/mlflow.db: it takes no path with % or ?"),
        (f"--storage {'/'.join(['a' * 99] * 8)}", "at most 480 bytes. Choose another --storage"),
        ("--tracking-uri sqlite:///a%20b.db", "in a%20b.db: it takes no path with % or ?"),
        (f"--storage {'b' * 800}", "cannot be written: File name too long; choose another with --storage"),
        ("--tracking-uri ./mlruns", "tracking URI './mlruns' is not supported: give sqlite:///FILE"),
        ("--smoke yes", "Unrecognized options: yes"),
        ("--smoke --storage /proc/x", "storage /proc/x cannot be written"),
    ],
)
def test_a_wrong_placement_is_refused_before_anything_runs(argv: str, words: str, say: Callable[..., Said], here: Path):
    said = say(digits_epsd, *argv.split())
    assert said.status == 2
    assert words in said.error
    assert "score" not in said.out
    assert not list(here.glob("storage/runs/*"))


def test_a_storage_of_another_format_is_refused(say: Callable[..., Said], here: Path):
    (here / "storage").mkdir()
    (here / "storage" / "orchard.json").write_text('{"format": 99}')
    said = say(digits_epsd)
    assert said.status == 2
    assert "has format 99" in said.err
    assert "choose another folder with --storage" in said.err


def test_a_smoke_run_writes_only_into_a_valid_storage(say: Callable[..., Said], here: Path):
    assert say(imagenet_epsd, "--smoke", "--storage", "s3://bucket/x").status == 2
    assert list(here.iterdir()) == []


# Recipes by name


def test_a_reader_that_goes_ends_a_command_quietly(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`python pipelines/run.py | head -0`: the pipe has no reader."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert run.main([]) == 1
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_help_of_argparse_ends_quietly_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert plan.main(["--help"]) == 1
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_a_broken_pipe_of_something_else_is_an_error(capsys: pytest.CaptureFixture[str]):
    @refusing(ValueError)
    def main() -> int:
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        main()


def test_run_lists_the_recipes(say: Callable[..., Said]):
    for argv in ([], ["--help"]):
        said = say(None, *argv)
        assert said.status == 0
        for name, recipe in RECIPES.items():
            assert f"  {name} " in said.out
            assert (recipe.__doc__ or "").splitlines()[0] in said.out


def test_run_takes_a_recipe_by_its_name(say: Callable[..., Said]):
    said = say(None, "cifar10_epsd", "--help")
    assert said.status == 0
    assert "usage: pipelines/run.py cifar10_epsd" in said.out
    assert "--data.root" in said.out
    said = say(None, "digits_epsd", "--method.sparsity", "2")
    assert said.status == 2
    assert "must lie in [0, 1)" in said.error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("digits_epds", "no recipe 'digits_epds'; did you mean digits_epsd?"),
        ("cifar_epsd --seed 1", "did you mean cifar10_epsd?"),
        ("--seed 1", "There are: digits_epsd, cifar10_epsd, "),
    ],
)
def test_run_names_the_nearest_recipe(argv: str, words: str, say: Callable[..., Said]):
    said = say(None, *argv.split())
    assert said.status == 2
    assert words in said.err
    assert said.out == ""


# Missing data: the run fails, and the message names the folder and the files


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One MLflow file for many runs: creating one takes seconds."""
    return ["--tracking-uri", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"]


def test_missing_archives_are_named(say: Callable[..., Said], here: Path, tracked: list[str]):
    said = say(cifar10_epsd, *tracked)
    assert said.status == 2
    assert "data holds neither cifar-10-python.tar.gz nor cifar-10-batches-py/" in said.err
    assert "--data.root" in said.err
    said = say(cifar10_epsd, *tracked, "--data.root", str(here / "nothing"))
    assert said.status == 2
    assert f"{here}/nothing holds neither" in said.err
    assert not list(here.glob("storage/runs/*"))
    said = say(cifar10_epsd, *tracked, "--data.root", str(here), "--seeds", "0", "1")
    assert said.status == 1
    assert said.err.count(f"{here} holds neither") == 1, "one error, one message"
    assert said.err.count("the same error: EPSD (CS-KD) at 0.95, resnet18_small on cifar10, seed 1") == 1


def test_a_truncated_archive_is_named(say: Callable[..., Said], here: Path, tracked: list[str]):
    (here / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b" + bytes(1000))
    said = say(cifar10_epsd, *tracked, "--data.root", str(here))
    assert said.status == 1
    assert f"{here}/cifar-10-python.tar.gz has md5" in said.err
    assert "incomplete or altered" in said.err


def test_missing_image_folders_are_named(say: Callable[..., Said], here: Path, tracked: list[str]):
    said = say(imagenet_epsd, *tracked)
    assert said.status == 2
    assert "data/imagenet must hold train/<class>/* and val/<class>/*" in said.err
    (here / "train" / "n01440764").mkdir(parents=True)
    (here / "val" / "n01440764").mkdir(parents=True)
    said = say(imagenet_epsd, *tracked, "--data.root", str(here))
    assert said.status == 2
    assert f"no image in {here}/train/n01440764" in said.err


def test_a_failed_run_can_be_started_again(say: Callable[..., Said], here: Path, tracked: list[str]):
    for _ in range(2):
        said = say(cifar10_epsd, *tracked, "--data.root", str(here))
        assert said.status == 1
        assert "already finished" not in said.out
    assert not list(here.glob("storage/runs/*/result.json"))


# Whole runs


@dataclass(frozen=True)
class Smoke:
    name: str
    cwd: Path
    status: int
    output: str

    @property
    def run(self) -> Path:
        """Its own folder; those of its teachers lie beside it."""
        shown = re.sub(r"\s+", "", self.output)  # a terminal breaks long lines
        [folder] = [path for path in (self.cwd / "storage" / "runs").iterdir() if f"network:{path}MLflow" in shown]
        return folder


SMOKES = ("cub_epsd", "digits_epsd", "imagenet_dense", "imagenet_epsd", "imagenet_pdd", "imagenet_prune_then_distill")
"""One recipe of each family; the smoke runs of the CIFAR recipes differ only in that they need no image files."""

WITH_TEACHER = {"imagenet_pdd", "imagenet_prune_then_distill"}
"""Recipes that train a teacher first."""

BEGINS = {
    "imagenet_dense": "dense, resnet20",
    "imagenet_pdd": "PDD, 0.3953 of macs removed",
    "imagenet_prune_then_distill": "PtD (derived student",
}
"""How the names of runs begin; the others begin with EPSD."""

SPARSITIES = {"imagenet_epsd": 0.9, "cub_epsd": 0.9}
"""The others have 0.95."""


@pytest.fixture(scope="module")
def smokes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Smoke]:
    """`--smoke` of each in an empty folder: digits by run.py on a terminal, meanwhile the others in one process."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SMOKES}
    aside = tmp_path_factory.mktemp("aside")
    others = [name for name in SMOKES if name != "digits_epsd"]
    began = processor_seconds()
    with (aside / "printed").open("w") as printed:
        series = subprocess.Popen(
            [sys.executable, "-c", IN_TURN, str(aside), *(f"{name}={folders[name]}" for name in others)],
            env=environment(aside),
            stdout=printed,
            stderr=printed,
        )
    try:
        command = [sys.executable, str(ROOT / "pipelines/run.py"), "digits_epsd", "--smoke"]
        ended = {"digits_epsd": run_in_terminal(command, folders["digits_epsd"], environment(aside))}
        status = series.wait(timeout=600)
    finally:
        series.kill()
    assert (status, (aside / "printed").read_text()) == (0, "")
    ended |= {name: (0, (aside / name).read_text()) for name in others}
    assert processor_seconds() - began < len(SMOKES) * 60, "each takes less than a minute, as promised"
    assert not (aside / "asked").exists(), f"asked the network for {(aside / 'asked').read_text()}"
    return {name: Smoke(name, folders[name], *ended[name]) for name in SMOKES}


@pytest.fixture(params=SMOKES)
def smoke(request: pytest.FixtureRequest, smokes: dict[str, Smoke]) -> Smoke:
    return smokes[request.param]


def test_a_smoke_run_leaves_a_network(smoke: Smoke):
    assert smoke.status == 0, smoke.output
    assert "Traceback" not in smoke.output
    assert [path.name for path in smoke.cwd.iterdir()] == ["storage"]
    result = json.loads((smoke.run / "result.json").read_text())
    sparsity = 0 if smoke.name in BEGINS else SPARSITIES.get(smoke.name, 0.95)
    assert result["metrics"]["cost/achieved_sparsity"] == pytest.approx(sparsity, abs=1e-4)
    assert result["tags"]["recipe"] == smoke.name
    model = artifact.load(smoke.run)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_a_smoke_run_is_tracked(smoke: Smoke):
    from mlflow import MlflowClient

    result = json.loads((smoke.run / "result.json").read_text())
    client = MlflowClient(f"sqlite:///{smoke.cwd}/storage/mlflow.db")
    suite = result["labels"]["dataset"]
    experiment = client.get_experiment_by_name(suite)
    assert experiment is not None
    all_tracked = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in all_tracked} == {"FINISHED"}
    assert {run.data.tags["orchard.identity"] for run in all_tracked} == {
        path.name for path in smoke.run.parent.iterdir()
    }
    [tracked] = [run for run in all_tracked if run.data.tags["orchard.identity"] == smoke.run.name]
    assert tracked.data.metrics["test/accuracy"] == result["metrics"]["test/accuracy"]
    assert tracked.data.tags["orchard.identity"] == result["identity"] == smoke.run.name
    assert {item.path for item in client.list_artifacts(tracked.info.run_id)} == {"model.safetensors", "arch.json"}
    assert tracked.info.run_id in smoke.output


def test_a_smoke_run_shows_its_progress(smoke: Smoke):
    epochs = 1 if smoke.name.startswith(("imagenet", "cub")) else 2
    if smoke.name != "digits_epsd":
        assert "\x1b" not in smoke.output
        first = "train epoch 1" if smoke.name == "imagenet_dense" else r"score\n"
        stage = "teacher's train epoch 1" if smoke.name in WITH_TEACHER else first
        assert re.search(rf"seed 0: {stage}", smoke.output)
        for epoch in range(1, epochs + 1):
            assert re.search(rf"train epoch {epoch}/{epochs}, loss \d+\.\d+, accuracy [\d.]+% val", smoke.output)
        assert re.search(r"finished, test accuracy [\d.]+%\n", smoke.output)
        return
    shown = screen(smoke.output)
    [header] = [number for number, line in enumerate(shown) if line.startswith("experiment")]
    assert re.search(r"seed 0  finished    2/2  ━{14}  \d\.\d{4}  [\d.]+% test", shown[header + 1])
    assert "test accuracy" in shown[header + 2]
    assert smoke.output.count("experiment") > 4, "it was redrawn many times"


def test_a_finished_run_is_not_run_again(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(smoke.cwd)
    before = (smoke.run / "result.json").read_bytes()
    began = time.monotonic()
    assert cli.main(RECIPES[smoke.name], ["--smoke"]) == 0
    assert time.monotonic() - began < 10
    out = capsys.readouterr().out
    assert f"already finished: {BEGINS.get(smoke.name, 'EPSD (CS-KD)')}" in out
    assert "epoch 1" not in out
    accuracy = json.loads(before)["metrics"]["test/accuracy"]
    assert f"test accuracy {accuracy:.2%}\n  network: {smoke.run}\n  MLflow run: " in out
    assert (smoke.run / "result.json").read_bytes() == before


def test_sockets_are_watched(tmp_path: Path):
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert "no network in this test" in done.stderr
    assert (tmp_path / "asked").read_text() == "('127.0.0.1', 9)\n"


def test_ctrl_c_stops_and_says_how_to_resume(say: Callable[..., Said], here: Path, tracked: list[str]):
    def press() -> None:
        give_up = time.monotonic() + 60
        while not list(here.glob("storage/runs/*/stages/train/checkpoints/step-*")) and time.monotonic() < give_up:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    # In tests that a shell started in the background, SIGINT is ignored and Python does not change that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=press).start()
        said = say(digits_epsd, "--training.epochs", "200", *tracked)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.status == 130
    assert "train epoch 1/200" in said.out
    assert said.err == "stopped; start the same command again to resume from the last checkpoint\n"
