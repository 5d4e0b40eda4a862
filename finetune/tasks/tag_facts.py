"""What the tags of a split hold, in words; and the most frequent tag of each word, as a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from finetune.features import Features
from finetune.rows import Rows
from finetune.tasks.gold import Gold
from finetune.tasks.tagging import Schema

__all__ = ["UsualTags", "only_texts", "sample", "survey", "tagged"]

BLOCK = 10_000
PIPELINE_ROWS = 1000  # read through the pipeline, too

Tagged = tuple[list[str], list[int]]  # words of a row, and numbers of their tags


def tagged(gold: Gold, tags: Schema, rows: Rows) -> Iterator[Tagged]:
    """The rows one by one."""
    for batch in rows.batches(BLOCK):
        numbers, lengths = gold.numbers(batch)
        parts = np.split(tags.convert(numbers, lengths), np.cumsum(lengths)[:-1])
        yield from zip(gold.words(batch), (part.tolist() for part in parts), strict=True)


def sample(rows: Rows) -> Rows:
    """At most 1,000 of the rows, evenly taken."""
    count = min(len(rows), PIPELINE_ROWS)
    return rows.take(np.unique(np.linspace(0, len(rows) - 1, count).astype(np.int64)))


def only_texts(rows: Rows, texts: list[str]) -> Rows:
    """Rows of the same split that are nothing but texts."""
    ids = pa.array(map(str, range(len(texts))), pa.string())
    return replace(rows, table=pa.table({"id": ids, "text": pa.array(texts, pa.string())}), places=None)


class UsualTags:
    """The most frequent tag of each word of `rows`; other words get O, or among plain tags the most frequent one."""

    def __init__(self, rows: Iterable[Tagged], tags: Schema) -> None:
        counts: dict[str, Counter[int]] = {}
        overall: Counter[int] = Counter()
        for words, numbers in rows:
            overall.update(numbers)
            for word, number in zip(words, numbers, strict=True):
                counts.setdefault(word, Counter())[number] += 1
        self._usual = {word: found.most_common(1)[0][0] for word, found in counts.items()}
        self._other = 0 if tags.entities or not overall else overall.most_common(1)[0][0]
        self._tags = tags
        self._repair = Schema(tags.labels, tags.entities)  # an I- without a beginning becomes a B-

    def sides(self, rows: Iterable[Tagged]) -> tuple[list[list[str]], list[list[str]]]:
        """Gold tags and guessed ones of each row."""
        gold: list[list[str]] = []
        guessed: list[list[str]] = []
        names = self._tags.labels
        for words, numbers in rows:
            found = np.array([self._usual.get(word, self._other) for word in words], dtype=np.int64)
            gold.append([names[number] for number in numbers])
            guessed.append([names[number] for number in self._repair.convert(found, np.array([len(found)]))])
        return gold, guessed


def survey(gold: Gold, tags: Schema, rows: Rows, features: Features, max_length: int) -> Iterator[str]:
    """Words and tags of a split, its rows in several windows, words of which the tokenizer leaves nothing."""
    counts = np.zeros(len(tags.labels), dtype=np.int64)
    for batch in rows.batches(BLOCK):
        counts += np.bincount(tags.convert(*gold.numbers(batch)), minlength=len(counts))
    named = {label.removeprefix("B-"): int(n) for label, n in zip(tags.labels, counts, strict=True) if n}
    if tags.entities:
        named = {kind: named[kind] for kind in tags.kinds if kind in named}
    shown = ", ".join(f"{name} {n:,}" for name, n in sorted(named.items(), key=_rank))
    yield f"{rows.split}: {int(counts.sum()):,} words; {shown or 'no entity'}"
    several = np.bincount(features.scalars["row"], minlength=1) > 1
    if several.any():
        count = int(several.sum())
        what = "row is" if count == 1 else "rows are"
        yield f"{rows.split}: {count:,} {what} longer than {max_length} tokens and read in overlapping windows"
    lost = int(counts.sum()) - int(np.count_nonzero(features.sequences["words"].values >= 0))
    if lost:
        tag = "O" if tags.entities else "the first tag"
        yield f"{rows.split}: the tokenizer leaves nothing of {lost:,} words (invisible characters); they get {tag}"


def _rank(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
