"""Tagged words: kinds of entity errors, and what the analysis says of entities and of plain tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from finetune.analysis.calibration import Claims, calibrate
from finetune.analysis.hard_rows import WordTags, word_suspects, worst_rows
from finetune.analysis.labels import Examined, confusion
from finetune.analysis.slices import label_slices, row_ratios
from finetune.bootstrap import Floats
from finetune.record import Analysis
from finetune.scoring.tags import EntityCounts, count_tags

__all__ = ["KINDS", "entities", "entity_errors", "tags"]

KINDS = ("right", "boundary", "type", "boundary_and_type", "missed", "spurious")

Tags = list[list[str]]
Entity = tuple[int, int, str]  # first word, word after the last, type


def entities(
    ids: Sequence[str],
    loss: Floats,
    gold: Tags,
    predicted: Tags,
    words: WordTags,
    own: Sequence[str],
    counts: EntityCounts,
) -> Examined:
    """Entities from IOB2 tags of n rows; words: all of them, by the labels `own` of the model; counts: of both."""
    width = len(counts.types)
    hits, guessed, real = (
        np.asarray(counts.stats[:, 2 + block * width : 2 + (block + 1) * width].sum(axis=1)) for block in range(3)
    )
    sides = (
        [{(one.start, one.end, one.tag) for one in row} for row in counts.parsed[name].entities]
        for name in ("entities_true", "entities_pred")
    )
    found = Analysis(
        calibration=calibrate(_claims(gold, predicted, words)),
        slices=label_slices("type", counts.types, np.ones(len(gold), np.int64), counts.stats),
        errors=entity_errors(*sides),
        worst=worst_rows(ids, loss),
        suspects=word_suspects(ids, *_places(gold), words, own, outside="O"),
    )
    return found, row_ratios("f1", 2 * hits, guessed + real)


def tags(
    ids: Sequence[str],
    loss: Floats,
    gold: Tags,
    predicted: Tags,
    words: WordTags,
    own: Sequence[str],
    labels: Sequence[str],
) -> Examined:
    """Plain tags of n rows, as `entities`; labels: all tags of the task."""
    stats = count_tags(gold, predicted, labels)
    numbers = {tag: number for number, tag in enumerate(labels)}
    right, guess = (np.array([numbers[tag] for tag in chain(*side)], dtype=np.int64) for side in (gold, predicted))
    found = Analysis(
        calibration=calibrate(_claims(gold, predicted, words)),
        confusion=confusion(right, guess, labels),
        slices=label_slices("label", labels, np.ones(len(gold), np.int64), stats),
        worst=worst_rows(ids, loss),
        suspects=word_suspects(ids, *_places(gold), words, own),
    )
    total, hits = (np.asarray(stats[:, [column]].sum(axis=1)) for column in (0, 1))
    return found, row_ratios("accuracy", hits, total)


def _claims(gold: Tags, predicted: Tags, words: WordTags) -> Claims:
    right = np.array([one == other for one, other in zip(chain(*gold), chain(*predicted), strict=True)], dtype=bool)
    score = words.likely_score
    return Claims("the tag of each word", score, right, (score - right) ** 2, _places(gold)[0], len(gold))


def _places(gold: Tags) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of each word, and its number in the row, int64 (w,)."""
    lengths = np.array([len(row) for row in gold], dtype=np.int64)
    row = np.repeat(np.arange(len(gold)), lengths)
    return row, np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]


def entity_errors(gold: Iterable[set[Entity]], predicted: Iterable[set[Entity]]) -> dict[str, int]:
    """How many entities are right or wrong, and in which way.

    boundary: found with the right type in another extent; type: the other way round; boundary_and_type: neither, but
    they share a word; missed, spurious: without a partner. A wrong entity is the partner of one other at most.
    """
    kinds = Counter(dict.fromkeys(KINDS, 0))
    for ours, theirs in zip(gold, predicted, strict=True):
        kinds["right"] += len(ours & theirs)
        extra = sorted(theirs - ours)
        for entity in sorted(ours - theirs):
            partners = [other for other in extra if _overlap(entity, other)]
            if not partners:
                kinds["missed"] += 1
                continue
            extent, kind, partner = min((*_differences(entity, other), other) for other in partners)
            kinds["boundary_and_type" if extent and kind else "boundary" if extent else "type"] += 1
            extra.remove(partner)
        kinds["spurious"] += len(extra)
    return dict(kinds)


def _overlap(one: Entity, other: Entity) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _differences(one: Entity, other: Entity) -> tuple[bool, bool]:
    """Whether the extents differ, and whether the types do."""
    return one[:2] != other[:2], one[2] != other[2]
