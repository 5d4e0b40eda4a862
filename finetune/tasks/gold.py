"""The tags of all splits: which scheme they follow, what they are called, and their numbers row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from finetune.errors import DataError
from finetune.rows import Rows
from finetune.tasks.tagging import (
    OUTSIDE,
    Schema,
    Scheme,
    breaks,
    entities_of,
    iob2_labels,
    is_entities,
    recognise,
    split_tag,
)
from finetune.tasks.words import join, split_words, tag_words

__all__ = ["Gold", "charted", "gold_entities", "read_gold"]

BLOCK = 20_000
SHOWN = 3  # rows named for one problem

Span = tuple[int, int]


@dataclass
class Gold:
    """How the tags of rows are read. codes: a tag as it stands in a row -> its number; names: the tags by number."""

    scheme: Scheme
    names: list[str]
    codes: dict[Any, int]
    spans: bool = False  # rows have texts with spans of characters
    span_names: list[str] | None = None  # where spans give numbers for their types
    remarks: list[str] = field(default_factory=list)  # what a reader of the run should know

    @property
    def key(self) -> list[Any]:
        """What decides the numbers that rows get."""
        return [self.scheme.entities, self.names, [*map(str, self.codes)], self.spans, self.span_names]

    def schema(self, kinds: Sequence[str]) -> Schema:
        """How the numbers become scored tags; kinds: types or tags that a model knows beside those of the data."""
        return Schema(self.names, self.scheme.entities, kinds)

    def taught(self, tags: Schema) -> list[str]:
        """The labels of a new head: IOB2, or plain tags; O and I- where the data does not say where entities begin."""
        if self.scheme.name == "IO":
            return [OUTSIDE, *(f"I-{kind}" for kind in tags.kinds)]
        return tags.labels

    def kinds(self) -> list[str]:
        """Types of entities, or plain tags."""
        return Schema(self.names, self.scheme.entities).kinds

    def words(self, batch: dict[str, list[Any]]) -> list[list[str]]:
        """The words of each row."""
        if not self.spans:
            return batch["tokens"]
        return [[text[start:end] for start, end in split_words(text)] for text in batch["text"]]

    def numbers(self, batch: dict[str, list[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of `names` for the words of all rows, int64 (w,), and words of each row, int64 (k,)."""
        tags = [tag_words(split_words(text), self.spans_of(spans))[0] for text, spans in _texts(batch)] or batch["tags"]
        lengths = np.fromiter(map(len, tags), np.int64, len(tags))
        codes = self.codes
        return np.fromiter((codes[tag] for tag in chain.from_iterable(tags)), np.int64, int(lengths.sum())), lengths

    def spans_of(self, spans: Sequence[dict[str, Any]]) -> list[tuple[int, int, str]]:
        """(start, end, type), types by their names."""
        names = self.span_names
        return [(one["start"], one["end"], names[one["label"]] if names else str(one["label"])) for one in spans]


def _texts(batch: dict[str, list[Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    return zip(batch["text"], batch["spans"], strict=True) if "spans" in batch else iter(())


def charted(gold: Gold, batch: dict[str, list[Any]]) -> list[tuple[str, list[Span]]]:
    """The text of each row and where its words stand; tokens are joined by spaces."""
    if gold.spans:
        return [(text, split_words(text)) for text in batch["text"]]
    return [join(tokens) for tokens in batch["tokens"]]


def gold_entities(gold: Gold, tags: Schema, batch: dict[str, list[Any]]) -> Iterator[set[tuple[str, int, int]]]:
    """The entities of each row as (type, start, end) in its text; spans without the white space at their ends."""
    if gold.spans:
        for text, spans in _texts(batch):
            yield {(kind, *_trimmed(text, start, end)) for start, end, kind in gold.spans_of(spans)}
        return
    numbers, lengths = gold.numbers(batch)
    names = np.array(tags.labels, dtype=object)[tags.convert(numbers, lengths)]
    rows = np.split(names, np.cumsum(lengths)[:-1])
    for row, (_, words) in zip(rows, charted(gold, batch), strict=True):
        yield {(kind, words[first][0], words[after - 1][1]) for first, after, kind in entities_of(row.tolist())}


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def read_gold(splits: dict[str, Rows]) -> Gold:
    """Look through the tags of all splits. Raises DataError: undeclared numbers, tags that train does not have."""
    first = next(iter(splits.values()))
    return _read_spans(splits) if "spans" in first.table.column_names else _read_tags(splits)


# ---------------------------------------------------------------------------------------------------- tags


def _read_tags(splits: dict[str, Rows]) -> Gold:
    names, codes, declared = _names(splits)
    pairs = {split: _pairs(rows, codes, len(names)) for split, rows in splits.items()}
    scheme = recognise(_named(np.sum([*pairs.values()], axis=0), names), names)
    seen = {split: {names[n] for n in np.flatnonzero(found[:-1].sum(axis=1))} for split, found in pairs.items()}
    if not declared:
        _check_seen(splits, seen, scheme)
    gold = Gold(scheme, names, codes)
    gold.remarks = [_scheme_words(scheme) + _odd_words(splits, seen, scheme), *_broken_words(splits, gold)]
    return gold


def _names(splits: dict[str, Rows]) -> tuple[list[str], dict[Any, int], bool]:
    """All tags by number; the number of each tag as it stands in the rows; whether the data declares its tags."""
    declared = next((rows.class_names["tags"] for rows in splits.values() if "tags" in rows.class_names), None)
    if declared is not None:
        _check_numbers(splits, len(declared))
        return list(declared), {number: number for number in range(len(declared))}, True
    found: set[Any] = set()
    for rows in splits.values():
        for _, flat, _ in _flat(rows):
            found |= set(flat.unique().to_pylist())
    ordered = sorted(found)
    return [str(tag) for tag in ordered], {tag: number for number, tag in enumerate(ordered)}, False


def _flat(rows: Rows) -> Iterator[tuple[int, pa.Array, np.ndarray]]:
    """Blocks: number of the first row, all tags, tags of each row."""
    first = 0
    for batch in rows.table.select(["tags"]).to_batches(max_chunksize=BLOCK):
        column = batch.column(0)
        offsets = np.asarray(column.offsets)
        yield first, column.flatten(), np.diff(offsets).astype(np.int64)
        first += batch.num_rows


def _check_numbers(splits: dict[str, Rows], count: int) -> None:
    lines = []
    for split, rows in splits.items():
        for first, flat, lengths in _flat(rows):
            values = np.asarray(flat)
            for place in np.flatnonzero((values < 0) | (values >= count))[:SHOWN]:
                row = first + int(np.searchsorted(np.cumsum(lengths), place, "right"))
                lines.append(
                    f"{split}: tag {values[place]} is none of the {count} that are declared ({rows.where(row)})"
                )
    _refuse(lines)


def _pairs(rows: Rows, numbers: dict[Any, int], size: int) -> np.ndarray:
    """How often one tag follows another, int64 (size + 1, size + 1); the last stands for the beginning and the end."""
    found = np.zeros((size + 1) ** 2, dtype=np.int64)
    for _, flat, lengths in _flat(rows):
        coded = flat.dictionary_encode()
        table = np.array([numbers[value] for value in coded.dictionary.to_pylist()] or [0], dtype=np.int64)
        tags = table[np.asarray(coded.indices)]
        filled = lengths[lengths > 0]
        ends = np.cumsum(filled)
        before = np.concatenate([[size], tags[:-1]]) if len(tags) else tags
        before[ends[:-1]] = size
        found += np.bincount(before * (size + 1) + tags, minlength=len(found))
        found += np.bincount(tags[ends - 1] * (size + 1) + size, minlength=len(found))
    return found.reshape(size + 1, size + 1)


def _named(pairs: np.ndarray, names: list[str]) -> dict[tuple[str, str], int]:
    edges = [*names, OUTSIDE]
    found: Counter[tuple[str, str]] = Counter()
    for one, other in zip(*np.nonzero(pairs), strict=True):
        found[edges[one], edges[other]] += int(pairs[one, other])
    return found


def _check_seen(splits: dict[str, Rows], seen: dict[str, set[str]], scheme: Scheme) -> None:
    """Every type, or plain tag, of the other splits must be in train."""
    if "train" not in splits:
        return
    known = {_kind(tag, scheme) for tag in seen["train"]}
    lines = []
    for split, tags in seen.items():
        for tag in sorted(tag for tag in tags if _kind(tag, scheme) not in known):
            what = f"the type of {tag!r}" if scheme.entities else f"tag {tag!r}"
            lines.append(f"{split}: {what} is not in train ({_rows_with(splits[split], tag)})")
    _refuse(lines)


def _kind(tag: str, scheme: Scheme) -> str:
    return split_tag(tag)[1] if scheme.entities else tag


def _rows_with(rows: Rows, tag: str) -> str:
    found: list[str] = []
    for first, flat, lengths in _flat(rows):
        places = np.flatnonzero(np.asarray(flat).astype(str) == tag)
        ends = np.cumsum(lengths)
        found += [rows.where(first + int(row)) for row in dict.fromkeys(np.searchsorted(ends, places, "right"))]
        if len(found) > SHOWN:
            return f"{'; '.join(found[:SHOWN])}; …"
    return "; ".join(found)


def _refuse(lines: list[str]) -> None:
    if len(lines) == 1:
        raise DataError(f"data: {lines[0]}")
    if lines:
        raise DataError("\n  ".join([f"data: {len(lines)} problems", *lines]))


def _scheme_words(scheme: Scheme) -> str:
    if not scheme.entities:
        return "tags: plain, one for each word"
    turned = "" if scheme.name in ("IO", "IOB2") else ", turned into IOB2"
    touching = "; neighbouring entities of one type cannot be told apart" if scheme.name == "IO" else ""
    return f"tags: entities in the {scheme.name} scheme{turned}{touching}"


def _odd_words(splits: dict[str, Rows], seen: dict[str, set[str]], scheme: Scheme) -> str:
    """Which tags keep the others, that have prefixes, from being read as entities: mostly a slip of the pen."""
    tags = sorted(set().union(*seen.values()) - {OUTSIDE})
    odd = [tag for tag in tags if not is_entities([tag])]
    if scheme.entities or not odd or len(odd) == len(tags):
        return ""
    usual = next(tag for tag in tags if tag not in odd)
    split = next(split for split, own in seen.items() if odd[0] in own)
    more = ", …" if len(odd) > SHOWN else ""
    return (
        f": not entities, since {odd[0]!r} ({_rows_with(splits[split], odd[0])}) has no prefix as {usual!r} has;"
        f" correct such tags if entities are meant ({', '.join(odd[:SHOWN])}{more})"
    )


def _broken_words(splits: dict[str, Rows], gold: Gold) -> Iterator[str]:
    """Which rows have tags that may not follow each other."""
    if gold.scheme.broken:
        found = "; ".join(islice(_breaks(splits, gold), SHOWN))
        yield (
            f"tags: {gold.scheme.broken:,} times a tag follows one that it may not follow in the {gold.scheme.name}"
            f" scheme ({found}{'; …' * (gold.scheme.broken > SHOWN)}); where it cannot continue an entity it begins one"
        )


def _breaks(splits: dict[str, Rows], gold: Gold) -> Iterator[str]:
    for rows in splits.values():
        tags = chain.from_iterable(batch["tags"] for batch in rows.batches(BLOCK))
        for row, codes in enumerate(tags):
            names = [gold.names[gold.codes[code]] for code in codes]
            for one, other in pairwise([OUTSIDE, *names, OUTSIDE]):
                if breaks(one, other, gold.scheme.name):
                    yield f"{rows.where(row)}: {other} after {one}"


# ---------------------------------------------------------------------------------------------------- spans


def _read_spans(splits: dict[str, Rows]) -> Gold:
    declared = next((rows.class_names["spans"] for rows in splits.values() if "spans" in rows.class_names), None)
    if declared is not None:
        _check_span_numbers(splits, len(declared))
    gold = Gold(Scheme("IOB2"), [], {}, spans=True, span_names=declared)
    gold.remarks = ["tags: spans of characters, turned into IOB2 on words, which white space and punctuation part"]
    seen = {}
    for split, rows in splits.items():
        seen[split], uneven = _count_spans(rows, gold)
        if uneven:
            gold.remarks.append(
                f"{split}: {uneven:,} of {sum(seen[split].values()):,} spans do not begin and end with a word; the"
                " words that they touch are tagged"
            )
    known = seen.get("train") if declared is None else None
    missing = [(split, kind) for split, kinds in seen.items() for kind in sorted(kinds) if known and kind not in known]
    _refuse([f"{split}: the type {kind!r} is not in train" for split, kind in missing])
    gold.names = iob2_labels(declared or sorted(set(chain.from_iterable(seen.values()))))
    gold.codes = {name: number for number, name in enumerate(gold.names)}
    return gold


def _count_spans(rows: Rows, gold: Gold) -> tuple[Counter[str], int]:
    """Spans of each type, and how many do not begin and end with a word."""
    seen: Counter[str] = Counter()
    uneven = 0
    for batch in rows.batches(BLOCK):
        for text, spans in _texts(batch):
            named = gold.spans_of(spans)
            seen.update(kind for _, _, kind in named)
            uneven += tag_words(split_words(text), named)[1]
    return seen, uneven


def _check_span_numbers(splits: dict[str, Rows], count: int) -> None:
    lines: list[str] = []
    for split, rows in splits.items():
        for row, spans in enumerate(chain.from_iterable(batch["spans"] for batch in rows.batches(BLOCK))):
            wrong = [one["label"] for one in spans if not 0 <= one["label"] < count]
            if wrong and len(lines) < SHOWN:
                lines.append(f"{split}: type {wrong[0]} is none of the {count} that are declared ({rows.where(row)})")
    _refuse(lines)
