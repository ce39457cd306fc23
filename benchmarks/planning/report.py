"""A plan as one JSON object, and as tables for readers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.planning.data import Found
from benchmarks.planning.model import Act, Measured, Place, Span, Train, predict, predict_step
from benchmarks.planning.rehearsal import EVENLY

Row = dict[str, Any]

MUCH_SPREAD = 0.15
"""Rounds of one measurement further apart than this are worth a note."""


def report(acts: Sequence[Act], places: Sequence[Place], measured: Measured, price: float | None) -> dict[str, Any]:
    """{"acts": a row for each act, "plans": a row for each number of GPUs}."""
    totals = []
    for place in places:
        total = Span(0.0, 0.0)
        for act in acts:
            total += predict(act, place, measured)[0]
        totals.append(total)
    plans = [_plan(place, total, totals[0].low, price) for place, total in zip(places, totals, strict=True)]
    return {"acts": [_row(act, places, measured) for act in acts], "plans": plans}


def _plan(place: Place, total: Span, on_one: float, price: float | None) -> Row:
    """hours_high: None where the communication's time is not known. efficiency_*: hours on one / (hours * N)."""
    hours = total.times(1 / 3600)
    cost = None if price is None else hours.times(place.gpus * price)
    return {
        "gpus": place.gpus,
        "hosts": place.hosts,
        "hours_low": hours.low,
        "hours_high": hours.high,
        "efficiency_low": None if total.high is None else on_one / (total.high * place.gpus),
        "efficiency_high": on_one / (total.low * place.gpus),
        "cost_low": None if cost is None else cost.low,
        "cost_high": None if cost is None else cost.high,
    }


def _row(act: Act, places: Sequence[Place], measured: Measured) -> Row:
    row: Row = {"run": act.run, "stage": act.stage, "kind": type(act).__name__.lower()}
    if isinstance(act, Train):
        row |= {
            "network": act.network,
            "gradient_bytes": act.gradient_bytes,
            "batch_size": act.batch_size,
            "epochs": act.epochs,
            "steps": act.steps * act.epochs,
            "epochs_by_pixels": {str(size): epochs for size, epochs in act.sizes.items()},
        }
    row["on"] = [_on(act, place, measured) for place in places]
    return row


def _on(act: Act, place: Place, measured: Measured) -> Row:
    span, bound = predict(act, place, measured)
    row: Row = {"gpus": place.gpus, "hours_low": span.low / 3600, "bound": bound}
    row["hours_high"] = None if span.high is None else span.high / 3600
    if isinstance(act, Train):
        steps = Span(0.0, 0.0)
        for size, epochs in act.sizes.items():
            steps += predict_step(act, size, place, measured)[0].times(epochs / act.epochs)
        row |= {"step_seconds_low": steps.low, "step_seconds_high": steps.high}
    return row


def notes(
    options: argparse.Namespace,
    measured: Measured,
    acts: Sequence[Act],
    data: Mapping[str, Found],
    no_link: str | None,
) -> list[str]:
    """What a reader has to know of where the figures come from."""
    trainings = [act for act in acts if isinstance(act, Train)]
    whence = f"read from {options.measured}, of " if options.measured else "measured now on "
    found = [f"{whence}{measured.device}"]
    found += [f"{label}: {data[label].origin}" for label in data]
    found += _of_loader(options, trainings)
    if measured.link is not None:
        origin = (
            "given" if options.bandwidth else "read" if options.measured else "measured between two of this machine"
        )
        link = measured.link
        found.append(f"link: {link.bandwidth / 1e9:.3g} GB/s, {link.latency * 1e6:.3g} us a message ({origin})")
    if no_link is not None:
        found.append(f"what the GPUs exchange is not in the hours, which are lower bounds: {no_link}")
    if options.gpus_per_host is None and max(options.gpus) > 1:
        found.append("all GPUs are taken to share one host and its loader: --gpus-per-host says otherwise")
    if options.batch_per_gpu and any(act.batch_size > options.batch_per_gpu for act in trainings):
        found.append(
            f"timed on at most {options.batch_per_gpu} images at once; more are taken to cost in proportion, so the "
            "efficiency does not say what small batches lose"
        )
    if any(stage.timed < stage.images for stage in measured.stages.values()):
        found.append("scoring was timed on fewer images than it takes: whether all of them fit was not tried")
    if any(act.stage in ("plan", "gate") for act in acts):
        found.append(EVENLY)
    spread = max((step.spread for step in measured.steps.values()), default=0.0)
    if spread > MUCH_SPREAD:
        found.append(f"rounds of one measurement lie up to {spread:.0%} apart: this device was not idle")
    return found


def _of_loader(options: argparse.Namespace, trainings: Sequence[Train]) -> list[str]:
    beside = [act for act in trainings if not act.in_step]
    if not beside:
        return []
    if options.loader_rate is not None:
        return [f"loader: {options.loader_rate:,.0f} images/s and host (given)"]
    if all(act.loader_keys for act in beside):
        return ["loader: measured while nothing was trained; each host is taken to read as fast as that one"]
    return ["loader: not measured, as the data are not there; taken never to be waited for (--loader-rate)"]


def show(plan: Mapping[str, Any], console: Console) -> None:
    """Tables for readers: what each run consists of, and a line for each number of GPUs."""
    for run in dict.fromkeys(row["run"] for row in plan["acts"]):
        console.print(_acts(run, [row for row in plan["acts"] if row["run"] == run]))
    console.print(_plans(plan))
    for note in plan["notes"]:
        console.print(f"- {note}", soft_wrap=True, highlight=False, markup=False)


def _acts(run: str, rows: Sequence[Row]) -> Table:
    """On the least and on the most GPUs that were asked for."""
    table = Table("stage", title=escape(run), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("gradients", "epochs", "steps"):
        table.add_column(heading, justify="right")
    shown = sorted({rows[0]["on"][0]["gpus"], rows[0]["on"][-1]["gpus"]})
    for number in shown:
        gpus = "1 GPU" if number == 1 else f"{number} GPUs"
        table.add_column(f"a step, {gpus}", justify="right")
        table.add_column(f"all, {gpus}", justify="right")
    table.add_column("bound by")
    for row in rows:
        trained = row["kind"] == "train"
        cells = [f"evaluation, {row['stage']}" if row["kind"] == "evaluate" else row["stage"]]
        cells += (
            [f"{row['gradient_bytes'] / 1e6:.1f} MB", str(row["epochs"]), f"{row['steps']:,}"] if trained else [""] * 3
        )
        on = {each["gpus"]: each for each in row["on"]}
        for number in shown:
            cells.append(_range(on[number], "step_seconds", duration) if trained else "")
            cells.append(_range({key: _seconds(value) for key, value in on[number].items()}, "hours", duration))
        table.add_row(*cells, on[shown[-1]]["bound"])
    return table


def _seconds(value: Any) -> Any:
    return value * 3600 if isinstance(value, float) else value


def duration(seconds: float) -> str:
    """In the unit in which it is read best."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _plans(plan: Mapping[str, Any]) -> Table:
    priced = plan["plans"][0]["cost_low"] is not None
    table = Table(title=f"{plan['recipe']}, all of it", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption, table.caption_justify = "from all communication beside the computation to none of it", "left"
    for heading in ("GPUs", "hosts", "hours", "efficiency", *(["cost"] if priced else [])):
        table.add_column(heading, justify="right")
    for row in plan["plans"]:
        cells = [str(row["gpus"]), str(row["hosts"]), _range(row, "hours", "{:.3g}".format)]
        cells.append(_range(row, "efficiency", "{:.0%}".format))
        table.add_row(*cells, *([_range(row, "cost", "{:,.2f}".format)] if priced else []))
    return table


def _range(row: Mapping[str, Any], name: str, form: Callable[[float], str]) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None:
        return f"at most {form(high)}"
    if high is None:
        return f"at least {form(low)}"
    texts = form(low), form(high)
    if texts[0] == texts[1]:
        return texts[0]
    (first, unit), (_, last_unit) = ((text.partition(" ")[0], text.partition(" ")[2]) for text in texts)
    return f"{first if unit == last_unit else texts[0]} - {texts[1]}"
