"""The rows with the highest loss, and those whose label is perhaps wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats
from finetune.record.analysis import Suspect, WorstRow

__all__ = ["LISTED", "suspects", "worst_rows"]

LISTED = 20


def worst_rows(
    ids: Sequence[str],
    loss: NDArray[Any],
    gold: Sequence[str] | None = None,
    predicted: Sequence[str] | None = None,
) -> list[WorstRow]:
    """At most 20 rows, the highest loss (n,) first; gold, predicted: names of labels, where the rows have them."""
    order = np.argsort(-loss, kind="stable")[:LISTED].tolist()
    return [
        WorstRow(
            id=ids[row],
            loss=float(loss[row]),
            gold=None if gold is None else gold[row],
            prediction=None if predicted is None else predicted[row],
        )
        for row in order
    ]


def suspects(
    ids: Sequence[str], gold: NDArray[np.int64], probabilities: Floats, labels: Sequence[str]
) -> list[Suspect]:
    """At most 20 rows that are perhaps labelled wrong, the clearest first.

    gold: (n,) ids of labels, probabilities: (n, K), of rows the model was not trained on. A row is suspect when another
    label is as probable as it is on average for the rows that have that label. Source: confident learning (Northcutt,
    Jiang and Chuang, JAIR 70, 2021), ranked by their normalised margin.
    """
    rows = np.arange(len(gold))
    counts = np.bincount(gold, minlength=len(labels))
    own = probabilities[rows, gold]
    usual = np.where(counts > 0, np.bincount(gold, weights=own, minlength=len(labels)) / np.maximum(counts, 1), np.inf)
    others = np.where(probabilities >= usual, probabilities, -1.0)
    others[rows, gold] = -1.0
    likely = others.argmax(axis=1)
    margin = np.where(others.max(axis=1) > own, others.max(axis=1) - own, -np.inf)
    order = np.argsort(-margin, kind="stable")[:LISTED]
    return [
        Suspect(
            id=ids[row],
            gold=labels[gold[row]],
            likely=labels[likely[row]],
            gold_score=float(own[row]),
            likely_score=float(probabilities[row, likely[row]]),
        )
        for row in order.tolist()
        if np.isfinite(margin[row])
    ]
