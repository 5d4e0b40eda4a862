"""Small changes of a text that should not change what a model says of it; the same text always gets the same change.

What the lists below cover is all that is tested. Names: 48 first names, short and common, of five regions, replaced by
others of the same list; no family names, no titles. Gender: 22 pairs of English words; `her` becomes `his`, also where
`him` would be right, and nothing is done for names, other languages or any gender besides the two.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["KINDS", "LIMITS", "Change", "Edit", "change"]

KINDS = ("typos", "casing", "punctuation", "names", "gender")
LIMITS = {
    "typos": "two neighbouring letters inside one word in ten are swapped",
    "casing": "everything in lower case, or in upper case where it was",
    "punctuation": "the last mark is taken away, or a full stop added",
    "names": "first names of a list of 48 are replaced by others of it",
    "gender": "22 pairs of English words such as he and she are swapped; `her` always becomes `his`",
}
NAMES = (
    *("Adam", "Aisha", "Ali", "Amina", "Amir", "Anna", "Anthony", "Chidi", "Chen", "Daniel", "David", "Emily"),
    *("Emma", "Fatima", "George", "Greta", "Hannah", "Hassan", "Hiroshi", "Imani", "Jacob", "James", "Jamal", "John"),
    *("Juan", "Kenji", "Kwame", "Lakisha", "Laura", "Ling", "Luis", "Maria", "Martin", "Mary", "Mei", "Michael"),
    *("Mohammed", "Olga", "Omar", "Paul", "Peter", "Priya", "Rajesh", "Sarah", "Sofia", "Thomas", "Yuki", "Zainab"),
)
PAIRS = (
    *(("he", "she"), ("him", "her"), ("his", "her"), ("himself", "herself"), ("man", "woman"), ("men", "women")),
    *(("boy", "girl"), ("boys", "girls"), ("father", "mother"), ("dad", "mum"), ("son", "daughter")),
    *(("sons", "daughters"), ("brother", "sister"), ("brothers", "sisters"), ("husband", "wife"), ("uncle", "aunt")),
    *(
        ("king", "queen"),
        ("actor", "actress"),
        ("mr", "mrs"),
        ("sir", "madam"),
        ("male", "female"),
        ("gentleman", "lady"),
    ),
)
_SWAPS = dict(PAIRS) | {b: a for a, b in PAIRS}
_WORD = re.compile(r"[^\W\d_]+")
_SHARE = 10  # of the words that could have one, one in so many gets a typo
_SHORTEST = 4  # letters of a word with a typo: the first and the last stay


@dataclass(frozen=True)
class Edit:
    """Characters `start` to `end` of a text are replaced by `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Change:
    """The edits of each text of a row, from left to right; `words` replaced by others wherever they stand."""

    edits: tuple[tuple[Edit, ...], ...]
    words: dict[str, str]

    def texts(self, texts: Sequence[str]) -> list[str]:
        """The texts of the row, changed."""
        return [_applied(text, edits) for text, edits in zip(texts, self.edits, strict=True)]

    def moved(self, text: int, offset: int) -> int:
        """Where a character of one text stands after the change."""
        return offset + sum(len(edit.text) - (edit.end - edit.start) for edit in self.edits[text] if edit.end <= offset)

    def translated(self, text: str) -> str:
        """Another text, such as an answer, with the same words replaced."""
        return _WORD.sub(lambda found: self.words.get(found[0], found[0]), text)


def change(kind: str, texts: Sequence[str]) -> Change | None:
    """One of KINDS, done to the texts of a row, which share one choice of words; None where it finds nothing to do."""
    draw = random.Random(f"{kind} {' '.join(texts)}")  # noqa: S311  (no secret: the same text, the same change)
    found = _CHANGES[kind](texts, draw)
    return found if any(found.edits) else None


def _applied(text: str, edits: Sequence[Edit]) -> str:
    pieces, last = [], 0
    for edit in edits:
        pieces += [text[last : edit.start], edit.text]
        last = edit.end
    return "".join([*pieces, text[last:]])


def _words(texts: Sequence[str]) -> Iterator[tuple[int, re.Match[str]]]:
    return ((number, found) for number, text in enumerate(texts) for found in _WORD.finditer(text))


def _edited(texts: Sequence[str], replaced: Sequence[tuple[int, re.Match[str], str]]) -> tuple[tuple[Edit, ...], ...]:
    return tuple(
        tuple(Edit(found.start(), found.end(), word) for number, found, word in replaced if number == place)
        for place in range(len(texts))
    )


def _typos(texts: Sequence[str], draw: random.Random) -> Change:
    able = [(number, found) for number, found in _words(texts) if _swappable(found[0])]
    chosen = sorted(draw.sample(range(len(able)), -(-len(able) // _SHARE)))
    replaced = [(*able[place], _swapped(able[place][1][0], draw)) for place in chosen]
    return Change(_edited(texts, replaced), {})


def _swappable(word: str) -> list[int]:
    """Places of a letter inside the word that differs from its right neighbour, which is not the last."""
    return (
        [place for place in range(1, len(word) - 2) if word[place] != word[place + 1]] if len(word) >= _SHORTEST else []
    )


def _swapped(word: str, draw: random.Random) -> str:
    place = draw.choice(_swappable(word))
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _casing(texts: Sequence[str], draw: random.Random) -> Change:
    del draw
    lower = any(text != text.lower() for text in texts)
    new = [text.lower() if lower else text.upper() for text in texts]
    # A few letters have more than one in the other case; such texts would shift what is marked in them.
    pairs = [(text, other) for text, other in zip(texts, new, strict=True)]
    return Change(tuple((Edit(0, len(a), b),) if a != b and len(a) == len(b) else () for a, b in pairs), {})


def _punctuation(texts: Sequence[str], draw: random.Random) -> Change:
    del draw
    return Change(tuple(_last_mark(text) for text in texts), {})


def _last_mark(text: str) -> tuple[Edit, ...]:
    body = text.rstrip()
    if not body:
        return ()
    bare = body.rstrip(".!?。！？…")
    if bare == body:
        return (Edit(len(body), len(body), "."),)
    return (Edit(len(bare), len(body), ""),) if bare else ()


def _names(texts: Sequence[str], draw: random.Random) -> Change:
    found = sorted({word[0] for _, word in _words(texts)} & set(NAMES))
    others = draw.sample([name for name in NAMES if name not in found], min(len(found), len(NAMES) - len(found)))
    return _replacing(texts, dict(zip(found, others, strict=False)))


def _gender(texts: Sequence[str], draw: random.Random) -> Change:
    del draw
    found = {word[0] for _, word in _words(texts)}
    return _replacing(texts, {word: _like(word, _SWAPS[word.lower()]) for word in found if word.lower() in _SWAPS})


def _like(word: str, other: str) -> str:
    return other.upper() if word.isupper() and len(word) > 1 else other.capitalize() if word[0].isupper() else other


def _replacing(texts: Sequence[str], words: dict[str, str]) -> Change:
    replaced = [(number, found, words[found[0]]) for number, found in _words(texts) if found[0] in words]
    return Change(_edited(texts, replaced), words)


_CHANGES: dict[str, Callable[[Sequence[str], random.Random], Change]] = {
    "typos": _typos,
    "casing": _casing,
    "punctuation": _punctuation,
    "names": _names,
    "gender": _gender,
}
