"""How a reader calls a published token model, and what the card says about it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from finetune.tasks import grouping
from finetune.tasks.encoding import frame
from finetune.tasks.tagging import is_entities
from finetune.tasks.words import join, split_words

__all__ = ["answers", "apart_words", "call_arguments", "input_problem", "notes", "snippet", "word_windows"]

Span = tuple[int, int]


def call_arguments(entities: bool, stride: int) -> dict[str, Any]:
    """What the pipeline must be given in the call; it takes none of it from the config."""
    return {"aggregation_strategy": "first", "stride": stride} if entities else {}


def snippet(entities: bool, stride: int) -> str:
    """Python that calls the published model."""
    extra = "".join(f", {name}={value!r}" for name, value in call_arguments(entities, stride).items())
    return (
        "from transformers import pipeline\n\n"
        'tag = pipeline("token-classification", model="{model}")\n'
        'text = "My name is Sylvain and I work at Hugging Face in Brooklyn."\n'
        f"print(tag(text{extra}))"
    ).replace("aggregation_strategy='first'", 'aggregation_strategy="first"')


def notes(begins: bool | None, scheme: str, max_length: int, stride: int) -> list[str]:
    """Sentences for the card on how to call the model and how it was scored.

    begins: whether a label says where an entity begins; None: tags are plain.
    """
    if begins is None:
        return [
            "The tag of a word is that of its first piece: of the items that the pipeline returns, take for each word"
            " the one that starts where the word starts. Do not aggregate: that joins neighbouring words of one tag.",
            f"The pipeline reads the first {max_length} tokens of a text; give it longer texts sentence by sentence."
            f" Evaluation read them in windows that overlap by {stride} tokens.",
        ]
    found = [
        "Both arguments belong in every call, since the pipeline takes neither from the config. Without"
        ' `aggregation_strategy="first"` it answers with pieces of words; without `stride` it reads the first'
        f" {max_length} tokens of a text and no more.",
        f"Longer texts are read in windows that overlap by {stride} tokens. Evaluation takes each word from the window"
        " that shows most of the text around it; the pipeline keeps the longest of entities that overlap.",
    ]
    if scheme == "IO":
        found.append("The tags of the data do not say where an entity begins (IO scheme).")
    elif scheme != "IOB2":
        found.append(f"The {scheme} tags of the data were turned into IOB2.")
    if not begins:
        found.append("No label says where an entity begins, so neighbouring entities of one type are one entity here.")
    return found


def apart_words(split: str, different: int, total: int, example: str) -> str:
    """How far the words of the data and those of the pipeline lie apart; nothing where they are the same."""
    if not different:
        return ""
    return f"{split}: the pipeline forms {different:,} of {total:,} words otherwise than the data (such as {example!r})"


def input_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with one input of `finetune predict`, or None."""
    text, tokens = row.get("text"), row.get("tokens")
    if isinstance(text, str) or (isinstance(tokens, list) and set(map(type, tokens)) <= {str}):
        return None
    return f"expected a text under text, or a list of words under tokens, found the keys {', '.join(row)}"


# ------------------------------------------------------------------------------------------- answers


def answers(pipe: Any, rows: Sequence[dict[str, Any]], batch_size: int) -> list[Any]:
    """Entities of each row's text (or tokens, joined by spaces), or the tag of each of its words."""
    names = [pipe.model.config.id2label[number] for number in sorted(pipe.model.config.id2label)]
    texts = [row["text"] if isinstance(row.get("text"), str) else " ".join(row["tokens"]) for row in rows]
    if is_entities(names):
        usual = min(pipe.tokenizer.model_max_length, 512) // 4
        arguments = call_arguments(True, getattr(pipe.model.config, "token_stride", usual))
        return [[_as_json(item) for item in found] for found in pipe(texts, batch_size=batch_size, **arguments)]
    spans = [
        split_words(text) if isinstance(row.get("text"), str) else join(row["tokens"])[1]
        for row, text in zip(rows, texts, strict=True)
    ]
    return [_tag(pipe, text, words) for text, words in zip(texts, spans, strict=True)]


def _as_json(item: dict[str, Any]) -> dict[str, Any]:
    return item | {"score": float(item["score"])}


def _tag(pipe: Any, text: str, words: list[Span]) -> list[dict[str, Any]]:
    """The tag of each word by its first piece; a text longer than a window is given in parts that overlap."""
    if not words:
        return []
    [pieces] = grouping.read(pipe.tokenizer, [text])
    starts = np.array([start for start, _ in words])
    owner = np.searchsorted(starts, pieces.starts, "right") - 1
    counts = np.bincount(np.maximum(owner, 0), minlength=len(words))
    size = pipe.tokenizer.model_max_length - len(frame(pipe.tokenizer))
    found: list[dict[str, Any]] = []
    for first, after, own_first, own_after in word_windows(counts, size, size // 4):
        shift = words[first][0]
        items = pipe(text[shift : words[after - 1][1]])
        at = {}
        for item in reversed(items):
            at[int(np.searchsorted(starts, item["start"] + shift, "right")) - 1] = item
        found += [_tagged(text, words[word], at.get(word)) for word in range(own_first, own_after)]
    return found


def _tagged(text: str, span: Span, item: dict[str, Any] | None) -> dict[str, Any]:
    """A word of which the tokenizer leaves nothing has no tag."""
    start, end = span
    tag = {"entity": None, "score": 0.0} if item is None else {"entity": item["entity"], "score": float(item["score"])}
    return tag | {"word": text[start:end], "start": start, "end": end}


def word_windows(counts: np.ndarray, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Parts of a row of words: first word, word after the last, and of these the range whose tags count.

    counts: pieces of each word. A part has at most `size` pieces, or one word. Neighbours share words of at most
    `overlap` pieces, of which each takes its half.
    """
    ends = np.cumsum(counts)
    parts: list[tuple[int, int]] = []
    first, total = 0, len(counts)
    while True:
        before = int(ends[first] - counts[first])
        after = max(first + 1, int(np.searchsorted(ends, before + size, "right")))
        parts.append((first, after))
        if after == total:
            break
        begin = ends - counts
        first = max(first + 1, min(after, int(np.searchsorted(begin, ends[after - 1] - overlap, "left"))))
    edges = [0, *((b + a) // 2 for (_, a), (b, _) in pairwise(parts)), total]
    return [(*part, edges[number], edges[number + 1]) for number, part in enumerate(parts)]
