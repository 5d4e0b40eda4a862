"""Extractive question answering: which part of a context answers a question. numpy, torch and transformers only.

transformers 5 has no pipeline for this task. This module is the one that a model's repository brings along
(`custom_pipelines` in its config.json); the code that evaluated the model called the same functions.

- The question is stripped of white space around it and cut at `max_question_tokens`, or at half of a window if that is
  less. The context is cut into windows of `max_length` tokens, question and special tokens included, which share
  `stride` tokens (at most half of the context's part).
- The score of a part is its start logit plus its end logit. A part lies in one window, has at most
  `max_answer_tokens` tokens, and neither begins nor ends with white space or inside a character made of several.
- The score of "no answer" is start plus end logit at the classification token, the lowest over all windows, minus
  `no_answer_threshold`. It takes part where the model was trained to leave questions open (the threshold is a number),
  or where nothing else is left: a context without any text.
- `score` is the softmax over the `n_best` best parts and "no answer"; the highest is the answer. Parts that are equal
  within 0.001 go in the order of the context.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import Pipeline

__all__ = [
    "Pieces",
    "QuestionAnsweringPipeline",
    "Ranked",
    "Settings",
    "cut",
    "longest_question",
    "pick",
    "probabilities",
    "rank",
    "rank_windows",
    "read",
    "spans",
    "whole",
]

CONFIG_KEY = "question_answering"  # where config.json holds the settings
TIE = 1e-3  # scores closer than this are taken for equal: rounding must not decide between equal parts of a context
BLOCK = 64  # questions of a list whose windows are held at once
BATCH = 8  # windows that go through the model at once
NONE = -np.inf

_SPACE = np.array([chr(code).isspace() for code in range(0x3001)])  # no code point above is white space
_JOINER = "\u200d"


@dataclass(frozen=True)
class Settings:
    """How contexts are read and answers chosen; lengths in tokens."""

    max_length: int = 384
    stride: int = 128
    max_question_tokens: int = 64
    max_answer_tokens: int = 30
    n_best: int = 20
    no_answer_threshold: float | None = None  # None: the model was not trained to leave a question open

    @classmethod
    def of(cls, config: Any, tokenizer: Any) -> Settings:
        """Those stored with a model; for a model of another origin the defaults, as far as its tokenizer allows."""
        stored = getattr(config, CONFIG_KEY, None) or {}
        known = {name: value for name, value in stored.items() if name in cls.__dataclass_fields__}
        settings = cls(**known)
        return replace(settings, max_length=min(settings.max_length, tokenizer.model_max_length))


# ---------------------------------------------------------------------------------------------- texts to windows


@dataclass(frozen=True)
class Pieces:
    """One question and its context as tokens. starts, ends: characters of the context's tokens, int32 (c,).

    A token of white space alone is empty: it starts where it ends.
    """

    question: np.ndarray
    context: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    question_cut: bool


def read(tokenizer: Any, questions: Sequence[str], contexts: Sequence[str], settings: Settings) -> list[Pieces]:
    """Tokenize k questions and contexts, equal contexts once. The tokenizer must be a fast one."""
    backend = _bare(tokenizer)
    limit = longest_question(tokenizer, settings)
    asked = backend.encode_batch_fast([question.strip() for question in questions], add_special_tokens=False)
    numbers = {text: number for number, text in enumerate(dict.fromkeys(contexts))}
    found = [_context(text, one) for text, one in zip(numbers, _encoded(backend, list(numbers)), strict=True)]
    return [
        Pieces(np.array(one.ids[:limit], np.int32), *found[numbers[text]], len(one.ids) > limit)
        for one, text in zip(asked, contexts, strict=True)
    ]


def _bare(tokenizer: Any) -> Any:
    """The tokenizer's backend, which neither pads nor cuts."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def longest_question(tokenizer: Any, settings: Settings) -> int:
    """The tokens of a question that are read: it leaves half of a window, without special tokens, to the context."""
    return min(settings.max_question_tokens, (settings.max_length - len(_frame(tokenizer))) // 2)


def _encoded(backend: Any, texts: list[str]) -> Iterator[Any]:
    """One after the other where texts are long: what the tokenizer returns takes a hundred times the text."""
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        if max(map(len, block)) < 20_000:
            yield from backend.encode_batch(block, add_special_tokens=False)
        else:
            yield from (backend.encode(text, add_special_tokens=False) for text in block)


def _context(text: str, encoding: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.array(encoding.ids, np.int32)
    starts, ends = np.array(encoding.offsets, np.int32).reshape(-1, 2).T
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    space = _SPACE[np.minimum(codes, len(_SPACE) - 1)] & (codes < len(_SPACE))
    if not space.any():
        return ids, starts, np.maximum(ends, starts)
    place = np.arange(len(text), dtype=np.int32)
    after = np.minimum.accumulate(np.where(space, len(text), place)[::-1])[::-1]  # the next character of text, or here
    before = np.maximum.accumulate(np.where(space, 0, place + 1))  # the end of the last one, up to and with here
    starts = np.append(after, len(text))[starts]
    return ids, starts, np.maximum(np.append(0, before)[ends], starts)


@dataclass(frozen=True)
class _Frame:
    """What a tokenizer puts around a question and a context: ids of special tokens, and token types."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int], int, list[int]] | None  # of the five parts; None: the model takes none
    null: int  # place of the token for "no answer" in a window, counted from the end when below 0

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


def _frame(tokenizer: Any) -> _Frame:
    """Read off one encoded pair of words."""
    found = _bare(tokenizer).encode("a", "a")
    ids, types, parts = found.ids, found.type_ids, found.sequence_ids
    question, context = parts.index(0), parts.index(1)
    between, after = len(parts) - parts[::-1].index(0), len(parts) - parts[::-1].index(1)
    kinds = (types[:question], types[question], types[between:context], types[context], types[after:])
    marks = (tokenizer.cls_token_id, tokenizer.bos_token_id)
    places = [*range(question), *range(after - len(ids), 0)]
    null = next((place for mark in marks for place in places if ids[place] == mark), 0)
    wants = "token_type_ids" in tokenizer.model_input_names
    return _Frame(ids[:question], ids[between:context], ids[after:], kinds if wants else None, null)


def cut(tokenizer: Any, pieces: Sequence[Pieces], settings: Settings) -> dict[str, Any]:
    """Windows over k contexts, in order: name -> one value per window.

    input_ids, token_type_ids (where the model takes them), offset_start, offset_end: int32, as long as the window; the
    offsets are characters of the context, and equal to each other at tokens where no answer may begin or end. As
    int64 (n,): row, which of `pieces`; first, the number in the context of its first token here; at, where in the
    window that token stands; size, tokens of the context here; null, where the token for "no answer" stands.
    """
    frame = _frame(tokenizer)
    sequences: dict[str, list[np.ndarray]] = {}
    numbers: list[tuple[int, ...]] = []
    for row, one in enumerate(pieces):
        outer = _around(frame, one)
        at, tail = len(outer["input_ids"][0]), len(frame.after)
        room = settings.max_length - at - tail
        step = room - min(settings.stride, room // 2)
        inner = {"input_ids": one.context, "offset_start": one.starts, "offset_end": one.ends}
        if frame.types is not None:
            inner["token_type_ids"] = np.full(len(one.context), frame.types[3], np.int32)
        for first in range(0, max(len(one.context) - room, 0) + step, step):
            for name, (head, end) in outer.items():
                part = inner[name][first : first + room]
                sequences.setdefault(name, []).append(np.concatenate([head, part, end]))
            numbers.append((row, first, at, len(part), frame.null % (at + len(part) + tail)))
    columns = np.array(numbers, dtype=np.int64).reshape(-1, 5).T
    return sequences | dict(zip(("row", "first", "at", "size", "null"), columns, strict=True))


def _around(frame: _Frame, one: Pieces) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What stands before and after the context's tokens in each window of a row."""
    head = np.concatenate([np.array(part, np.int32) for part in (frame.before, one.question, frame.between)])
    end = np.array(frame.after, np.int32)
    nothing = (np.zeros_like(head), np.zeros_like(end))
    outer = {"input_ids": (head, end), "offset_start": nothing, "offset_end": nothing}
    if frame.types is not None:
        before, question, between, _, after = frame.types
        types = np.array([*before, *[question] * len(one.question), *between], np.int32)
        outer["token_type_ids"] = (types, np.array(after, np.int32))
    return outer


# ---------------------------------------------------------------------------------------------- logits to answers


def spans(
    start: torch.Tensor, end: torch.Tensor, usable: torch.Tensor, null: torch.Tensor, settings: Settings
) -> dict[str, torch.Tensor]:
    """The n best parts of each window, on the device of the logits.

    start, end: logits float32 (B, L); usable: bool (B, L), tokens where an answer may begin and end; null: int64 (B,).
    Returns score float32 (B, n), best first, -inf where a window has fewer parts; start, end: tokens, int64 (B, n), 0
    where there is no part; null float32 (B,), the score of "no answer".
    """
    no_answer = (start + end).gather(1, null[:, None])[:, 0]
    start, end = start.masked_fill(~usable, NONE), end.masked_fill(~usable, NONE)
    width = settings.max_answer_tokens
    ends = functional.pad(end, (0, width - 1), value=NONE).unfold(
        1, width, 1
    )  # (B, L, width): of parts that begin here
    # The n best parts have at most n beginnings, and these are the n whose best part is best.
    first = (start + ends.amax(dim=2)).topk(min(settings.n_best, start.shape[1]), dim=1).indices
    sums = start.gather(1, first)[:, :, None] + ends.gather(1, first[:, :, None].expand(-1, -1, width))
    score, place = sums.flatten(1).topk(min(settings.n_best, sums[0].numel()), dim=1)
    begin = first.gather(1, place // width)
    stop = (begin + place % width).masked_fill(score == NONE, 0)  # what is no part may lie outside the window
    begin = begin.masked_fill(score == NONE, 0)
    missing = settings.n_best - score.shape[1]
    begin, stop = (functional.pad(each, (0, missing)) for each in (begin, stop))
    return {
        "score": functional.pad(score, (0, missing), value=NONE),
        "start": begin,
        "end": stop,
        "null": no_answer,
    }


@dataclass(frozen=True)
class Ranked:
    """The best distinct parts of k contexts. score: float64 (k, n), best first, -inf where there are fewer; start, end:
    characters, int64 (k, n); null: the lowest score of "no answer" over the windows, float64 (k,).
    """

    score: np.ndarray
    start: np.ndarray
    end: np.ndarray
    null: np.ndarray


def rank(score: np.ndarray, start: np.ndarray, end: np.ndarray, null: np.ndarray, row: np.ndarray, rows: int) -> Ranked:
    """Put the windows of each row together.

    score: (w, n) of the parts of each window, -inf for none; start, end: characters (w, n); null: (w,); row: (w,), each
    of 0 … rows - 1 at least once. A part found in two windows counts once, with the higher score.
    """
    lowest = np.full(rows, np.inf)
    np.minimum.at(lowest, row, null)
    best = score.shape[1]
    real = score > NONE
    row, score, start, end = np.broadcast_to(row[:, None], score.shape)[real], score[real], start[real], end[real]
    order = np.lexsort((-score, end, start, row))
    keys = np.stack([row, start, end])[:, order]
    order = order[np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))[: len(order)]]
    order = order[np.lexsort((end[order], start[order], -np.round(score[order] / TIE), row[order]))]
    counts = np.bincount(row[order], minlength=rows)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order, place = order[place < best], place[place < best]
    ranked: list[np.ndarray] = [np.full((rows, best), NONE), *np.zeros((2, rows, best), np.int64)]
    for array, values in zip(ranked, (score, start, end), strict=True):
        array[row[order], place] = values[order]
    return Ranked(ranked[0], ranked[1], ranked[2], lowest)


def rank_windows(outputs: Sequence[Mapping[str, np.ndarray]], windows: Mapping[str, Any], rows: int) -> Ranked:
    """`rank` for the outputs of `spans`, window by window, and the offsets of `cut`."""
    score, begin, stop = (np.stack([one[name] for one in outputs]) for name in ("score", "start", "end"))
    start = np.stack([offsets[places] for offsets, places in zip(windows["offset_start"], begin, strict=True)])
    end = np.stack([offsets[places] for offsets, places in zip(windows["offset_end"], stop, strict=True)])
    null = np.array([one["null"] for one in outputs], np.float64)
    return rank(score.astype(np.float64), start, end, null, windows["row"], rows)


def probabilities(ranked: Ranked, threshold: float | None) -> np.ndarray:
    """Softmax over the parts and, last, "no answer": float64 (k, n + 1), 0 where there is none.

    threshold: taken off the score of "no answer"; None leaves "no answer" out, except where there is no part at all.
    """
    none = (ranked.score[:, 0] == NONE) if ranked.score.shape[1] else np.ones(len(ranked.null), bool)
    null = np.full(len(ranked.null), NONE) if threshold is None else ranked.null - threshold
    scores = np.concatenate([ranked.score, np.where(none, 0.0, null)[:, None]], axis=1)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def pick(context: str, shares: np.ndarray, start: np.ndarray, end: np.ndarray, top_k: int) -> list[dict[str, Any]]:
    """The `top_k` best answers to one question: score, start, end (characters) and answer.

    shares: (n + 1,) as from `probabilities`; start, end: (n,). "No answer" is the empty text at 0.
    """
    parts = [number for number in range(len(start)) if shares[number] > 0]
    if shares[-1] > 0:
        better = next((place for place, number in enumerate(parts) if shares[number] < shares[-1]), len(parts))
        parts.insert(better, -1)
    found = []
    for number in parts[:top_k]:
        first, last = whole(context, int(start[number]), int(end[number])) if number >= 0 else (0, 0)
        found.append({"score": float(shares[number]), "start": first, "end": last, "answer": context[first:last]})
    return found


def whole(text: str, start: int, end: int) -> tuple[int, int]:
    """The part grown to whole characters: a letter keeps its combining marks, an emoji its modifiers and joined parts.

    Tokenizers that strip accents give a token the characters of its bare letters only.
    """
    while 0 < start < len(text) and _continues(text, start):
        start -= 1
    while 0 < end < len(text) and _continues(text, end):
        end += 1
    return start, end


def _continues(text: str, place: int) -> bool:
    """Whether the code point at `place` belongs to the character that the one before it is of.

    A part of the rules of Unicode Standard Annex 29 (marks, zero-width joiner, modifiers of emoji).
    """
    here = text[place]
    joined = here == _JOINER or text[place - 1] == _JOINER or "\U0001f3fb" <= here <= "\U0001f3ff"
    return joined or unicodedata.category(here).startswith("M")


# ---------------------------------------------------------------------------------------------- the pipeline


class QuestionAnsweringPipeline(Pipeline):  # type: ignore[misc]  # transformers has no types
    """Answers questions from texts, as the question-answering pipeline of transformers 4 did.

        pipe(question="Where do I live?", context="I live in Berlin.")
        pipe({"question": ..., "context": ...})          # the same
        pipe([{"question": ..., "context": ...}, ...])   # a list of answers

    One answer: {"score": float, "start": int, "end": int, "answer": str}, characters of the context; with `top_k` above
    1 a list of them, best first. A generator gives a generator. No answer is the empty text; so is the answer to a
    context without any text. Raises ValueError for a blank question, and for a question or context that is not text.

    Arguments, of the call or of the pipeline itself; None: as the model was evaluated (config.json).
    top_k: how many answers. handle_impossible_answer: whether "no answer" is an answer. max_answer_len, max_seq_len,
    doc_stride, max_question_len: in tokens, see the beginning of this file. batch_size: windows at once.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.tokenizer is None or not self.tokenizer.is_fast:
            raise ValueError("question answering needs a fast tokenizer (tokenizer.json): others know no offsets")

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        handle_impossible_answer: bool | None = None,
        max_answer_len: int | None = None,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        max_question_len: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(f"question answering takes no argument {', '.join(sorted(unknown))}")
        lengths = {
            "max_answer_tokens": max_answer_len,
            "max_length": max_seq_len,
            "stride": doc_stride,
            "max_question_tokens": max_question_len,
        }
        settings: dict[str, Any] = {name: value for name, value in lengths.items() if value is not None}
        if any(value < (name != "stride") for name, value in settings.items()) or (top_k is not None and top_k < 1):
            raise ValueError("top_k and lengths must be at least 1, doc_stride at least 0")
        answers = {"top_k": top_k, "handle_impossible_answer": handle_impossible_answer}
        return {"changes": settings}, {}, {name: value for name, value in answers.items() if value is not None}

    def __call__(self, *args: Any, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any) -> Any:
        del num_workers  # tokenizing is done by threads of the tokenizer
        inputs = _inputs(args, kwargs)
        read_with, _, answer_with = self._sanitize_parameters(**kwargs)
        changes = self._preprocess_params["changes"] | read_with["changes"]
        answer_with = self._postprocess_params | answer_with
        size = batch_size or self._batch_size or BATCH
        if isinstance(inputs, Mapping):
            return next(self._answers([inputs], changes, answer_with, size))
        answers = self._answers(inputs, changes, answer_with, size)
        return list(answers) if isinstance(inputs, (list, tuple)) else answers

    def _answers(
        self, inputs: Iterable[Any], changes: dict[str, Any], answer_with: dict[str, Any], batch_size: int
    ) -> Iterator[Any]:
        items = iter(inputs)
        while block := [_checked(item) for item in islice(items, BLOCK)]:
            encoded = self.preprocess(block, changes=changes)
            lengths = np.array([len(ids) for ids in encoded["windows"]["input_ids"]])
            order = np.argsort(-lengths, kind="stable")  # windows of like length together
            outputs: list[Any] = [None] * len(order)
            for index in (order[place : place + batch_size] for place in range(0, len(order), batch_size)):
                batch = _batch(encoded["windows"], index, self.tokenizer.pad_token_id or 0)
                found = self.forward({"batch": batch, "settings": encoded["settings"]})
                for place, window in enumerate(index):
                    outputs[window] = {name: values[place].numpy() for name, values in found.items()}
            yield from self.postprocess(encoded | {"outputs": outputs}, **answer_with)

    def preprocess(self, input_: Any, changes: dict[str, Any] | None = None) -> dict[str, Any]:
        """Examples to windows."""
        settings = Settings.of(self.model.config, self.tokenizer)
        settings = replace(settings, **(changes or {}))
        if settings.max_length > self.tokenizer.model_max_length:
            raise ValueError(f"max_seq_len: at most {self.tokenizer.model_max_length}, found {settings.max_length}")
        if longest_question(self.tokenizer, settings) < 1:
            special = len(_frame(self.tokenizer))
            raise ValueError(
                f"max_seq_len: at least {special + 2} ({special} special tokens, one of the question and one of the"
                f" context), found {settings.max_length}"
            )
        contexts = [one["context"] for one in input_]
        pieces = read(self.tokenizer, [one["question"] for one in input_], contexts, settings)
        return {"settings": settings, "contexts": contexts, "windows": cut(self.tokenizer, pieces, settings)}

    def _forward(self, input_tensors: dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
        batch = dict(input_tensors["batch"])
        usable, null = batch.pop("usable"), batch.pop("null")
        output = self.model(**batch)
        return spans(output.start_logits.float(), output.end_logits.float(), usable, null, input_tensors["settings"])

    def postprocess(
        self, model_outputs: dict[str, Any], top_k: int = 1, handle_impossible_answer: bool | None = None
    ) -> list[Any]:
        """The answers of a block of examples."""
        settings, windows, contexts = (model_outputs[name] for name in ("settings", "windows", "contexts"))
        ranked = rank_windows(model_outputs["outputs"], windows, len(contexts))
        threshold = settings.no_answer_threshold
        if handle_impossible_answer is not None:
            threshold = (threshold or 0.0) if handle_impossible_answer else None
        shares = probabilities(ranked, threshold)
        answers = [pick(*one, top_k=top_k) for one in zip(contexts, shares, ranked.start, ranked.end, strict=True)]
        return [found[0] if top_k == 1 else found for found in answers]


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What is asked: one mapping, or an iterable of them. Takes question and context out of `kwargs`."""
    given = {name: kwargs.pop(name) for name in ("question", "context") if name in kwargs}
    if len(args) == 2 and not given:
        given = dict(zip(("question", "context"), args, strict=True))
    elif len(args) == 1 and not given:
        return args[0]
    if len(given) < 2 or (args and len(args) != 2):
        raise ValueError("question answering takes question= and context=, a dictionary with both, or a list of these")
    question, context = given["question"], given["context"]
    if not isinstance(question, (list, tuple)) and not isinstance(context, (list, tuple)):
        return given
    size = len(question) if isinstance(question, (list, tuple)) else len(context)
    columns = [list(each) if isinstance(each, (list, tuple)) else [each] * size for each in (question, context)]
    if len(columns[0]) != len(columns[1]):
        raise ValueError(f"expected as many contexts as questions, found {len(columns[1])} and {len(columns[0])}")
    return [dict(zip(("question", "context"), pair, strict=True)) for pair in zip(*columns, strict=True)]


def _checked(item: Any) -> dict[str, str]:
    if not isinstance(item, Mapping):
        raise ValueError(f"expected a dictionary with question and context, found {type(item).__name__}")
    for name in ("question", "context"):
        if not isinstance(item.get(name), str):
            raise ValueError(f"`{name}`: expected text, found {type(item.get(name)).__name__}")
    if not item["question"].strip():
        raise ValueError("`question` cannot be empty")
    return {name: item[name] for name in ("question", "context")}


def _batch(windows: dict[str, Any], index: np.ndarray, pad: int) -> dict[str, torch.Tensor]:
    """The windows at `index` as tensors (B, L), padded on the right."""
    lengths = np.array([len(windows["input_ids"][window]) for window in index])
    inside = np.arange(lengths.max()) < lengths[:, None]
    names = [name for name in ("input_ids", "token_type_ids", "offset_start", "offset_end") if name in windows]
    padded: dict[str, np.ndarray] = {
        name: np.full(inside.shape, pad if name == "input_ids" else 0, np.int64) for name in names
    }
    for name, array in padded.items():
        array[inside] = np.concatenate([windows[name][window] for window in index])
    usable = padded.pop("offset_end") > padded.pop("offset_start")
    arrays = padded | {"usable": usable, "attention_mask": inside.astype(np.int64), "null": windows["null"][index]}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
