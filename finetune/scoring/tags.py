"""Tag sequences, one tag per token: entities in IOB2 through seqeval, plain tags through scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats
from finetune.errors import DataError
from finetune.scoring.labels import single_values

__all__ = ["EntityCounts", "count_entities", "count_tags", "entity_type_values", "entity_values", "tag_values"]

_SHOWN = 10  # problems in a message

Tags = Sequence[Sequence[str]]


def tag_values(names: Sequence[str], gold: Tags, predicted: Tags, labels: Sequence[str]) -> dict[str, float]:
    """Plain tags over all tokens; gold, predicted: n rows of tags, labels: all K tags. NaN without tokens."""
    _check_lengths(gold, predicted)
    ids = {tag: number for number, tag in enumerate(labels)}
    flat_gold, flat_predicted = (np.array([ids[tag] for tag in chain(*side)], np.int64) for side in (gold, predicted))
    if len(flat_gold) == 0:
        return dict.fromkeys(names, float("nan"))
    return single_values(names, flat_gold, flat_predicted, None, range(len(labels)))


def count_tags(gold: Tags, predicted: Tags, labels: Sequence[str]) -> Any:
    """n rows of tags -> sparse (n, 2 + 3K) statistics for `label_statistic`, whose items are tokens."""
    ids = {tag: number for number, tag in enumerate(labels)}
    row = np.repeat(np.arange(len(gold)), [len(tags) for tags in gold])
    right, guess = (np.array([ids[tag] for tag in chain(*side)], np.int64) for side in (gold, predicted))
    hit = right == guess
    return _statistics(len(gold), len(labels), row, hit, [(row[hit], right[hit]), (row, guess), (row, right)])


def _statistics(
    rows: int, width: int, token_rows: NDArray[Any], hit: NDArray[Any], parts: list[tuple[NDArray[Any], NDArray[Any]]]
) -> Any:
    """parts: (row, label) of each hit, each prediction and each gold item."""
    from scipy.sparse import coo_array

    heads = [np.zeros(len(token_rows)), np.ones(int(hit.sum()))]
    columns = heads + [2 + block * width + label for block, (_, label) in enumerate(parts)]
    lines = [token_rows, token_rows[hit], *(row for row, _ in parts)]
    where = (np.concatenate(lines).astype(np.int64), np.concatenate(columns).astype(np.int64))
    return coo_array((np.ones(len(where[0])), where), shape=(rows, 2 + 3 * width)).tocsr()


@dataclass(frozen=True)
class EntityCounts:
    """Entities of n rows: statistics, sparse (n, 2 + 3T), for `label_statistic`; the T types; what seqeval parsed."""

    stats: Any
    types: list[str]
    parsed: dict[str, Any]


def count_entities(gold: list[list[str]], predicted: list[list[str]]) -> EntityCounts:
    """The entities of each row under strict IOB2, parsed once, by seqeval.

    Raises DataError for a row whose two sides differ in length, and for a tag that is not O, B-<type> or I-<type>.
    """
    from seqeval.scheme import IOB2, Entities

    _check_lengths(gold, predicted)
    _check_entity_tags(gold, predicted)
    right, guess = Entities(gold, IOB2), Entities(predicted, IOB2)
    types = sorted(right.unique_tags | guess.unique_tags)
    hits = [set(ours) & set(theirs) for ours, theirs in zip(right.entities, guess.entities, strict=True)]
    parts = [_places(side, types) for side in (hits, guess.entities, right.entities)]
    row = np.repeat(np.arange(len(gold)), [len(tags) for tags in gold])
    same = np.array([a == b for a, b in zip(chain(*gold), chain(*predicted), strict=True)], dtype=bool)
    stats = _statistics(len(gold), len(types), row, same, parts)
    return EntityCounts(stats, types, {"entities_true": right, "entities_pred": guess})


def _places(entities: Sequence[Any], types: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ids = {name: number for number, name in enumerate(types)}
    found = [(row, ids[entity.tag]) for row, several in enumerate(entities) for entity in several]
    rows, labels = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return rows, labels


def entity_values(
    names: Sequence[str], gold: list[list[str]], predicted: list[list[str]], counts: EntityCounts
) -> dict[str, float]:
    """Entity metrics, and accuracy over tokens; 0 where there is nothing to find, but `f1_macro` then is NaN."""
    precision, recall, f1 = _seqeval(gold, predicted, counts, "micro")
    tokens, right = np.asarray(counts.stats[:, :2].sum(axis=0), dtype=np.float64)
    values = {"precision": precision, "recall": recall, "f1": f1}
    values["f1_macro"] = _seqeval(gold, predicted, counts, "macro")[2] if counts.types else np.nan
    values["accuracy"] = right / tokens if tokens else np.nan
    return {name: float(values[name]) for name in names}


def entity_type_values(gold: list[list[str]], predicted: list[list[str]], counts: EntityCounts) -> Floats:
    """(T, 3) precision, recall and F1 of each type."""
    return np.column_stack(_seqeval(gold, predicted, counts, None)).reshape(len(counts.types), 3).astype(np.float64)


def _seqeval(
    gold: list[list[str]], predicted: list[list[str]], counts: EntityCounts, average: str | None
) -> tuple[Any, Any, Any]:
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    options = {"average": average, "scheme": IOB2, "zero_division": 0, **counts.parsed}
    precision, recall, f1, _ = precision_recall_fscore_support(gold, predicted, **options)
    return precision, recall, f1


def _check_lengths(gold: Tags, predicted: Tags) -> None:
    _report(
        [
            f"row {row}: {len(tags)} gold tags, {len(guesses)} predicted tags; expected one each per token"
            for row, (tags, guesses) in enumerate(zip(gold, predicted, strict=True))
            if len(tags) != len(guesses)
        ]
    )


def _check_entity_tags(gold: Tags, predicted: Tags) -> None:
    strange = {
        tag
        for tag in set(chain(*gold)) | set(chain(*predicted))
        if tag != "O" and not (tag[:2] in {"B-", "I-"} and len(tag) > 2)
    }
    _report(
        [
            f"row {row}: {side} tag {tag!r}; entity metrics need O, B-<type> or I-<type>"
            for side, sequences in (("gold", gold), ("predicted", predicted))
            for row, tags in enumerate(sequences if strange else ())
            for tag in tags
            if tag in strange
        ]
    )


def _report(problems: list[str]) -> None:
    if problems:
        shown = problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])
        raise DataError("\n  ".join([f"tags: {len(problems)} problem{'s' * (len(problems) > 1)}", *shown]))
