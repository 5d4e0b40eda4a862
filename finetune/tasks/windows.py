"""Words to the pieces a tokenizer makes of them, and windows over rows that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from finetune.features import Features, Ragged
from finetune.tasks.encoding import bare, flat, frame, framed

__all__ = ["IGNORED", "Windows", "align", "cover", "home", "of_words", "pieces_of"]

IGNORED = -100  # the label of pieces that are not the first of a word


def pieces_of(tokenizer: Any, rows: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the pieces of all words, int32 (p,); the number of pieces of each word, int64 (w,); and where the pipeline
    would begin a word, bool (p,): at first pieces, and inside a word where the vocabulary does not mark a piece as one
    that continues (pieces of "U.S.").

    Equal to what the tokenizer gives with `is_split_into_words` (a word there is tokenized without its neighbours), so
    each distinct word is tokenized once. Where a tokenizer marks the space before a word, and expects it in the text,
    all words but the first of a row are given one.
    """
    backend = bare(tokenizer)
    known: dict[str, int] = {}
    number = known.setdefault
    if _marks_space(backend):
        words = chain.from_iterable(
            (word if not place else f" {word}" for place, word in enumerate(row)) for row in rows
        )
        order = np.fromiter((number(word, len(known)) for word in words), np.int64)
    else:
        order = np.fromiter((number(word, len(known)) for row in rows for word in row), np.int64)
    if not known:
        return np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, bool)
    found = backend.encode_batch([[word] for word in known], is_pretokenized=True, add_special_tokens=False)
    ragged = Ragged.of([encoding.ids for encoding in found])
    begins = Ragged.of([_beginnings(encoding, tokenizer) for encoding in found])
    lengths = ragged.lengths.astype(np.int64)[order]
    places = flat(ragged.offsets[order], lengths)
    return ragged.values[places], lengths, begins.values[places].astype(bool)


def _beginnings(encoding: Any, tokenizer: Any) -> list[bool]:
    ids = encoding.ids
    if len(ids) < 2 or not continues_by_mark(tokenizer):
        return [place == 0 for place in range(len(ids))]
    unknown = tokenizer.unk_token_id
    pieces = zip(ids, encoding.tokens, encoding.offsets, strict=True)
    inner = [number == unknown or len(token) == end - start for number, token, (start, end) in pieces]
    return [True, *inner[1:]]


def continues_by_mark(tokenizer: Any) -> bool:
    """Whether the vocabulary marks pieces that continue a word (##)."""
    return bool(getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))


def _marks_space(backend: Any) -> bool:
    """Whether a word inside a text has other pieces than alone, and those of the word with a space before it."""
    alone, spaced, both = (backend.encode(text, add_special_tokens=False).ids for text in ("a", " a", "a a"))
    return bool(both != alone + alone and both == alone + spaced)


# -------------------------------------------------------------------------------------------- windows


@dataclass(frozen=True)
class Windows:
    """Windows over rows of pieces, in order: `row`, `number` within the row, `start` and `stop` in its pieces."""

    row: np.ndarray
    number: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    counts: np.ndarray  # windows of each row


def cover(lengths: np.ndarray, size: int, stride: int) -> Windows:
    """Windows of at most `size` pieces that overlap by `stride`, as the tokenizers library cuts (`truncate_encoding`).

    lengths: pieces of each row, int64 (k,); an empty row has one empty window.
    """
    step = size - stride
    counts = np.where(lengths <= size, 1, -(-(lengths - size) // step) + 1)
    row = np.repeat(np.arange(len(lengths)), counts)
    number = flat(np.zeros(len(counts), np.int64), counts)
    start = number * step
    return Windows(row, number, start, np.minimum(start + size, lengths[row]), counts)


def home(position: np.ndarray, length: np.ndarray, size: int, stride: int) -> np.ndarray:
    """The window in which each piece has most text on its poorer side: int64 (w,), numbers within the row.

    position: of the pieces in their rows; length: of those rows. Where the text itself begins or ends nothing is cut
    off, so that side does not count. The earlier window wins a tie.
    """
    step = size - stride
    last = np.where(length <= size, 0, -(-(length - size) // step))
    latest = np.minimum(position // step, last)
    best, context = latest.copy(), np.full(len(position), -1, dtype=np.int64)
    far = np.iinfo(np.int64).max
    for back in range(-(-size // step)):
        window = latest - back
        start = window * step
        inside = (window >= 0) & (position < start + size)
        left = np.where(window == 0, far, position - start)
        right = np.where(window == last, far, start + size - 1 - position)
        here = np.where(inside, np.minimum(left, right), -1)
        better = here >= context
        best, context = np.where(better & inside, window, best), np.maximum(context, here)
    return np.asarray(best)


def align(
    tokenizer: Any,
    rows: Sequence[Sequence[str]],
    labels: np.ndarray,
    inner: np.ndarray | None,
    max_length: int,
    stride: int,
    *,
    every: bool = False,
) -> dict[str, Any]:
    """Features of rows of words, each word's label at its first piece.

    labels: of all words, int64 (w,). inner: their labels where the pipeline begins a word inside a word, or with
    `every` at all pieces but the first; or None.
    Sequences `input_ids`, `words` (the number of a word in its row, at its first piece, else -1), `labels` (else -100)
    and, where the tokenizer gives them, `token_type_ids`; scalars `row`, `truncated` and `counted`, the number of
    labels. Of a row in several windows each word stands in one (`home`); windows without a label are left out.
    """
    outer = frame(tokenizer)
    size = max_length - len(outer)
    ids, pieces, begins = pieces_of(tokenizer, rows)
    begins |= every
    per_row = np.fromiter(map(len, rows), np.int64, len(rows))
    row_of_word = np.repeat(np.arange(len(rows)), per_row)
    lengths = np.bincount(row_of_word, weights=pieces, minlength=len(rows)).astype(np.int64)
    windows = cover(lengths, size, stride)
    row_starts = np.cumsum(lengths) - lengths

    marked = np.flatnonzero(begins)  # pieces with a label
    word = np.repeat(np.arange(len(pieces)), pieces)[marked]
    row = row_of_word[word]
    position = marked - row_starts[row]
    first = marked == (np.cumsum(pieces) - pieces)[word]
    label = np.where(first, labels[word], IGNORED if inner is None else inner[word])
    number = np.where(first, flat(np.zeros(len(rows), np.int64), per_row)[word], -1)
    own = (np.cumsum(windows.counts) - windows.counts)[row] + home(position, lengths[row], size, stride)

    inside = windows.stop - windows.start
    offsets = np.cumsum(inside + len(outer)) - inside - len(outer)
    columns = framed(outer, ids, row_starts[windows.row] + windows.start, inside, offsets)
    place = offsets[own] + len(outer.before) + position - windows.start[own]
    for name, values, fill in (("words", number, -1), ("labels", label, IGNORED)):
        columns[name] = np.full(len(columns["input_ids"]), fill, dtype=np.int32)
        columns[name][place] = values
    if "token_type_ids" not in tokenizer.model_input_names:
        del columns["token_type_ids"]

    used = np.bincount(own[first | (label != IGNORED)], minlength=len(offsets)) > 0
    kept = np.flatnonzero(used | (windows.number == 0))
    bounds = list(zip(offsets[kept].tolist(), (offsets + inside + len(outer))[kept].tolist(), strict=True))
    counted = np.bincount(own[label != IGNORED], minlength=len(offsets))
    scalars = {"row": windows.row[kept], "truncated": np.zeros(len(kept), dtype=bool), "counted": counted[kept]}
    return {name: [values[start:stop] for start, stop in bounds] for name, values in columns.items()} | scalars


def of_words(features: Features, lengths: np.ndarray, values: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """The value of each word, (w,): that of its first piece, and `fill` where the tokenizer leaves nothing of it.

    lengths: words of each row. values: one array for each feature of `align`, one value a piece, perhaps padded.
    """
    words = features.sequences["words"]
    first = np.flatnonzero(words.values >= 0)
    starts = (np.cumsum(lengths) - lengths)[features.scalars["row"]]
    sizes = words.lengths.tolist()
    found = np.full(int(lengths.sum()), fill)
    pieces = np.concatenate([array[:size] for array, size in zip(values, sizes, strict=True)])
    found[np.repeat(starts, words.lengths)[first] + words.values[first]] = pieces[first]
    return found
