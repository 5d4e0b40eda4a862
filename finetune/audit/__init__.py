"""What is wrong with the rows, told before anything is encoded or trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.audit import gold_answers, labels
from finetune.audit.findings import SHOWN_ROWS, Findings, hashes, inputs
from finetune.audit.survey import survey
from finetune.data import subset
from finetune.data.problems import Problems
from finetune.recipe import Recipe
from finetune.rows import Rows, from_arrow, to_arrow

__all__ = ["Findings", "examine", "rows", "survey"]

UNIQUE = "answers are told apart by their id: make it unique, or name data.columns without it"


def rows(recipe: Recipe, splits: dict[str, Rows], problems: Problems | None = None) -> Findings:
    """The rows ready for use: without hidden splits, and without empty texts in train.

    problems: of splits that are missing here. Raises DataError with these and all errors.
    """
    findings = examine(recipe, splits)
    problems = problems or Problems()
    problems.extend(findings.problems)
    problems.check("data")
    return findings


def examine(recipe: Recipe, splits: dict[str, Rows]) -> Findings:
    """As `rows`, with the errors in the findings instead of raised."""
    findings = Findings(dict(splits))
    labels.leave_out_hidden(recipe, findings)
    labels.check_types(findings)
    if not findings.problems:
        labels.check_values(recipe, findings)
    gold_answers.check(recipe, findings)
    _dropped(findings)
    _empty(findings)
    _ids(recipe, findings)
    return findings


def _dropped(findings: Findings) -> None:
    for split, one in list(findings.splits.items()):
        for reason, ids in one.dropped.items():
            shown = ", ".join(ids[:SHOWN_ROWS]) + (", …" if len(ids) > SHOWN_ROWS else "")
            findings.notes.append(f"{split}: {len(ids):,} left out: {reason} (id {shown})")
        if not len(one):
            findings.problems.add("no rows", f"split {split}: 0 rows left in {one.source}")
            del findings.splits[split]


def _empty(findings: Findings) -> None:
    """Rows in which every input is blank: left out of train, scored in evaluation."""
    for split, one in findings.splits.items():
        blank = _blank(one)
        count = int(blank.sum())
        if not count:
            continue
        places = "; ".join(one.where(int(row)) for row in np.flatnonzero(blank)[:SHOWN_ROWS])
        what = f"{split}: {count:,} {'row has' if count == 1 else 'rows have'} an empty text ({places})"
        if split != "train":
            findings.notes.append(f"{what}; scored like any other")
            continue
        if count == len(one):
            findings.problems.add("empty texts", f"split train: 0 rows with a text in {one.source}")
            continue
        ids = one.table.column("id").take(to_arrow(np.flatnonzero(blank))).to_pylist()
        kept = subset(one, np.flatnonzero(~blank))
        findings.splits[split] = replace(kept, dropped=one.dropped | {"empty text": ids})
        findings.notes.append(f"{what}; left out")


def _blank(one: Rows) -> np.ndarray:
    """bool (n,)"""
    blank = np.ones(len(one), dtype=bool)
    for role in inputs(one):
        start = 0
        for chunk in one.table.column(role).chunks:
            blank[start : start + len(chunk)] &= _blank_chunk(chunk)
            start += len(chunk)
    return blank


def _blank_chunk(chunk: pa.Array) -> np.ndarray:
    if pa.types.is_list(chunk.type):
        return np.array([not "".join(tokens).strip() for tokens in chunk.to_pylist()], dtype=bool)
    return np.asarray(from_arrow(pc.binary_length(pc.utf8_trim_whitespace(chunk))) == 0)


def _ids(recipe: Recipe, findings: Findings) -> None:
    """Ids that come with the data name their rows: in question answering they must be unique, since scores go by id."""
    if recipe.data.columns and "id" not in recipe.data.columns:
        return
    own = {split: hashes(one, ["id"]) for split, one in findings.splits.items()}
    if "id" in recipe.data.columns and "train" in own:
        _ids_of_train(findings, own)
    for split, one in findings.splits.items():
        repeated = _repeated(own[split])
        if not len(repeated):
            continue
        first = int(repeated[0])
        example = f"{one.table.column('id')[first].as_py()!r}: {one.where(first)}"
        text = f"{split}: of {len(one):,} rows, {len(repeated):,} have the id of an earlier row ({example})"
        if "question" in one.table.column_names:
            findings.problems.add("duplicate ids", f"{text}; {UNIQUE}")
        else:
            findings.notes.append(text)


def _ids_of_train(findings: Findings, own: dict[str, np.ndarray]) -> None:
    for split, one in findings.splits.items():
        known = np.isin(own[split], own["train"])
        if split != "train" and known.any():
            rows = f"{split}: of {len(one):,} rows, {int(known.sum()):,} have the id of a row of train"
            findings.notes.append(f"{rows} ({one.where(int(known.argmax()))}); are they the same row?")


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Rows whose hash an earlier row has, ascending."""
    first = np.unique(hashes, return_index=True)[1]
    repeated = np.ones(len(hashes), dtype=bool)
    repeated[first] = False
    return np.flatnonzero(repeated)
