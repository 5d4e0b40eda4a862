"""Which column is which role, and which Arrow type it gets."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa

from finetune.data.values import MISSING, TEXT_ROLES, TYPE_WORDS, shown
from finetune.errors import DataError
from finetune.rows import KEPT

__all__ = ["ColumnTypes", "Roles", "check_dots", "check_texts", "declared_names", "kept_roles", "pick", "resolve"]


@dataclass(frozen=True)
class Roles:
    """The roles of a task."""

    sets: tuple[tuple[str, ...], ...]  # of one of these, every role is needed
    extras: tuple[str, ...]  # these may be there


def resolve(given: dict[str, str], roles: Roles, available: Iterable[str]) -> dict[str, str]:
    """Role -> column: those the recipe names; without any, the columns that are named like the roles.

    Raises DataError, with the columns that exist, when one is missing.
    """
    names = list(available)
    columns = _listed(names)
    if not given:
        complete = next((one for one in roles.sets if set(one) <= set(names)), None)
        if complete is None:
            needs = ", or ".join(" and ".join(one) for one in roles.sets)
            raise DataError(f"expected columns {needs}; found {columns}; say in data.columns which is which")
        return {role: role for role in (*complete, *(extra for extra in roles.extras if extra in names))}
    wrong = [_missing(role, column, names) for role, column in given.items() if not _exists(column, names)]
    if wrong:
        raise DataError("; ".join(wrong) + f"; the columns are {columns}")
    return dict(given)


def kept_roles(wanted: Iterable[str], available: Iterable[str]) -> dict[str, str]:
    """Columns that are kept for slices, as roles. Raises DataError, with those that exist, when one is missing."""
    names = list(available)
    wrong = [column for column in wanted if not _exists(column, names)]
    if wrong:
        missing = "; ".join(f"evaluate.slices: no column {column!r}{_near(column, names)}" for column in wrong)
        raise DataError(f"{missing}; the columns are {_listed(names)}; length needs none")
    return {f"{KEPT}{column}": column for column in wanted}


def _listed(names: list[str]) -> str:
    """Names in quotes, so that blanks show; one name with a separator inside is that of a file with another one."""
    shown = ", ".join(map(repr, names[:30])) + (", …" if len(names) > 30 else "")
    separator = next((one for one in (";", "\t", "|", ",") if one in names[0]), "") if len(names) == 1 else ""
    return f"{shown} (separated by {separator!r}? a .csv has commas, a .tsv tabs)" if separator else shown


def _near(column: str, names: list[str]) -> str:
    near = difflib.get_close_matches(column, names, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _exists(column: str, names: list[str]) -> bool:
    return column in names or any(column.startswith(f"{name}.") for name in names)


def _missing(role: str, column: str, names: list[str]) -> str:
    return f"data.columns.{role}: no column {column!r}{_near(column, names)}"


def check_dots(roles: dict[str, str], records: list[dict[str, Any]]) -> None:
    """Raises DataError for a column with a dot that reaches nothing in any of the records."""
    for role, column in roles.items():
        if "." not in column or any(value is not MISSING for value in pick(records, column)):
            continue
        outer = column.partition(".")[0]
        inner = sorted({key for value in pick(records, outer) if isinstance(value, dict) for key in value})
        found = f"{outer} has {', '.join(inner)}" if inner else f"{outer} has nothing inside"
        raise DataError(f"data.columns.{role}: no column {column!r}; {found}")


def check_texts(roles: dict[str, str], records: list[dict[str, Any]]) -> None:
    """Raises DataError for a column that is to hold texts and holds a list in each of the records."""
    for role in (role for role in TEXT_ROLES if role in roles):
        values = pick(records, roles[role])
        if values and all(isinstance(value, (list, tuple)) for value in values):
            remedy = (
                "a row has one target: keep one of them, or make a row of each"
                if role == "target"
                else "join its parts before, or name another column"
            )
            raise DataError(
                f"data.columns.{role}: expected texts, found a list in each row of {roles[role]!r}"
                f" ({shown(values[0])}); {remedy}"
            )


def pick(records: list[dict[str, Any]], column: str) -> list[Any]:
    """One value a record; a dot reaches inside a column unless the name with its dot is a column itself."""
    values = [record.get(column, MISSING) for record in records]
    if "." not in column:
        return values
    return [
        _reach(record, column) if value is MISSING else value for value, record in zip(values, records, strict=True)
    ]


def _reach(record: dict[str, Any], column: str) -> Any:
    for dot in [place for place, character in enumerate(column) if character == "."]:
        inner = record.get(column[:dot])
        if isinstance(inner, dict):
            rest = column[dot + 1 :]
            return inner[rest] if rest in inner else _reach(inner, rest)
    return MISSING


@dataclass
class ColumnTypes:
    """The type of each column, from all values seen so far."""

    seen: dict[str, dict[type, str]] = field(default_factory=dict)  # role -> Python type -> place of the first

    def see(self, role: str, values: list[Any], where: Callable[[int], str]) -> None:
        """Take note of the types of the label values. Raises DataError when texts and numbers are mixed."""
        if role not in ("label", "labels", "tags", "spans"):
            return
        seen = self.seen.setdefault(role, {})
        if role == "label" and set(map(type, values)) <= set(seen):
            return
        flat = [_labels_of(role, value) for value in values]
        for kind in set(map(type, chain.from_iterable(flat))) - set(seen):
            place = next(place for place, items in enumerate(flat) if kind in map(type, items))
            example = next(item for item in flat[place] if type(item) is kind)
            seen[kind] = f"{where(place)}: {TYPE_WORDS[kind]} ({shown(example)})"
        if len(seen) > 1 and set(seen) != {int, float}:
            raise DataError(f"{role}: expected values of one type, found {'; '.join(sorted(seen.values()))}")

    def of(self, role: str) -> pa.DataType:
        """The Arrow type of a role, from what was seen until now."""
        kinds = set(self.seen.get(role, ()))
        label = pa.float64() if float in kinds else pa.int64() if kinds & {int, bool} else pa.string()
        span = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("label", label)])
        answers = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int64()))])
        types = {"label": label, "labels": pa.list_(label), "tags": pa.list_(label), "tokens": pa.list_(pa.string())}
        types |= {"spans": pa.list_(span), "answers": answers, "is_impossible": pa.bool_()}
        return types.get(role, pa.string())

    def class_names(self) -> dict[str, list[str]]:
        """Names of labels that are true or false."""
        return {role: ["false", "true"] for role, seen in self.seen.items() if bool in seen}


def _labels_of(role: str, value: Any) -> list[Any]:
    if role == "label":
        return [value]
    return [span["label"] for span in value] if role == "spans" else list(value)


def declared_names(features: Any, column: str = "") -> dict[str, list[str]]:
    """Column -> names of its classes, from the JSON form of `datasets.Features`; a dot reaches inside a column."""
    if isinstance(features, list):
        return declared_names(features[0], column)
    if not isinstance(features, dict):
        return {}
    if features.get("_type") == "ClassLabel":
        return {column: list(features["names"])}
    if "_type" in features and "feature" in features:  # List and its older forms
        return declared_names(features["feature"], column)
    names: dict[str, list[str]] = {}
    for key, value in features.items():
        names |= declared_names(value, f"{column}.{key}" if column else key)
    return names
