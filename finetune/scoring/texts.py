"""Texts: answers to questions by SQuAD's official scoring, generated texts by rouge_score and sacreBLEU."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats

__all__ = [
    "answer_scores",
    "has_answer",
    "normalize_answer",
    "signatures",
    "text_scores",
    "text_value",
]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROUGE = ("rouge1", "rouge2", "rougeL")
STEMS = 100_000  # kept


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without the words a, an and the, white space collapsed.

    Source: `normalize_answer` of SQuAD's official evaluate-v2.0.py (the same rules as in version 1.1).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def has_answer(gold: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """(n,) bool: rows with an answer; no answer is an empty list, or only empty strings."""
    return np.array([any(answers) for answers in gold], dtype=bool)


def answer_scores(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> Floats:
    """(n, 2) exact match and F1 per row, the best over the row's gold answers, 0 to 1; no answer is the empty string.

    Source: SQuAD's official evaluate-v2.0.py. It equals version 1.1 except for gold answers that are nothing but
    articles and punctuation, which are set aside.
    """
    rows = [_answer_score(answers, text) for answers, text in zip(gold, predicted, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _answer_score(answers: Sequence[str], text: str) -> tuple[float, float]:
    guess = normalize_answer(text)
    normal = [answer for answer in map(normalize_answer, answers) if answer] or [""]
    return float(guess in normal), max(_token_f1(answer.split(), guess.split()) for answer in normal)


def _token_f1(gold: list[str], guess: list[str]) -> float:
    if not gold or not guess:
        return float(gold == guess)
    same = sum((Counter(gold) & Counter(guess)).values())
    precision, recall = same / len(guess), same / len(gold)
    return 2 * precision * recall / (precision + recall) if same else 0.0


def text_scores(names: Sequence[str], targets: Sequence[str], predictions: Sequence[str]) -> dict[str, Floats]:
    """Per metric the rows' statistics (n, s): their own score for ROUGE and exact match, else counts to be summed."""
    found: dict[str, Floats] = {}
    if any(name in _ROUGE for name in names):
        found |= dict(zip(_ROUGE, _rouge(targets, predictions).T[:, :, None], strict=True))
    if "exact_match" in names:
        same = [target.strip() == text.strip() for target, text in zip(targets, predictions, strict=True)]
        found["exact_match"] = np.array(same, dtype=np.float64)[:, None]
    for name in {"bleu", "chrf"} & set(names):
        found[name] = _corpus_statistics(name, targets, predictions)
    return {name: found[name] for name in names}


class _Words:
    """rouge_score's own tokenizer with Porter stemming, that stems each word once: stemming is half of its time."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(STEMS)(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        from rouge_score.tokenize import tokenize

        words: list[str] = tokenize(text, self)
        return words


def _rouge(targets: Sequence[str], predictions: Sequence[str]) -> Floats:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_ROUGE), tokenizer=_Words())
    scores = [scorer.score(target, text) for target, text in zip(targets, predictions, strict=True)]
    return 100 * np.array([[score[name].fmeasure for name in _ROUGE] for score in scores]).reshape(-1, 3)


def _corpus_statistics(name: str, targets: Sequence[str], predictions: Sequence[str]) -> Floats:
    # The one call of sacreBLEU that gives a row's statistics; its own significance tests stand on it.
    rows = _sacrebleu(name)._extract_corpus_statistics(list(predictions), [list(targets)])
    return np.array(rows, dtype=np.float64)


def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(force=True) if name == "bleu" else CHRF()


def text_value(name: str, stats: Floats) -> float:
    """The metric on all rows from their statistics (n, s); sacreBLEU computes its own scores from the sums."""
    if name not in {"bleu", "chrf"}:
        return float(stats.mean())
    sums = [int(total) for total in stats.sum(axis=0)]
    return float(_sacrebleu(name)._compute_score_from_stats(sums).score)


def signatures(names: Sequence[str]) -> dict[str, str]:
    """What makes a figure comparable: sacreBLEU's signature, and the settings of ROUGE."""
    found = {
        name: f"rouge_score {version('rouge_score')}, F-measure, Porter stemmer, mean over rows" for name in _ROUGE
    }
    for name in {"bleu", "chrf"} & set(names):
        metric = _sacrebleu(name)
        metric.corpus_score(["a"], [["a"]])  # the signature holds the number of references seen
        found[name] = str(metric.get_signature())
    return {name: found[name] for name in names if name in found}
