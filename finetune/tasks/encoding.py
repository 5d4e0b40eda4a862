"""Texts to token ids: what the tokenizer gives, with less work where a text falls into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from finetune.features import Ragged

__all__ = ["Encoded", "Frame", "bare", "encode_texts", "flat", "frame", "framed"]

Encoded = tuple[Ragged, Ragged | None, np.ndarray]


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around a text: ids before and after; type ids of the three parts."""

    before: list[int]
    after: list[int]
    types: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def around(self, ids: list[int]) -> list[int]:
        """The ids of a whole window."""
        return [*self.before, *ids, *self.after]

    def type_ids(self, size: int) -> list[int]:
        """For a window with `size` pieces inside."""
        before, inside, after = self.types
        return [before] * len(self.before) + [inside] * size + [after] * len(self.after)


def frame(tokenizer: Any) -> Frame:
    """Read off one encoded word."""
    found = bare(tokenizer).encode("a")
    inside = [place for place, special in enumerate(found.special_tokens_mask) if not special]
    first, last = inside[0], inside[-1] + 1
    types = (found.type_ids[0], found.type_ids[first], found.type_ids[-1])
    return Frame(found.ids[:first], found.ids[last:], types)


def bare(tokenizer: Any) -> Any:
    """The tokenizer's backend, which neither pads nor cuts."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return backend


def encode_texts(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
    """Token ids, token type ids (None where the model takes none) and whether the text was cut at `max_length`.

    Pairs are cut at the end of the longer text first. No list is kept for each text: Python's garbage collector walks
    through all that live whenever some thousands more have come, which took as long as the rest.
    """
    if not tokenizer.is_fast:
        ids, types, truncated = _encode_slow(tokenizer, texts, pairs, max_length)
    elif pairs is None and (outer := _frame_of_parts(tokenizer)) is not None and max_length > len(outer):
        ids, types, truncated = _encode_parts(tokenizer, texts, outer, max_length)
    else:
        ids, types, truncated = _encode_whole(tokenizer, texts, pairs, max_length)
    return ids, types if "token_type_ids" in tokenizer.model_input_names else None, truncated


def _frame_of_parts(tokenizer: Any) -> Frame | None:
    """What is put around a text, if all between is what the parts of the text between blanks give; else None.

    It is for BERT's tokenizers: their normalizer looks at single characters (and marks after them), words end at white
    space, a word has the same pieces wherever it stands, and no added token has a blank in it.
    """
    from tokenizers import models, normalizers, pre_tokenizers

    backend = bare(tokenizer)
    kinds = (models.WordPiece, normalizers.BertNormalizer, pre_tokenizers.BertPreTokenizer)
    parts = (backend.model, backend.normalizer, backend.pre_tokenizer)
    added = backend.get_added_tokens_decoder().values()
    if not all(map(isinstance, parts, kinds)) or any(one.normalized or " " in one.content for one in added):
        return None
    outer, whole = frame(tokenizer), backend.encode("a a")
    inside = backend.encode("a", add_special_tokens=False).ids * 2
    expected = outer.around(inside), outer.type_ids(len(inside))
    return outer if (whole.ids, whole.type_ids) == expected else None


def _encode_parts(tokenizer: Any, texts: Sequence[str], outer: Frame, max_length: int) -> Encoded:
    """Each distinct part of the texts is tokenized once."""
    known: dict[str, int] = {}
    number = known.setdefault
    order = np.fromiter((number(part, len(known)) for text in texts for part in text.split(" ")), np.int64)
    pieces = _ids(bare(tokenizer).encode_batch_fast(list(known), add_special_tokens=False))
    lengths = pieces.lengths.astype(np.int64)[order]
    ids = pieces.values[flat(pieces.offsets[order], lengths)]
    parts = np.fromiter((text.count(" ") + 1 for text in texts), np.int64, len(texts))
    stops = np.concatenate([[0], np.cumsum(lengths)])[np.concatenate([[0], np.cumsum(parts)])]  # in `ids`, of each text
    whole, room = np.diff(stops), max_length - len(outer)
    inside = np.minimum(whole, room)
    offsets = np.concatenate([[0], np.cumsum(inside + len(outer))])
    columns = framed(outer, ids, stops[:-1], inside, offsets[:-1])
    return Ragged(columns["input_ids"], offsets), Ragged(columns["token_type_ids"], offsets), whole > room


def _encode_whole(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
    """A fast tokenizer, called without building masks and offsets (tokenizers `encode_batch_fast`)."""
    backend = bare(tokenizer)
    backend.enable_truncation(max_length, strategy="longest_first")
    items = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
    found = backend.encode_batch_fast(items, add_special_tokens=True)
    backend.no_truncation()
    ids = _ids(found)
    types = np.fromiter(chain.from_iterable(encoding.type_ids for encoding in found), np.int32, len(ids.values))
    truncated = np.fromiter((bool(encoding.overflowing) for encoding in found), bool, len(found))
    return ids, Ragged(types, ids.offsets), truncated


def _ids(found: Sequence[Any]) -> Ragged:
    """The ids of some encodings."""
    offsets = np.zeros(len(found) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, found), np.int64, len(found)), out=offsets[1:])
    values = np.fromiter(chain.from_iterable(encoding.ids for encoding in found), np.int32, int(offsets[-1]))
    return Ragged(values, offsets)


def _encode_slow(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
    arguments = [list(texts)] if pairs is None else [list(texts), list(pairs)]
    full = tokenizer(*arguments, verbose=False)["input_ids"]
    cut = tokenizer(*arguments, truncation="longest_first", max_length=max_length, return_token_type_ids=True)
    truncated = np.array([len(ids) > max_length for ids in full], dtype=bool)
    return Ragged.of(cut["input_ids"]), Ragged.of(cut["token_type_ids"]), truncated


def flat(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0]+1, … for lengths[0] numbers, then the same for the next: int64 (sum of lengths,)."""
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths))


def framed(
    outer: Frame, ids: np.ndarray, starts: np.ndarray, inside: np.ndarray, offsets: np.ndarray
) -> dict[str, np.ndarray]:
    """Windows with their special pieces, one after the other: input_ids and token_type_ids, int32."""
    total = int(inside.sum()) + len(outer) * len(inside)
    found = {"input_ids": np.empty(total, np.int32), "token_type_ids": np.empty(total, np.int32)}
    body = flat(offsets + len(outer.before), inside)
    found["input_ids"][body] = ids[flat(starts, inside)]
    found["token_type_ids"][body] = outer.types[1]
    for special, first, kind in (
        (outer.before, offsets, outer.types[0]),
        (outer.after, offsets + len(outer.before) + inside, outer.types[2]),
    ):
        for place, number in enumerate(special):
            found["input_ids"][first + place] = number
            found["token_type_ids"][first + place] = kind
    return found
