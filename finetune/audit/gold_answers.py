"""Answers to questions: is each one where its offset says, and does it say what it should?"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from finetune.audit.findings import Findings, blocks
from finetune.data import subset
from finetune.data.values import shown
from finetune.recipe import Recipe
from finetune.rows import Rows, to_arrow

__all__ = ["RADIUS", "check"]

RADIUS = 100  # characters to either side of answer_start in which a misplaced answer is looked for

Bad = tuple[str, str]  # kind, what is wrong


@dataclass
class _Found:
    """What became of the answers of one split."""

    bad: dict[int, Bad] = field(default_factory=dict)  # by row
    moved: dict[int, int] = field(default_factory=dict)  # row -> characters
    blocks: list[pa.Array] = field(default_factory=list)  # the answers as they will be used
    changed: bool = False


def check(recipe: Recipe, findings: Findings) -> None:
    """Put misplaced answers right, and report or leave out the rows whose answers cannot be used.

    An answer that is not at its answer_start is moved when its text occurs exactly once within RADIUS characters of it.
    Empty texts count as no answer. A row is bad when its question or context is blank, when one of its answers is not
    in the context, or when is_impossible says otherwise than the answers.
    """
    for split, one in list(findings.splits.items()):
        if {"question", "context", "answers"} <= set(one.table.column_names):
            found = _examine(one)
            findings.splits[split] = _apply(recipe, one, found, findings)


def _examine(one: Rows) -> _Found:
    found = _Found()
    optional = ["is_impossible"] if "is_impossible" in one.table.column_names else []
    for first, (questions, contexts, answers, *rest) in blocks(one, ["question", "context", "answers", *optional]):
        flags = rest[0] if rest else [None] * len(answers)
        kept = []
        for row, given in enumerate(zip(questions, contexts, answers, flags, strict=True), first):
            corrected, bad, moved = _row(*given)
            found.changed |= corrected != given[2]
            if bad is not None:
                found.bad[row] = bad
            elif moved:
                found.moved[row] = moved
            kept.append(corrected)
        found.blocks.append(pa.array(kept, one.table.schema.field("answers").type))
    return found


def _row(
    question: str, context: str, answers: dict[str, Any], impossible: bool | None
) -> tuple[dict[str, Any], Bad | None, int]:
    """The answers as they will be used, what is wrong with the row, and how far an answer was moved."""
    for name, text in (("question", question), ("context", context)):
        if not text.strip():
            return answers, (f"empty {name}", f"{name}: empty; there is nothing to learn or to score"), 0
    pairs = [
        (text, start) for text, start in zip(answers["text"], answers["answer_start"], strict=True) if text.strip()
    ]
    if impossible is not None and impossible == bool(pairs):
        what = f"true: expected no answers, found {len(pairs)}" if impossible else "false: expected answers, found none"
        return answers, ("is_impossible against answers", f"is_impossible is {what}; correct one of the two"), 0
    places = [_place(context, text, start) for text, start in pairs]
    for (text, start), place in zip(pairs, places, strict=True):
        if place is None:
            return answers, ("answer not at its place", _misplaced(context, text, start)), 0
    corrected = {"text": [text for text, _ in pairs], "answer_start": places}
    return (
        corrected,
        None,
        max((abs(p - s) for p, (_, s) in zip(places, pairs, strict=True) if p is not None), default=0),
    )


def _place(context: str, text: str, start: int) -> int | None:
    """Where the answer stands, when its offset or the neighbourhood says so."""
    if start >= 0 and context.startswith(text, start):
        return start
    low, high = max(0, start - RADIUS), max(0, start + RADIUS + len(text))
    near = context.find(text, low, high)
    return near if near >= 0 and context.find(text, near + 1, high) < 0 else None


def _misplaced(context: str, text: str, start: int) -> str:
    found = [place for place in range(len(context)) if context.startswith(text, place)][:3]
    if not found:
        return f"answers: {shown(text)} is not in the context; correct the text"
    there = shown(context[start : start + len(text)]) if 0 <= start < len(context) else "nothing"
    where = ", ".join(map(str, found))
    return (
        f"answers: {shown(text)} expected at character {start}, found {there}; it stands at {where}; correct its"
        " answer_start"
    )


def _apply(recipe: Recipe, one: Rows, found: _Found, findings: Findings) -> Rows:
    split = one.split
    if found.moved:
        farthest = max(found.moved.values())
        example = one.where(next(iter(found.moved)))
        findings.notes.append(
            f"{split}: {len(found.moved):,} answers were not at their answer_start and were moved by up to"
            f" {farthest} characters, to the only place near by with their text ({example})"
        )
    if recipe.data.on_bad_row == "error":
        for row, (kind, text) in found.bad.items():
            findings.problems.add(kind, f"{one.where(row)}: {text}")
    if found.changed:
        one = _corrected(one, found)
    return _without(one, found.bad) if found.bad and recipe.data.on_bad_row == "skip" else one


def _corrected(one: Rows, found: _Found) -> Rows:
    column = one.table.schema.get_field_index("answers")
    answers = pa.chunked_array(found.blocks)
    digest = hashlib.sha256(f"{one.fingerprint} answers ".encode())
    for block in found.blocks:
        digest.update(json.dumps(block.field("answer_start").to_pylist()).encode())
    return replace(one, table=one.table.set_column(column, "answers", answers), fingerprint=digest.hexdigest())


def _without(one: Rows, bad: dict[int, Bad]) -> Rows:
    kept = subset(one, np.setdiff1d(np.arange(len(one)), list(bad)))
    ids = one.table.column("id")
    dropped = dict(one.dropped)
    for kind in Counter(kind for kind, _ in bad.values()):
        rows = [row for row, (own, _) in bad.items() if own == kind]
        dropped[kind] = dropped.get(kind, []) + ids.take(to_arrow(rows)).to_pylist()
    return replace(kept, dropped=dropped)
