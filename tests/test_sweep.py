"""What a sweep knows: its journal, trials, samplers and stops; with runs that train nothing, and no cluster."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.halving import Halving
from cluster.records import CHECKSUM, as_record
from cluster.trials import WAIT
from cluster.worker import STOPPED, Outcome
from compression.spaces import Choices, IntRange, LogRange, Range
from pipelines.search import spaces
from pipelines.search.journal import Journal
from pipelines.search.plan import Plan
from pipelines.search.samplers import SAMPLERS
from pipelines.search.study import DIGITS, MOST_REPEATS, Study, tidy
from pipelines.search.trial import Goal, Trial, front
from tests.sweep_runs import (
    SMALL,
    TOO_SPARSE,
    WIDE,
    DyingJournal,
    FormulaRuns,
    Killed,
    accuracy,
    entries,
    open_study,
    plan,
    play,
    step,
)


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small appends, whose way to the disk is not what is tested."""
    monkeypatch.setattr("pipelines.search.journal.os.fsync", lambda file: None)


# The journal

ENTRIES: list[dict[str, Any]] = [
    {"kind": "draw", "point": {"method.sparsity": 0.1 + 0.2, "method.chunk_size": None}, "identity": "ab"},
    {"kind": "epoch", "number": 0, "epoch": 1, "value": 1e-17, "last": False},
    {"kind": "end", "number": 0, "state": "failed", "error": "two\nlines, é"},
]


def written(folder: Path) -> Journal:
    journal = Journal(folder / "journal.jsonl")
    for entry in ENTRIES:
        journal.append(entry)
    return journal


def test_a_journal_reads_back_what_was_written(tmp_path: Path):
    assert list(Journal(tmp_path / "journal.jsonl").read()) == []
    assert not (tmp_path / "journal.jsonl").exists()
    assert list(written(tmp_path).read()) == ENTRIES
    assert len((tmp_path / "journal.jsonl").read_bytes().splitlines()) == 3


def test_a_torn_last_line_is_cut_wherever_it_was_torn(tmp_path: Path):
    journal = written(tmp_path)
    whole = journal.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    begin = len(lines[0]) + len(lines[1])
    for length in range(begin, len(whole)):
        journal.path.write_bytes(whole[:length])
        assert list(journal.read()) == ENTRIES[:2]
        assert journal.path.read_bytes() == whole[:begin]
    journal.append(ENTRIES[2])
    assert journal.path.read_bytes() == whole
    journal.path.write_bytes(lines[0][:-1])
    assert list(journal.read()) == []
    assert journal.path.read_bytes() == b""


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("damage", ["edited", "cut", "empty", "no checksum", "a list", "zeros"])
def test_a_damaged_line_is_refused_by_its_number(damage: str, number: int, tmp_path: Path):
    journal = written(tmp_path)
    lines = journal.path.read_bytes().splitlines()
    record = json.loads(lines[number - 1])
    edited = {**record, "kind": "other"}
    without = {key: value for key, value in record.items() if key != CHECKSUM}
    lines[number - 1] = {
        "edited": json.dumps(edited).encode(),
        "cut": lines[number - 1][:-2],
        "empty": b"",
        "no checksum": json.dumps(without).encode(),
        "a list": b"[1]",
        "zeros": bytes(8),
    }[damage]
    journal.path.write_bytes(b"\n".join(lines) + b"\n")
    before = journal.path.read_bytes()
    with pytest.raises(
        ValueError, match=rf"journal.jsonl, line {number}, is damaged or was edited.* Delete {tmp_path}"
    ):
        list(journal.read())
    assert journal.path.read_bytes() == before


@pytest.mark.parametrize(("order", "number"), [((0, 2), 2), ((1, 2), 1), ((0, 0, 1, 2), 2), ((0, 2, 1), 2)])
def test_whole_lines_that_are_missing_doubled_or_moved_are_refused(order: Sequence[int], number: int, tmp_path: Path):
    journal = written(tmp_path)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[place] for place in order))
    with pytest.raises(ValueError, match=f"line {number}, is damaged or was edited"):
        list(journal.read())


def test_an_empty_line_alone_is_refused(tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path.write_bytes(b"\n")
    with pytest.raises(ValueError, match="line 1, is damaged"):
        list(journal.read())


# Killed and started again

PLANS = [
    *(plan(SMALL, search, scheduler) for search in SAMPLERS for scheduler in ("asha", "none")),
    *(plan(SMALL, search, "none", "effective_macs") for search in SAMPLERS),
    plan(WIDE, "optuna", "asha"),
    plan(WIDE, "optuna", "none", "effective_macs"),
]


MOMENTS = ("before", "after", "torn")


def name_of(each: Plan) -> str:
    space = "small" if each.space is SMALL else "wide"
    return f"{each.search}-{each.scheduler}-{len(each.goal.names)}-{space}"


def runs_of(of: Plan) -> FormulaRuns:
    """Some fail, and a colleague has finished two."""
    runs = FormulaRuns(of.goal, teacher=("t", 2.0), fails=lambda each: getattr(each.method, "sparsity", 0) > TOO_SPARSE)
    for point in ({"method.sparsity": 0.5}, {"method.sparsity": 0.9}):
        runs.finish(spaces.at(of.experiment, {**point, "method.first_order": True, "method.chunk_size": 32}))
    return runs


@pytest.mark.parametrize("of", PLANS, ids=name_of)
def test_a_sweep_killed_at_any_moment_ends_as_the_undisturbed_one(of: Plan, tmp_path: Path, no_sync: None):
    num = 8 if of.search == "optuna" and of.space is SMALL else 13  # it draws the best points again and again
    undisturbed, runs = tmp_path / "undisturbed", runs_of(of)
    undisturbed.mkdir()
    trials = play(open_study(undisturbed, runs, of, num), runs)
    expected = entries(undisturbed)
    assert len(trials) == num
    assert all(count == 1 for count in runs.ends.values())
    kinds = Counter(entry["kind"] for entry in expected)
    assert kinds["draw"] == num
    if of.space is SMALL:
        assert {"failed", "finished"} <= {trial.state for trial in trials}
        assert any("chunk_size needs first_order" in (trial.error or "") for trial in trials)
        assert (kinds["repeat"] > 0) == (of.search != "grid")
    assert any(trial.state == "stopped" for trial in trials) == (of.scheduler == "asha")

    for left in range(len(expected)):
        for moment in MOMENTS if of is PLANS[0] else [MOMENTS[left % 3]]:
            path, runs = tmp_path / "journal.jsonl", runs_of(of)
            path.unlink(missing_ok=True)
            with pytest.raises(Killed):
                play(open_study(DyingJournal(path, left, moment), runs, of, num), runs)
            assert entries(tmp_path) == expected[:left]
            assert play(open_study(tmp_path, runs, of, num), runs) == trials
            assert entries(tmp_path) == expected
            assert all(count == 1 for count in runs.ends.values())


@pytest.mark.parametrize("of", [PLANS[0], PLANS[-2]], ids=name_of)
def test_two_at_a_time_none_is_lost_or_run_twice(of: Plan, tmp_path: Path, no_sync: None):
    first, runs = tmp_path / "first", runs_of(of)
    first.mkdir()
    play(open_study(first, runs, of, 12), runs, parallel=2)
    for left in range(1, len(entries(first)), 2):
        folder, runs = tmp_path / str(left), runs_of(of)
        folder.mkdir()
        with pytest.raises(Killed):
            play(open_study(DyingJournal(folder / "journal.jsonl", left, "after"), runs, of, 12), runs, parallel=2)
        study = open_study(folder, runs, of, 12)
        open_trials = [trial.number for trial in study.trials() if trial.state == "running"]
        trials = play(study, runs, parallel=2)
        assert len(trials) == 12 == len({trial.identity or str(trial.point) for trial in trials})
        assert all(trial.state != "running" for trial in trials)
        assert len(open_trials) <= 2
        found = entries(folder)
        ends = Counter(entry["number"] for entry in found if entry["kind"] == "end")
        assert ends == {trial.number: 1 for trial in trials if trial.state != "stopped"}
        told = Counter((entry["number"], entry["epoch"]) for entry in found if entry["kind"] == "epoch")
        assert set(told.values()) == {1}
        assert all(count == 1 for count in runs.ends.values())
        assert open_study(folder, runs, of, 12).trials() == trials


def test_half_done_trials_come_first_and_known_epochs_change_nothing(tmp_path: Path):
    runs = FormulaRuns()
    study = open_study(tmp_path, runs)
    (first, experiment), (second, _) = study.next(), study.next()
    events = runs.train(experiment)
    assert not study.report(first, next(events))
    before = entries(tmp_path)

    study = open_study(tmp_path, runs)
    assert not study.complete
    assert study.next() == (first, experiment)
    assert study.next()[0] == second
    assert study.next()[0] == 2
    again = runs.train(experiment)
    assert not study.report(first, next(again))
    assert entries(tmp_path)[: len(before)] == before
    assert [entry["kind"] for entry in entries(tmp_path)] == ["draw", "draw", "epoch", "draw"]
    assert not study.report(first, next(again))
    assert study.trials()[0].history == ((1, accuracy(experiment, 1)), (2, accuracy(experiment, 2)))


# Which trials cost nothing, and which fail


def test_a_finished_run_costs_nothing_and_its_epochs_are_known(tmp_path: Path):
    of, runs = plan(SMALL, "grid"), FormulaRuns()
    experiment = spaces.at(
        of.experiment, {"method.sparsity": 0.5, "method.chunk_size": None, "method.first_order": True}
    )
    runs.finish(experiment)
    trials = play(open_study(tmp_path, runs, of, 2), runs)
    assert runs.asked == [trials[0].identity]
    assert trials[1].identity == experiment.identity
    assert trials[1].state == "finished"
    assert trials[1].history == tuple((epoch, accuracy(experiment, epoch)) for epoch in (1, 2, 3))
    assert trials[1].values == (accuracy(experiment, 3),)
    [*_, last, end] = entries(tmp_path)
    assert last == {
        "kind": "epoch",
        "number": 1,
        "epoch": 3,
        "value": accuracy(experiment, 3),
        "last": True,
        "keep": True,
    }
    assert (end["new"], end["teachers"]) == (False, {})


def test_a_finished_run_is_not_stopped_but_others_are_compared_with_it(tmp_path: Path):
    of, runs = plan({"method.sparsity": Choices((0.75, 0.6, 0.5, 0.88))}, "grid", "asha"), FormulaRuns()
    runs.finish(spaces.at(of.experiment, {"method.sparsity": 0.6}))
    trials = play(open_study(tmp_path, runs, of, 4), runs)
    # After an epoch 0.5 0.4888 0.4688 0.4915: the last would be among the best third of 0.5 and 0.4688.
    assert [trial.state for trial in trials] == ["finished", "finished", "stopped", "stopped"]
    assert [len(trial.history) for trial in trials] == [3, 3, 1, 1]
    assert trials[3].values is None


def test_a_point_is_run_once_and_a_space_ends(tmp_path: Path, no_sync: None):
    of, runs = plan({"method.sparsity": Choices((0.5, 0.7, 0.9))}), FormulaRuns()
    study = open_study(tmp_path, runs, of, 5)
    trials = play(study, runs)
    assert {trial.point["method.sparsity"] for trial in trials} == {0.5, 0.7, 0.9}
    assert len(trials) == len(runs.asked) == 3
    assert study.exhausted == "the space has no more points that were not tried"
    assert study.next() is None
    found = entries(tmp_path)
    assert len(found) < 2 * MOST_REPEATS
    assert [entry["kind"] for entry in found[-MOST_REPEATS:]] == ["repeat"] * MOST_REPEATS
    assert all(entry["state"] == "finished" for entry in found if entry["kind"] == "repeat")

    study = open_study(tmp_path, runs, of, 9)
    assert not study.complete
    assert study.next() is None
    assert study.exhausted == "the space has no more points that were not tried"
    assert entries(tmp_path) == found


def test_a_refused_point_is_a_failed_trial_once(tmp_path: Path, no_sync: None):
    space = {"method.chunk_size": Choices((None, 32)), "method.first_order": Choices((False, True))}
    runs = FormulaRuns()
    trials = play(open_study(tmp_path, runs, plan(space), 6), runs)
    assert len(trials) == 4
    [refused] = [trial for trial in trials if trial.state == "failed"]
    assert dict(refused.point) == {"method.chunk_size": 32, "method.first_order": False}
    assert (refused.identity, refused.history, refused.values) == ("", (), None)
    assert (refused.error or "").startswith(
        "method.chunk_size=32 method.first_order=False: chunk_size needs first_order"
    )
    assert len(runs.asked) == 3


def test_a_grid_is_tried_to_its_end(tmp_path: Path):
    runs = FormulaRuns()
    study = open_study(tmp_path, runs, plan({"method.sparsity": Choices((0.5, 0.9))}, "grid"), 3)
    assert len(play(study, runs)) == 2
    assert study.exhausted == "the space has no more points that were not tried"


def test_more_trials_extend_a_sweep_and_fewer_lose_nothing(tmp_path: Path, no_sync: None):
    of, runs = plan(WIDE, "optuna"), FormulaRuns()
    three = play(open_study(tmp_path, runs, of, 3), runs)
    assert open_study(tmp_path, runs, of, 3).complete
    fewer = open_study(tmp_path, runs, of, 1)
    assert (fewer.complete, fewer.next(), fewer.exhausted) == (True, None, "")
    assert fewer.trials() == three
    study = open_study(tmp_path, runs, of, 12)
    assert not study.complete
    twelve = play(study, runs)
    assert (study.complete, len(twelve), twelve[:3]) == (True, 12, three)
    at_once = tmp_path / "at once"
    at_once.mkdir()
    runs = FormulaRuns()
    assert play(open_study(at_once, runs, of, 12), runs) == twelve


class Hearing:
    """A sampler that draws from a list, and remembers what it is told."""

    def __init__(self, *sparsities: float) -> None:
        self.points = [{"method.sparsity": each} for each in sparsities]
        self.heard: list[Any] = []

    def ask(self) -> Any:
        return self.points.pop(0) if self.points else None

    def report(self, index: int, epoch: int, value: float) -> None:
        self.heard.append((index, epoch, value))

    def tell(self, index: int, state: str, values: Any) -> None:
        self.heard.append((index, state, values))


def hearing(monkeypatch: pytest.MonkeyPatch, *sparsities: float) -> Hearing:
    sampler = Hearing(*sparsities)
    monkeypatch.setitem(SAMPLERS, "random", lambda *_: sampler)
    return sampler


def test_the_sampler_hears_of_every_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sampler = hearing(monkeypatch, 0.98, 0.75, 0.98, 0.75, 0.5, 0.5)
    runs = FormulaRuns(fails=lambda each: getattr(each.method, "sparsity", 0) == 0.98)
    [failed, best, stopped] = play(open_study(tmp_path, runs, plan(scheduler="asha"), 3), runs)
    assert (failed.state, failed.error, len(failed.history)) == ("failed", "the loss is nan", 1)
    assert (best.state, stopped.state) == ("finished", "stopped")
    values = [value for _, value in best.history]
    assert sampler.heard == [
        (0, 1, failed.history[0][1]),
        (0, "failed", None),
        *((1, epoch, value) for epoch, value in enumerate(values, 1)),
        (1, "finished", (values[-1],)),
        (2, "failed", None),
        (3, "finished", (values[-1],)),
        (4, 1, stopped.history[0][1]),
        (4, "stopped", None),
    ]


def test_a_repeat_of_a_stopped_trial_tells_what_it_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sampler, runs = hearing(monkeypatch, 0.75, 0.5, 0.5, 0.75, 0.6), FormulaRuns()
    trials = play(open_study(tmp_path, runs, plan(scheduler="asha"), 3), runs)
    reached = trials[1].history[0][1]
    assert [told for told in sampler.heard if told[0] in (1, 2)] == [
        (1, 1, reached),
        (1, "stopped", None),
        (2, 1, reached),
        (2, "stopped", None),
    ]


def test_a_repeat_of_a_running_trial_is_told_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sampler, runs = hearing(monkeypatch, 0.5, 0.5, 0.6), FormulaRuns()
    assert [trial.state for trial in play(open_study(tmp_path, runs, trials=2), runs, parallel=2)] == ["finished"] * 2
    assert sampler.heard[0] == (1, "failed", None)
    assert (0, "finished", (accuracy(spaces.at(plan().experiment, {"method.sparsity": 0.5}), 3),)) in sampler.heard


def test_trials_whose_runs_cannot_be_used_stay_open(tmp_path: Path):
    of, runs = plan({"method.sparsity": Choices((0.5, 0.7, 0.9))}, "grid"), FormulaRuns()
    known = {each: spaces.at(of.experiment, {"method.sparsity": each}) for each in (0.5, 0.7)}
    runs.damaged.add(known[0.5].identity)
    study = open_study(tmp_path, runs, of, 3)
    number, experiment = study.next()
    assert (number, experiment) == (1, known[0.7])
    assert (study.trials()[0].state, study.losses[0]) == ("running", "result.json is damaged")
    runs.finish(experiment)
    runs.damaged.add(experiment.identity)
    study.end(number, Outcome())
    assert (study.trials()[1].state, study.losses[1]) == ("running", "result.json is damaged")
    assert play(study, runs)[2].state == "finished"
    runs.damaged.clear()
    assert [trial.state for trial in play(open_study(tmp_path, runs, of, 3), runs)] == ["finished"] * 3


def test_a_lost_or_interrupted_trial_stays_open(tmp_path: Path):
    runs = FormulaRuns()
    study = open_study(tmp_path, runs, trials=2)
    (first, one), (second, _) = study.next(), study.next()
    study.lost(first, "its process died")
    study.end(second, STOPPED)
    assert study.losses == {first: "its process died"}
    assert [trial.state for trial in study.trials()] == ["running", "running"]
    assert study.next() is None
    study = open_study(tmp_path, runs, trials=2)
    assert (study.losses, study.complete) == ({}, False)
    assert study.next() == (first, one)
    assert study.next()[0] == second


def test_a_stopped_trial_cannot_be_lost(tmp_path: Path):
    runs = FormulaRuns()
    study = open_study(tmp_path, runs, plan({"method.sparsity": Choices((0.75, 0.5))}, "grid", "asha"), 2)
    number, experiment = study.next()
    for event in runs.train(experiment):
        assert not study.report(number, event)
    study.end(number, Outcome())
    number, experiment = study.next()
    assert study.report(number, next(runs.train(experiment)))
    study.lost(number, "its process died")
    study.end(number, Outcome(error="too late"))
    assert (study.losses, study.trials()[number].state, study.complete) == ({}, "stopped", True)


# The budget, in dense epochs; a whole trial has three epochs


def test_a_budget_is_not_exceeded_by_whole_trials(tmp_path: Path):
    runs = FormulaRuns(dense_epochs=3.0)
    study = open_study(tmp_path, runs, dense_epochs=10.0)
    assert [trial.dense_epochs for trial in play(study, runs)] == [3.0, 3.0, 3.0]
    assert study.exhausted == "the budget of 10 dense epochs is spent (9)"
    study = open_study(tmp_path, runs, dense_epochs=12.0)
    assert len(play(study, runs)) == 4
    study = open_study(tmp_path, runs, dense_epochs=2.9)
    assert study.next() is None
    assert len(study.trials()) == 4


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_two_at_a_time_do_not_exceed_it_either(parallel: int, tmp_path: Path):
    runs = FormulaRuns()
    assert len(play(open_study(tmp_path, runs, trials=9, dense_epochs=11.9), runs, parallel)) == 3


def test_what_a_trial_costs_is_learnt_and_waited_for(tmp_path: Path):
    runs = FormulaRuns(dense_epochs=1.5)
    study = open_study(tmp_path, runs, trials=2, dense_epochs=3.0)
    number, experiment = study.next()
    assert study.next() is WAIT
    events = runs.train(experiment)
    while not step(study, number, events):
        assert study.next() is WAIT
    assert len(play(study, runs)) == 2
    assert study.exhausted == ""
    assert study.complete


def test_a_trial_that_was_too_dear_is_started_when_others_were_cheap(tmp_path: Path):
    runs = FormulaRuns()
    study = open_study(tmp_path, runs, trials=4, dense_epochs=10.0)
    running = [(number, runs.train(experiment)) for number, experiment in (study.next(), study.next(), study.next())]
    asked = []
    for (number, events), cost in zip(running, (6.0, 0.3, 0.3), strict=True):
        runs.dense_epochs = cost
        while not step(study, number, events):
            pass
        asked.append((study.next(), study.exhausted))
    # A whole trial then costs 6, 3.15, and 2.2; spent are 6, 6.3, and 6.6.
    assert asked[:2] == [(None, "the budget of 10 dense epochs is spent (6)"), (WAIT, "")]
    (number, _), exhausted = asked[2]
    assert (number, exhausted) == (3, "")


def test_found_runs_and_repeats_are_free(tmp_path: Path):
    of, runs = plan({"method.sparsity": Choices((0.5, 0.7, 0.8, 0.9))}), FormulaRuns()
    for sparsity in (0.5, 0.9):
        runs.finish(spaces.at(of.experiment, {"method.sparsity": sparsity}))
    study = open_study(tmp_path, runs, of, 9, dense_epochs=6.5)
    trials = play(study, runs)
    assert len(runs.asked) == 2
    assert {0.5, 0.7, 0.8, 0.9} >= {trial.point["method.sparsity"] for trial in trials}
    assert sum(trial.dense_epochs for trial in trials if trial.identity in runs.asked) == 6.0
    assert study.exhausted == "the budget of 6.5 dense epochs is spent (6)"


def test_stopped_and_failed_trials_count_with_their_epochs(tmp_path: Path):
    of = plan({"method.sparsity": Choices((0.7, 0.75, 0.5))}, "grid", "asha")
    runs = FormulaRuns(dense_epochs=1.5, fails=lambda each: getattr(each.method, "sparsity", 0) == 0.75)
    trials = play(open_study(tmp_path, runs, of, 3), runs)
    assert [trial.state for trial in trials] == ["finished", "failed", "stopped"]
    assert [trial.dense_epochs for trial in trials] == [1.5, 0.5, 0.5]


def test_a_teacher_is_counted_once_and_tells_nothing_of_the_next_trial(tmp_path: Path):
    # 4 + 3 for the first trial, then 3 for each: with 13 there are three.
    runs = FormulaRuns(teacher=("teacher", 4.0))
    for limit, number in ((7.0, 1), (9.9, 1), (13.0, 3)):
        study = open_study(tmp_path, runs, dense_epochs=limit)
        assert [trial.dense_epochs for trial in play(study, runs)] == [7.0, 3.0, 3.0][:number]
    assert [entry["teachers"] for entry in entries(tmp_path) if entry["kind"] == "end"] == [{"teacher": 4.0}, {}, {}]


def test_a_lost_trial_is_not_waited_for(tmp_path: Path):
    runs = FormulaRuns()
    study = open_study(tmp_path, runs, dense_epochs=8.0)
    (lost, _), (number, experiment) = study.next(), study.next()
    study.lost(lost, "its process died")
    assert study.next() is WAIT
    runs.finish(experiment)
    study.end(number, Outcome())
    assert study.next() is None
    assert study.exhausted == "the budget of 8 dense epochs is spent (3)"


def test_the_history_of_another_sampler_is_refused(tmp_path: Path):
    runs = FormulaRuns()
    play(open_study(tmp_path, runs, plan(WIDE, "optuna"), 3), runs)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines()
    [place] = [at for at, line in enumerate(lines) if json.loads(line)["kind"] == "draw"][1:2]
    record = json.loads(lines[place])
    del record[CHECKSUM]
    drawn = record["point"]["method.sparsity"]
    record["point"]["method.sparsity"] = 0.5
    lines[place] = as_record(record)
    path.write_bytes(b"\n".join(lines) + b"\n")
    message = (
        rf"would now draw .*{drawn}.*, but had drawn .*0\.5.*: it was made with another version of its sampler\. "
        rf"Install that version \(sweep\.json names it\), or delete {tmp_path} to search anew; finished trials cost"
    )
    with pytest.raises(ValueError, match=message):
        open_study(tmp_path, runs, plan(WIDE, "optuna"), 3)


def test_a_study_tells_what_has_changed(tmp_path: Path):
    runs, changed = FormulaRuns(), []
    study = Study(plan(), open_study(tmp_path, runs, trials=1).limits, Journal(tmp_path / "j"), runs, changed.append)
    play(study, runs)
    assert changed == [0] * 5  # begun, three epochs, ended


# Halving


def test_asha_by_hand_for_nine_epochs():
    halving = Halving(9)
    decisions = [
        # After one epoch: is it below the best third of what came before?
        (0, 1, 0.50, False),  # nothing came before
        (1, 1, 0.40, True),  # 0.5
        (2, 1, 0.45, True),  # 0.4 0.5: two thirds of the way between them, 0.467
        (3, 1, 0.47, False),  # 0.4 0.45 0.5: a third of the way from 0.45 to 0.5, 0.467
        (4, 1, 0.48, False),  # 0.4 0.45 0.47 0.5: 0.47
        (5, 1, 0.90, False),
        # After two nothing is decided.
        (0, 2, 0.01, False),
        (3, 2, 0.01, False),
        # After three: the same, among those that came so far.
        (0, 3, 0.60, False),
        (3, 3, 0.55, True),  # 0.6
        (4, 3, 0.583, True),  # 0.55 0.6: 0.5833
        (5, 3, 0.589, False),  # 0.55 0.583 0.6: 0.5887
        # Then never again.
        *((0, epoch, 0.0, False) for epoch in range(4, 10)),
        *((5, epoch, 0.0, False) for epoch in range(4, 10)),
    ]
    for number, epoch, value, stop in decisions:
        assert halving.stop(number, epoch, value) == stop, (number, epoch)


def test_asha_stops_trials_of_two_epochs_after_the_first_and_none_of_one():
    two = Halving(2)
    assert [two.stop(0, 1, 0.5), two.stop(1, 1, 0.4), two.stop(0, 2, 0.0)] == [False, True, False]
    one = Halving(1)
    assert [one.stop(number, 1, 0.5 - number / 10) for number in range(4)] == [False] * 4


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(2, [1]), (3, [1]), (4, [1, 3]), (9, [1, 3]), (15, [1, 3, 9]), (27, [1, 3, 9])]
)
def test_trials_are_compared_after_powers_of_three(epochs: int, rungs: list[int]):
    assert [epoch for epoch in range(1, epochs + 1) if stops_at(epochs, epoch)] == rungs


def stops_at(epochs: int, epoch: int) -> bool:
    """Whether a trial that becomes bad at this epoch is stopped at it."""
    halving = Halving(epochs)
    for number, last in ((0, 0.9), (1, 0.1)):
        decisions = [halving.stop(number, each, last if each == epoch else 0.9) for each in range(1, epoch + 1)]
    return decisions[-1]


def test_the_last_epoch_stops_no_trial(tmp_path: Path):
    space = {"method.sparsity": Choices((0.75, 0.7, 0.6, 0.5))}
    for epochs, lengths in ((1, [1, 1, 1, 1]), (2, [2, 1, 1, 1])):
        of, runs, folder = plan(space, "grid", "asha"), FormulaRuns(), tmp_path / str(epochs)
        folder.mkdir()
        of = Plan(spaces.at(of.experiment, {"training.epochs": epochs}), of.space, "grid", "asha")
        assert [len(trial.history) for trial in play(open_study(folder, runs, of, 4), runs)] == lengths


def test_a_trial_that_tells_its_last_epoch_alone_is_whole(tmp_path: Path):
    of, runs = plan({"method.sparsity": Choices((0.75, 0.5))}, "grid", "asha"), FormulaRuns()
    play(open_study(tmp_path, runs, of, 1), runs)
    study = open_study(tmp_path, runs, of, 2)
    number, _ = study.next()
    assert not study.report(number, {"epoch": 3, "value": 0.0, "last": True})
    assert study.trials()[number].state == "running"


# Samplers

ALL = {
    "range": Range(-1.0, 2.0),
    "log": LogRange(1e-4, 10.0),
    "whole": IntRange(3, 9),
    "choice": Choices((None, True, "word", 0.5)),
}


def drawn(search: str, seed: int, goal: Goal, num: int = 40) -> list[Any]:
    """Points of a sampler that is told what they reach: better where "range" is near 1.5."""
    sampler: Any = SAMPLERS[search](ALL, goal, seed)
    points = []
    for index in range(num):
        points.append(sampler.ask())
        value = -abs(points[-1]["range"] - 1.5)
        if index % 5 == 4:
            sampler.tell(index, "failed", None)
            continue
        sampler.report(index, 1, value)
        if index % 5 == 3:
            sampler.tell(index, "stopped", None)
        else:
            sampler.tell(index, "finished", [value, points[-1]["whole"]][: len(goal.names)])
    return points


@pytest.mark.parametrize("goal", [Goal(), Goal("latency")], ids=["one", "two"])
@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_seed_draws_the_same_points_inside_the_space(search: str, goal: Goal):
    points = drawn(search, 3, goal)
    assert points == drawn(search, 3, goal)
    assert points != drawn(search, 4, goal)
    assert all(point[name] in space for point in points for name, space in ALL.items())
    assert all(type(point["whole"]) is int for point in points)
    assert {point["choice"] for point in points} == {None, True, "word", 0.5}
    assert list(points[0]) == list(ALL)


def test_optuna_learns_and_random_does_not():
    def near(search: str) -> float:
        return sum(abs(point["range"] - 1.5) for point in drawn(search, 3, Goal(), 60)[30:]) / 30

    assert near("optuna") < 0.6 * near("random")


def test_a_grid_goes_through_all_points_in_order():
    space = {"a": Choices(("x", "y")), "b": IntRange(1, 2), "c": Range(0.0, 1.0)}
    sampler = SAMPLERS["grid"](space, Goal(), 0)
    points = [sampler.ask() for _ in range(21)]
    assert points[20] is None
    values = [tuple(point.values()) for point in points if point is not None]
    assert values[:6] == [("x", 1, 0.0), ("x", 1, 0.25), ("x", 1, 0.5), ("x", 1, 0.75), ("x", 1, 1.0), ("x", 2, 0.0)]
    assert values == sorted(set(values))
    assert values[-1] == ("y", 2, 1.0)


def test_drawn_numbers_are_tidy():
    assert DIGITS == 6
    assert tidy(0.123456789, Range(0.0, 1.0)) == 0.123457
    assert tidy(0.000123456789, LogRange(1e-5, 1.0)) == 0.000123457
    assert tidy(1 / 3, Range(1 / 3, 0.5)) == 1 / 3
    assert tidy(2 / 3, LogRange(0.1, 2 / 3)) == 2 / 3
    assert (tidy(1, Range(0, 1)), type(tidy(1, Range(0, 1)))) == (1.0, float)
    assert tidy(1234567, IntRange(1, 10**7)) == 1234567
    assert tidy(0.123456789, Choices((0.123456789,))) == 0.123456789


# The best trials


def reached(number: int, *values: float) -> Trial:
    return Trial(number, {}, "", "finished" if values else "stopped", values or None, [(1, 0.99)])


def test_the_front_by_hand():
    assert front([]) == front([reached(0)]) == []
    one = [reached(0, 0.5), reached(1, 0.7), reached(2, 0.7), reached(3)]
    assert front(one) == [one[1]]
    assert front(one[::-1]) == [one[1]]
    two = [
        reached(0, 0.8, 30.0),  # as accurate as 3 but dearer
        reached(1, 0.9, 50.0),
        reached(2, 0.7, 20.0),  # as cheap as 3 but worse
        reached(3, 0.8, 20.0),
        reached(4, 0.8, 20.0),  # as good as 3, but later
        reached(5, 0.1, 10.0),
        reached(6, 0.85, 60.0),  # 1 is better in both
        reached(7),
    ]
    assert front(two) == [two[5], two[3], two[1]]
    assert front(two[::-1]) == [two[5], two[3], two[1]]
    assert front(two[:1]) == two[:1]
