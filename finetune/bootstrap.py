"""Uncertainty of a metric: percentile-bootstrap intervals over rows, and paired tests of two models on the same rows.

A resample draws n of n rows with replacement. Rows that look the same to a metric form one cell, and the counts of the
cells in a resample are multinomial, so most metrics never touch single rows: a metric of summed per-row statistics is a
function of `weights @ features`. The generator is our own and its seed is fixed: the same rows give the same interval,
and nothing else that draws random numbers is disturbed.

Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) have no width where
every row scores the same, and are a little short below about 30 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.record import Interval

__all__ = [
    "RESAMPLES",
    "ROW_RESAMPLES",
    "McNemar",
    "PairedDifference",
    "approximate_randomization",
    "interval",
    "mcnemar",
    "mean_interval",
    "paired_differences",
    "paired_rows_difference",
    "resample_cells",
    "resample_rows",
    "resample_sums",
    "sums_interval",
]

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # (R, s) sums of R resamples -> (R,) or (R, m)

RESAMPLES = 10_000
ROW_RESAMPLES = 1_000  # for metrics that need every row's weight in every resample

_SEED = 20_240_229
_BLOCK = 2_000_000  # numbers held at once: 16 MB
_CACHED = 100_000  # row draws counted at once, few enough to stay in the processor's cache
_DRAWS = 500_000_000  # row draws per interval; above 50,000 of them per resample fewer resamples, never under 1,000
_LARGE = 16  # rows from which on one binomial draw for the cell is faster than one draw for each row
_MIN_DEFINED = 0.95
_WIDE = 64  # statistics per row
_MAX_EXACT = 1_000  # discordant rows


def interval(value: float | None, samples: Floats) -> Interval:
    """The 2.5 and 97.5 percentiles of a metric's values over resamples.

    value: on all rows; None or NaN where the metric is undefined. samples: (R,) float64, NaN where a resample leaves
    the metric undefined. `low` and `high` are None when under 95 % of the resamples are defined, or there are none.
    """
    if value is None or not np.isfinite(value):
        return Interval(value=None)
    defined = samples[np.isfinite(samples)]
    if len(defined) == 0 or len(defined) < _MIN_DEFINED * len(samples):
        return Interval(value=float(value))
    low, high = np.percentile(defined, (2.5, 97.5))
    return Interval(value=float(value), low=float(low), high=float(high))


def resample_cells(
    counts: NDArray[np.int64], statistic: Statistic, features: Any = None, resamples: int = RESAMPLES
) -> Floats:
    """Values of a metric over resamples of rows that fall into cells.

    counts: (c,) rows per cell. features: (c, s) float64 or a scipy sparse array, what a row of each cell adds to the
    sums; without it the statistic gets the cells' counts (R, c). Returns (R,) or (R, m) float64 as the statistic does.
    R is 0 for fewer than two rows, which say nothing about spread; for very many rows it shrinks, to 1,000 at least.
    """
    counts = np.asarray(counts, dtype=np.int64)
    width = len(counts) if features is None else features.shape[1]
    if counts.sum() < 2:
        return statistic(np.empty((0, width)))
    parts = [
        statistic(weights if features is None else np.asarray(weights @ features, dtype=np.float64))
        for weights in _weights(counts, resamples, max(1, _BLOCK // max(width, len(counts))))
    ]
    return np.concatenate(parts)


def _weights(counts: NDArray[np.int64], resamples: int, block: int) -> Iterator[Floats]:
    """Blocks (<= block, c) of the cells' counts in each resample.

    Cells with many rows and all others together share the draws by a multinomial law; which of the others a draw falls
    on is drawn row by row. Together that is the multinomial law of all cells.
    """
    generator = np.random.Generator(np.random.SFC64(_SEED))
    large, small = np.flatnonzero(counts > _LARGE), np.flatnonzero((counts > 0) & (counts <= _LARGE))
    rows, rest = int(counts.sum()), int(counts[small].sum())
    resamples = min(resamples, max(1_000, _DRAWS // max(rest, 1)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.multinomial(rows, np.append(rest, counts[large]) / rows, size=size)
        if len(small) == len(counts):
            yield _count_draws(generator, counts, drawn[:, 0])
            continue
        weights = np.zeros((size, len(counts)))
        weights[:, large] = drawn[:, 1:]
        weights[:, small] = _count_draws(generator, counts[small], drawn[:, 0])
        yield weights


def _count_draws(generator: np.random.Generator, counts: NDArray[np.int64], draws: NDArray[np.int64]) -> Floats:
    """How often each cell (c,) comes up in each resample (R, c); draws: (R,) rows drawn in each."""
    cells, rows = len(counts), int(counts.sum())
    cell_of_row = np.repeat(np.arange(cells), counts)
    found = np.zeros((len(draws), cells))
    at_once = max(1, _CACHED // max(rows, 1))
    for start in range(0, len(draws), at_once):
        part = found[start : start + at_once]
        taken = draws[start : start + at_once]
        places = np.repeat(np.arange(len(part)) * cells, taken)
        drawn = generator.integers(0, max(rows, 1), size=len(places), dtype=np.uint32)
        places += drawn if cells == rows else cell_of_row[drawn]
        part[:] = np.bincount(places, minlength=part.size).reshape(part.shape)
    return found


def resample_sums(stats: Any, statistic: Statistic, resamples: int = RESAMPLES) -> Floats:
    """Values over resamples of a metric that is a function of the rows' summed statistics.

    stats: (n, s) float64 or a scipy sparse array. statistic: (R, s) sums -> (R,) or (R, m). Equal rows are gathered
    into cells, which changes the time and not the distribution.
    """
    stats = _thin(stats.astype(np.float64))
    _, first, counts = np.unique(_packed(stats), return_index=True, return_counts=True)
    return resample_cells(counts, statistic, stats[first], resamples)


def _thin(stats: Any) -> Any:
    """Counts of many labels as a sparse array: a row holds few of them."""
    from scipy.sparse import csr_array

    return csr_array(stats) if not isinstance(stats, np.ndarray) or stats.shape[1] > _WIDE else stats


def _packed(stats: Any) -> NDArray[Any]:
    """One value for each row, equal where the rows are; stats: (n, s) float64 or a csr array."""
    if isinstance(stats, np.ndarray):
        return np.ascontiguousarray(stats).view(np.dtype((np.void, stats.dtype.itemsize * stats.shape[1])))[:, 0]
    stats.sum_duplicates()  # sorts the columns of each row
    packed = np.empty(stats.shape[0], dtype=object)
    for row, (start, end) in enumerate(pairwise(stats.indptr.tolist())):
        packed[row] = stats.indices[start:end].tobytes() + stats.data[start:end].tobytes()
    return packed


def resample_rows(rows: int, statistic: Statistic, resamples: int = ROW_RESAMPLES) -> Floats:
    """Values over resamples of a metric without sufficient statistics, such as one of ranks.

    statistic: (R, n) float64, how often each row was drawn -> (R,) or (R, m). `np.repeat(np.arange(n), weights)` turns
    one line of it into row indices for a metric that knows no weights.
    """
    return resample_cells(np.ones(rows, dtype=np.int64), statistic, None, resamples)


def mean_interval(values: NDArray[Any]) -> Interval:
    """The mean of values (n,) with its interval; None without rows."""
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    if len(column) == 0:
        return Interval(value=None)
    samples = resample_sums(column, lambda sums: sums[:, 0] / len(column))
    return interval(float(column.mean()), samples)


def sums_interval(stats: NDArray[Any], statistic: Statistic) -> Interval:
    """A metric of summed per-row statistics with its interval; stats: (n, s), statistic: (R, s) -> (R,)."""
    if len(stats) == 0:
        return Interval(value=None)
    stats = np.asarray(stats, dtype=np.float64)
    return interval(float(statistic(stats.sum(axis=0, keepdims=True))[0]), resample_sums(stats, statistic))


@dataclass(frozen=True)
class PairedDifference:
    """A metric of model A minus that of model B on the same n rows; p: two-sided; error: standard error over rows.

    p and error are None below two rows, and where the metric is undefined.
    """

    difference: Interval
    p: float | None
    n: int
    error: float | None = None


def paired_differences(
    a: NDArray[Any], b: NDArray[Any], statistic_a: Statistic, statistic_b: Statistic
) -> list[PairedDifference]:
    """Compare two models in m metrics by a paired bootstrap: each resample takes the same rows of both.

    a, b: (n, s) and (n, t) per-row statistics; statistic_a: (R, s) sums -> (R, m), statistic_b: (R, t) -> (R, m). p is
    the share of resamples whose difference lies as far from the observed one as that lies from 0 (the recentred
    bootstrap test), with the observed one counted in.
    """
    assert len(a) == len(b), f"two models on the same rows: {len(a)} and {len(b)} rows"
    n, width = a.shape

    def gaps(sums: Floats) -> Floats:
        return statistic_a(sums[:, :width]) - statistic_b(sums[:, width:])

    both = np.hstack([a, b]).astype(np.float64)
    observed = gaps(both.sum(axis=0, keepdims=True))[0]
    if n == 0:
        return [PairedDifference(Interval(value=None), None, 0) for _ in observed]
    samples = resample_sums(both, gaps)
    return [_difference(float(value), column, n) for value, column in zip(observed, samples.T, strict=True)]


def paired_rows_difference(rows: int, statistic_a: Statistic, statistic_b: Statistic) -> PairedDifference:
    """As `paired_differences`, for one metric of weighted rows: statistics (R, n) -> (R,), see `resample_rows`."""
    if rows == 0:
        return PairedDifference(Interval(value=None), None, 0)

    def gap(weights: Floats) -> Floats:
        return statistic_a(weights) - statistic_b(weights)

    return _difference(float(gap(np.ones((1, rows)))[0]), resample_rows(rows, gap), rows)


def _difference(observed: float, samples: Floats, n: int) -> PairedDifference:
    defined = samples[np.isfinite(samples)]
    if not len(defined) or not np.isfinite(observed):
        return PairedDifference(interval(observed, samples), None, n)
    p = _two_sided(np.abs(defined - observed), observed)
    return PairedDifference(interval(observed, samples), p, n, float(defined.std()))


def _paired(a: NDArray[Any], b: NDArray[Any]) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert first.shape == second.shape, f"two models on the same rows: shapes {first.shape} and {second.shape}"
    return (first[:, None], second[:, None]) if first.ndim == 1 else (first, second)


def _two_sided(distances: Floats, observed: float) -> float:
    # Sums in another order differ in the last bits: a tie must count as one.
    return float((1 + np.sum(distances >= abs(observed) - 1e-12)) / (1 + len(distances)))


@dataclass(frozen=True)
class McNemar:
    """Rows that only one of two models has right, and the two-sided p of so uneven a split; None without rows."""

    only_a: int
    only_b: int
    p: float | None


def mcnemar(a_correct: NDArray[Any], b_correct: NDArray[Any]) -> McNemar:
    """McNemar's test of two models on the same rows; a_correct, b_correct: (n,) bool.

    The exact binomial test up to 1,000 discordant rows, beyond that chi-squared with continuity correction (McNemar,
    Psychometrika 12, 1947; Edwards, Psychometrika 13, 1948).
    """
    from scipy import stats

    a, b = np.asarray(a_correct, dtype=bool), np.asarray(b_correct, dtype=bool)
    assert a.shape == b.shape, f"two models on the same rows: shapes {a.shape} and {b.shape}"
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    discordant = only_a + only_b
    if discordant == 0:
        return McNemar(0, 0, 1.0 if len(a) else None)
    if discordant <= _MAX_EXACT:
        return McNemar(only_a, only_b, float(stats.binomtest(only_a, discordant).pvalue))
    chi2 = max(abs(only_a - only_b) - 1, 0) ** 2 / discordant
    return McNemar(only_a, only_b, float(stats.chi2.sf(chi2, df=1)))


def approximate_randomization(
    a: NDArray[Any], b: NDArray[Any], statistic: Statistic, trials: int = RESAMPLES
) -> float | None:
    """The two-sided p of a difference in a metric such as F1 or BLEU, by swapping the models' outputs row by row.

    a, b: (n, s) per-row statistics of two models on the same rows; statistic: (R, s) sums -> (R,). None without rows or
    where the metric is undefined. Source: Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989; Yeh, COLING
    2000.
    """
    first, second = _paired(a, b)
    if len(first) == 0:
        return None
    total_a, total_b = first.sum(axis=0, keepdims=True), second.sum(axis=0, keepdims=True)
    observed = float((statistic(total_a) - statistic(total_b))[0])
    if not np.isfinite(observed):
        return None
    change = (second - first)[np.any(first != second, axis=1)]  # swapping equal rows changes nothing
    gaps = [
        np.abs(statistic(total_a + moved) - statistic(total_b - moved)) for moved in _random_subset_sums(change, trials)
    ]
    distances = np.concatenate(gaps)
    return _two_sided(distances[np.isfinite(distances)], observed)


def _random_subset_sums(stats: Floats, trials: int) -> Iterator[Floats]:
    """Blocks (<= trials, s) of the sums over random halves of the rows, each row in with probability 1/2."""
    generator = np.random.Generator(np.random.SFC64(_SEED))
    block = max(1, _BLOCK // max(*stats.shape, 1))
    thin = _thin(stats)
    for start in range(0, trials, block):
        size = min(block, trials - start)
        bits = np.frombuffer(generator.bytes(size * (len(stats) // 8 + 1)), dtype=np.uint8).reshape(size, -1)
        swapped = np.unpackbits(bits, axis=1, count=len(stats))
        yield np.asarray(swapped.astype(np.float64) @ thin)
