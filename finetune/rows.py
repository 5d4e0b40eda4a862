"""The rows of one split: an Arrow table with one column per role."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

__all__ = ["INPUTS", "KEPT", "Rows", "from_arrow", "has_decimal_texts", "infer_problem", "take_batches", "to_arrow"]

INPUTS = ("text", "text_pair", "tokens", "question", "context", "source")  # roles that a model reads
KEPT = "column:"  # before the name of a column that is no role, kept for `evaluate.slices`
MAX_RUNS = 1000  # more pieces than this make a chunked table slower to read than a copy


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one split.

    table: one column per role, as in the recipe's `data.columns`, and always `id` (string). Texts are `string`, byte
    for byte as in the source; `label` is string, int64 or double; `labels` a list of string or int64; `tokens` and
    `tags` lists; `answers` a struct of the lists `text` and `answer_start`; `spans` a list of {start, end, label}.
    Columns kept for slices come last: `string`, KEPT before their names; the fingerprint does not depend on them.
    """

    split: str  # our name: train, validation, test
    table: pa.Table
    class_names: dict[str, list[str]]  # role -> names, where the source declares them (ClassLabel)
    source: str  # "data/train.csv" or "user/set (config) train"; never an absolute path
    fingerprint: str  # sha256 of the content and of the settings that made these rows
    dropped: dict[str, list[str]] = field(default_factory=dict)  # reason -> ids of the rows left out
    unused: tuple[str, ...] = ()  # columns of the source that no role reads
    places: pa.Table | None = None  # columns `file` int32 (index into `files`) and `line` int64
    files: tuple[str, ...] = ()  # how a place in each file is written, without its number: "data/train.csv, line"
    commit: str | None = None  # of the set, where a Hub gave one
    files_left_out: tuple[str, ...] = ()  # beside those of the splits: their names tell no split

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, role: str) -> list[Any]:
        """The values of one role as Python objects. Raises KeyError when the rows have no such role."""
        values: list[Any] = self.table.column(role).to_pylist()
        return values

    def kept(self) -> dict[str, list[str]]:
        """The columns that are no roles: name -> values as texts, classes by their names where the source has them."""
        found = {}
        for role in (name for name in self.table.column_names if name.startswith(KEPT)):
            names = dict(enumerate(self.class_names.get(role, [])))
            found[role.removeprefix(KEPT)] = [
                names.get(int(value), value) if names and value.isdigit() else value for value in self.column(role)
            ]
        return found

    def batches(self, size: int, max_bytes: int | None = None) -> Iterator[dict[str, list[Any]]]:
        """Blocks of at most `size` rows, in order: role -> Python values; fewer rows where these pass `max_bytes`."""
        for start in range(0, len(self), size):
            for block in _halved(self.table.slice(start, size), max_bytes):
                yield {name: block.column(name).to_pylist() for name in block.column_names}

    def take(self, index: np.ndarray) -> Rows:
        """The rows at `index` (integers, any order, repeats allowed), with a fingerprint of their own.

        Long runs of neighbouring rows are not copied: they stay views of the same memory.
        """
        index = np.asarray(index, dtype=np.int64)
        if len(index) == len(self) and np.array_equal(index, np.arange(len(self))):
            return self
        places = None if self.places is None else _take(self.places, index)
        digest = hashlib.sha256(f"{self.fingerprint} take ".encode() + index.astype("<i8").tobytes())
        return replace(self, table=_take(self.table, index), places=places, fingerprint=digest.hexdigest())

    def where(self, index: int) -> str:
        """Where a row stands in its source: "data/train.csv, line 12" (from 1) or "user/set train, row 12" (from 0)."""
        if self.places is None or index >= self.places.num_rows:
            return f"{self.source}, row {index}"
        file = self.places.column("file")[index].as_py()
        return f"{self.files[file]} {self.places.column('line')[index].as_py()}"


def infer_problem(rows: Rows) -> Literal["single", "multi", "regression"]:
    """multi where rows hold lists, regression where labels are numbers with a fraction, else single."""
    if "labels" in rows.table.column_names:
        return "multi"
    floating = "label" in rows.table.column_names and pa.types.is_floating(rows.table.schema.field("label").type)
    return "regression" if floating else "single"


def has_decimal_texts(rows: Rows) -> bool:
    """Whether all labels are texts such as "1.5": names of classes, or the numbers of a regression."""
    if "label" not in rows.table.column_names:
        return False
    distinct = rows.table.column("label").unique().to_pylist()
    return all(isinstance(label, str) and _is_decimal(label) for label in distinct)


def _is_decimal(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "." in text


def take_batches(table: pa.Table, index: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows at an ascending `index`, one batch of the table after the other.

    (`Table.take` joins all batches of a text column first: a copy of everything, for however few rows.)
    """
    start = 0
    for batch in table.to_batches():
        low, high = np.searchsorted(index, [start, start + batch.num_rows])
        if low < high:
            yield batch.take(to_arrow(index[low:high] - start))
        start += batch.num_rows


def to_arrow(index: Sequence[int] | np.ndarray) -> pa.Array:
    """Row numbers as Arrow takes them, int64. (`pa.array` imports pandas wherever it is installed.)"""
    values = np.ascontiguousarray(index, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def from_arrow(numbers: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Numbers without a gap, not to be written to. (Arrow's `to_numpy` imports pandas wherever it is installed.)"""
    if isinstance(numbers, pa.Array):
        return np.from_dlpack(numbers)
    empty = np.empty(0, numbers.type.to_pandas_dtype())
    return np.concatenate([empty, *map(np.from_dlpack, numbers.chunks)])


def _halved(table: pa.Table, max_bytes: int | None) -> Iterator[pa.Table]:
    if max_bytes is None or table.num_rows < 2 or table.nbytes <= max_bytes:
        yield table
        return
    middle = table.num_rows // 2
    yield from _halved(table.slice(0, middle), max_bytes)
    yield from _halved(table.slice(middle), max_bytes)


def _take(table: pa.Table, index: np.ndarray) -> pa.Table:
    steps = np.diff(index)
    breaks = np.flatnonzero(steps != 1) + 1
    if len(index) > 0 and len(breaks) < MAX_RUNS:
        starts = np.concatenate([[0], breaks])
        ends = np.concatenate([breaks, [len(index)]])
        pieces = [table.slice(int(index[start]), int(end - start)) for start, end in zip(starts, ends, strict=True)]
        return pa.concat_tables(pieces)
    if (steps >= 0).all():
        return pa.Table.from_batches(take_batches(table, index), table.schema)
    order = np.argsort(index, kind="stable")
    taken = pa.Table.from_batches(take_batches(table, index[order]), table.schema).combine_chunks()
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return taken.take(to_arrow(back))
