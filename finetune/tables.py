"""Results as tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.record import Interval, RunRecord

__all__ = ["show_evaluations", "show_run"]

SHOWN_FIRST = ("test", "validation", "train")
WIDE_SCALE = frozenset({"rouge1", "rouge2", "rougeL", "bleu", "chrf"})  # 0 to 100


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)


def _score(name: str, metric: Interval | None) -> str:
    """`0.817 ± 0.023`, half the width of the interval behind the sign."""
    if metric is None or metric.value is None:
        return "undefined"
    digits = 1 if name in WIDE_SCALE else 3
    if metric.low is None or metric.high is None:
        return f"{metric.value:.{digits}f}"
    return f"{metric.value:.{digits}f} ± {(metric.high - metric.low) / 2:.{digits}f}"


def _splits(record: RunRecord) -> list[str]:
    return [name for name in SHOWN_FIRST if name in record.results]


def show_run(record: RunRecord) -> None:
    """Results by split, the baselines beside them, and what the run cost."""
    table = Table(title="Results (± is half a 95 % bootstrap interval)", title_justify="left")
    table.add_column("split")
    table.add_column("metric")
    table.add_column("this model", justify="right")
    for name in record.baselines:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("rows", justify="right")
    for cells in _result_rows(record):
        table.add_row(*(Text(cell) for cell in cells))
    console = _console()
    console.print(table)
    for line in _costs(record):
        console.print(Text(line))


def _result_rows(record: RunRecord) -> Iterator[list[str]]:
    for split in _splits(record):
        results = record.results[split]
        for name, metric in results.metrics.items():
            others = [record.baselines[method].get(split) for method in record.baselines]
            beside = [
                "" if other is None or name not in other.metrics else _score(name, other.metrics[name])
                for other in others
            ]
            yield [split, name, _score(name, metric), *beside, str(results.n)]


def _costs(record: RunRecord) -> Iterator[str]:
    if record.training is not None:
        training = record.training
        speed = f", {training.tokens_per_second:.0f} tokens/s" if training.tokens_per_second else ""
        padding = f", {training.padding_share:.1%} padding" if training.padding_share is not None else ""
        yield f"training: {training.steps} steps in {training.seconds:.1f} s{speed}{padding}, {record.precision}"
    emissions = record.emissions
    if emissions is not None and emissions.kwh is not None:
        grams = f", {emissions.kg * 1000:.3g} g CO2eq ({emissions.country})" if emissions.kg is not None else ""
        yield f"energy: {emissions.kwh * 1000:.3g} Wh{grams}, estimated by CodeCarbon"
    elif emissions is not None:
        yield f"energy: not measured ({emissions.reason})"


def show_evaluations(records: dict[str, RunRecord]) -> None:
    """One row per checkpoint, one column per metric."""
    names = list(
        dict.fromkeys(
            name for record in records.values() for split in _splits(record) for name in record.results[split].metrics
        )
    )
    table = Table(title="Results (± is half a 95 % bootstrap interval)", title_justify="left")
    for heading in ("checkpoint", "split", *names, "rows"):
        table.add_column(heading, overflow="fold")
    for checkpoint, record in records.items():
        for split in _splits(record):
            results = record.results[split]
            cells = [_score(name, results.metrics.get(name)) for name in names]
            table.add_row(*(Text(cell) for cell in (checkpoint, split, *cells, str(results.n))))
    _console().print(table)
