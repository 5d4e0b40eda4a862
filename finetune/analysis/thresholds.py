"""From which score on a label applies, where a row has several labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats
from finetune.scoring.formulas import ratio

__all__ = ["ENOUGH", "fit_thresholds"]

ENOUGH = 20  # rows that have a label; with fewer, a threshold of its own is worth no more than the common one
GRID = np.arange(5, 96) / 100


def fit_thresholds(gold: NDArray[Any], scores: Floats) -> Floats:
    """The threshold of each label with the best F1, (K,) float64 from 0.05 to 0.95.

    gold: (n, K) of 0 and 1; scores: (n, K). Labels of fewer than 20 rows share the one with the best macro F1. Among
    equals the common one nearest to 0.5, and of a label the one nearest to that.
    """
    gold = gold.astype(bool)
    f1 = np.stack([_f1(gold, scores >= threshold) for threshold in GRID])
    common = _best(f1.mean(axis=1), 0.5)
    own = [_best(column, common) for column in f1.T]
    return np.where(gold.sum(axis=0) >= ENOUGH, own, common)


def _f1(gold: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> Floats:
    return ratio(2.0 * (gold & chosen).sum(axis=0), (gold.sum(axis=0) + chosen.sum(axis=0)).astype(np.float64))


def _best(values: Floats, near: float) -> float:
    good = GRID[values >= values.max() - 1e-9]
    return float(good[np.abs(good - near).argmin()])
