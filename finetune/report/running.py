"""The sections on what happened: curves, speed, energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.card.figures import amount, count, duration, milliseconds, share, size
from finetune.record import Efficiency, RunRecord
from finetune.report.blocks import Beside, Chart, Facts, Note, Section, Table
from finetune.report.charts import draw_curves
from finetune.report.curves import Series, throughput
from finetune.report.drawing import blank, svg
from finetune.report.results import named, steps_done

__all__ = ["Curves", "curves", "emissions", "speed"]

Curves = Mapping[tuple[str, str], Series]
SIZE = (5.2, 3.0)  # inches of a chart that stands beside another


def curves(record: RunRecord, found: Curves) -> Section:
    """Loss, validation metrics and learning rate over the steps."""
    section = Section("curves", "Training curves")
    charts = list(_curve_charts(record, found))
    if charts:
        section.blocks += [Note(_legend(record)), Beside(charts)]
    return section


def _curve_charts(record: RunRecord, found: Curves) -> Iterator[Chart]:
    loss = {split: found[split, "loss"] for split in ("train", "validation") if (split, "loss") in found}
    if loss:
        yield _chart(record, "loss", loss, "Loss")
    scored = [name for split, name in found if split == "validation" and name != "loss"]
    for number, name in enumerate(scored):
        series = {"validation": found["validation", name]}
        yield _chart(record, f"metric-{number}", series, f"Validation: {named(record, name)}")
    if ("train", "learning_rate") in found:
        yield _chart(record, "rate", {"train": found["train", "learning_rate"]}, "Learning rate", marked=False)


def _chart(record: RunRecord, name: str, series: Mapping[str, Series], title: str, *, marked: bool = True) -> Chart:
    best = record.best.step if record.best is not None and marked else None
    resumed = record.training.resumed_from if record.training is not None else []
    with blank(*SIZE) as (figure, axes):
        draw_curves(axes, series, steps=record.training.steps if record.training else 0, best=best, resumed=resumed)
        drawing = svg(figure, f"curve-{name}", f"{title} over the steps of training")
    return Chart(drawing, title)


def _legend(record: RunRecord) -> str:
    said = "The loss of training is a mean over the steps since the last point; bands are 95 % intervals over rows."
    if record.best is not None:
        said += f" The dashed line marks step {count(record.best.step)}, whose weights are exported."
    if record.training is not None and record.training.resumed_from:
        said += " Dotted lines mark the steps at which the run was continued."
    return said


# ------------------------------------------------------------------------------------------------------------ speed


def speed(record: RunRecord, found: Curves) -> Section:
    """Time, tokens, padding, memory, what `auto` decided; of an evaluation, what it takes to run the model."""
    section, training = Section("speed", "Speed"), record.training
    if record.efficiency is not None:
        section.blocks.append(_efficiency(record.efficiency, record.hardware))
    if training is None:
        return section
    rate = throughput(found)
    if rate is not None:
        section.blocks.append(_chart(record, "speed", {"train": rate}, "Tokens a second", marked=False))
    section.blocks.append(
        Facts(
            [
                ("steps", steps_done(training)),
                ("rows seen", count(training.examples)),
                ("tokens", f"{count(training.tokens)}, padding not counted"),
                ("padding", _optional(share, training.padding_share, " of the slots")),
                ("time", f"{duration(training.seconds)}, with saving, without evaluation"),
                ("speed", _optional(count, training.tokens_per_second, " tokens/s")),
                ("first step", _optional(duration, training.seconds_to_first_step, " after the start")),
                ("peak memory", _optional(size, training.peak_memory_bytes)),
                ("precision", record.precision),
                ("decided by measurement", _chosen(record.chosen)),
                ("processes", str(record.processes)),
                ("hardware", _hardware(record.hardware)),
                ("continued from", ", ".join(f"step {count(step)}" for step in training.resumed_from) or None),
                ("not exact on resume", "; ".join(training.inexact) or None),
            ]
        )
    )
    return section


def _efficiency(found: Efficiency, hardware: Mapping[str, Any]) -> Facts:
    many = f"{count(found.latency_rows)} row{'s' * (found.latency_rows != 1)}, one at a time, from text to output"
    latency = f"{milliseconds(found.latency_p50_seconds)}, p95 {milliseconds(found.latency_p95_seconds)} ({many})"
    return Facts(
        [
            ("in batches", f"{found.rows_per_second:,.1f} rows/s"),
            ("latency, median", latency),
            ("first token, median", _optional(milliseconds, found.first_token_p50_seconds)),
            ("each token after it, median", _optional(milliseconds, found.per_token_p50_seconds)),
            ("peak memory", size(found.peak_memory_bytes)),
            ("parameters", count(found.parameters)),
            ("weights on disk", size(found.size_bytes)),
            ("precision", f"fp32, {found.threads} thread{'s' * (found.threads != 1)}"),
            ("hardware", _hardware(hardware)),
        ]
    )


def _optional(shown: Any, value: float | None, unit: str = "") -> str | None:
    return None if value is None else f"{shown(value)}{unit}"


def _chosen(chosen: Mapping[str, Any]) -> str | None:
    said = [f"{name.replace('_', ' ')} {value}" for name, value in chosen.items() if not isinstance(value, dict)]
    probed = chosen.get("probe_seconds")
    if isinstance(probed, dict):
        said.append(
            "a micro-batch takes " + ", ".join(f"{1000 * value:.0f} ms in {name}" for name, value in probed.items())
        )
    return "; ".join(said) or None


def _hardware(found: Mapping[str, Any]) -> str | None:
    parts = [*(found.get("gpus") or []), found.get("cpu")]
    parts += [f"{found['cores']} cores"] if found.get("cores") else []
    parts += [f"{size(found['memory_bytes'])} of memory"] if found.get("memory_bytes") else []
    return ", ".join(str(part) for part in [*parts, found.get("platform")] if part) or None


# ----------------------------------------------------------------------------------------------------------- energy

COLUMNS = (  # heading, key of a phase, factor, unit is in the heading
    ("energy, Wh", "kwh", 1000.0),
    ("CPU, Wh", "cpu_kwh", 1000.0),
    ("GPU, Wh", "gpu_kwh", 1000.0),
    ("RAM, Wh", "ram_kwh", 1000.0),
    ("CO₂e, g", "kg", 1000.0),
)


def emissions(record: RunRecord) -> Section:
    """Energy and emissions of each phase, and how they were estimated."""
    section, found = Section("emissions", "Energy and emissions"), record.emissions
    if found is None:
        return section
    if found.kwh is None:
        section.blocks.append(Note(f"Not measured: {found.reason or 'no reason is known'}."))
        return section
    total: dict[str, float | None] = {"seconds": found.seconds, "kwh": found.kwh, "kg": found.kg}
    phases = {**found.phases, "together": total}
    used = [column for column in COLUMNS if any(phase.get(column[1]) is not None for phase in phases.values())]
    rows = [
        [name, _optional(duration, phase.get("seconds")) or "–", *(_cell(phase.get(key), by) for _, key, by in used)]
        for name, phase in phases.items()
    ]
    header = ["phase", "time", *(heading for heading, _, _ in used)]
    section.blocks.append(Table("By phase", header, rows, right=range(1, len(header))))
    said = f"Method: {found.method}. Trackers of this kind can be off by tens of per cent." if found.method else ""
    said += f" No figure for emissions: {found.reason}." if found.kg is None and found.reason else ""
    said += " A lower bound: a stopped process kept only what its last checkpoint had." if found.lower_bound else ""
    section.blocks += [Note(said.strip())] if said else []
    return section


def _cell(value: float | None, by: float) -> str:
    return "–" if value is None else amount(value * by)
