"""The writing system of each row, by the Unicode names of its letters. No language is guessed."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import numpy as np

from finetune.audit.findings import finding, inputs, remark, texts
from finetune.record import AuditFinding
from finetune.rows import Rows

__all__ = ["NONE", "findings", "of_rows"]

NONE = ""  # a row without a letter
TOGETHER = {"CJK": "Han", "HIRAGANA": "Han", "KATAKANA": "Han", "BOPOMOFO": "Han", "HALFWIDTH": "Han"}
FEW = 0.1  # another script in fewer rows than this share is an oddity, in more a mix
_BLOCK = 2_000  # rows
_CHARACTERS = 2_000  # of each text: enough to tell its script


def of_rows(one: Rows) -> np.ndarray:
    """The script of most letters of each row, str objects (n,): "Latin", "Han" (with kana), …, "" without a letter."""
    known: dict[int, int] = {}  # code point -> number of a script
    names: list[str] = [NONE]
    parts = []
    columns = [texts(one, role) for role in inputs(one)]
    for start in range(0, len(one), _BLOCK):
        rows = zip(*(column.slice(start, _BLOCK).to_pylist() for column in columns), strict=True)
        joined = [" ".join(text[:_CHARACTERS] for text in row) for row in rows]
        parts.append(_main_script(joined, known, names))
    return np.asarray(np.array(names, dtype=object)[np.concatenate(parts)])


def _main_script(texts: list[str], known: dict[int, int], names: list[str]) -> np.ndarray:
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    points, place = np.unique(np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32), return_inverse=True)
    scripts = np.array([_number(int(point), known, names) for point in points], dtype=np.int64)
    row = np.repeat(np.arange(len(texts)), lengths)
    counts = np.bincount(row * len(names) + scripts[place], minlength=len(texts) * len(names))
    counts = counts.reshape(len(texts), len(names))
    counts[:, 0] = 0  # what is no letter
    return np.asarray(counts.argmax(axis=1))


def _number(point: int, known: dict[int, int], names: list[str]) -> int:
    if point not in known:
        name = _script(chr(point))
        if name not in names:
            names.append(name)
        known[point] = names.index(name)
    return known[point]


def _script(character: str) -> str:
    """The first word of a letter's Unicode name is its script."""
    if not character.isalpha():
        return NONE
    word = unicodedata.name(character, NONE).partition(" ")[0].partition("-")[0]
    return TOGETHER.get(word, word.capitalize())


def findings(splits: dict[str, Rows], scripts: dict[str, np.ndarray]) -> Iterator[AuditFinding]:
    """Rows in another script than nearly all of their split, and splits in another script than train."""
    usual = {split: _usual(found) for split, found in scripts.items()}
    for split, one in splits.items():
        other = np.flatnonzero((scripts[split] != usual[split]) & (scripts[split] != NONE))
        if 0 < len(other) <= FEW * len(one):
            kinds = ", ".join(sorted(set(scripts[split][other])))
            remedy = "another language, or broken text? look at them"
            says = f"are written in {kinds}, the others in {usual[split]}"
            yield finding("other_script", one, other.tolist(), says, level="note", remedy=remedy)
        if usual.get("train", usual[split]) != usual[split] and NONE not in (usual["train"], usual[split]):
            says = f"most rows are written in {usual[split]}, those of train in {usual['train']}"
            yield remark("script_shift", one, says, "a model scores on what it was trained for: is this meant?")


def _usual(scripts: np.ndarray) -> str:
    """The script of most rows with a letter."""
    names, counts = np.unique(scripts[scripts != NONE].astype(str), return_counts=True)
    return str(names[counts.argmax()]) if len(names) else NONE
