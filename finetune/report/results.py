"""The head of the page and its results: figures with intervals, beside the baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure

from finetune.card.figures import HUNDREDS, amount, bounds, count, duration, interval, score
from finetune.card.metadata import splits
from finetune.card.public_names import metric_name
from finetune.record import RunRecord, SplitResults, Training
from finetune.report.blocks import Beside, Chart, Folded, Note, Section, Table, Tile
from finetune.report.charts import draw_intervals, draw_legend
from finetune.report.drawing import stacked, svg
from finetune.scoring.names import LOWER_IS_BETTER

__all__ = [
    "draw_results",
    "drawn_split",
    "headline_metric",
    "named",
    "results",
    "steps_done",
    "tiles",
]


def headline_metric(record: RunRecord) -> str | None:
    """The metric that chose the checkpoint, else the first one; None without results."""
    names = [name for split in splits(record) for name in record.results[split].metrics]
    if record.best is not None and record.best.metric in names:
        return record.best.metric
    return names[0] if names else None


# ------------------------------------------------------------------------------------------------- head of the page


def tiles(record: RunRecord) -> Iterator[Tile]:
    """The few figures that a reader looks for first."""
    metric = headline_metric(record)
    if metric is not None:
        split = next(name for name in splits(record) if metric in record.results[name].metrics)
        found = record.results[split]
        beside = [f"{split}, {count(found.n)} rows", *_best_baseline(record, split, metric)]
        yield Tile(named(record, metric), interval(metric, found.metrics[metric]), "; ".join(beside))
    training = record.training
    if training is not None:
        yield Tile("training", duration(training.seconds), steps_done(training))
        if training.tokens_per_second is not None:
            yield Tile(
                "speed", f"{count(training.tokens_per_second)} tokens/s", f"{record.precision}, padding not counted"
            )
    emissions = record.emissions
    if emissions is not None and emissions.kwh is not None:
        carbon = (
            "no country given"
            if emissions.kg is None
            else f"{amount(emissions.kg * 1000)} g CO₂e ({emissions.country})"
        )
        yield Tile("energy", f"{amount(emissions.kwh * 1000)} Wh", carbon)


def steps_done(training: Training) -> str:
    """How far the loop went."""
    return f"{count(training.steps)} steps, {training.epochs:.3g} epoch{'' if training.epochs == 1 else 's'}"


def _best_baseline(record: RunRecord, split: str, metric: str) -> list[str]:
    found = {
        name: by_split[split].metrics[metric].value
        for name, by_split in record.baselines.items()
        if split in by_split and metric in by_split[split].metrics
    }
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return []
    best = (min if metric in LOWER_IS_BETTER else max)(known, key=lambda name: known[name])
    return [f"{_method(best)} {score(metric, known[best])}"]


def named(record: RunRecord, metric: str) -> str:
    """A metric in words."""
    return metric_name(metric, record.model.problem if record.model else None)


def _method(name: str) -> str:
    return name.replace("_", " ")


# ---------------------------------------------------------------------------------------------------------- results


def results(record: RunRecord) -> Section:
    """One table for each split and a chart of the first; every value with its interval and its number of rows."""
    section = Section("results", "Results")
    if not record.results:
        section.blocks.append(Note("Not evaluated."))
        return section
    section.blocks.append(Note(_reading(record)))
    section.blocks += [Note(f"Warning: {text}") for text in record.warnings]
    drawn = drawn_split(record)
    charts = [_chart(record, drawn)] if drawn is not None else []
    section.blocks.append(Beside([*charts, *(_table(record, split) for split in splits(record))]))
    notes = record.model.notes if record.model else []
    section.blocks += [Folded("How predictions are made", "\n\n".join(notes))] if notes else []
    return section


def _reading(record: RunRecord) -> str:
    weights = "exported weights" if record.efficiency is None else "checkpoint's weights"  # an evaluation exports none
    said = (
        f"Measured on the {weights} in 32-bit arithmetic. Intervals are 95 % bootstrap intervals over rows: how"
        " far another sample of such rows could move the value, not what another seed would give."
    )
    if record.best is not None:
        said += (
            f" The weights are those of step {count(record.best.step)}, chosen by {named(record, record.best.metric)}"
            " on validation; figures on that split are a little optimistic for this reason."
        )
    return said


def _panels(found: SplitResults) -> list[list[str]]:
    """The metrics to draw, by their scale, that of the first one above; not the loss, not those of single classes."""
    names = [name for name in found.metrics if name not in LOWER_IS_BETTER and "/" not in name]
    scales = dict.fromkeys(name in HUNDREDS for name in names)
    return [[name for name in names if (name in HUNDREDS) == scale] for scale in scales]


def _chart(record: RunRecord, split: str) -> Chart:
    with draw_results(record, split) as figure:
        title = f"Metrics on {split} with 95 % intervals, this model and baselines"
        drawing = svg(figure, "results-chart", title)
    return Chart(drawing, f"{split}, {count(record.results[split].n)} rows: values with 95 % intervals")


def drawn_split(record: RunRecord) -> str | None:
    """The split whose metrics are worth a chart, the most telling one; None where there is none."""
    return next((split for split in splits(record) if _panels(record.results[split])), None)


@contextmanager
def draw_results(record: RunRecord, split: str) -> Iterator[Figure]:
    """This model's metrics on a split with their intervals, beside those of the baselines.

    Fractions of 1 and metrics from 0 to 100 have axes of their own; call svg or png inside.
    """
    panels = _panels(record.results[split])
    methods = {"this model": record.results[split]} | {
        _method(name): by_split[split] for name, by_split in record.baselines.items() if split in by_split
    }
    rows = [len(metrics) for metrics in panels]
    height = 0.4 + 0.5 * len(panels) + 0.4 * sum(rows) + 0.2 * math.ceil(len(methods) / 2)
    with stacked(5.2, height, rows) as (figure, axes):
        for metrics, place in zip(panels, axes, strict=True):
            bounds = {
                method: {named(record, metric): found.metrics[metric] for metric in metrics if metric in found.metrics}
                for method, found in methods.items()
            }
            draw_intervals(place, [named(record, metric) for metric in metrics], bounds)
            if place.dataLim.width == 0 and place.dataLim.x0 >= 0:  # nothing to set a scale by
                whole = 100 if metrics[0] in HUNDREDS else 1
                place.set_xlim(-0.05 * whole, whole)  # a dot at 0 is whole
            if len(panels) > 1:
                place.set_xlabel("from 0 to 100" if metrics[0] in HUNDREDS else "fraction of 1")
        draw_legend(figure)
        yield figure


def _table(record: RunRecord, split: str) -> Table:
    found = record.results[split]
    beside = {name: by_split[split] for name, by_split in record.baselines.items() if split in by_split}
    rows = [
        [
            named(record, metric),
            interval(metric, item),
            bounds(metric, item),
            *(interval(metric, other.metrics[metric]) if metric in other.metrics else "–" for other in beside.values()),
        ]
        for metric, item in found.metrics.items()
    ]
    header = ["metric", "this model", "95 % interval", *map(_method, beside)]
    return Table(f"{split}, {count(found.n)} rows", header, rows, right=range(1, len(header)))
