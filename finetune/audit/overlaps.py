"""Rows that other rows have already: equal or nearly equal texts within a split and across splits, equal texts with
different answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finetune.audit import near_duplicates
from finetune.audit.findings import NAMED_ROWS, finding, hashes, inputs, texts
from finetune.record import AuditFinding
from finetune.rows import Rows, to_arrow
from finetune.store import entry, key_of

__all__ = ["NEAR_ROWS", "find"]

ORDER = ("train", "validation", "test")
NEAR_ROWS = 200_000  # rows of all splits up to which near-duplicates are looked for unasked: memory grows with them
ANSWERS = ("label", "labels", "tags", "spans", "answers", "target")
REMEDIES = {
    "leakage": "leave them out of one of the two splits: a score on them counts what was learnt by heart",
    "near_leakage": "compare the pairs: scores on rows that train nearly has may be too good",
    "duplicates": "each counts as a row of its own; leave them out if that is not meant",
}


@dataclass
class _Grouped:
    """All rows, numbered through: rows with the same texts are one group."""

    splits: dict[str, Rows]
    group: dict[str, np.ndarray]  # split -> group of each row, int64
    first: dict[str, np.ndarray]  # split -> its first row in each group, -1 where it has none, int64 (groups,)
    members: np.ndarray  # a row of each group, numbered through all splits, int64 (groups,)


def find(splits: dict[str, Rows], *, near_duplicates_too: bool = True) -> Iterator[AuditFinding]:
    """Every overlap of rows by their texts."""
    splits = {name: splits[name] for name in ORDER if name in splits}
    roles = inputs(next(iter(splits.values())))
    grouped = _group(splits, roles)
    pairs = _near_pairs(grouped, roles) if near_duplicates_too else (np.empty((0, 2), np.int64), np.empty(0))
    near = _Near(grouped, *pairs)
    for earlier, later in combinations(splits, 2):
        yield from _across(grouped, near, earlier, later)
    yield from _conflicts(grouped)
    for split in splits:
        yield from _within(grouped, near, split)
    if "context" in roles:
        yield from _shared_contexts(_group(splits, ["context"]))


# ------------------------------------------------------------------------------------------------------------- groups


def _group(splits: dict[str, Rows], roles: list[str]) -> _Grouped:
    """Groups are numbered in the order of their first rows: the same in every process, as the cache needs it."""
    found = np.concatenate([hashes(one, roles) for one in splits.values()])
    _, members, codes = np.unique(found, return_index=True, return_inverse=True)
    order = np.argsort(members)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    members, codes = members[order], number[codes]
    group: dict[str, np.ndarray] = {}
    first: dict[str, np.ndarray] = {}
    start = 0
    for name, one in splits.items():
        own = codes[start : start + len(one)]
        group[name], start = own, start + len(one)
        first[name] = np.full(len(members), -1, dtype=np.int64)
        first[name][own[::-1]] = np.arange(len(one))[::-1]
    return _Grouped(splits, group, first, members)


def _near_pairs(grouped: _Grouped, roles: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of groups and their similarity, from the cache where it has them."""
    splits = grouped.splits

    def build(folder: Path) -> dict[str, Any]:
        columns = []
        for role in roles:
            chunks = [chunk for one in splits.values() for chunk in texts(one, role).chunks]
            columns.append(pa.chunked_array(chunks, pa.string()).take(to_arrow(grouped.members)).combine_chunks())
        pairs, similarity = near_duplicates.near_pairs(columns)
        np.save(folder / "pairs.npy", pairs)
        np.save(folder / "similarity.npy", similarity)
        return {}

    code = hashlib.sha256(Path(near_duplicates.__file__).read_bytes() + Path(__file__).read_bytes()).hexdigest()
    key = key_of(code, roles, {name: one.fingerprint for name, one in splits.items()})
    folder = entry("near_duplicates", key, build).folder
    return np.load(folder / "pairs.npy"), np.load(folder / "similarity.npy")


class _Near:
    """Which group of a split is the nearest to each group."""

    def __init__(self, grouped: _Grouped, pairs: np.ndarray, similarity: np.ndarray) -> None:
        order = np.argsort(-np.concatenate([similarity, similarity]), kind="stable")
        self._one, self._other = np.concatenate([pairs, pairs[:, ::-1]])[order].T
        self._first = grouped.first

    def rows(self, split: str, before: np.ndarray | None = None) -> np.ndarray:
        """The row of `split` nearest to each group, -1 for none; before: only rows under this number, by group."""
        first = self._first[split]
        usable = first[self._other] >= 0
        if before is not None:
            usable &= first[self._other] < before[self._one]
        one, other = self._one[usable], self._other[usable]
        found = np.full(len(first), -1, dtype=np.int64)
        found[one[::-1]] = first[other[::-1]]  # the most similar is written last
        return found


# ----------------------------------------------------------------------------------------------------------- findings


def _across(grouped: _Grouped, near: _Near, earlier: str, later: str) -> Iterator[AuditFinding]:
    one, other, group = grouped.splits[later], grouped.splits[earlier], grouped.group[later]
    in_train = earlier == "train"
    equal = grouped.first[earlier][group]
    alike = np.where(equal >= 0, -1, near.rows(earlier)[group])
    for kind, partner, what in (("leakage", equal, "have the text"), ("near_leakage", alike, "have nearly the text")):
        rows = np.flatnonzero(partner >= 0).tolist()
        if rows:
            yield finding(
                kind if in_train else kind.replace("leakage", "overlap"),
                one,
                rows,
                f"{what} of a row of {earlier}",
                level="warning" if in_train else "note",
                remedy=REMEDIES[kind] if in_train else "",
                partners=[(other, int(partner[row])) for row in rows[:NAMED_ROWS]],
                other=earlier,
            )


def _within(grouped: _Grouped, near: _Near, split: str) -> Iterator[AuditFinding]:
    one, group, first = grouped.splits[split], grouped.group[split], grouped.first[split]
    repeated = np.where(first[group] < np.arange(len(one)), first[group], -1)
    alike = np.where(repeated >= 0, -1, near.rows(split, before=first)[group])
    for kind, partner, what in (("duplicates", repeated, "have the text"), ("near_duplicates", alike, "have nearly")):
        rows = np.flatnonzero(partner >= 0).tolist()
        if rows:
            says = f"{what} of an earlier row" if kind == "duplicates" else f"{what} the text of an earlier row"
            partners = [(one, int(partner[row])) for row in rows[:NAMED_ROWS]]
            yield finding(kind, one, rows, says, level="note", remedy=REMEDIES.get(kind, ""), partners=partners)


def _conflicts(grouped: _Grouped) -> Iterator[AuditFinding]:
    """Rows with the text, but not the answer, of another row in any split."""
    together = np.concatenate(list(grouped.group.values()))
    several = np.bincount(together)[together] > 1
    answers: dict[int, dict[str, tuple[Rows, int]]] = {}  # group -> answer -> the first row that gives it
    given: dict[str, list[tuple[int, str]]] = {}
    start = 0
    for split, one in grouped.splits.items():
        rows = np.flatnonzero(several[start : start + len(one)])
        start += len(one)
        given[split] = list(zip(rows.tolist(), _answers(one, rows), strict=True))
        for row, answer in given[split]:
            answers.setdefault(int(grouped.group[split][row]), {}).setdefault(answer, (one, row))
    for split, one in grouped.splits.items():
        found = []
        for row, answer in given[split]:
            others = answers[int(grouped.group[split][row])].items()
            partner = next((place for other, place in others if _differ(answer, other)), None)
            if partner is not None:
                found.append((row, partner))
        if found:
            says = "have the text of another row, but not its answer"
            remedy = "correct the answers, or leave these rows out: no model can have both right"
            yield finding(
                "conflicts", one, [row for row, _ in found], says, remedy=remedy, partners=[p for _, p in found]
            )


def _differ(one: str, other: str) -> bool:
    """Whether two answers, as `_answers` writes them, cannot both be right: questions may have several right ones."""
    if one == other:
        return False
    (mine, *_), (theirs, *_) = json.loads(one), json.loads(other)
    several = isinstance(mine, dict)
    return not several or not set(mine["any"]) & set(theirs["any"])


def _answers(one: Rows, rows: np.ndarray) -> list[str]:
    """What the rows are meant to be answered with, as JSON; the order of several is no difference."""
    roles = [role for role in ANSWERS if role in one.table.column_names]
    columns = [one.table.column(role).take(to_arrow(rows)).to_pylist() for role in roles]
    return [
        json.dumps([_plain(role, value) for role, value in zip(roles, row, strict=True)])
        for row in zip(*columns, strict=True)
    ]


def _plain(role: str, value: Any) -> Any:
    if role == "answers":
        return {"any": sorted(set(value["text"]))}
    return sorted(value) if role == "labels" else value


def _shared_contexts(grouped: _Grouped) -> Iterator[AuditFinding]:
    if "train" not in grouped.splits:
        return
    train = grouped.splits["train"]
    for split, one in grouped.splits.items():
        partner = grouped.first["train"][grouped.group[split]]
        rows = np.flatnonzero(partner >= 0).tolist()
        if split != "train" and rows:
            yield finding(
                "shared_contexts",
                one,
                rows,
                "ask about a context of train",
                remedy="split by article, so that scores hold for contexts that the model has not seen",
                partners=[(train, int(partner[row])) for row in rows[:NAMED_ROWS]],
                other="train",
            )
