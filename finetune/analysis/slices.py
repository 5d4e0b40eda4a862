"""A metric on groups of rows: by length, by the values of a column, by label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import ROW_RESAMPLES, Floats, Statistic, interval, resample_cells, resample_sums
from finetune.record.analysis import Slice
from finetune.scoring.formulas import ratio

__all__ = [
    "Groups",
    "RowScores",
    "column_groups",
    "column_problem",
    "label_slices",
    "length_groups",
    "row_means",
    "row_ratios",
    "slices",
]

GROUPS = 12  # of a column at most
FEWEST = 10  # rows of a value that is scored apart: an interval of up to 0.3 on either side
LENGTHS = 4  # groups of about equal size


@dataclass(frozen=True)
class RowScores:
    """A metric as a function of sums over rows: stats (n, s) float64; statistic: (R, s) sums -> (R,)."""

    metric: str
    stats: Any
    statistic: Statistic


@dataclass(frozen=True)
class Groups:
    """Rows put into groups: their names, and the number of the group of each row, int (n,), -1 for none."""

    names: list[str]
    place: NDArray[np.int64]


def row_ratios(metric: str, numerator: NDArray[Any], denominator: NDArray[Any]) -> RowScores:
    """The ratio of two sums over rows, each (n,); undefined where nothing is counted."""
    stats = np.column_stack([numerator, denominator]).astype(np.float64)
    return RowScores(metric, stats, lambda sums: ratio(sums[:, 0], sums[:, 1], np.nan))


def row_means(metric: str, values: NDArray[Any]) -> RowScores:
    """The mean of values (n,)."""
    return row_ratios(metric, values, np.ones(len(values)))


def slices(scores: RowScores, by: str, groups: Groups) -> list[Slice]:
    """The metric on each group of rows."""
    return [
        _slice(scores, by, name, np.flatnonzero(groups.place == number)) for number, name in enumerate(groups.names)
    ]


def _slice(scores: RowScores, by: str, name: str, index: NDArray[Any]) -> Slice:
    stats = scores.stats[index]
    value = float(scores.statistic(stats.sum(axis=0, keepdims=True))[0])
    result = interval(value, resample_sums(stats, scores.statistic))
    return Slice(by=by, value=name, n=len(index), metric=scores.metric, result=result)


def label_slices(by: str, names: Sequence[str], counts: NDArray[np.int64], features: Any) -> list[Slice]:
    """Precision, recall and F1 of each label, with how often the data has it.

    counts: (c,) rows per cell; features: (c, 2 + 3K), sparse, as `finetune.scoring` counts labels. A resample without
    the label counts as 0; a label that is nowhere, neither in the data nor predicted, has no value.
    """
    width = len(names)

    def statistic(sums: Floats) -> Floats:
        hits, predicted, gold = np.split(sums[:, 2:], 3, axis=1)
        parts = [ratio(hits, predicted), ratio(hits, gold), ratio(2 * hits, predicted + gold)]
        return np.concatenate(parts, axis=1)

    total = np.asarray(counts @ features, dtype=np.float64).reshape(1, -1)
    _, predicted, gold = np.split(total[0, 2:], 3)
    values = np.where(np.tile(predicted + gold, 3) > 0, statistic(total)[0], np.nan)
    samples = resample_cells(counts, statistic, features, ROW_RESAMPLES)
    return [
        Slice(
            by=by,
            value=name,
            n=int(gold[number]),
            metric=metric,
            result=interval(float(values[column]), samples[:, column]),
        )
        for number, name in enumerate(names)
        for column, metric in (
            (number + block * width, word) for block, word in enumerate(("precision", "recall", "f1"))
        )
    ]


def length_groups(lengths: NDArray[Any]) -> Groups:
    """Quarters of the rows by a number (n,), named "5 to 12"; fewer where many are equal."""
    edges = np.unique(np.quantile(lengths, np.arange(1, LENGTHS) / LENGTHS, method="higher"))
    _, place = np.unique(np.searchsorted(edges, lengths, side="left"), return_inverse=True)
    inside = [lengths[place == number] for number in range(place.max() + 1)]
    return Groups([_range(float(part.min()), float(part.max())) for part in inside], place)


def _range(low: float, high: float) -> str:
    return _written(low) if low == high else f"{_written(low)} to {_written(high)}"


def _written(number: float) -> str:
    """Six significant digits, and all of those before the point: powers of ten hide what tells dates apart."""
    return f"{number:.0f}" if 1e5 <= abs(number) < 1e15 else f"{number:g}"


def column_groups(values: Sequence[str], fewest: int = FEWEST) -> Groups:
    """The values of a column, the most frequent first, the others together as "(40 other values)".

    A value with less than `fewest` rows is not scored apart, nor are more than 11 beside the others; where no value has
    so many rows there are no groups. Columns of more than 12 different numbers fall into quarters.
    """
    counts = Counter(values)
    numbers = _numbers(values) if len(counts) > GROUPS else None
    if numbers is not None:
        return length_groups(numbers)
    chosen = _scored_apart(counts, fewest)
    if not chosen:
        return Groups([], np.full(len(values), -1, dtype=np.int64))
    left = len(counts) - len(chosen)
    names = [*chosen, f"({left:,} other value{'s' * (left > 1)})"] if left else chosen
    place = {value: number for number, value in enumerate(chosen)}
    return Groups(names, np.array([place.get(value, len(chosen)) for value in values], dtype=np.int64))


def _scored_apart(counts: Counter[str], fewest: int) -> list[str]:
    ranked = [value for value, count in sorted(counts.items(), key=_rank) if count >= fewest]
    return ranked if len(counts) == len(ranked) <= GROUPS else ranked[: GROUPS - 1]


def _rank(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def column_problem(values: Sequence[str]) -> str | None:
    """What to say of a column that makes poor groups, None of a good one: most rows have a value of their own."""
    counts = Counter(values)
    if len(counts) > GROUPS and _numbers(values) is not None:
        return None
    chosen = _scored_apart(counts, FEWEST)
    inside = sum(counts[value] for value in chosen)
    if 2 * inside >= len(values):
        return None
    many = f"{len(counts):,} different value{'s' * (len(counts) > 1)} in {len(values):,} rows"
    if not chosen:
        return f"{many}, none with {FEWEST} rows: nothing is scored apart"
    return f"{many}: those that are scored apart ({len(chosen)}) have {inside / len(values):.0%} of the rows"


def _numbers(values: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
