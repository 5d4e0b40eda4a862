"""Answers from a context and generated texts: kinds of errors, and what the analysis says of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from finetune.analysis.calibration import Claims, calibrate
from finetune.analysis.hard_rows import worst_rows
from finetune.analysis.labels import Examined
from finetune.analysis.slices import Groups, RowScores, column_groups, row_means, row_ratios, slices
from finetune.bootstrap import Floats, Statistic, sums_interval
from finetune.record import Analysis
from finetune.scoring import formulas

__all__ = ["answers", "generated", "losses", "question_groups"]

QUESTION_WORDS = ("who", "whose", "whom", "what", "when", "where", "which", "why", "how many", "how much", "how")
_QUESTION = re.compile(rf"\b({'|'.join(QUESTION_WORDS)})\b", re.IGNORECASE)
_LOOP = re.compile(r"(?<!\S)(\S+(?:\s+\S+){0,3})(?:\s+\1(?!\S)){2,}")  # up to four words, three times in a row
_ANSWER_LENGTHS = ("no answer", "1 word", "2 or 3 words", "4 words or more")
_CORPUS: dict[str, Statistic] = {"bleu": formulas.bleu, "chrf": formulas.chrf}


def answers(
    ids: Sequence[str],
    loss: Floats,
    questions: Sequence[str],
    gold: Sequence[Sequence[str]],
    predicted: Sequence[str],
    score: Floats,
    scores: Floats,
) -> Examined:
    """Answers to n questions, the empty text for none.

    gold: all answers of a row; score: (n,) of the predicted one; scores: (n, 2) of `finetune.scoring.texts`.
    """
    exact, f1 = scores.T
    by_row = row_means("f1", f1)
    right = Claims("the answer", score, exact, (score - exact) ** 2, np.arange(len(gold)), len(gold))
    found = Analysis(
        calibration=calibrate(right),
        slices=[
            *slices(by_row, "question_word", question_groups(questions)),
            *slices(by_row, "answer_length", _answer_lengths(gold)),
        ],
        errors=_answer_errors(gold, predicted, exact, f1),
        worst=worst_rows(ids, loss),
    )
    return found, by_row


def question_groups(questions: Sequence[str]) -> Groups:
    """The first English question word of each text, or "other"."""
    found = (_QUESTION.search(question) for question in questions)
    return column_groups([match[1].lower() if match else "other" for match in found], fewest=1)


def _answer_lengths(gold: Sequence[Sequence[str]]) -> Groups:
    lengths = [len(texts[0].split()) if texts else 0 for texts in gold]
    place = np.searchsorted([0, 1, 3], lengths, side="left")
    kept, place = np.unique(place, return_inverse=True)
    return Groups([_ANSWER_LENGTHS[number] for number in kept], place)


def _answer_errors(
    gold: Sequence[Sequence[str]], predicted: Sequence[str], exact: Floats, f1: Floats
) -> dict[str, int]:
    """How many answers are of which kind.

    boundary: some words are right; elsewhere: none; missed, spurious: none is given, or one, and should not be.
    """
    kinds = Counter(dict.fromkeys(("right", "boundary", "elsewhere", "missed", "spurious"), 0))
    kinds.update(map(_answer_kind, gold, predicted, exact, f1))
    return dict(kinds)


def _answer_kind(gold: Sequence[str], text: str, exact: float, f1: float) -> str:
    if exact:
        return "right"
    if not text:
        return "missed"
    if not gold:
        return "spurious"
    return "boundary" if f1 else "elsewhere"


def generated(
    ids: Sequence[str],
    loss: Floats,
    sources: Sequence[str],
    targets: Sequence[str],
    texts: Sequence[str],
    metric: str,
    stats: Floats,
) -> Examined:
    """Generated texts of n rows; stats: (n, s) of the metric, as `finetune.scoring.texts` gives them."""
    scores = RowScores(metric, stats, _CORPUS[metric]) if metric in _CORPUS else row_means(metric, stats[:, 0])
    lengths = np.array([[len(text), len(target)] for text, target in zip(texts, targets, strict=True)], dtype=float)
    ratio = row_ratios("length_ratio", *lengths.T)
    found = Analysis(
        errors=_text_errors(sources, targets, texts),
        measures={"length_ratio": sums_interval(ratio.stats, ratio.statistic)},
        worst=worst_rows(ids, loss),
    )
    return found, scores


def losses(ids: Sequence[str], loss: Floats) -> Examined:
    """Rows of which only the loss (n,) is known."""
    return Analysis(worst=worst_rows(ids, loss)), row_means("loss", loss)


def _text_errors(sources: Sequence[str], targets: Sequence[str], texts: Sequence[str]) -> dict[str, int]:
    """How many outputs show what; one may show several."""
    kinds = Counter(dict.fromkeys(("equal", "empty", "copy_of_source", "repetition", "under_half", "over_double"), 0))
    for source, target, text in zip(sources, targets, texts, strict=True):
        kinds["equal"] += text.strip() == target.strip()
        kinds["empty"] += not text.strip()
        kinds["copy_of_source"] += text.strip() == source.strip() != target.strip()
        kinds["repetition"] += bool(_LOOP.search(text)) and not _LOOP.search(target)
        kinds["under_half"] += 2 * len(text) < len(target)
        kinds["over_double"] += len(text) > 2 * len(target)
    return dict(kinds)
