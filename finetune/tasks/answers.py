"""Gold answers as tokens, ranked parts of a context as texts, and what simple rules would answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from finetune.features import Features
from finetune.rows import Rows
from finetune.scoring.texts import answer_scores

if TYPE_CHECKING:
    from finetune.inference.question_answering import Pieces, Ranked

__all__ = [
    "IGNORED",
    "answer_tokens",
    "best_texts",
    "best_threshold",
    "gold_texts",
    "nearest_sentences",
    "open_questions",
    "rank_features",
    "targets",
]

IGNORED = -100  # target of a window that teaches nothing
BLOCK = 1000  # rows whose contexts are held at once


def open_questions(rows: Rows) -> int:
    """How many questions have no answer."""
    lengths = pc.list_value_length(pc.struct_field(rows.table.column("answers"), "text"))
    return int(pc.sum(pc.equal(lengths, 0)).as_py() or 0)


def gold_texts(rows: Rows) -> list[list[str]]:
    texts: list[list[str]] = pc.struct_field(rows.table.column("answers"), "text").to_pylist()
    return texts


def answer_tokens(pieces: Pieces, context: str, answers: dict[str, Any]) -> tuple[int, int]:
    """First and last token of the context that the first answer touches.

    Both -1 for a question without an answer, and IGNORED where no token lies in the answer.
    """
    if not answers["text"]:
        return -1, -1
    text, start = answers["text"][0], answers["answer_start"][0]
    inner = text.strip()
    start += len(text) - len(text.lstrip())
    first = int(np.searchsorted(pieces.ends, start, "right"))
    last = int(np.searchsorted(pieces.starts, start + len(inner), "left")) - 1
    inside = 0 <= start <= len(context) - len(inner) and first <= last
    return (first, last) if inside else (IGNORED, IGNORED)


def targets(bounds: np.ndarray, columns: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Target tokens of the windows; bounds: what `answer_tokens` says of the row of each, int64 (n, 2)."""
    first, last = (bounds - columns["first"][:, None]).T
    inside = (bounds[:, 0] >= 0) & (first >= 0) & (last < columns["size"])
    lost = bounds[:, 0] == IGNORED
    start, end = (
        np.where(lost, IGNORED, np.where(inside, columns["at"] + place, columns["null"])) for place in (first, last)
    )
    return start, end


def rank_features(outputs: dict[str, list[np.ndarray]], features: Features, rows: int) -> Ranked:
    from finetune.inference.question_answering import rank

    begin, stop = np.stack(outputs["start"]), np.stack(outputs["end"])
    offsets = features.sequences["offset_start"].offsets[:-1, None]
    start = features.sequences["offset_start"].values[offsets + begin]
    end = features.sequences["offset_end"].values[offsets + stop]
    null = np.array(outputs["null"], dtype=np.float64)
    score = np.stack(outputs["score"]).astype(np.float64)
    return rank(score, start, end, null, features.scalars["row"], rows)


def best_texts(ranked: Ranked, rows: Rows) -> list[dict[str, Any]]:
    """start, end and answer of the best part of each context."""
    from finetune.inference.question_answering import whole

    bounds = zip(ranked.start[:, 0].tolist(), ranked.end[:, 0].tolist(), strict=True)
    found = []
    for batch in rows.batches(BLOCK):
        for context in batch["context"]:
            start, end = whole(context, *next(bounds))
            found.append({"start": start, "end": end, "answer": context[start:end]})
    return found


def best_threshold(gold: Sequence[Sequence[str]], best: Sequence[str], ranked: Ranked) -> float:
    """The threshold of "no answer" with the best F1; the one nearest to 0 where several are as good.

    best: the first part of each context. Source: `find_best_thresh` of SQuAD's official evaluate-v2.0.py, over F1.
    """
    without = np.array([not texts for texts in gold])
    margin = ranked.null - ranked.score[:, 0]  # "no answer" where it is above the threshold
    order = np.argsort(margin, kind="stable")
    margin, gain = margin[order], (answer_scores(gold, best)[:, 1] - without)[order]
    low, high = np.append(-np.inf, margin), np.append(margin, np.inf)  # all thresholds between two margins are as good
    total = np.append(0.0, np.cumsum(gain))
    with np.errstate(invalid="ignore"):
        middle = np.where(np.isinf(low), high - 1, np.where(np.isinf(high), low + 1, (low + high) / 2))
    places = np.where((low < 0) & (high > 0), 0.0, middle)
    possible = np.isfinite(places) & (low < high)  # no threshold lies between two equal margins
    if not possible.any():
        return 0.0
    good = places[possible & (total >= total[possible].max() - 1e-9)]
    return round(float(good[np.abs(good).argmin()]), 4)


def nearest_sentences(rows: Rows) -> list[str]:
    """The sentence of each context that shares most words with the question; the first of several."""
    found = []
    for batch in rows.batches(BLOCK):
        for question, context in zip(batch["question"], batch["context"], strict=True):
            words = set(re.findall(r"\w+", question.lower()))
            sentences = re.split(r"(?<=[.!?])\s+", context)
            found.append(max(sentences, key=lambda one: len(words & set(re.findall(r"\w+", one.lower())))))
    return found
