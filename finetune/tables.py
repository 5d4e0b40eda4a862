"""Results as tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.card.figures import HUNDREDS, interval, milliseconds
from finetune.card.metadata import splits
from finetune.record import Efficiency, RunRecord
from finetune.record.analysis import MEASURES

if TYPE_CHECKING:
    from finetune.comparison import Compared, Comparison

__all__ = ["show_comparison", "show_evaluations", "show_run"]

SHOWN_IDS = 10
ABREAST = 5  # checkpoints in one table
LONGEST = 36  # characters of the name of a checkpoint


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)


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
    for line in (*_weaknesses(record), *_costs(record)):
        console.print(Text(line))


def _result_rows(record: RunRecord) -> Iterator[list[str]]:
    for split in splits(record):
        results = record.results[split]
        for name, metric in results.metrics.items():
            others = [record.baselines[method].get(split) for method in record.baselines]
            beside = [
                "" if other is None or name not in other.metrics else interval(name, other.metrics[name])
                for other in others
            ]
            yield [split, name, interval(name, metric), *beside, str(results.rows(name))]


def _weaknesses(record: RunRecord) -> Iterator[str]:
    """Calibration and behaviour on the first split that was analysed."""
    split = next((name for name in splits(record) if name in record.analysis), None)
    if split is None:
        return
    found = record.analysis[split]
    if found.calibration is not None:
        after = found.calibration.ece_after
        mended = f"; {interval('ece', after)} after a temperature fitted on validation" if after is not None else ""
        yield f"calibration error on {split}: {interval('ece', found.calibration.ece)}{mended}"
    for check in found.behaviour:
        measured = f"{MEASURES[check.measure]} {interval('share', check.changed)}, {check.n} cases"
        yield f"check {check.name}: {measured if check.n else 'no row to change'}"


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


def show_evaluations(records: list[RunRecord]) -> None:
    """One column per checkpoint: its metrics, its rows, what it costs to run; then what to be warned of."""
    found = [one for one in records if one.results]
    names = short_names([one.model.checkpoint if one.model is not None else "" for one in found])
    console = _console()
    for start in range(0, len(found), ABREAST):
        console.print(_evaluation_table(names[start : start + ABREAST], found[start : start + ABREAST]))
    for name, record in zip(names, found, strict=True):
        for line in _weaknesses(record):
            console.print(Text(f"{name}: {line}" if len(found) > 1 else line))
    for name, record in zip(names, found, strict=True):
        for warning in record.warnings:
            console.print(Text(f"warning: {name}: {warning}"), soft_wrap=True)


def _evaluation_table(names: Sequence[str], records: Sequence[RunRecord]) -> Table:
    title = "Results (± is half a 95 % bootstrap interval) and cost in fp32 (latency: one row, from text to output)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    cells = [dict(_evaluation_cells(record)) for record in records]
    for label in dict.fromkeys(label for one in cells for label in one):
        table.add_row(Text(label), *(Text(one.get(label, "")) for one in cells))
    return table


def _evaluation_cells(record: RunRecord) -> Iterator[tuple[str, str]]:
    [(split, results)] = record.results.items()
    facts = record.data[split]
    yield "split", split
    for name, metric in results.metrics.items():
        yield name if metric.n is None else f"{name}, {metric.n:,} rows", interval(name, metric)
    yield "rows", f"{results.n:,}"
    yield "truncated", f"{facts.truncated:,}"
    yield "dropped", f"{sum(facts.dropped.values()):,}"
    if record.efficiency is not None:
        yield from _efficiency_cells(record.efficiency)


def _efficiency_cells(found: Efficiency) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{found.parameters / 1e6:.1f} M"
    yield "on disk", f"{found.size_bytes / 1e6:.1f} MB"
    yield "rows/s", f"{found.rows_per_second:,.1f}"
    yield "latency p50", milliseconds(found.latency_p50_seconds)
    yield "latency p95", milliseconds(found.latency_p95_seconds)
    if found.first_token_p50_seconds is not None:
        yield "first token p50", milliseconds(found.first_token_p50_seconds)
    if found.per_token_p50_seconds is not None:
        yield "next token p50", milliseconds(found.per_token_p50_seconds)
    yield "peak memory", f"{found.peak_memory_bytes / 1e6:,.0f} MB"
    yield "energy", "not measured" if found.energy_kwh is None else f"{found.energy_kwh * 1000:.3g} Wh"


def short_names(names: Sequence[str]) -> list[str]:
    """The end of each path, or of a long name its two ends: as short as still tells all of them apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    for count in range(2, max(map(len, parts), default=0) + 1):
        ends = ["/".join(one[-count:]) for one in parts]
        if len(set(ends)) == len(set(names)):
            cut = [end if len(end) <= LONGEST else f"{end[: LONGEST // 2]}…{end[-LONGEST // 2 :]}" for end in ends]
            return cut if len(set(cut)) == len(set(ends)) else ends
    return list(names)


def show_comparison(found: Comparison) -> None:
    """The verdict, one line per metric, and the rows that changed."""
    console = _console()
    for side, members in (("A", found.a), ("B", found.b)):
        console.print(Text(f"{side}: {', '.join(members)}"), soft_wrap=True)
    where = f"{found.split}, " if found.split else ""
    table = Table(title=f"{where}{found.n:,} rows, A minus B with its 95 % interval", title_justify="left")
    beside = ["p"] if found.changed is None else ["bootstrap p", "test", "p"]
    for heading in ("metric", "A", "B", "A - B", *beside, "Holm's p"):
        table.add_column(heading, justify="left" if heading in ("metric", "test") else "right", overflow="fold")
    for one in found.metrics:
        table.add_row(*(Text(cell) for cell in _compared_cells(one)))
    console.print(table)
    console.print(Text(found.verdict), soft_wrap=True)
    if found.changed is not None:
        changed = found.changed
        for side, ids in (("A", changed.better_a), ("B", changed.better_b)):
            shown = ", ".join(ids[:SHOWN_IDS]) + (", …" if len(ids) > SHOWN_IDS else "")
            many = f"{len(ids):,} row{'s' * (len(ids) != 1)}"
            console.print(
                Text(f"{side} does better ({changed.by}) on {many}{': id ' if ids else ''}{shown}"), soft_wrap=True
            )
    for note in found.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def _compared_cells(one: Compared) -> list[str]:
    digits = 1 if one.metric in HUNDREDS else 3
    gap = one.difference
    span = "" if gap.low is None else f" ({gap.low:+.{digits}f} to {gap.high:+.{digits}f})"
    sides = [
        "undefined"
        if value is None
        else f"{value:.{digits}f}" + ("" if spread is None else f" (sd {spread:.{digits}f})")
        for value, spread in ((one.a, one.spread_a), (one.b, one.spread_b))
    ]
    difference = "undefined" if gap.value is None else f"{gap.value:+.{digits}f}{span}"
    beside = [_p(one.p)] if one.runs_a else [_p(one.bootstrap_p), one.test, _p(one.p)]
    return [one.metric, *sides, difference, *beside, _p(one.holm_p)]


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
