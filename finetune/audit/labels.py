"""What is wrong with the labels of all splits together."""

from __future__ import annotations

import difflib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.audit.findings import SHOWN_ROWS, Findings, blocks
from finetune.data import subset
from finetune.recipe import Recipe
from finetune.rows import Rows, has_decimal_texts, infer_problem, to_arrow

__all__ = ["check_types", "check_values", "leave_out_hidden"]

LABELS = ("label", "labels", "tags", "spans")
REGRESSION = "such texts are taken for names of classes; are they numbers? then say data.problem: regression"
HIDDEN = -1  # the number that data sets put where a label is withheld


def _regression(recipe: Recipe, one: Rows) -> bool:
    return (recipe.data.problem or infer_problem(one)) == "regression"


def leave_out_hidden(recipe: Recipe, findings: Findings) -> None:
    """Leave out a split, other than train, whose labels are all -1: its labels are withheld."""
    asked = "splits" in recipe.data.model_fields_set
    train = findings.splits.get("train")
    for split, one in list(findings.splits.items()):
        if split == "train" or not _all_hidden(recipe, one) or (train is not None and _usual(train)):
            continue
        text = f"{split}: all {len(one):,} labels in {one.source} are {HIDDEN}, which stands for hidden"
        if asked or len(findings.splits) == 1:
            findings.problems.add("hidden labels", f"{text}; leave the split out of data.splits, or use another")
        else:
            findings.notes.append(f"{text}; the split is left out")
        del findings.splits[split]


def _all_hidden(recipe: Recipe, one: Rows) -> bool:
    if "label" not in one.table.column_names or pa.types.is_string(one.table.schema.field("label").type):
        return False
    classes = "label" in one.class_names or _regression(recipe, one)
    return classes and pc.unique(one.table.column("label")).to_pylist() == [HIDDEN]


def _usual(train: Rows) -> bool:
    """Whether -1 is a number like any other: train has it, too."""
    if "label" in train.class_names or not pa.types.is_floating(train.table.schema.field("label").type):
        return False
    return bool(pc.index(train.table.column("label"), HIDDEN).as_py() >= 0)


def check_types(findings: Findings) -> None:
    """One type and one list of names in all splits; whole numbers become floats where another split has fractions."""
    for role in LABELS:
        having = {split: one for split, one in findings.splits.items() if role in one.table.column_names}
        found = {split: one.table.schema.field(role).type for split, one in having.items()}
        if role == "labels" and set(found.values()) == {pa.list_(pa.int64()), pa.list_(pa.string())}:
            for split, one in having.items():  # lists without a label have the type of texts, for want of another
                if found[split] == pa.list_(pa.string()) and not _distinct(one, role):
                    findings.splits[split] = having[split] = _cast(one, role, pa.list_(pa.int64()))
                    found[split] = pa.list_(pa.int64())
        if set(found.values()) == {pa.int64(), pa.float64()}:
            for split, one in having.items():
                findings.splits[split] = _cast(one, role, pa.float64())
        elif len(set(found.values())) > 1:
            words = "; ".join(f"{one.source} has {_type_words(one, role)}" for one in having.values())
            findings.problems.add("mixed types", f"{role}: expected one type in all splits, found {words}")
        names = {tuple(one.class_names.get(role, ())) for one in having.values()}
        if len(names) > 1:
            words = "; ".join(
                f"{split}: {', '.join(one.class_names.get(role, ['none']))}" for split, one in having.items()
            )
            findings.problems.add("class names", f"{role}: the splits name their classes differently ({words})")


def _cast(one: Rows, role: str, kind: pa.DataType) -> Rows:
    number = one.table.schema.get_field_index(role)
    return replace(one, table=one.table.set_column(number, role, one.table.column(role).cast(kind)))


def _type_words(one: Rows, role: str) -> str:
    kind = one.table.schema.field(role).type
    while pa.types.is_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        kind = kind.field("label").type
    word = "text" if pa.types.is_string(kind) else "whole numbers" if pa.types.is_integer(kind) else "numbers"
    return f"{word} ({one.table.column(role)[0].as_py()!r})" if len(one) else word


def check_values(recipe: Recipe, findings: Findings) -> None:
    """Classes must be among those declared, or else among those of train; a regression needs numbers."""
    train = findings.splits.get("train")
    for split, one in list(findings.splits.items()):
        role = _role(one)
        if role is None:
            continue
        if role == "label" and _regression(recipe, one):
            _numbers(one, findings)
            continue
        if role == "labels" and role not in one.class_names and _is_multi_hot(one):
            findings.problems.add(
                "a 0 or 1 for each label",
                f"{split}: labels: {one.column('labels')[0]} ({one.where(0)}) has a 0 or 1 for each label; expected a"
                ' list of the names that apply, such as ["sports", "politics"]',
            )
            continue
        if split == "train" and recipe.train is not None and not recipe.model.keep_head:
            _several(one, role, findings)
        if role in one.class_names:
            _in_range(recipe, one, role, findings)
        elif split != "train" and train is not None and role in train.table.column_names:
            numbers = recipe.data.problem is None and has_decimal_texts(train)
            _seen(one, role, set(_distinct(train, role)), findings, REGRESSION if numbers else "")


def _is_multi_hot(one: Rows) -> bool:
    """Whether the lists hold 0 and 1 alone, and more of them than two labels can give."""
    if not {str(value) for value in _distinct(one, "labels")} <= {"0", "1"}:
        return False
    sizes = pc.min_max(pc.list_value_length(one.table.column("labels"))).as_py()
    return bool(sizes["max"] > 2 or sizes["min"] == 2)


def _role(one: Rows) -> str | None:
    return next((role for role in ("label", "labels") if role in one.table.column_names), None)


def _distinct(one: Rows, role: str) -> list[Any]:
    column = one.table.column(role)
    return pc.unique(column if role == "label" else pc.list_flatten(column)).to_pylist()  # type: ignore[no-any-return]


def _rows_with(one: Rows, role: str, value: Any) -> str:
    """The first rows with a label, and how many there are."""
    places = []
    count = 0
    for first, batch in blocks(one, [role]):
        for row, found in enumerate(batch[0], first):
            if found == value or (role == "labels" and value in found):
                count += 1
                if count <= SHOWN_ROWS:
                    places.append(one.where(row))
    more = f", … {count:,} rows" if count > SHOWN_ROWS else ""
    return f"{'; '.join(places)}{more}"


def _seen(one: Rows, role: str, known: set[Any], findings: Findings, remedy: str) -> None:
    names = {str(name).lower(): name for name in sorted(known)}
    for value in _distinct(one, role):
        if value in known:
            continue
        near = difflib.get_close_matches(str(value).lower(), names, 1, 0.75)
        hint = remedy or (f"did you mean {names[near[0]]!r}?" if near else "add rows with it to train, or leave it out")
        findings.problems.add(
            "labels unseen in train",
            f"{one.split}: label {value!r} is not in train ({_rows_with(one, role, value)}); {hint}",
        )


def _several(one: Rows, role: str, findings: Findings) -> None:
    """Where all rows of train have the same label there is nothing to tell apart: a file that was cut off, mostly."""
    distinct = _distinct(one, role)
    if role == "label" and len(distinct) == 1:
        what = f"train: all {len(one):,} rows of {one.source} have the label {_name(one, role, distinct[0])!r}"
        findings.problems.add("one label", f"{what}; expected two different ones at least: add rows of another")


def _name(one: Rows, role: str, value: Any) -> Any:
    names = one.class_names.get(role, [])
    return names[value] if names and 0 <= value < len(names) else value


def _in_range(recipe: Recipe, one: Rows, role: str, findings: Findings) -> None:
    names = one.class_names[role]
    wrong = [value for value in _distinct(one, role) if not 0 <= value < len(names)]
    if wrong and recipe.data.on_bad_row == "skip":
        findings.splits[one.split] = _without(one, role, wrong)
        return
    for value in wrong:
        what = "hidden or missing" if value == HIDDEN else f"none of the {len(names)} classes"
        findings.problems.add(
            "labels out of range", f"{one.split}: label {value} is {what} ({_rows_with(one, role, value)})"
        )


def _without(one: Rows, role: str, wrong: list[Any]) -> Rows:
    bad = [
        first + row
        for first, (values,) in blocks(one, [role])
        for row, value in enumerate(values)
        if (value in wrong if role == "label" else set(value) & set(wrong))
    ]
    ids = one.table.column("id").take(to_arrow(bad)).to_pylist()
    kept = subset(one, np.setdiff1d(np.arange(len(one)), bad))
    reason = "label out of range"
    return replace(kept, dropped=one.dropped | {reason: one.dropped.get(reason, []) + ids})


def _numbers(one: Rows, findings: Findings) -> None:
    """Labels of a regression that come as text must be finite numbers."""
    if not pa.types.is_string(one.table.schema.field("label").type):
        return
    for value in _distinct(one, "label"):
        if not _is_number(value):
            findings.problems.add(
                "labels that are no numbers",
                f"{one.split}: a regression needs finite numbers as labels, found {value!r}"
                f" ({_rows_with(one, 'label', value)})",
            )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
