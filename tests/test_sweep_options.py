"""The command line of a sweep: what it asks for, what it refuses before anything starts, and which sweeps are one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compression.methods import EPSD
from compression.spaces import Choices, IntRange, LogRange, Range, Space
from pipelines import sweep
from pipelines.search import options as asked
from pipelines.search import spaces
from pipelines.search.options import Sweep
from pipelines.search.plan import Limits, Plan
from pipelines.search.sweep import Swept, identity_of
from pipelines.search.trial import Goal, Trial
from tests.sweep_runs import plan

SPARSITY, STEPS, INNER_LR = "method.sparsity", "method.inner_steps", "method.inner_lr"
DISTILLATION = ["method.distillation.temperature", "method.distillation.weight"]


def asked_for(*words: str) -> list[Sweep]:
    options, rest = asked.parser().parse_known_args(["digits_epsd", *words])
    return asked.sweeps(options, rest)


# What is refused

REFUSED = [
    (
        ["--vary", "method.sparsty=0.8,0.9"],
        "the experiment has no value 'method.sparsty'; did you mean method.sparsity?",
    ),
    (["--vary", "method.sparsity="], "method.sparsity: there are no values: write a list like A,B,C, a range"),
    (["--vary", "method.sparsity=0.9,,0.8"], "method.sparsity: '0.9,,0.8' lacks a value: write a list like A,B,C"),
    (["--vary", "method.sparsity=0.9..0.9"], "method.sparsity: 0.9..0.9 is one value and no range: write 0.9"),
    (["--vary", "method.sparsity=0.9..0.5"], "method.sparsity: 0.9..0.5 is reversed: write the smaller number first"),
    (["--vary", "method.sparsity=0.5,0.5"], "method.sparsity: 0.5,0.5 has 0.5 twice: write each value once"),
    (
        ["--vary", "method.inner_lr=log(0,1)"],
        "method.inner_lr: a log range cannot contain 0: let log(0,1) start above it",
    ),
    (["--vary", "method.inner_steps=1,two"], "method.inner_steps: 'two' is not a whole number"),
    (["--vary", "method.sparsity=0.5..1.5"], "method.sparsity=1.5: sparsity is the share of weights removed"),
    (["--vary", "method.sparsity=-0.5..0.5"], "method.sparsity=-0.5: sparsity is the share of weights removed"),
    (["--vary", "method.sparsity=0.5,1.0,0.9"], "method.sparsity=1: sparsity is the share of weights removed"),
    (["--vary", "method.inner_steps=-1..3"], "method.inner_steps=-1: the number of inner steps must be 0 or more"),
    (["--vary", "method.inner_steps=-1..1000000000000"], "method.inner_steps=-1: the number of inner steps must be 0"),
    (["--vary", "method.sparsity", "--vary", "method.sparsity=0.5,0.9"], "method.sparsity is given twice: give all"),
    (
        ["--vary", "method.sparsity=0.5,0.9", "--method.sparsity", "0.5"],
        "method.sparsity is given as an option and in --vary",
    ),
    (["--vary", "seed=1,2"], "the seed is no setting to search: --confirm repeats the best over several seeds"),
    (["--search", "grid", "--vary", "method.inner_steps=1..10001"], "a grid of 10,001 points is more than 10,000"),
    (["--search", "grid", "--vary", "method.inner_steps=1..1000000000000"], "a grid of 1,000,000,000,000 points is"),
    (["--search", "optunna"], "there is no search 'optunna'; did you mean optuna? There are: random, grid, optuna"),
    (["--scheduler", "asah"], "there is no scheduler 'asah'; did you mean asha? There are: asha, none"),
    (["--objective", "loss"], "--objective loss: give accuracy, or accuracy,COST with one of effective_macs"),
    (["--objective", "latency,accuracy"], "--objective latency,accuracy: give accuracy, or accuracy,COST"),
    (["--objective", "accuracy,latency,parameters"], "--objective accuracy,latency,parameters: give accuracy, or"),
    (
        ["--objective", "accuracy,macs"],
        "there is no cost 'macs'; did you mean effective_macs? There are: effective_macs",
    ),
    (["--objective", "accuracy,latency", "--scheduler", "asha"], "asha compares accuracies alone and would stop the"),
    (["--methods", "epsd,epsd"], "--methods epsd,epsd names a method twice: give each once"),
    (["--methods", "epsd,"], "--methods epsd, has an empty name: give names with a comma between two"),
    (["--methods", "epsd,dnse"], "there is no method 'dnse'; did you mean dense? There are: dense"),
    (["--methods", "epsd", "--method", "dense"], "--method and --methods exclude each other: give all methods to"),
    (["--methods", "epsd", "--method=dense"], "--method and --methods exclude each other: give all methods to"),
    (["--method", "pretrained"], "pretrained trains nothing: give a --method that has settings to search"),
    (["--confirm", "1", "0"], "--confirm 0 is the seed of the search itself: confirm with other seeds"),
    (["--seed", "7", "--confirm", "7"], "--confirm 7 is the seed of the search itself: confirm with other seeds"),
    (["--confirm", "1", "2", "1"], "--confirm 1 2 1 names a seed twice: give each once"),
    (["--confirm-front"], "--confirm-front needs seeds: give --confirm SEED SEED..."),
    (["--seeds", "1", "2"], "a sweep has one seed: give --seed, and --confirm to repeat the best over other seeds"),
    (["--launcher", "local"], "leave out --launcher: a sweep runs on Ray, on this machine or on the cluster at RAY"),
    (["--launcher=ray"], "leave out --launcher: a sweep runs on Ray, on this machine or on the cluster at RAY"),
    (["--data.val-fraction", "0"], "a sweep chooses on the validation split, which is empty: set --data.val-fraction"),
    (["--trials", "0"], "--trials must be above 0, not 0"),
    (["--parallel", "-1"], "--parallel must be above 0, not -1"),
    (["--gpus-per-trial", "0"], "--gpus-per-trial must be above 0, not 0"),
    (["--max-dense-epochs", "nan"], "--max-dense-epochs must be above 0, not nan"),
    (
        [
            word
            for name in (SPARSITY, STEPS, INNER_LR, *DISTILLATION)
            for word in (f"--{name}", "1" if name != SPARSITY else "0.9")
        ],
        " is given: leave one out, or name it in --vary",
    ),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words)[:60] for words, _ in REFUSED])
def test_what_is_wrong_is_said_in_a_line_before_anything_starts(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sweep, "run", lambda *_: pytest.fail("it was started"))
    storage = tmp_path / "storage"
    assert sweep.main(["digits_epsd", "--storage", str(storage), *words]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.out == ""
    assert not storage.exists()


def test_an_unknown_recipe_is_refused(capsys: pytest.CaptureFixture[str]):
    assert sweep.main(["digits_epds"]) == 2
    assert "there is no recipe 'digits_epds'; did you mean digits_epsd?" in capsys.readouterr().err


# What is asked for


def test_without_options_the_spaces_of_the_method_and_its_distillation_are_searched():
    [found] = asked_for()
    assert found.method == "epsd"
    assert list(found.plan.space) == [*DISTILLATION, SPARSITY, STEPS, INNER_LR]
    assert (found.plan.search, found.plan.scheduler, found.plan.goal, found.fixed) == ("optuna", "asha", Goal(), [])
    options, _ = asked.parser().parse_known_args(["digits_epsd"])
    assert asked.limits(options) == Limits(20, None)


def test_options_that_are_given_are_not_searched():
    [found] = asked_for("--method.sparsity", "0.9", "--method.inner-steps=2", "--training.epochs", "4")
    assert found.fixed == [SPARSITY, STEPS]
    assert list(found.plan.space) == [*DISTILLATION, INNER_LR]
    assert found.plan.experiment.method == EPSD(sparsity=0.9, inner_steps=2)
    assert found.plan.epochs == 4
    [switched] = asked_for("--method", "dense", "--training.optimizer.no-nesterov", "--training.optimizer.lr", "0.1")
    assert switched.fixed == ["training.optimizer.lr", "training.optimizer.nesterov"]
    assert list(switched.plan.space) == ["training.optimizer.momentum", "training.optimizer.weight_decay"]


def test_vary_replaces_the_spaces():
    spaces_asked: dict[str, tuple[str, Space]] = {
        SPARSITY: ("0.8,0.9,0.95", Choices((0.8, 0.9, 0.95))),
        STEPS: ("1..4", IntRange(1, 4)),
        "training.optimizer.lr": ("log(0.01,0.5)", LogRange(0.01, 0.5)),
        "method.distillation.temperature": ("1..20", Range(1.0, 20.0)),
        "method.chunk_size": ("None", Choices((None,))),
    }
    words = [word for name, (text, _) in spaces_asked.items() for word in ("--vary", f"{name}={text}")]
    [found] = asked_for(*words)
    assert found.plan.space == {name: space for name, (_, space) in spaces_asked.items()}
    assert found.fixed == []
    [named] = asked_for("--vary", "method.inner-lr")
    assert named.plan.space == {INNER_LR: spaces.own(found.plan.experiment)[INNER_LR]}


def test_methods_are_searched_alike():
    words = ["--methods", "epsd,early_pruning", "--trials", "7", "--max-dense-epochs", "50", "--search", "random"]
    options, rest = asked.parser().parse_known_args(["digits_epsd", *words, "--training.epochs", "3", "--seed", "4"])
    first, second = asked.sweeps(options, rest)
    assert (first.method, second.method) == ("epsd", "early_pruning")
    assert asked.limits(options) == Limits(7, 50.0)
    for found in (first, second):
        assert (found.plan.search, found.plan.scheduler, found.plan.epochs, found.plan.experiment.seed) == (
            *("random", "asha"),
            *(3, 4),
        )
        assert found.words == ["--training.epochs", "3", "--seed", "4", "--method", found.method]
        assert found.plan.space == spaces.own(found.plan.experiment)
    assert first.plan.experiment.training == second.plan.experiment.training
    assert identity_of(first.plan) != identity_of(second.plan)


def test_a_cost_switches_the_scheduler_off():
    [found] = asked_for("--objective", "accuracy,effective_macs")
    assert (found.plan.scheduler, found.plan.goal.names) == ("none", ["accuracy", "effective_macs"])
    assert asked_for("--scheduler", "none")[0].plan.scheduler == "none"


def test_ends_of_a_huge_range_are_checked_without_listing_it():
    [found] = asked_for("--search", "random", "--vary", "method.inner_steps=0..1000000000000000")
    assert found.plan.space[STEPS].size == 10**15 + 1


def test_the_best_of_another_sweep_are_defaults_that_are_searched(tmp_path: Path):
    path = tmp_path / "best.toml"
    path.write_text('[kinds]\n"method" = "EPSD"\n\n[values]\n"method.sparsity" = 0.625\n')
    [found] = asked_for("--from", str(path))
    assert (getattr(found.plan.experiment.method, "sparsity", None), SPARSITY in found.plan.space) == (0.625, True)
    path.write_text('[kinds]\n"method" = "PDD"\n\n[values]\n')
    with pytest.raises(ValueError, match=r"best\.toml has values of PDD for method.* add --method pdd"):
        asked_for("--from", str(path))


# The identity of a sweep


def failed(number: int, error: str) -> Trial:
    return Trial(number, {}, str(number), "failed", error=error)


@pytest.mark.parametrize(
    ("trials", "lost", "expected"),
    [
        ([], {}, "no trial is finished\n"),
        ([failed(0, "no space"), failed(1, "no space")], {}, "every trial failed:\n  2 times: no space\n"),
        (
            [Trial(0, {}, "a"), Trial(1, {}, "b"), Trial(2, {}, "c")],
            {2: "full", 0: "full", 1: "gone"},
            "not finished: trial 0, 2: full; start the same command again to go on\n"
            "not finished: trial 1: gone; start the same command again to go on\nno trial is finished\n",
        ),
    ],
    ids=["none was begun", "all failed", "all are lost"],
)
def test_a_sweep_without_a_best_trial_says_why(
    trials: list[Trial], lost: dict[int, str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    swept = Swept(plan(), tmp_path, trials, lost, "", stopped=False)
    assert not sweep.report(swept, Console(width=200))
    assert capsys.readouterr().err == expected


def test_a_method_whose_trials_all_failed_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done = Trial(0, {}, "a", "finished", (0.5,))
    results = {
        "EPSD": [failed(0, "empty")],
        "Dense": [done],
        "EarlyPruning": [Trial(0, {}, "b"), replace(done, number=1)],
    }
    confirmed: list[str] = []

    def swept(of: Plan, *_: Any) -> Swept:
        name = type(of.experiment.method).__name__
        return Swept(
            of, tmp_path / name, results[name], {0: "gone"} if name == "EarlyPruning" else {}, "", stopped=False
        )

    monkeypatch.setattr(sweep, "run_sweep", swept)
    monkeypatch.setattr(sweep, "confirm", lambda each, *_: confirmed.append(each.folder.name) or 0)
    words = ["digits_epsd", "--methods", "epsd,dense,early_pruning", "--storage", str(tmp_path)]
    assert sweep.main(words) == 1
    assert confirmed == ["Dense"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("searching")]
    assert said == ["searching epsd", "searching dense", "searching early_pruning"]
    table = (tmp_path / "EPSD/comparison.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| epsd", "| dense", "| early_pruning"]
    results["EPSD"] = results["EarlyPruning"] = [done]
    assert sweep.main(["digits_epsd", "--methods", "epsd,dense", "--storage", str(tmp_path)]) == 0


def test_equal_plans_are_one_sweep_however_many_trials_they_have():
    words = ["--vary", "method.sparsity=0.8,0.9", "--storage", "somewhere"]
    others = ["--trials", "3", "--parallel", "2", "--max-dense-epochs", "9", "--storage", "else", "--confirm", "9"]
    [one], [two] = asked_for(*words), asked_for(*words, *others)
    assert identity_of(one.plan) == identity_of(two.plan)
    assert len(identity_of(one.plan)) == 16


def test_whatever_decides_which_trials_are_drawn_makes_another_sweep():
    first = plan({SPARSITY: Range(0.0, 1.0), INNER_LR: LogRange(0.1, 1.0)}, "optuna", "asha")
    others: list[dict[str, Any]] = [
        {"space": {SPARSITY: Range(0.0, 1.0)}},
        {"space": {SPARSITY: Range(0.0, 0.9), INNER_LR: LogRange(0.1, 1.0)}},
        {"space": {SPARSITY: Range(0.0, 1.0), INNER_LR: Range(0.1, 1.0)}},
        {"space": {SPARSITY: IntRange(0, 1), INNER_LR: LogRange(0.1, 1.0)}},
        {"space": {INNER_LR: LogRange(0.1, 1.0), SPARSITY: Range(0.0, 1.0)}},  # it is drawn in another order
        {"search": "random"},
        {"scheduler": "none"},
        {"goal": Goal("latency")},
        {"goal": Goal("parameters")},
        {"experiment": replace(first.experiment, seed=6)},
        {"experiment": spaces.at(first.experiment, {"training.epochs": 4})},
    ]
    plans: list[Plan] = [first, *(replace(first, **changed) for changed in others)]
    assert len({identity_of(each) for each in plans}) == len(plans) == 12
    assert identity_of(first) == identity_of(replace(first, space=dict(first.space)))
