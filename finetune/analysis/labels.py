"""Rows with one label, several labels or a number, and tokens with a tag each: what the analysis says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.analysis.calibration import Claims, calibrate
from finetune.analysis.hard_rows import label_suspects, suspects, worst_rows
from finetune.analysis.slices import RowScores, label_slices, row_means, row_ratios
from finetune.bootstrap import Floats
from finetune.record import Analysis, Interval
from finetune.record.analysis import Calibration, Confusion
from finetune.scoring.labels import count_confusion, count_labels

__all__ = ["confusion", "multi", "numbers", "single"]

SHOWN = 40  # labels of a confusion matrix
OTHERS = "(all others)"

Examined = tuple[Analysis, RowScores]


def single(
    ids: Sequence[str],
    loss: Floats,
    gold: NDArray[np.int64],
    logits: Floats,
    labels: Sequence[str],
    temperature: Interval | None,
) -> Examined:
    """One label per row; gold: (n,) ids, logits: (n, K); temperature: as fitted on validation."""
    from scipy.special import softmax

    scores = softmax(logits, axis=1)
    predicted = logits.argmax(axis=1)
    names = [[labels[number] for number in side] for side in (gold, predicted)]
    found = Analysis(
        calibration=_with_temperature(lambda logits: _top_claims(gold, softmax(logits, axis=1)), logits, temperature),
        confusion=confusion(gold, predicted, labels),
        slices=label_slices("label", labels, *count_confusion(gold, predicted, len(labels))),
        worst=worst_rows(ids, loss, *names),
        suspects=suspects(ids, gold, scores, labels),
    )
    return found, row_means("accuracy", gold == predicted)


def _top_claims(gold: NDArray[np.int64], scores: Floats) -> Claims:
    """The predicted label's score; the error is Brier's over all labels, halved to lie between 0 and 1."""
    rows = np.arange(len(gold))
    error = ((scores**2).sum(axis=1) - 2 * scores[rows, gold] + 1) / 2
    right = scores.argmax(axis=1) == gold
    return Claims("the predicted label", scores.max(axis=1), right, error, rows, len(rows))


def multi(
    ids: Sequence[str],
    loss: Floats,
    gold: NDArray[Any],
    logits: Floats,
    predicted: NDArray[np.bool_],
    labels: Sequence[str],
    temperature: Interval | None,
) -> Examined:
    """Several labels per row; gold, predicted: (n, K) of 0 and 1, logits: (n, K)."""
    from scipy.special import expit

    gold = gold.astype(bool)
    hits, either = (gold & predicted).sum(axis=1), gold.sum(axis=1) + predicted.sum(axis=1)
    names = [
        [", ".join(labels[number] for number in np.flatnonzero(row).tolist()) for row in side]
        for side in (gold, predicted)
    ]
    found = Analysis(
        calibration=_with_temperature(lambda logits: _each_claim(gold, expit(logits)), logits, temperature),
        slices=label_slices("label", labels, np.ones(len(gold), np.int64), count_labels(gold, predicted)),
        errors={"missed": int((gold & ~predicted).sum()), "spurious": int((predicted & ~gold).sum())},
        worst=worst_rows(ids, loss, *names),
        suspects=label_suspects(ids, gold, expit(logits), labels),
    )
    return found, row_ratios("f1_micro", 2 * hits, either)


def _each_claim(gold: NDArray[np.bool_], scores: Floats) -> Claims:
    row = np.repeat(np.arange(len(gold)), gold.shape[1])
    flat, right = scores.ravel(), gold.ravel()
    return Claims("each label", flat, right, (flat - right) ** 2, row, len(gold))


def _with_temperature(claims: Any, logits: Floats, temperature: Interval | None) -> Calibration | None:
    found = calibrate(claims(logits))
    if found is None or temperature is None or temperature.value is None:
        return found
    after = calibrate(claims(logits / temperature.value))
    assert after is not None
    return found.model_copy(update={"temperature": temperature, "ece_after": after.ece, "brier_after": after.brier})


def numbers(ids: Sequence[str], loss: Floats, gold: Floats, predicted: Floats) -> Examined:
    """Numbers, gold and predicted (n,)."""
    return Analysis(worst=worst_rows(ids, loss)), row_means("mse", (gold - predicted) ** 2)


def confusion(gold: NDArray[np.int64], predicted: NDArray[np.int64], labels: Sequence[str]) -> Confusion:
    """How often each label (n,) was given for which; beyond 40 labels those with the fewest mistakes are one."""
    width = len(labels)
    counts = np.bincount(gold * width + predicted, minlength=width * width).reshape(width, width)
    if width <= SHOWN:
        return Confusion(labels=list(labels), counts=counts.tolist())
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    kept = np.sort(np.argsort(-mistakes, kind="stable")[: SHOWN - 1])
    place = np.full(width, len(kept))
    place[kept] = np.arange(len(kept))
    small = np.zeros((len(kept) + 1, len(kept) + 1), np.int64)
    np.add.at(small, (place[:, None], place[None, :]), counts)
    names = [*(labels[number] for number in kept), OTHERS]
    return Confusion(labels=names, counts=small.tolist(), merged=width - len(kept))
