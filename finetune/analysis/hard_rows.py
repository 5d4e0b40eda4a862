"""The rows with the highest loss, and those whose label is perhaps wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats
from finetune.record.analysis import Suspect, WorstRow

__all__ = ["LISTED", "WordTags", "label_suspects", "suspects", "word_suspects", "worst_rows"]

LISTED = 20
LEARNED = 0.5  # mean probability of a label over the rows that have it


@dataclass(frozen=True)
class WordTags:
    """Of w words: ids of the tag in the data and of the most probable one, int (w,), and their probabilities (w,).

    gold is -100 where the model does not know the tag.
    """

    gold: NDArray[np.int64]
    likely: NDArray[np.int64]
    gold_score: Floats
    likely_score: Floats


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
    own = probabilities[np.arange(len(gold)), gold]
    usual = _usual(gold, own, len(labels))
    others = np.where(probabilities >= usual, probabilities, -1.0)
    others[np.arange(len(gold)), gold] = -1.0
    likely = others.argmax(axis=1)
    return [
        Suspect(
            id=ids[row],
            gold=labels[gold[row]],
            likely=labels[likely[row]],
            gold_score=float(own[row]),
            likely_score=float(probabilities[row, likely[row]]),
        )
        for row in _clearest(np.where(others.max(axis=1) > own, others.max(axis=1) - own, -np.inf))
    ]


def label_suspects(
    ids: Sequence[str], gold: NDArray[np.bool_], probabilities: Floats, labels: Sequence[str]
) -> list[Suspect]:
    """As `suspects`, where a row has several labels: each label by itself, which a row has or is without.

    gold, probabilities: (n, K). A row is named once, with the label that is clearest. Labels that the model has not
    learned, as their rows do not get them on average, say nothing and are left out. Source: Thyagarajan et al.,
    Identifying Incorrect Annotations in Multi-Label Classification Data, 2022 (one label against the rest).
    """
    having = np.where(gold, probabilities, 1.0 - probabilities)  # what the data says of each label
    usual = [_usual(column.astype(np.int64), own, 2) for column, own in zip(gold.T, having.T, strict=True)]
    absent, present = np.array(usual).reshape(-1, 2).T
    learned = (present >= LEARNED) & np.isfinite(present)
    clear = learned & (1.0 - having >= np.where(gold, absent, present)) & (having < 0.5)
    margin = np.where(clear, 1.0 - 2.0 * having, -np.inf)
    worst = margin.argmax(axis=1)
    found = []
    for row in _clearest(margin.max(axis=1, initial=-np.inf)):
        name, score = labels[worst[row]], float(having[row, worst[row]])
        sides = [name, f"without {name}"] if gold[row, worst[row]] else [f"without {name}", name]
        found.append(Suspect(id=ids[row], gold=sides[0], likely=sides[1], gold_score=score, likely_score=1.0 - score))
    return found


def word_suspects(
    ids: Sequence[str],
    row: NDArray[np.int64],
    word: NDArray[np.int64],
    tags: WordTags,
    labels: Sequence[str],
    outside: str | None = None,
) -> list[Suspect]:
    """As `suspects`, of words: the predicted tag is as probable as it is on average for the words that have it.

    row, word: (w,) where each word stands. outside: the tag of words in no entity, which is never what a word should
    rather be: an entity that a model misses is its commonest mistake. A row is named once, with the clearest word.
    """
    known = tags.gold >= 0
    usual = _usual(tags.gold[known], tags.gold_score[known], len(labels))
    usual[[name == outside for name in labels]] = np.inf
    wrong = known & (tags.likely != tags.gold) & (tags.likely_score >= usual[tags.likely])
    margin = np.where(wrong & (tags.likely_score > tags.gold_score), tags.likely_score - tags.gold_score, -np.inf)
    order = np.lexsort((word, -margin, row))
    first = order[np.unique(row[order], return_index=True)[1]]  # the clearest word of each row
    return [
        Suspect(
            id=ids[row[place]],
            word=int(word[place]),
            gold=labels[tags.gold[place]],
            likely=labels[tags.likely[place]],
            gold_score=float(tags.gold_score[place]),
            likely_score=float(tags.likely_score[place]),
        )
        for place in first[_clearest(margin[first])].tolist()
    ]


def _usual(gold: NDArray[np.int64], own: Floats, labels: int) -> Floats:
    """The mean probability of each label over the rows that have it (K,); infinity where none has."""
    counts = np.bincount(gold, minlength=labels)
    means: Floats = np.bincount(gold, weights=own, minlength=labels) / np.maximum(counts, 1)
    return np.where(counts > 0, means, np.inf)


def _clearest(margin: Floats) -> list[int]:
    """At most 20 rows, the largest finite margin (n,) first."""
    order: list[int] = np.argsort(-margin, kind="stable")[:LISTED].tolist()
    return [row for row in order if np.isfinite(margin[row])]
