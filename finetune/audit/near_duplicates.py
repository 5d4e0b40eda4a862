"""Rows whose texts are nearly the same: MinHash finds candidates, the true similarity decides.

A text is lower-cased, its white space is folded, and it becomes the set of its 5-grams of characters, with a blank
before and after the text. Two texts are nearly the same when the Jaccard similarity of their sets (5-grams in both,
over those in either) is at least THRESHOLD; two rows are, when each of their texts is. Source: Broder 1997 (MinHash);
Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3 (5-grams, bands).

Each row gets BANDS x WIDTH minima of hashed 5-grams; rows that agree on a whole band are candidates, which a pair of
similarity s becomes with probability 1 - (1 - s**WIDTH)**BANDS. Candidates are compared 5-gram by 5-gram, so every pair
that is named is one; a pair is missed with the rest of that probability. A row that shares a band with many others
meets NEIGHBOURS of them there, and is compared with the CLOSEST by their minima: the time stays proportional to the
text, and a row that is one of many copies still finds some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.rows import from_arrow

__all__ = ["METHOD", "THRESHOLD", "near_pairs", "recall"]

THRESHOLD = 0.7  # Jaccard similarity
GRAM = 5  # characters
BANDS, WIDTH = 20, 4
NEIGHBOURS = 5  # rows of a band that become candidates with a row
CLOSEST = 10  # candidates of a row that are compared with it
LONGEST = 4_000  # characters of a text that are looked at

_BLOCK = 100_000  # characters hashed at once: few enough for the processor's cache
_PAIRS = 200_000  # pairs looked at at once
_MARGIN = 0.2  # four standard deviations of the share of equal minima at the threshold
_SEED = 20_240_229
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio


def recall(similarity: float) -> float:
    """The probability that a pair of this similarity is found."""
    return 1.0 - (1.0 - similarity**WIDTH) ** BANDS


METHOD = (
    f"Jaccard similarity of character {GRAM}-grams of at least {THRESHOLD:g}, candidates by MinHash ({BANDS} bands of"
    f" {WIDTH}): finds {recall(THRESHOLD):.1%} of the pairs at {THRESHOLD:g}, {recall(0.8):.2%} at 0.8"
)


def near_pairs(columns: Sequence[pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows that are nearly the same, int64 (k, 2), the smaller number first, and their similarity (k,).

    columns: strings (n,), one array for each text that a row has. The similarity of two rows is that of their least
    similar texts. Rows are meant to be distinct: equal ones are pairs of similarity 1.
    """
    texts = [_folded(column) for column in columns]
    minima = _minima(texts[0], 0)
    for number, column in enumerate(texts[1:], 1):
        np.minimum(minima, _minima(column, number), out=minima)  # those of all 5-grams of the row together
    pairs = _closest(_candidates(minima), minima)
    del minima
    return _confirmed(pairs, [column.to_pylist() for column in texts])


def _folded(column: pa.Array) -> pa.Array:
    lower = pc.utf8_lower(pc.utf8_slice_codeunits(column, 0, LONGEST))
    bare = pc.utf8_trim_whitespace(pc.replace_substring_regex(lower, r"\s+", " "))
    return pc.utf8_rpad(pc.binary_join_element_wise(" ", bare, " ", ""), GRAM)


def _minima(texts: pa.Array, role: int) -> np.ndarray:
    """The MinHash signature of each text, uint32 (n, BANDS * WIDTH); `role` makes the same text another set."""
    draw = np.random.default_rng(_SEED)
    factors = draw.integers(0, 1 << 31, BANDS * WIDTH, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    shifts = draw.integers(0, 1 << 32, BANDS * WIDTH, dtype=np.uint32)
    coded = pc.dictionary_encode(texts)  # contexts and premises come many times
    found = np.empty((len(coded.dictionary), BANDS * WIDTH), dtype=np.uint32)
    for start, stop, grams, first in _hashed(coded.dictionary, role):
        for number, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
            found[start:stop, number] = np.minimum.reduceat(grams * factor + shift, first)
    return np.asarray(found[from_arrow(coded.indices)])


def _hashed(texts: pa.Array, role: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Blocks of texts from `start` to `stop`: hashes of their 5-grams, uint32 (g,), and the first of each text."""
    lengths = from_arrow(pc.utf8_length(texts)).astype(np.int64)
    ends = np.cumsum(lengths)
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK, "right")))
        joined = "".join(texts.slice(start, stop - start).to_pylist())
        characters = np.frombuffer(joined.encode("utf-32-le"), np.uint32).astype(np.uint64)
        count = len(characters) - GRAM + 1
        hashes = np.full(count, role, dtype=np.uint64)
        for place in range(GRAM):
            hashes = (hashes ^ characters[place : place + count]) * _MIX
            hashes ^= hashes >> np.uint64(29)
        inside = np.ones(count, dtype=bool)  # 5-grams across the border of two texts are none
        for back in range(1, GRAM):
            inside[ends[start : stop - 1] - before - back] = False
        counts = lengths[start:stop] - GRAM + 1
        yield start, stop, (hashes[inside] >> np.uint64(32)).astype(np.uint32), np.cumsum(counts) - counts
        start = stop


def _candidates(minima: np.ndarray) -> np.ndarray:
    """Pairs of rows that agree on a band, int64 (k, 2), each once."""
    count = len(minima)
    shuffled = np.random.default_rng(_SEED).permutation(count)  # so that neighbours come from everywhere
    found = [np.empty(0, dtype=np.int64)]
    for band in range(BANDS):
        key = np.zeros(count, dtype=np.uint64)
        for column in range(band * WIDTH, (band + 1) * WIDTH):
            key = (key ^ minima[:, column]) * _MIX
            key ^= key >> np.uint64(29)
        order = shuffled[np.argsort(key[shuffled], kind="stable")]
        key = key[order]
        for step in range(1, NEIGHBOURS + 1):
            same = np.flatnonzero(key[:-step] == key[step:])
            if not len(same):
                break
            one, other = order[same], order[same + step]
            found.append(np.minimum(one, other) * count + np.maximum(one, other))
    pairs = np.unique(np.concatenate(found))
    return np.column_stack(np.divmod(pairs, max(count, 1)))


def _closest(pairs: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """The pairs whose minima agree often enough, and for one of the two rows more often than nearly all others."""
    parts = [pairs[start : start + _PAIRS] for start in range(0, len(pairs), _PAIRS)]
    agreement = np.concatenate([np.empty(0), *(np.mean(minima[p[:, 0]] == minima[p[:, 1]], axis=1) for p in parts)])
    likely = agreement >= THRESHOLD - _MARGIN
    pairs, agreement = pairs[likely], agreement[likely]
    rows = pairs.T.ravel()
    order = np.lexsort((np.tile(-agreement, 2), rows))
    ranked = rows[order]
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows)) - np.searchsorted(ranked, ranked)
    return np.asarray(pairs[rank.reshape(2, -1).min(axis=0) < CLOSEST])


def _confirmed(pairs: np.ndarray, texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that truly are similar enough, and how similar they are."""
    grams = lru_cache(maxsize=20_000)(_grams)
    found = np.array(
        [min(_jaccard(grams(column[one]), grams(column[other])) for column in texts) for one, other in pairs.tolist()],
        dtype=np.float64,
    )
    return pairs[found >= THRESHOLD], found[found >= THRESHOLD]


def _grams(text: str) -> frozenset[str]:
    return frozenset(text[place : place + GRAM] for place in range(len(text) - GRAM + 1))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)
