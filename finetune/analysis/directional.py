"""Checks of the user's own: pairs of inputs, and how the second should be judged beside the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import DataError
from finetune.recipe import Recipe
from finetune.rows import INPUTS, Rows

__all__ = ["EXPECTED", "Pair", "pairs_of", "read_pairs"]


EXPECTED = ("higher", "lower", "same", "different")
KEYS = ("before", "after", "expect", "label", "name")
SHOWN = 10  # problems in one message


@dataclass(frozen=True)
class Pair:
    """Two inputs (role -> text). higher, lower: the score of `label` after, beside before; else the prediction."""

    line: int
    name: str
    before: dict[str, str]
    after: dict[str, str]
    expect: str
    label: str


def pairs_of(recipe: Recipe, rows: Rows, labels: Sequence[str]) -> list[Pair]:
    """The pairs of the recipe's own file, for inputs like those of `rows`; none without one. Raises DataError."""
    if recipe.evaluate.directional is None:
        return []
    roles = [role for role in INPUTS if role in rows.table.column_names]
    return read_pairs(recipe.locate(recipe.evaluate.directional), roles, labels)


def read_pairs(path: Path, roles: Sequence[str], labels: Sequence[str]) -> list[Pair]:
    """The pairs of a file of JSON lines: before, after, expect, for higher and lower a label, and perhaps a name.

    roles: what an input must have; labels: of the model. Raises DataError with every problem and its line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` splits inside of texts, too
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"evaluate.directional: {path.name} cannot be read: {error}") from error
    pairs: list[Pair] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(number, json.loads(line), path.stem, roles, labels))
        except ValueError as error:
            problems.append(f"  {path.name}, line {number}: {error}")
    if problems:
        more = [f"  and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n".join(["evaluate.directional:", *problems[:SHOWN], *more]))
    if not pairs:
        raise DataError(f"evaluate.directional: {path.name} holds no pair")
    return pairs


def _pair(number: int, value: Any, name: str, roles: Sequence[str], labels: Sequence[str]) -> Pair:
    if not isinstance(value, dict) or set(value) - set(KEYS):
        raise ValueError(f"expected an object with the keys {', '.join(KEYS)}; the last two may be left out")
    for side in ("before", "after"):
        given = value.get(side)
        if (
            not isinstance(given, dict)
            or set(given) != set(roles)
            or not all(isinstance(v, str) for v in given.values())
        ):
            raise ValueError(f"{side}: expected an object with a text for {' and '.join(roles)}")
    if value.get("expect") not in EXPECTED:
        raise ValueError(f"expect: expected {', '.join(EXPECTED)}, found {value.get('expect')!r}")
    label = value.get("label", labels[0] if len(labels) == 1 else None)
    if value["expect"] in ("higher", "lower") and label not in labels:
        raise ValueError(f"label: expected one of {', '.join(labels[:10])}, found {label!r}")
    return Pair(number, str(value.get("name", name)), value["before"], value["after"], value["expect"], str(label))
