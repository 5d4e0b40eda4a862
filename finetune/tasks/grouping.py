"""What transformers' token-classification pipeline makes of a text and of scores per piece, by our own arithmetic.

Source: transformers.TokenClassificationPipeline (`gather_pre_entities`, `aggregate_words`, `group_entities`,
`aggregate_overlapping_entities`), aggregation "first" and "none". The pipeline makes words of its own: pieces are
joined by the tokenizer's mark of a continued word, whatever the words of the data are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from finetune.features import Features
from finetune.tasks.encoding import bare, frame
from finetune.tasks.windows import cover

__all__ = [
    "Item",
    "Pieces",
    "answers",
    "as_tags",
    "encode",
    "group",
    "merge_windows",
    "plain_items",
    "read",
    "word_spans",
    "words_apart",
]

Item = dict[str, Any]
ToString = Callable[[list[str]], str]


@dataclass(frozen=True)
class Pieces:
    """The pieces of one window. joined: whether a piece continues the word of the piece before it."""

    ids: list[int]
    tokens: list[str]  # as the vocabulary writes them; an unknown piece as the text does
    starts: list[int]  # in characters of the text
    ends: list[int]
    joined: list[bool]

    def part(self, start: int, stop: int) -> Pieces:
        """Some of them."""
        chosen = slice(start, stop)
        return Pieces(
            self.ids[chosen], self.tokens[chosen], self.starts[chosen], self.ends[chosen], self.joined[chosen]
        )


def read(tokenizer: Any, texts: Sequence[str]) -> list[Pieces]:
    """The pieces of each text, special ones left out, neither cut nor padded."""
    backend = bare(tokenizer)
    marked = bool(getattr(backend.model, "continuing_subword_prefix", None))
    found = []
    for text, encoding in zip(texts, backend.encode_batch(list(texts)), strict=True):
        inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        ids, tokens, offsets = encoding.ids, encoding.tokens, encoding.offsets
        pieces = Pieces([], [], [], [], [])
        for place in inside:
            start, end = offsets[place]
            unknown = ids[place] == tokenizer.unk_token_id
            token = text[start:end] if unknown else tokens[place]
            pieces.ids.append(ids[place])
            pieces.tokens.append(token)
            pieces.starts.append(start)
            pieces.ends.append(end)
            pieces.joined.append(not unknown and _continues(text, token, start, end, marked))
        found.append(pieces)
    return found


def _continues(text: str, token: str, start: int, end: int, marked: bool) -> bool:
    """Where the vocabulary marks continued words (##): as long as its text or not; else: a space before it or not."""
    if marked:
        return len(token) != end - start
    return start > 0 and " " not in text[start - 1 : start + 1]


def word_spans(pieces: Pieces) -> list[tuple[int, int]]:
    """Where the words of the pipeline stand."""
    firsts = [place for place, joined in enumerate(pieces.joined) if not joined or place == 0]
    return [(pieces.starts[first], pieces.ends[after - 1]) for first, after in pairwise([*firsts, len(pieces.joined)])]


def group(pieces: Pieces, labels: Sequence[str], scores: Sequence[float], write: ToString) -> list[Item]:
    """The entities of one window under aggregation "first": entity_group, score, word, start, end.

    labels, scores: best label of each piece and its probability. write: the tokenizer's `convert_tokens_to_string`.
    """
    groups: list[list[Item]] = []
    last = ""
    for word in _words(pieces, labels, scores, write):
        begins, kind = _begins_and_kind(word["label"])
        if groups and kind == last and not begins:
            groups[-1].append(word)
        else:
            groups.append([word])
        last = kind
    return [_entity(words, write) for words in groups if _name(words) != "O"]


def _words(pieces: Pieces, labels: Sequence[str], scores: Sequence[float], write: ToString) -> Iterator[Item]:
    """Words with the label and score of their first piece."""
    firsts = [place for place, joined in enumerate(pieces.joined) if not joined or place == 0]
    for first, after in pairwise([*firsts, len(pieces.joined)]):
        yield {
            "label": labels[first],
            "score": scores[first],
            "word": write(pieces.tokens[first:after]),
            "start": pieces.starts[first],
            "end": pieces.ends[after - 1],
        }


def _begins_and_kind(label: str) -> tuple[bool, str]:
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _name(words: list[Item]) -> str:
    return str(words[0]["label"].split("-", 1)[-1])


def _entity(words: list[Item], write: ToString) -> Item:
    return {
        "entity_group": _name(words),
        "score": float(np.mean([word["score"] for word in words])),
        "word": write([word["word"] for word in words]),
        "start": words[0]["start"],
        "end": words[-1]["end"],
    }


def merge_windows(windows: list[list[Item]]) -> list[Item]:
    """The entities of all windows of a text: of those that overlap the longest; of equally long ones the best."""
    entities = [entity for window in windows for entity in window]
    if len(windows) < 2 or not entities:
        return entities
    entities.sort(key=_start)
    kept = [entities[0]]
    for entity in entities[1:]:
        last = kept[-1]
        if not last["start"] <= entity["start"] < last["end"]:
            kept.append(entity)
        elif _rank(entity) > _rank(last):
            kept[-1] = entity
    return kept


def _start(entity: Item) -> int:
    return int(entity["start"])


def _rank(entity: Item) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def plain_items(pieces: Pieces, labels: Sequence[str], scores: Sequence[float], before: int) -> list[Item]:
    """One item for each piece, without aggregation; `before`: special pieces in front, which the pipeline counts."""
    columns = zip(labels, scores, pieces.tokens, pieces.starts, pieces.ends, strict=True)
    return [
        {"entity": label, "score": float(score), "index": place, "word": token, "start": start, "end": end}
        for place, (label, score, token, start, end) in enumerate(columns, before)
        if label != "O"
    ]


def as_tags(gold: set[tuple[str, int, int]], predicted: set[tuple[str, int, int]]) -> tuple[list[str], list[str]]:
    """Two sets of entities (type, start, end) as IOB2 tags, so that equal entities are equal tags.

    Every distinct entity stands for one token: strict counts of entities are the same as on characters.
    """
    places = sorted(gold | predicted, key=_place)
    sides = [[f"B-{place[0]}" if place in side else "O" for place in places] for side in (gold, predicted)]
    return sides[0], sides[1]


def _place(entity: tuple[str, int, int]) -> tuple[int, int, str]:
    return entity[1], entity[2], entity[0]


# --------------------------------------------------------------------------------------- texts to answers


def encode(tokenizer: Any, texts: Sequence[str], max_length: int, stride: int, *, only_first: bool) -> dict[str, Any]:
    """Features of texts: the windows that the pipeline makes of each, or the first one.

    Scalars `row`, `start` and `stop` say which pieces of which text; `truncated`, whether the text is cut off.
    """
    outer = frame(tokenizer)
    read_texts = read(tokenizer, texts)
    lengths = np.array([len(pieces.ids) for pieces in read_texts], dtype=np.int64)
    cut = cover(lengths, max_length - len(outer), stride)
    kept = np.flatnonzero((cut.number == 0) | (not only_first))
    scalars = {"row": cut.row[kept], "start": cut.start[kept], "stop": cut.stop[kept]}
    places = list(zip(*(values.tolist() for values in scalars.values()), strict=True))
    columns = {"input_ids": [outer.around(read_texts[row].ids[start:stop]) for row, start, stop in places]}
    if "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = [outer.type_ids(stop - start) for _, start, stop in places]
    return columns | scalars | {"truncated": (cut.stop < lengths[cut.row])[kept] & only_first}


def answers(
    tokenizer: Any,
    texts: Sequence[Pieces],
    outputs: dict[str, list[np.ndarray]],
    features: Features,
    labels: Sequence[str],
    *,
    entities: bool,
) -> list[list[Item]]:
    """What the pipeline says of each text; outputs: `label` and `score` of the pieces of every window."""
    before = len(frame(tokenizer).before)
    found: list[list[list[Item]]] = [[] for _ in texts]
    places = zip(*(features.scalars[name].tolist() for name in ("row", "start", "stop")), strict=True)
    for number, (row, start, stop) in enumerate(places):
        inside = slice(before, before + stop - start)
        names = [labels[label] for label in outputs["label"][number][inside]]
        scores = outputs["score"][number][inside].tolist()
        pieces = texts[row].part(start, stop)
        if entities:
            found[row].append(group(pieces, names, scores, tokenizer.convert_tokens_to_string))
        else:
            found[row].append(plain_items(pieces, names, scores, before))
    return [merge_windows(parts) for parts in found]


def words_apart(
    charts: Iterable[tuple[str, list[tuple[int, int]]]], read_texts: Iterable[Pieces]
) -> tuple[int, int, str]:
    """Of the words of texts (each text with the places of its words): how many the pipeline forms otherwise, how many
    there are, and one of the former."""
    different, total, example = 0, 0, ""
    for (text, spans), pieces in zip(charts, read_texts, strict=True):
        formed = set(word_spans(pieces))
        wrong = [text[start:end] for start, end in spans if (start, end) not in formed]
        different, total = different + len(wrong), total + len(spans)
        example = example or next(iter(wrong), "")
    return different, total, example
