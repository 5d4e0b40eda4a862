"""What was found about the rows, and how they are looked through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from finetune.data.problems import Problems
from finetune.rows import Rows

__all__ = ["SHOWN_ROWS", "Findings", "blocks"]

SHOWN_ROWS = 3  # places named in one note
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
