"""What was found about the rows, and how they are looked through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.problems import Problems
from finetune.record import AuditFinding
from finetune.rows import INPUTS, Rows

__all__ = [
    "BLOCK_ROWS",
    "NAMED_ROWS",
    "SHOWN_ROWS",
    "Findings",
    "blocks",
    "finding",
    "hashes",
    "inputs",
    "remark",
    "texts",
]

SHOWN_ROWS = 3  # places named in one note
NAMED_ROWS = 20  # rows that a finding names
BLOCK_ROWS = 20_000


@dataclass
class Findings:
    """The rows as they will be used, and what a reader of the run should know of them."""

    splits: dict[str, Rows]
    notes: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    @property
    def errors(self) -> list[str]:
        """What must be put right before training, one line each."""
        return self.problems.lines()


def blocks(one: Rows, roles: list[str]) -> Iterator[tuple[int, list[list[Any]]]]:
    """Blocks of Python values: number of the first row, one list a role."""
    first = 0
    for batch in one.table.select(roles).to_batches(max_chunksize=BLOCK_ROWS):
        yield first, [column.to_pylist() for column in batch.columns]
        first += batch.num_rows


def hashes(one: Rows, roles: list[str]) -> np.ndarray:
    """A 64-bit hash of the values of each row, int64 (n,), the same within one process.

    Rows are compared by it, which takes 8 bytes a row: of 5 million, two that differ agree with a chance of 1e-6.
    """
    parts = []
    for _, columns in blocks(one, roles):
        columns = [[tuple(v) if isinstance(v, list) else v for v in column] for column in columns]
        parts.append(np.fromiter(map(hash, zip(*columns, strict=True)), np.int64, len(columns[0])))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def inputs(one: Rows) -> list[str]:
    """The roles that a model reads."""
    return [role for role in INPUTS if role in one.table.column_names]


def texts(one: Rows, role: str) -> pa.ChunkedArray:
    """The texts of one role; tokens are joined by blanks."""
    column = one.table.column(role)
    if not pa.types.is_list(column.type):
        return column
    return pa.chunked_array([pc.binary_join(chunk, " ") for chunk in column.chunks], pa.string())


def _percent(count: int, rows: int) -> str:
    """A share in words: "3 of 1,066 rows (0.3 %)"."""
    share = 100 * count / rows
    digits = 0 if share >= 10 or share == 0 else 1 if share >= 0.1 else 2
    return f"{count:,} of {rows:,} rows ({share:.{digits}f} %)"


def finding(
    kind: str,
    one: Rows,
    found: Sequence[int],
    says: str,
    *,
    level: Literal["warning", "note"] = "warning",
    remedy: str = "",
    partners: Sequence[tuple[Rows, int]] = (),
    other: str | None = None,
) -> AuditFinding:
    """A finding about the rows at `found`. says: what they do, after "3 of 1,066 rows"; partners: a row for each."""
    shown = [(one, row) for row in found[:NAMED_ROWS]]
    beside = partners[:NAMED_ROWS]
    places = [rows.where(row) for rows, row in shown]
    if beside:
        places = [f"{place} = {rows.where(row)}" for place, (rows, row) in zip(places, beside, strict=True)]
    return AuditFinding(
        kind=kind,
        split=one.split,
        other=other,
        level=level,
        count=len(found),
        rows=len(one),
        text=f"{one.split}: {_percent(len(found), len(one))} {says}",
        remedy=remedy,
        ids=_ids(shown),
        partner_ids=_ids(beside),
        places=places,
    )


def remark(
    kind: str, one: Rows, says: str, remedy: str = "", level: Literal["warning", "note"] = "warning"
) -> AuditFinding:
    """A finding about a split as a whole."""
    text = f"{one.split}: {says}"
    return AuditFinding(kind=kind, split=one.split, level=level, count=0, rows=len(one), text=text, remedy=remedy)


def _ids(rows: Sequence[tuple[Rows, int]]) -> list[str]:
    return [one.table.column("id")[row].as_py() for one, row in rows]
