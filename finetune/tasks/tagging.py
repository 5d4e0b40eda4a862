"""Tag schemes: which one the data uses, and every one of them as IOB2.

A tag is O, a prefix with a type (B-PER), or a bare name. Prefixes: B begins, I (in other schemes M) continues, E (L)
ends, S (U, W) is an entity of one word. Source: Ramshaw and Marcus 1995 (IOB1), Sang and Veenstra 1999 (IOB2, IOE),
Ratinov and Roth 2009 (BILOU).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "OUTSIDE",
    "Schema",
    "Scheme",
    "breaks",
    "entities_of",
    "iob2_labels",
    "is_entities",
    "recognise",
    "split_tag",
]

OUTSIDE = "O"
PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
OPENING, CONTINUING = ("B", "I"), ("I", "E")

Pairs = Mapping[tuple[str, str], int]  # two tags of which one follows the other -> how often; O before and after a row


@dataclass(frozen=True)
class Scheme:
    """What the tags are: `name` is IOB1, IOB2, IOBES, IO or plain; `broken`: how often a tag may not follow another."""

    name: str
    broken: int = 0

    @property
    def entities(self) -> bool:
        """Whether tags mark entities of several words."""
        return self.name != "plain"


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix (B, I, E, S; O outside) and type of a tag of an entity scheme; a bare name counts as I."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    return (PREFIXES[prefix], kind) if dash and kind and prefix in PREFIXES else ("I", tag)


def _is_bare(tag: str) -> bool:
    return tag != OUTSIDE and split_tag(tag)[1] == tag


def is_entities(names: Sequence[str]) -> bool:
    """Whether tags mark entities: all but O have a prefix, or none has and there is an O (the IO scheme)."""
    bare = [_is_bare(name) for name in names if name != OUTSIDE]
    return not any(bare) or (all(bare) and OUTSIDE in names)


def recognise(pairs: Pairs, names: Sequence[str]) -> Scheme:
    """The scheme of all rows together; names: tags that the data declares or has."""
    if not is_entities(names):
        return Scheme("plain")
    prefixes = {tag.partition("-")[0] for pair in pairs for tag in pair if tag != OUTSIDE and not _is_bare(tag)}
    if prefixes - {"B", "I"}:
        return Scheme("IOBES", _broken(pairs, "IOBES"))
    if "B" not in prefixes:
        return Scheme("IO")
    second, first = _broken(pairs, "IOB2"), _broken(pairs, "IOB1")
    return Scheme("IOB2", second) if second <= first else Scheme("IOB1", first)


def _broken(pairs: Pairs, scheme: str) -> int:
    return sum(count for (one, other), count in pairs.items() if breaks(one, other, scheme))


def breaks(one: str, other: str, scheme: str) -> bool:
    """Whether tag `other` may not follow tag `one`.

    IOB2: I goes on with an entity of its type. IOB1: B stands only after an entity of its type. IOBES: what is begun
    goes on with I or E of its type, and only then.
    """
    (before, last), (prefix, kind) = split_tag(one), split_tag(other)
    if scheme == "IOB2":
        return prefix == "I" and last != kind
    if scheme == "IOB1":
        return prefix == "B" and last != kind
    if scheme == "IOBES":
        opened, goes_on = before in OPENING, prefix in CONTINUING
        return opened != goes_on or (opened and last != kind)
    return False


def iob2_labels(kinds: Sequence[str]) -> list[str]:
    """O, then B and I of each type, sorted by type."""
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in sorted(kinds) for prefix in "BI")]


class Schema:
    """Numbered tags of any scheme, and how they become the tags that are scored.

    names: the tags by number. labels: what they become: IOB2 over `kinds`, or for plain tags `kinds` themselves.
    kinds: types of entities, or plain tags; those of `names` and perhaps more.
    """

    def __init__(self, names: Sequence[str], entities: bool, kinds: Sequence[str] = ()) -> None:
        self.names, self.entities = list(names), entities
        split = [split_tag(name) if entities else ("I", name) for name in names]
        own = {kind for prefix, kind in split if prefix != OUTSIDE}
        self.kinds = sorted(own | set(kinds))
        self.labels = iob2_labels(self.kinds) if entities else self.kinds
        place = {kind: number for number, kind in enumerate(self.kinds)}
        self._kind = np.array([place.get(kind, -1) for _, kind in split], dtype=np.int64)
        self._begins = np.array([prefix in ("B", "S") for prefix, _ in split], dtype=bool)
        self._ends = np.array([prefix in ("E", "S") for prefix, _ in split], dtype=bool)

    def convert(self, tags: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Numbers of `labels` for numbers of `names`, int64 (t,), rows of `lengths` words one after the other.

        An entity begins at B and S, where the type changes, after O, and after E and S: so IO, IOB1 and tags that break
        their scheme are read as transformers' TokenClassificationPipeline groups them (`group_entities`).
        """
        kind: np.ndarray = self._kind[tags]
        if not self.entities:
            return kind
        before = np.full_like(kind, -1)
        before[1:] = np.where(self._ends[tags[:-1]], -1, kind[:-1])
        starts = np.cumsum(lengths) - lengths
        before[starts[starts < len(tags)]] = -1
        begins = self._begins[tags] | (before != kind)
        return np.asarray(np.where(kind < 0, 0, 2 * kind + np.where(begins, 1, 2)), dtype=np.int64)

    @property
    def begins(self) -> bool:
        """Whether any of `names` says where an entity begins."""
        return bool(self._begins.any())

    def continued(self, tags: np.ndarray) -> np.ndarray:
        """For numbers of `labels`: I- where they are B-, else the same."""
        return tags + ((tags % 2 == 1) if self.entities else 0)

    def numbers_of(self, labels: Sequence[str]) -> np.ndarray:
        """For each of our `labels`, its number among the labels of a model, int64; -100 where the model has none.

        A model without B- is given I-: it was trained on another scheme.
        """
        known = {name: number for number, name in enumerate(labels)}
        if not self.entities:
            return np.array([known.get(label, -100) for label in self.labels], dtype=np.int64)
        of_kind = {split_tag(name)[1]: number for number, name in reversed(list(enumerate(labels)))}
        found = [known.get(label, of_kind.get(split_tag(label)[1], -100)) for label in self.labels]
        return np.array(found, dtype=np.int64)


def entities_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """First word, word after the last, and type of each entity in IOB2 tags."""
    found: list[tuple[int, int, str]] = []
    for place, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append((place, place + 1, tag[2:]))
        elif tag.startswith("I-"):
            found[-1] = (found[-1][0], place + 1, found[-1][2])
    return found
