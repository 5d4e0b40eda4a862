"""Two models on the same rows: how far apart they are, and whether rows or seeds alone could have made the gap."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from scipy import stats

from finetune.bootstrap import Floats, PairedDifference
from finetune.comparison.measures import KNOWN, Measure, differences, measure, row_scores, tested
from finetune.comparison.predictions import Predicted, align, convert, infer_kind, read
from finetune.errors import DataError, RecipeError
from finetune.record import Interval
from finetune.scoring.names import DEFAULTS, LOWER_IS_BETTER, NAMES, Kind

__all__ = ["LEVEL", "Changed", "Compared", "Comparison", "compare"]

LEVEL = 0.05  # p below this is called a difference


class Compared(BaseModel):
    """One metric. Values and difference are means over the runs of a side; p is None where the metric is undefined."""

    metric: str
    a: float | None
    b: float | None
    difference: Interval  # a minus b, 95 %
    bootstrap_p: float | None  # paired, over rows
    test: str  # McNemar, randomisation, bootstrap, or: rows and seeds
    p: float | None
    holm_p: float | None = None  # for all metrics of the table together
    runs_a: list[float] = []  # with several runs: the value of each
    runs_b: list[float] = []
    spread_a: float | None = None  # standard deviation over runs
    spread_b: float | None = None


class Changed(BaseModel):
    """Rows on which one of two models does better, by id."""

    by: str  # what is compared: right, F1, chrF, squared error
    better_a: list[str]
    better_b: list[str]


class Comparison(BaseModel):
    """What `finetune compare` found."""

    a: list[str]
    b: list[str]
    split: str | None
    kind: Kind
    n: int
    verdict: str
    metrics: list[Compared]  # the first is the one that the verdict is about
    changed: Changed | None = None
    notes: list[str] = []


def compare(
    a: str, b: str, *, split: str | None = None, metrics: Sequence[str] = (), kind: str | None = None
) -> Comparison:
    """Compare the predictions of two models, or of two groups of runs that differ in their seed.

    a, b: a run folder, an evaluation folder or a jsonl file with id, gold and prediction; several are separated by
    commas, or given as a glob. metrics: the first decides; left out, those of the first run. kind: a name of
    `finetune.scoring.names.NAMES`; left out, inferred. Raises DataError, or RecipeError for a wrong argument.
    """
    sides = [_members(a), _members(b)]
    _check_sides(sides)
    found = read([*sides[0], *sides[1]], split)
    if kind is not None and kind not in NAMES:
        raise RecipeError(f"--kind: expected one of {', '.join(NAMES)}, found {kind!r}")
    chosen: Kind = infer_kind(found) if kind is None else kind
    models = align([convert(model, chosen) for model in found])
    names = list(metrics) or _metrics_of(models[0], chosen)
    measures = measure(chosen, names, models[0].gold, [model.predicted for model in models], _labels(models, chosen))
    first = list(range(len(sides[0])))
    second = list(range(len(sides[0]), len(models)))
    gaps = differences(measures, first, second)
    compared = [_compared(one, gap, first, second) for one, gap in zip(measures, gaps, strict=True)]
    _correct(compared)
    n = len(models[0].ids)
    return Comparison(
        a=sides[0],
        b=sides[1],
        split=models[0].split,
        kind=chosen,
        n=n,
        verdict=_verdict(compared[0], n, len(first), len(second)),
        metrics=compared,
        changed=_changed(models[0], models[1], chosen) if len(models) == 2 else None,
        notes=_notes(models, chosen, inferred=kind is None, metrics=len(names)),
    )


def _members(side: str) -> list[str]:
    """The runs of one side: as it stands, or split at commas, with globs filled in."""
    if Path(side).exists():
        return [side]
    parts = [part.strip() for part in side.split(",") if part.strip()]
    found = [_matches(part) if glob.has_magic(part) else [part] for part in parts]
    empty = [part for part, several in zip(parts, found, strict=True) if not several]
    if empty or not parts:
        raise DataError(f"compare: nothing matches {', '.join(empty) or repr(side)}")
    return [name for several in found for name in several]


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern))  # noqa: PTH207  (Path.glob takes no absolute pattern)


def _check_sides(sides: list[list[str]]) -> None:
    counts = [len(side) for side in sides]
    if min(counts) == 1 and max(counts) > 1:
        raise RecipeError(
            f"compare: A has {counts[0]} and B {counts[1]} runs; one run has no spread over seeds: give one on each"
            " side, or at least two on each"
        )
    repeated = {Path(name).resolve() for name in sides[0]} & {Path(name).resolve() for name in sides[1]}
    several = [name for side in sides for name in side]
    if repeated or len(set(several)) < len(several):
        raise RecipeError(f"compare: the same predictions twice: {', '.join(several)}")


def _metrics_of(model: Predicted, kind: Kind) -> list[str]:
    """The metrics of the record, first the one that selected the checkpoint; else the defaults of the kind."""
    record = model.record
    recorded = record.results.get(model.split or "") if record is not None else None
    names = [name for name in (recorded.metrics if recorded else DEFAULTS[kind]) if name in KNOWN[kind]]
    if record is not None and record.best is not None and record.best.metric in names:
        names = [record.best.metric, *(name for name in names if name != record.best.metric)]
    return names or [name for name in DEFAULTS[kind] if name in KNOWN[kind]]


def _labels(models: Sequence[Predicted], kind: Kind) -> list[str]:
    """All labels of the task: those of the records, and those that occur."""
    if kind not in ("single", "multi", "tags"):
        return []
    values = [value for model in models for side in (model.gold, model.predicted) for value in side]
    occurring = set(values) if kind == "single" else {label for several in values for label in several}
    recorded = [model.record.model.labels for model in models if model.record and model.record.model]
    return sorted(occurring.union(*recorded))


# ---------------------------------------------------------------------------------------- one metric


def _compared(one: Measure, rows: PairedDifference, a: list[int], b: list[int]) -> Compared:
    values = [[one.value(model) for model in side] for side in (a, b)]
    facts: dict[str, Any] = {"metric": one.name, "bootstrap_p": rows.p, "difference": rows.difference}
    facts |= {side: _finite(float(np.mean(found))) for side, found in zip("ab", values, strict=True)}
    if len(a) == len(b) == 1:
        facts["test"], facts["p"] = tested(one, a[0], b[0], rows)
        return Compared(**facts)
    interval, p = _over_seeds(values[0], values[1], rows)
    spreads = [float(np.std(found, ddof=1)) for found in values]
    facts |= {"difference": interval, "test": "rows and seeds", "p": p}
    facts |= {"runs_a": values[0], "runs_b": values[1], "spread_a": spreads[0], "spread_b": spreads[1]}
    return Compared(**facts)


def _over_seeds(a: Sequence[float], b: Sequence[float], rows: PairedDifference) -> tuple[Interval, float | None]:
    """Interval and two-sided p of the gap between two groups of runs, for other rows and other seeds.

    a, b: the metric of each run, at least two a side; rows: the gap of the means with its standard error over rows. The
    variances of rows and of seeds are added and their degrees of freedom joined as in Welch's test (Biometrika 34,
    1947; Satterthwaite, Biometrics Bulletin 2, 1946).
    """
    gap = float(np.mean(a) - np.mean(b))
    if rows.error is None or not np.isfinite(gap):
        return Interval(value=_finite(gap)), None
    parts: Floats = np.array([rows.error**2, np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)])
    freedom = np.array([rows.n - 1, len(a) - 1, len(b) - 1])
    total = float(parts.sum())
    if total == 0.0:
        return Interval(value=gap, low=gap, high=gap), 1.0 if gap == 0 else 0.0
    joined = total**2 / float((parts**2 / freedom).sum())
    error = float(np.sqrt(total))
    half = float(stats.t.ppf(0.975, joined)) * error
    return Interval(value=gap, low=gap - half, high=gap + half), float(2 * stats.t.sf(abs(gap) / error, joined))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _correct(compared: list[Compared]) -> None:
    """Holm's p for all metrics together (Scandinavian Journal of Statistics 6, 1979)."""
    defined = sorted((one for one in compared if one.p is not None), key=lambda one: one.p or 0.0)
    highest = 0.0
    for place, one in enumerate(defined):
        highest = max(highest, min(1.0, (one.p or 0.0) * (len(defined) - place)))
        one.holm_p = highest


# ---------------------------------------------------------------------------------------- in words


def _verdict(one: Compared, n: int, runs_a: int, runs_b: int) -> str:
    where = f"these {n:,} rows" if runs_a == 1 else f"these {n:,} rows and {runs_a} + {runs_b} runs"
    gap = one.difference
    if one.p is None or gap.value is None:
        return f"Not distinguishable on {where}: {one.metric} is undefined there, or on other such rows."
    digits = 3 if abs(gap.value) < 10 else 1
    span = "" if gap.low is None else f"95 % interval {gap.low:+.{digits}f} to {gap.high:+.{digits}f}, "
    figures = f"{span}p = {one.p:.2g}, {one.test}"
    if one.p >= LEVEL or gap.value == 0:
        return (
            f"Not distinguishable on {where}: {one.metric} of A minus that of B is {gap.value:+.{digits}f} ({figures})."
        )
    better = "A" if (gap.value > 0) != (one.metric in LOWER_IS_BETTER) else "B"
    return f"{better} is better by {abs(gap.value):.{digits}f} {one.metric} on {where} (A minus B: {figures})."


def _changed(a: Predicted, b: Predicted, kind: Kind) -> Changed:
    by, scores_a = row_scores(kind, a.gold, a.predicted)
    scores_b = row_scores(kind, b.gold, b.predicted)[1]
    better = [
        [name for name, more in zip(a.ids, chosen.tolist(), strict=True) if more]
        for chosen in (scores_a > scores_b, scores_b > scores_a)
    ]
    return Changed(by=by, better_a=better[0], better_b=better[1])


def _notes(models: Sequence[Predicted], kind: Kind, *, inferred: bool, metrics: int) -> list[str]:
    notes = []
    if inferred and not any(model.record for model in models):
        notes.append(f"read as predictions of kind {kind}; --kind names another ({', '.join(NAMES)})")
    prints = {
        model.record.data[model.split].fingerprint
        for model in models
        if model.record is not None and model.split in model.record.data
    }
    if len(prints) > 1:
        notes.append("ids and gold answers agree, but the runs read other texts or other settings of the data")
    lengths = {model.record.model.max_length: None for model in models if model.record and model.record.model}
    if len(known := [str(length) for length in lengths if length is not None]) > 1:
        notes.append(
            f"inputs were read up to other lengths ({' and '.join(known)} tokens), which may be all that differs"
        )
    if metrics > 1:
        notes.append(
            f"{metrics} metrics were tested: the verdict is about the first alone, chosen before looking (--metric);"
            " for the others read Holm's p"
        )
    if len(models) == 2:
        notes.append("one run on each side: another seed of the same recipe may differ as much; give several runs")
    return notes
