"""Words of a text, and the tags that spans of characters give them."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

__all__ = ["join", "split_words", "tag_words"]

Span = tuple[int, int]  # start and end in characters


@cache
def _word_pattern() -> re.Pattern[str]:
    """Runs of anything but white space, punctuation and symbols; or one of these last two alone.

    `\\w` would not do: it leaves out the vowel signs of Indic scripts.
    """
    apart = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] in "PS")
    marks = "".join(map(re.escape, (mark for mark in apart if mark != "_")))
    return re.compile(f"[^\\s{marks}]+|[{marks}]")


def split_words(text: str) -> list[Span]:
    """The words of a text: separated by white space, every mark of punctuation and every symbol a word of its own."""
    return [match.span() for match in _word_pattern().finditer(text)]


def join(tokens: Sequence[str]) -> tuple[str, list[Span]]:
    """The tokens with a space between them, and where each stands."""
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    starts = np.cumsum(lengths + 1) - lengths - 1
    return " ".join(tokens), list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))


def tag_words(words: Sequence[Span], spans: Sequence[tuple[int, int, str]]) -> tuple[list[str], int]:
    """IOB2 tags of the words under `spans` (start, end, type), and how many spans do not begin and end with a word.

    A word belongs to a span that it shares a character with; to the first one where there are two.
    """
    tags = ["O"] * len(words)
    starts, ends = (np.array(side, dtype=np.int64) for side in (zip(*words, strict=True) if words else ((), ())))
    uneven = 0
    for start, end, kind in sorted(spans):
        first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(starts, end, "left"))
        taken = [word for word in range(first, last) if tags[word] == "O"]
        for word in taken:
            tags[word] = f"{'B' if word == taken[0] else 'I'}-{kind}"
        uneven += not (taken and starts[taken[0]] == start and ends[taken[-1]] == end)
    return tags, uneven
