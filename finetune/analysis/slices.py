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
    "label_slices",
    "length_groups",
    "row_means",
    "row_ratios",
    "slices",
]

GROUPS = 12  # of a column; its rarer values are put together
OTHERS = "(all others)"
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
    """The ratio of two sums over rows, each (n,); 0 where nothing is counted."""
    stats = np.column_stack([numerator, denominator]).astype(np.float64)
    return RowScores(metric, stats, lambda sums: ratio(sums[:, 0], sums[:, 1]))


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
    the label counts as 0.
    """
    width = len(names)

    def statistic(sums: Floats) -> Floats:
        hits, predicted, gold = np.split(sums[:, 2:], 3, axis=1)
        parts = [ratio(hits, predicted), ratio(hits, gold), ratio(2 * hits, predicted + gold)]
        return np.concatenate(parts, axis=1)

    total = np.asarray(counts @ features, dtype=np.float64).reshape(1, -1)
    values = statistic(total)[0]
    samples = resample_cells(counts, statistic, features, ROW_RESAMPLES)
    return [
        Slice(
            by=by,
            value=name,
            n=int(total[0, 2 + 2 * width + number]),
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
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def column_groups(values: Sequence[str]) -> Groups:
    """The values of a column, the most frequent first; of very many the 11 most frequent, of numbers their quarters."""
    ranked = [value for value, _ in sorted(Counter(values).items(), key=_rank)]
    if len(ranked) > GROUPS:
        numbers = _numbers(values)
        if numbers is not None:
            return length_groups(numbers)
        ranked = [*ranked[: GROUPS - 1], OTHERS]
    place = {value: number for number, value in enumerate(ranked)}
    return Groups(ranked, np.array([place.get(value, len(ranked) - 1) for value in values], dtype=np.int64))


def _rank(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _numbers(values: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
