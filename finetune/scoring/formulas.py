"""Metrics as array functions of many resamples at once, for the bootstrap.

Each gives the value of scikit-learn, scipy, seqeval or sacreBLEU when it is fed the sums over all rows. R is the number
of resamples, K of labels, n of rows. Undefined is NaN.

Macro averages leave out, in a resample, the labels that it happens to hold no row of: as 0 they would pull every
resample below the value on all rows. Labels that all rows together leave undefined count as 0 in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats, Statistic

__all__ = [
    "FORMULAS",
    "bleu",
    "chrf",
    "label_statistic",
    "pearson",
    "ratio",
    "roc_auc_statistic",
    "spearman_statistic",
    "standard_moments",
]

_FEW_POSITIVES = 200
_CONSTANT = 1e-12  # variance of standardised numbers


def ratio(numerator: Floats, denominator: Floats, undefined: float = 0.0) -> Floats:
    """Elementwise numerator / denominator, and `undefined` where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    result = np.full(shape, undefined)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


@dataclass(frozen=True)
class _Counts:
    """Sums over rows: items and right items (R,); hits, predicted and gold items per label (R, K)."""

    items: Floats
    right: Floats
    hits: Floats
    predicted: Floats
    gold: Floats

    @classmethod
    def of(cls, sums: Floats) -> _Counts:
        hits, predicted, gold = np.split(sums[:, 2:], 3, axis=1)
        return cls(sums[:, 0], sums[:, 1], hits, predicted, gold)


def _macro(share: Callable[[_Counts], tuple[Floats, Floats]]) -> Callable[[_Counts, _Counts], Floats]:
    def average(counts: _Counts, full: _Counts) -> Floats:
        numerator, denominator = share(counts)
        defined_labels = (denominator > 0).sum(axis=1)
        mean = ratio(ratio(numerator, denominator).sum(axis=1), defined_labels)
        labels = denominator.shape[1]
        return mean * ((share(full)[1] > 0).sum(axis=1) / labels) if labels else np.full(len(mean), np.nan)

    return average


def _micro(share: Callable[[_Counts], tuple[Floats, Floats]]) -> Callable[[_Counts, _Counts], Floats]:
    def pool(counts: _Counts, full: _Counts) -> Floats:  # noqa: ARG001
        numerator, denominator = share(counts)
        return ratio(numerator.sum(axis=1), denominator.sum(axis=1))

    return pool


def _f1(counts: _Counts) -> tuple[Floats, Floats]:
    return 2 * counts.hits, counts.predicted + counts.gold


def _precision(counts: _Counts) -> tuple[Floats, Floats]:
    return counts.hits, counts.predicted


def _recall(counts: _Counts) -> tuple[Floats, Floats]:
    return counts.hits, counts.gold


def _accuracy(counts: _Counts, full: _Counts) -> Floats:  # noqa: ARG001
    return ratio(counts.right, counts.items, np.nan)


def _matthews(counts: _Counts, full: _Counts) -> Floats:  # noqa: ARG001
    # R_K of Gorodkin, Computational Biology and Chemistry 28, 2004, as scikit-learn has it.
    both = counts.items * counts.hits.sum(axis=1) - (counts.predicted * counts.gold).sum(axis=1)
    predicted = counts.items**2 - (counts.predicted**2).sum(axis=1)
    gold = counts.items**2 - (counts.gold**2).sum(axis=1)
    return ratio(both, np.sqrt(predicted * gold))


FORMULAS: dict[str, Callable[[_Counts, _Counts], Floats]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro(_f1),
    "macro_precision": _macro(_precision),
    "macro_recall": _macro(_recall),
    "matthews": _matthews,
    "micro_f1": _micro(_f1),
    "micro_precision": _micro(_precision),
    "micro_recall": _micro(_recall),
}
"""Metrics of counted labels, by formula."""


def label_statistic(formulas: Sequence[str], full: Floats | None = None) -> Statistic:
    """Sums (R, 2 + 3K) of [items, right items, hits, predicted, gold per label] -> (R, number of formulas).

    full: (2 + 3K,) sums over all rows, of which the sums are resamples; None where all sums are over all rows. Items
    are rows, or tokens where rows hold several.
    """
    all_rows = None if full is None else _Counts.of(np.asarray(full, dtype=np.float64).reshape(1, -1))

    def statistic(sums: Floats) -> Floats:
        counts = _Counts.of(sums)
        whole = counts if all_rows is None else all_rows
        values = np.empty((len(sums), len(formulas)))
        for column, formula in enumerate(formulas):
            values[:, column] = FORMULAS[formula](counts, whole)
        return values

    return statistic


def roc_auc_statistic(gold: NDArray[Any], scores: Floats) -> Statistic:
    """Row weights (R, n) -> mean one-against-rest area (R,) over the labels with weight on both sides.

    gold: (n, K) bool, scores: (n, K). A tie counts half.
    """
    labels = [_area_statistic(gold[:, label], scores[:, label]) for label in range(gold.shape[1])]

    def statistic(weights: Floats) -> Floats:
        total, defined = np.zeros(len(weights)), np.zeros(len(weights))
        for label in labels:
            area = label(weights)
            total += np.nan_to_num(area)
            defined += np.isfinite(area)
        return ratio(total, defined, np.nan)

    return statistic


def _area_statistic(gold: NDArray[Any], scores: Floats) -> Statistic:
    # Comparing each positive row with all others beats sorting while there are few of them.
    return _compared(gold, scores) if gold.sum() <= _FEW_POSITIVES else _sorted(gold, scores)


def _compared(gold: NDArray[Any], scores: Floats) -> Statistic:
    positive = np.flatnonzero(gold)

    def statistic(weights: Floats) -> Floats:
        beaten = (scores[:, None] < scores[positive]) + 0.5 * (scores[:, None] == scores[positive])
        beaten[positive] = 0.0
        above = weights[:, positive]
        below = weights.sum(axis=1) - above.sum(axis=1)
        return ratio(((weights @ beaten) * above).sum(axis=1), above.sum(axis=1) * below, np.nan)

    return statistic


def _sorted(gold: NDArray[Any], scores: Floats) -> Statistic:
    order = np.argsort(scores, kind="stable")
    positive = gold[order].astype(np.float64)
    starts = _tie_starts(scores[order])

    def statistic(weights: Floats) -> Floats:
        drawn = weights[:, order]
        above = np.add.reduceat(drawn * positive, starts, axis=1)
        below = np.add.reduceat(drawn, starts, axis=1) - above
        beaten = np.cumsum(below, axis=1) - below / 2
        return ratio((above * beaten).sum(axis=1), above.sum(axis=1) * below.sum(axis=1), np.nan)

    return statistic


def _tie_starts(ordered: Floats) -> NDArray[np.intp]:
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def standard_moments(gold: Floats, predicted: Floats) -> Floats:
    """Per-row statistics (n, 6) for `pearson`, of numbers standardised so that nothing cancels."""
    x, y = (_standardise(np.asarray(side, dtype=np.float64)) for side in (gold, predicted))
    return np.column_stack([np.ones(len(x)), x, y, x * x, y * y, x * y])


def _standardise(values: Floats) -> Floats:
    centred = values - values.mean()
    spread = float(centred.std())
    standard: Floats = centred / spread if spread > 0 else centred
    return standard


def pearson(sums: Floats) -> Floats:
    """Sums (R, 6) of `standard_moments` -> correlation (R,); NaN where a resample is constant on one side."""
    n, x, y, xx, yy, xy = sums.T
    return _correlation(xx / n - (x / n) ** 2, yy / n - (y / n) ** 2, xy / n - x * y / n**2)


def _correlation(x: Floats, y: Floats, both: Floats) -> Floats:
    defined = (x > _CONSTANT) & (y > _CONSTANT)
    root = np.sqrt(np.where(defined, x * y, 1.0))
    result: Floats = np.where(defined, np.clip(both / root, -1.0, 1.0), np.nan)
    return result


def spearman_statistic(gold: Floats, predicted: Floats) -> Statistic:
    """Row weights (R, n) -> rank correlation (R,), ties by mean rank, ranked anew in each resample."""
    rank_gold, rank_predicted = _rank_statistic(gold), _rank_statistic(predicted)

    def statistic(weights: Floats) -> Floats:
        n = weights.sum(axis=1)
        x, y = rank_gold(weights), rank_predicted(weights)  # standard deviations of about 0.29
        return _correlation(*((weights * part).sum(axis=1) / n for part in (x * x, y * y, x * y)))

    return statistic


def _rank_statistic(values: Floats) -> Statistic:
    """Row weights (R, n) -> each row's rank (R, n) among the rows drawn, from -1/2 to 1/2."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = _tie_starts(group[order].astype(np.float64))

    def statistic(weights: Floats) -> Floats:
        sizes = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(sizes, axis=1) - sizes / 2
        ranks: Floats = (middle / sizes.sum(axis=1, keepdims=True) - 0.5)[:, group]
        return ranks

    return statistic


def bleu(sums: Floats) -> Floats:
    """Sums (R, 10) of [length, reference length, 4 matches, 4 n-grams] -> BLEU-4 (R,), 0 to 100.

    Exponential smoothing, no effective order: sacrebleu.BLEU.compute_bleu with its defaults.
    """
    length, reference = sums[:, 0], sums[:, 1]
    matches, total = sums[:, 2:6], sums[:, 6:10]
    halvings = 2.0 ** np.cumsum(matches == 0, axis=1)
    precision = ratio(np.where(matches == 0, 1 / halvings, matches), total)
    defined = (total > 0).all(axis=1) & (matches > 0).any(axis=1)
    mean = np.exp(np.log(np.where(defined.reshape(-1, 1), precision, 1.0)).mean(axis=1))
    brevity = np.exp(np.minimum(0.0, 1 - ratio(reference, length, np.inf)))
    result: Floats = np.where(defined, 100 * brevity * mean, 0.0)
    return result


def chrf(sums: Floats) -> Floats:
    """Sums (R, 18) of [n-grams, reference n-grams, matches] for 6 orders -> chrF2 (R,), 0 to 100.

    The mean over the orders that both sides have: sacrebleu.CHRF with its defaults.
    """
    hypothesis, reference, match = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
    orders = ((hypothesis > 0) & (reference > 0)).sum(axis=1)  # the others have no match, and add 0
    precision = ratio(ratio(match, hypothesis).sum(axis=1), orders)
    recall = ratio(ratio(match, reference).sum(axis=1), orders)
    return 100 * ratio(5 * precision * recall, 4 * precision + recall)
