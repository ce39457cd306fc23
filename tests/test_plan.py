"""Plans: the model by hand, rehearsals beside real runs, what the command says, and whether predictions come true."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import plan
from benchmarks.planning import links as plan_links
from benchmarks.planning import measure as plan_measure
from benchmarks.planning.check import Case, Round, compared, one_worker, two_workers
from benchmarks.planning.data import Counts, Found, ShortLoader, find
from benchmarks.planning.links import link_of, reduce_seconds
from benchmarks.planning.measure import time_stage
from benchmarks.planning.model import (
    BUCKET_BYTES,
    FIRST_BUCKET_BYTES,
    Link,
    Measured,
    Place,
    Span,
    Stage,
    StageTime,
    StepTime,
    Train,
    all_reduce_seconds,
    predict,
    step_span,
)
from benchmarks.planning.rehearsal import Given, Part, Theatre, even_result, even_values, even_weights
from benchmarks.planning.report import duration
from cluster.checkpoints import CheckpointStore
from cluster.group import Group
from cluster.launch import launch
from compression.batch import Info
from compression.masks import Masks
from pipelines import cli
from pipelines.data.config import CIFAR10, CUB, Digits, ImageNet, Images, TinyImageNet
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement
from pipelines.recipes import RECIPES
from pipelines.run_folder import RunFolder

CPU = torch.device("cpu")

TOLERANCE = 0.15
"""How far a prediction may lie from what happens, beyond the noise of what it is compared with."""

MOST_NOISE = 0.2
"""A measurement with more says nothing."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The model


def test_a_ring_sends_its_bytes_in_messages_of_buckets():
    link = Link(latency=0.001, bandwidth=1000.0)
    assert all_reduce_seconds(800, 1, link) == 0
    # 2 x 3/4 of 800 bytes, and 6 messages of the one bucket.
    assert all_reduce_seconds(800, 4, link) == pytest.approx(1.2 + 0.006)
    more = FIRST_BUCKET_BYTES + BUCKET_BYTES + 4
    assert all_reduce_seconds(more, 2, Link(1.0, float("inf"))) == 2 * 3


def test_link_comes_back_from_what_it_takes():
    link = Link(latency=0.002, bandwidth=5e6)
    small, large = (all_reduce_seconds(size, 2, link) for size in (4096, 800_000))
    found = link_of(4096, small, 800_000, large)
    assert found.latency == pytest.approx(link.latency)
    assert found.bandwidth == pytest.approx(link.bandwidth)
    with pytest.raises(ValueError, match="give --bandwidth"):
        link_of(4096, 0.1, 800_000, 0.1)


@pytest.mark.parametrize(
    ("compute", "reduce", "loading", "span", "bound"),
    [
        (3.0, 1.0, 0.0, Span(3.0, 4.0), "compute"),
        (1.0, 3.0, 0.0, Span(3.0, 4.0), "communication"),
        (1.0, 1.0, 5.0, Span(5.0, 5.0), "loader"),
        (3.0, 2.0, 4.0, Span(4.0, 5.0), "compute"),
        (3.0, None, 0.0, Span(3.0, None), "compute"),
        (3.0, None, 4.0, Span(4.0, None), "loader"),
    ],
)
def test_a_step_lies_between_all_and_nothing_beside_the_computation(
    compute: float, reduce: float | None, loading: float, span: Span, bound: str
):
    assert step_span(compute, reduce, loading) == (span, bound)


def training(**changes: Any) -> Train:
    """2 epochs of 10 steps at 16 pixels, then 1 at 32, with 100 validation images."""
    values: dict[str, Any] = {
        "run": "run",
        "stage": "train",
        "network": "net",
        "gradient_bytes": 800,
        "batch_size": 8,
        "views": 2,
        "steps": 10,
        "val_images": 100,
        "sizes": {16: 2, 32: 1},
        "step_keys": {1: {16: "8 at 16", 32: "8 at 32"}, 4: {16: "2 at 16", 32: "2 at 32"}},
        "evaluation_keys": {1: "8", 4: "2"},
        "loader_keys": {},
        "in_step": False,
    }
    return Train(**(values | changes))


def measured() -> Measured:
    steps = {
        "8 at 16": StepTime(8.0, 0.0, 8, 1.0),
        "8 at 32": StepTime(16.0, 0.0, 4, 1.0),  # on 4 of the 8 images
        "2 at 16": StepTime(2.0, 0.0, 2, 1.0),
        "2 at 32": StepTime(4.0, 0.0, 2, 1.0),
    }
    return Measured("here", steps, {"8": 50.0, "2": 25.0}, {"score": StageTime(7.0, 8, 4)}, {"data": 0.5})


def test_a_training_is_its_steps_its_evaluations_and_the_ends_of_its_epochs():
    # 2 epochs of 10 x 8 s and one of 10 x 32 s; 100 / 50 s of evaluation and 1 s for the end of each.
    assert predict(training(), Place(1, 1, None), measured())[0] == Span(489.0, 489.0)
    # On four: 2 x 10 x 2 s, 10 x 4 s; 1 s of evaluation and 1 s for the end of each epoch.
    link = Link(0.0, 1200.0)  # an all-reduce of 1 s
    assert predict(training(), Place(4, 1, link), measured()) == (Span(86.0, 116.0), "compute")
    assert predict(training(), Place(4, 1, None), measured())[0] == Span(86.0, None)


def test_the_loader_gives_a_host_all_views_and_evaluations():
    # 2 views of 8 images at 4 a second and host: 4 s a step on one host, 2 s on two; 100 images take 25 s, or 12.5 s.
    one, bound = predict(training(), Place(4, 1, Link(0.0, 1e9), 4.0), measured())
    assert one.low == pytest.approx(30 * 4 + 3 * 26)
    assert bound == "loader"
    two = predict(training(sizes={16: 1}), Place(4, 2, Link(0.0, 1e9), 4.0), measured())[0]
    assert two.low == pytest.approx(10 * 2 + 13.5)
    in_step = predict(training(in_step=True), Place(4, 1, Link(0.0, 1e9), 4.0), measured())[0]
    assert in_step.low == pytest.approx(86)
    known = predict(training(sizes={16: 1}, loader_keys={16: "data"}), Place(4, 1, None), measured())[0]
    assert known.low == pytest.approx(10 * 32 + 201)


def test_scoring_does_not_get_faster_with_more():
    for place in (Place(1, 1, None), Place(8, 1, None)):
        assert predict(Stage("run", "score", "score"), place, measured())[0] == Span(7.0, 7.0)


def test_measurements_survive_json():
    before = dataclasses.replace(measured(), link=Link(1.0, 2.0))
    assert Measured.of_json(json.loads(json.dumps(dataclasses.asdict(before)))) == before


def given(num_images: int) -> Given:
    return Given(lambda images: [], 1, num_images)


def test_scoring_grows_by_its_operations(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def on(images: int, batches: Sequence[Given], fn: Callable[[], object]) -> tuple[object, float, int]:
        asked.append(images)
        batches[0].was_read = True
        return "scores", float(images + 1), 100 + 10 * images

    monkeypatch.setattr(plan_measure, "_on", on)
    # 9 s for 180 operations on 8 images; 32 images make 420.
    assert time_stage(lambda: None, [given(32)], 8) == ("scores", StageTime(21.0, 32, 8))
    assert asked == [2, 8]
    assert time_stage(lambda: None, [given(8)], 8)[1] == StageTime(9.0, 8, 8)


def test_the_check_compares_within_rounds():
    # The machine grows twice as slow after the first round; the all-reduce is that of the median round.
    rounds = [Round(0.9, 1.1, 1.2, 0.0, 0.2), *[Round(2.0, 2.0, 2.4, 0.1, 0.4)] * 2]
    found = compared(rounds, 409_600)
    reduce = 0.4  # of all gradients, as it was timed: the link is no more than what explains that
    assert found["low"] == pytest.approx(2.0 / 2.4)
    assert found["high"] == pytest.approx((2.0 + reduce) / 2.4)
    assert found["communication"] == pytest.approx(reduce / 2)
    assert found["noise"] == pytest.approx(1 - 0.9 / 1.1)


def test_durations_are_read_in_their_unit():
    assert [duration(s) for s in (0.0123, 2.0, 89.0, 90.0, 5400.0, 36e5)] == [
        "12.3 ms",
        "2 s",
        "89 s",
        "1.5 min",
        "1.5 h",
        "1,000.0 h",
    ]


# The data


def test_stand_ins_have_the_shapes_and_counts_of_the_data():
    for config, sizes, shape in (
        (CIFAR10(root="nowhere"), (45_000, 5_000, 10_000), (3, 32, 32)),
        (TinyImageNet(root="nowhere"), (90_000, 10_000, 10_000), (3, 64, 64)),
        (CUB(root="nowhere", image_size=40, resize=40), (5_394, 600, 5_794), (3, 40, 40)),
    ):
        found = find(config, CPU, torch.float32, 0, None)
        assert "nowhere" in found.origin
        assert found.real is None
        loader = ShortLoader(found.opened, config.val_fraction, 0)
        assert (*loader.info.sizes.values(),) == sizes
        loader.most = 2
        batches = list(loader.epoch("train", 0, 6, frozenset({"paired", "second_view"})))
        assert len(batches) == len(list(loader.evaluation("test", 6))) == 2
        for images in (batches[0].images, batches[0].paired, batches[0].second_view):
            assert images is not None
            assert images.shape == (6, *shape)
            assert images.is_contiguous(memory_format=torch.channels_last)


def test_data_that_are_there_are_counted():
    found = find(Digits(), CPU, torch.float32, 0, Counts(10, 50, 50))
    assert found.real is found.opened
    assert found.in_step
    assert len(found.opened.labels["train"]) + len(found.opened.labels["test"]) == 1797


@pytest.mark.parametrize(
    "config", [Images(root="nowhere"), ImageNet(root="nowhere", name="mine"), CIFAR10(root="nowhere", subset=True)]
)
def test_counts_that_nobody_knows_have_to_be_given(config: Any):
    with pytest.raises(ValueError, match="give --train-images"):
        find(config, CPU, torch.float32, 0, None)
    assert len(find(config, CPU, torch.float32, 0, Counts(2, 30, 8)).opened.labels["train"]) == 30


# Rehearsals


class Script:
    """A witness that writes down. steps: (identity, stage) -> training steps."""

    def __init__(self) -> None:
        self.steps: dict[tuple[str, str], int] = {}
        self.parts: list[tuple[str, bool, dict[int, int]]] = []
        self.evaluations: list[tuple[str, int]] = []
        self.stages: list[str] = []

    def train(self, part: Part) -> None:
        self.steps[part.experiment.identity, part.name] = part.steps_per_epoch * part.epochs
        self.parts.append((type(part.objective).__name__, part.masks is not None, dict(part.sizes)))

    def stage(self, experiment: Experiment, name: str, fn: Callable[[], Any], given: Sequence[Given]) -> Any:
        for batches in given:
            batches.at_hand = 2
        self.stages.append(name)
        return fn()

    def evaluate(self, experiment: Experiment, model: nn.Module, split: str, found: Found, info: Info) -> None:
        self.evaluations.append((split, info.sizes[split]))


def rehearsed(command: cli.Command, counts: Counts | None = None, with_controls: bool = False) -> Script:
    script = Script()
    theatre = Theatre(script, lambda data: find(data, CPU, torch.float32, 0, counts), CPU)
    for experiment in [command.experiment, *(cli.controls(command.experiment) if with_controls else [])]:
        theatre.rehearse(experiment)
    return script


SMALL = "--data.image-size 32 --data.resize 32"

STEPS = {
    "digits_epsd": ("", 10 * 15),
    "cifar10_epsd": ("", 175 * 200),
    "cifar100_epsd": ("", 175 * 200),
    "tiny_imagenet_epsd": ("--method.first-order", 351 * 200),
    "images_epsd": ("--data.image-size 16", 3 * 200),
    "imagenet_dense": (f"{SMALL} --model resnet18", 4902 * 90),
    "imagenet_epsd": (f"{SMALL} --model resnet18", 4902 * 90),
    "cub_epsd": (SMALL, 168 * 200),
    "cifar100_prune_then_distill": ("--teacher vgg11_ptd --method.rounds 2", 351 * (200 + 2 * 130 + 200)),
    "tiny_imagenet_prune_then_distill": ("--method.rounds 1", 703 * 100 + 175 * 50 + 351 * 100),
    "imagenet_prune_then_distill": (f"{SMALL} --teacher resnet18 --method.rounds 1", 4902 * (90 + 45 + 90)),
    "cifar10_pdd": ("", 175 * (200 + 50 + 150)),
    "cifar100_pdd": ("", 175 * (200 + 50 + 150)),
    "imagenet_pdd": (f"{SMALL} --teacher resnet18", 4902 * (90 + 20 + 70)),
}
"""Recipe -> options that keep it small here, and training steps by hand: images // batch size, times epochs."""


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_rehearsed_to_its_last_step(name: str):
    options, steps = STEPS[name]
    root = [] if name == "digits_epsd" else ["--data.root", "nowhere"]
    command = cli.parse(RECIPES[name], [*options.split(), *root])
    counts = Counts(10, 1000, 100) if name == "images_epsd" else None
    assert sum(rehearsed(command, counts).steps.values()) == steps


def test_images_that_grow_are_counted_by_size():
    command = cli.parse(
        RECIPES["imagenet_dense"], ["--schedule", "ffcv16", "--model", "resnet18", "--data.root", "nowhere"]
    )
    [(objective, masked, sizes)] = rehearsed(command).parts
    assert (objective, masked) == ("LabelSmoothing", False)
    # They have grown in the middle between epochs 11 and 13: 176 pixels are rounded to a multiple of 32.
    assert sizes == {160: 12, 192: 4}


def test_lottery_tickets_train_their_early_part_once():
    words = "--method iterative_magnitude --method.rounds 2 --method.rewind-epoch 3"
    script = rehearsed(cli.parse(RECIPES["digits_epsd"], words.split()))
    assert [(stage, steps) for (_, stage), steps in script.steps.items()] == [
        ("early", 30),
        ("first", 120),
        ("round1", 120),
        ("train", 120),
    ]
    assert [masked for _, masked, _ in script.parts] == [False, False, True, True]
    assert script.stages == ["prune1", "prune2"]


def test_controls_share_their_teachers():
    command = cli.parse(RECIPES["cifar100_prune_then_distill"], ["--smoke"])
    script = rehearsed(command, with_controls=True)
    # Teacher, its two rounds, and four students.
    assert [objective for objective, _, _ in script.parts].count("KD") == 2
    assert len(script.steps) == 1 + 2 + 4
    assert len(script.evaluations) == 2 + 4 * (2 + 1)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("digits_epsd", "--training.epochs 2"),
        ("cifar100_prune_then_distill", "--smoke"),
        ("cifar10_pdd", "--smoke"),
    ],
)
def test_a_rehearsal_has_the_steps_of_a_real_run(recipe: str, words: str, tmp_path: Path):
    command = cli.parse(RECIPES[recipe], [*words.split(), "--storage", str(tmp_path)])
    expected = rehearsed(command).steps
    work = Work(command.experiment, Placement(storage=str(tmp_path)), tmp_path, {})
    [outcome] = launch(execute, [work], Group(storage=str(tmp_path)), lambda number, event: None)
    assert outcome.error is None, outcome.traceback
    done = {}
    for folder in (tmp_path / "runs").iterdir():
        for stage in (folder / "stages").iterdir():
            latest = CheckpointStore(RunFolder(tmp_path, folder.name).stage(stage.name) / "checkpoints").latest()
            if latest is not None:
                done[folder.name, stage.name] = latest.step
    assert expected == done


def test_even_values_lose_the_same_share_everywhere():
    scores = even_result({"a": torch.randn(10, 10) * 100, "b": torch.randn(5, 4)})
    assert {name: int((score <= 0.75).sum()) for name, score in scores.items()} == {"a": 75, "b": 15}
    masks = even_result(Masks({"a": torch.arange(100) < 24, "b": torch.zeros(20, dtype=torch.bool)}))
    assert masks.num_kept == 24
    assert int(masks["b"].sum()) == 4
    assert even_result({"count": torch.tensor(3)}) == {"count": torch.tensor(3)}
    assert even_values(torch.zeros(1)).item() == 1


def test_even_weights_go_again():
    linear = nn.Linear(3, 4)
    before = linear.weight.detach().clone()
    with even_weights([linear]):
        assert sorted(linear.weight.detach().flatten().tolist()) == pytest.approx([i / 12 for i in range(1, 13)])
    assert torch.equal(linear.weight, before)


# The command

QUICK = ["digits_epsd", "--seconds", "0.2", "--training.epochs", "2", "--training.batch-size", "32"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --json writes of the small recipe on one and two GPUs, with a link of its own."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert plan.main([*QUICK, "--gpus", "2", "--bandwidth", "1", "--latency", "100", "--json"]) == 0
    path.write_text(out.getvalue())
    return path


def test_a_plan_adds_up(planned: Path):
    found = json.loads(planned.read_text())
    score, train, test = found["acts"]
    assert [score["stage"], train["stage"], test["stage"]] == ["score", "train", "test"]
    assert (train["epochs"], train["steps"]) == (2, 2 * 40)
    assert train["gradient_bytes"] == 4 * 269_722
    for number, row in enumerate(found["plans"]):
        assert row["gpus"] == number + 1
        hours = sum(act["on"][number]["hours_low"] for act in found["acts"])
        assert row["hours_low"] == pytest.approx(hours)
        assert row["cost_low"] is None
        assert row["hours_low"] > 0
    one, two = found["plans"]
    assert one["hours_low"] == one["hours_high"]
    assert two["efficiency_low"] <= two["efficiency_high"] == pytest.approx(one["hours_low"] / two["hours_low"] / 2)
    # 1.08 MB at 1 GB/s in two buckets (the second is small), and 2 x 2 messages of 0.1 ms.
    steps = train["on"][1]["step_seconds_high"] - train["on"][1]["step_seconds_low"]
    assert steps == pytest.approx(4 * 269_722 / 1e9 + 4e-4, rel=1e-6)


def test_measurements_are_taken_from_a_file(planned: Path, capsys: pytest.CaptureFixture[str]):
    words = [*QUICK, "--gpus", "2", "--measured", str(planned)]
    assert plan.main([*words, "--price", "3", "--json"]) == 0
    again, before = json.loads(capsys.readouterr().out), json.loads(planned.read_text())
    assert again["acts"] == before["acts"]
    assert again["measured"] == before["measured"]
    for row in again["plans"]:
        assert row["cost_low"] == pytest.approx(row["hours_low"] * row["gpus"] * 3)
    assert plan.main(words) == 0
    printed = capsys.readouterr().out
    assert "cost" not in printed
    assert f"read from {planned}" in printed.replace("\n", "")


def test_measurements_of_something_else_are_refused(planned: Path, capsys: pytest.CaptureFixture[str]):
    assert plan.main([*QUICK, "--gpus", "4", "--measured", str(planned)]) == 2
    assert "the measurements do not hold" in capsys.readouterr().err
    wrong = planned.parent / "wrong.json"
    wrong.write_text("{}")
    assert plan.main([*QUICK, "--measured", str(wrong)]) == 2
    assert "is no plan that --json wrote" in capsys.readouterr().err


def test_without_a_link_hours_are_lower_bounds(
    planned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = json.loads(planned.read_text())
    found["measured"]["link"] = None
    path = planned.parent / "without.json"
    path.write_text(json.dumps(found))
    assert plan.main([*QUICK, "--gpus", "2", "--measured", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "at least" in printed
    assert "lower bounds" in printed

    def refuse(num_bytes: int) -> Link:
        raise ValueError("one GPU only")

    monkeypatch.setattr(plan, "measure_link", refuse)
    assert plan.main([*QUICK, "--gpus", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["plans"][1]["hours_high"] is None
    assert any("one GPU only" in note for note in answer["notes"])


def test_decoded_data_that_are_there_have_their_loader_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["imagenet_dense", "--smoke", "--storage", str(tmp_path), "--seconds", "0.2", "--json"]
    assert plan.main([*words, "--gpus", "2", "--bandwidth", "1", "--latency", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    [(key, rate)] = found["measured"]["loaders"].items()
    assert key == "digits-as-imagenet, 16 px"
    assert rate > 0
    assert plan.main([*words, "--loader-rate", "1"]) == 0
    slow = json.loads(capsys.readouterr().out)
    train, test = slow["acts"]
    assert train["on"][0]["bound"] == "loader"
    # An image a second: a step takes as many seconds as it has images.
    assert train["on"][0]["step_seconds_low"] == train["batch_size"]
    assert test["on"][0]["hours_low"] * 3600 == pytest.approx(359, abs=2)
    assert slow["measured"]["loaders"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digit_epsd", "did you mean digits_epsd?"),
        ("digits_epsd --gpus 3", "batch_size 128 does not divide by 3 GPUs"),
        ("digits_epsd --gpus 0", "--gpus must be 1 or more, not 0"),
        ("digits_epsd --price 0", "--price must be above 0"),
        ("digits_epsd --latency 5", "--latency goes with --bandwidth"),
        ("digits_epsd --bandwidth 5", "--bandwidth goes with --latency"),
        ("images_epsd --data.root nowhere", "give --train-images"),
        ("images_epsd --data.root nowhere --train-images 5", "go together"),
        ("digits_epsd --workers 2 --strategy deepspeed", "the model is that of --strategy ddp"),
    ],
)
def test_what_cannot_be_planned_is_said(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert plan.main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_too_many_images_are_an_error_that_helps():
    with pytest.raises(ValueError, match=r"512 images at once do not fit .* --batch-per-gpu"):
        with plan_measure.enough_memory(512):
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_all_reduce_is_timed_between_two_processes(tmp_path: Path):
    group = Group(storage=str(tmp_path), workers=2)
    [outcome] = launch(reduce_seconds, [(plan_links.SMALL_BYTES, 2**23)], group, lambda number, event: None)
    assert outcome.error is None, outcome.traceback
    small, large = outcome.value
    assert 0 < small < large


# Do predictions come true?


def says_nothing(noise: float) -> None:
    if noise > MOST_NOISE:
        pytest.skip(f"the machine is too busy: equal things came out {noise:.0%} apart")


@pytest.mark.alone
def test_two_workers_take_what_is_predicted(tmp_path: Path):
    found = two_workers(Case("resnet20", 64, 15, 4, str(tmp_path)))
    says_nothing(found["noise"])
    assert found["high"] > 1 - TOLERANCE - found["noise"]
    assert found["low"] < 1 + TOLERANCE + found["noise"]


@pytest.mark.alone
def test_one_worker_takes_what_is_predicted(tmp_path: Path):
    rows = {row["stage"]: row for row in one_worker(tmp_path)}
    says_nothing(rows["train"]["noise"])
    assert rows["score and train"]["ratio"] == pytest.approx(1, abs=TOLERANCE + rows["train"]["noise"])
