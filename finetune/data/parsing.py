"""From raw blocks to the Arrow file of one split: roles picked, values checked, content hashed, memory flat."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from finetune.data.columns import ColumnTypes, Roles, check_dots, check_texts, kept_roles, pick, resolve
from finetune.data.problems import Problems
from finetune.data.readers import Block
from finetune.data.values import Bad, convert
from finetune.errors import DataError
from finetune.rows import KEPT

__all__ = ["PLACES", "ContentHash", "Mapping", "Parsed", "Source", "parse"]

PLACES = ("_file", "_line")


class Source(Protocol):
    """One file, or one split of a Hub data set."""

    @property
    def name(self) -> str:
        """ "data/train.csv", or "user/set (config) train"."""

    @property
    def place(self) -> str:
        """How a row is named, without its number: "data/train.csv, line"."""

    @property
    def cells(self) -> bool:
        """Whether every value is a text that may stand for a list or an object (csv, tsv)."""

    def read(self, wanted: set[str]) -> Iterator[Block]:
        """Blocks of rows; `wanted` are the columns that will be used. Raises DataError."""


@dataclass(frozen=True)
class Mapping:
    """Which columns become which roles, and what happens to rows that cannot be used."""

    columns: dict[str, str]  # role -> column, as in the recipe
    roles: Roles
    skip: bool  # leave bad rows out instead of refusing them
    kept: tuple[str, ...] = ()  # columns that are no roles, for slices

    def wanted(self) -> set[str]:
        """The columns that may be used, and for a dotted one its beginnings."""
        names = set(self.columns.values()) | set(self.kept) | {*chain(*self.roles.sets), *self.roles.extras}
        return names | {name[:place] for name in names for place, character in enumerate(name) if character == "."}


@dataclass
class Parsed:
    """What came of one split, beside its Arrow file."""

    rows: int
    class_names: dict[str, list[str]]  # of labels that are true or false
    content: str  # sha256 of all values
    dropped: dict[str, list[str]]  # kind of problem -> ids
    columns: dict[str, str]  # role -> column
    unused: list[str]  # columns that no role reads


class _Widen(Exception):  # noqa: N818  (not an error: the file is read once more)
    """A later row needs a wider type, or has another column, than the file was begun with."""


def parse(sources: Sequence[Source], mapping: Mapping, path: Path, problems: Problems) -> Parsed | None:
    """Write the rows of all sources into the Arrow file `path`; None when anything is wrong, which is in `problems`."""
    types = ColumnTypes()
    late: dict[int, list[str]] = {}
    while True:
        found = Problems()
        try:
            parsed = _Parser(sources, mapping, types, found, late).run(path)
        except _Widen:
            continue
        problems.extend(found)
        return None if len(found) else parsed


@dataclass
class _Parser:
    sources: Sequence[Source]
    mapping: Mapping
    types: ColumnTypes
    problems: Problems
    late: dict[int, list[str]]  # number of a source -> columns of roles that its first block does not have
    roles: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    count: int = 0  # rows of the split so far, with the bad ones

    def run(self, path: Path) -> Parsed:
        hashes = ContentHash()
        schema: pa.Schema | None = None
        with pa.OSFile(str(path), "wb") as file, ExitStack() as stack:
            for batch in self._batches():
                if schema is None:
                    schema = batch.schema
                    writer = stack.enter_context(pa.ipc.new_file(file, schema))
                elif batch.schema != schema:
                    raise _Widen
                others = [name for name in batch.schema.names if name in PLACES or name.startswith(KEPT)]
                hashes.update(batch.drop_columns(others))
                writer.write_batch(batch)
        names = self.types.class_names()
        return Parsed(hashes.rows, names, hashes.hexdigest(), self.dropped, self.roles, self.unused)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for number, source in enumerate(self.sources):
            known = False
            try:
                for block in source.read(self.mapping.wanted()):
                    names = block.columns or list(dict.fromkeys(chain.from_iterable(block.records)))
                    if names and not known:
                        names = [*names, *self.late.get(number, [])]
                        self.roles = self._resolve(source, names, block.records)
                        self.unused = _unread(self.roles, [*self.unused, *names], block.records)
                        known = True
                    elif late := self._late(names):
                        self.late.setdefault(number, []).extend(late)
                        raise _Widen
                    if block.records:
                        yield self._batch(number, source, block)
            except DataError as error:
                self.problems.add("unusable files", str(error))

    def _late(self, names: list[str]) -> list[str]:
        """Columns of roles that the file has from here on, where the recipe leaves it to the names which are read."""
        if self.mapping.columns:
            return []
        return [name for name in self.mapping.roles.extras if name in names and name not in self.roles]

    def _resolve(self, source: Source, names: list[str], records: list[dict[str, Any]]) -> dict[str, str]:
        """The roles that the file gives; a further file of the split gives the same as the first."""
        try:
            before = {role: column for role, column in self.roles.items() if not role.startswith(KEPT)}
            if before and (more := self._late(names)):
                raise DataError(
                    f"has {' and '.join(more)}, which a file before it lacks; fill it in there, or say in data.columns"
                    " which columns are read"
                )
            roles = resolve(before or self.mapping.columns, self.mapping.roles, names)
            roles |= kept_roles(self.mapping.kept, names)
            check_dots(roles, records)
            check_texts(roles, records)
        except DataError as error:
            raise DataError(f"{source.name}: {error}") from None
        return roles

    def _batch(self, number: int, source: Source, block: Block) -> pa.RecordBatch:
        first, self.count = self.count, self.count + len(block.records)
        bad: Bad = dict(block.bad)
        columns: dict[str, list[Any]] = {}
        for role, column in self.roles.items():
            columns[role], wrong = convert(role, pick(block.records, column), source.cells)
            bad = wrong | bad
        if "id" not in columns:
            columns["id"] = [str(row) for row in range(first, self.count)]
        bad = _unequal(columns, bad) | _misplaced(columns, bad) | bad
        try:
            return self._arrow(columns, bad, number, source, block.lines)
        except UnicodeEncodeError:
            bad |= _surrogates(columns, bad)
            return self._arrow(columns, bad, number, source, block.lines)
        finally:  # labels of two types, which end the file here, hide no bad row before them
            self._report(bad, columns["id"], first, source, block.lines)

    def _arrow(
        self, columns: dict[str, list[Any]], bad: Bad, number: int, source: Source, lines: list[int]
    ) -> pa.RecordBatch:
        if bad:
            good = [place for place in range(len(lines)) if place not in bad]
            columns = {role: [values[place] for place in good] for role, values in columns.items()}
            lines = [lines[place] for place in good]
        arrays = {}
        for role, values in columns.items():
            self.types.see(role, values, lambda place: f"{source.place} {lines[place]}")
            arrays[role] = _array(role, values, self.types)
        arrays["_file"] = pa.array(np.full(len(lines), number, np.int32))
        arrays["_line"] = pa.array(lines, pa.int64())
        return pa.RecordBatch.from_pydict(arrays)

    def _report(self, bad: Bad, ids: list[Any], first: int, source: Source, lines: list[int]) -> None:
        for place, (kind, text) in sorted(bad.items()):
            if self.mapping.skip:
                row = first + place if ids[place] is None else ids[place]
                self.dropped.setdefault(kind, []).append(str(row))
            else:
                self.problems.add(kind, f"{source.place} {lines[place]}: {text}")


def _unread(roles: dict[str, str], names: list[str], records: list[dict[str, Any]]) -> list[str]:
    """The columns that no role reads: neither by another name (CoNLL) nor in part, by a dot."""
    read = {part for column in roles.values() for part in (column, column.partition(".")[0])}
    contents = [pick(records, name) for name in read]
    return [name for name in dict.fromkeys(names) if name not in read and pick(records, name) not in contents]


def _array(role: str, values: list[Any], types: ColumnTypes) -> pa.Array:
    if role in types.class_names():
        values = [int(value) for value in values]
    try:
        return pa.array(values, types.of(role))
    except OverflowError:
        raise DataError(f"{role}: a number that does not fit into 64 bits") from None


def _unequal(columns: dict[str, list[Any]], known: Bad) -> Bad:
    """Rows whose tokens and tags differ in number."""
    if not {"tokens", "tags"} <= set(columns):
        return {}
    pairs = enumerate(zip(columns["tokens"], columns["tags"], strict=True))
    return {
        place: (
            "tokens without tags",
            f"{len(tokens)} tokens and {len(tags)} tags; expected as many of one as the other",
        )
        for place, (tokens, tags) in pairs
        if place not in known and len(tokens) != len(tags)
    }


def _misplaced(columns: dict[str, list[Any]], known: Bad) -> Bad:
    """Rows with a span outside its text, without a character, or over another span."""
    if not {"text", "spans"} <= set(columns):
        return {}
    pairs = enumerate(zip(columns["text"], columns["spans"], strict=True))
    found = ((place, _wrong_span(text, spans)) for place, (text, spans) in pairs if place not in known)
    return {place: ("misplaced spans", what) for place, what in found if what}


def _wrong_span(text: str, spans: list[dict[str, Any]]) -> str:
    before = {"start": 0, "end": 0}
    for span in sorted(spans, key=lambda one: (one["start"], one["end"])):
        here = f"span {span['start']} to {span['end']} ({span['label']})"
        if span["start"] < 0 or span["end"] > len(text):
            return f"{here}: outside its text of {len(text)} characters"
        if not text[span["start"] : span["end"]].strip():
            return f"{here}: holds no character but white space; end is the place after its last character"
        if span["start"] < before["end"]:
            return f"{here}: overlaps span {before['start']} to {before['end']}; a word has one tag, keep one of them"
        before = span
    return ""


def _surrogates(columns: dict[str, list[Any]], known: Bad) -> Bad:
    """Rows with half of a surrogate pair, which only an escape in JSON can give."""
    bad: Bad = {}
    for role, values in columns.items():
        for place, value in enumerate(values):
            if place in known:  # what stands there may be no value at all
                continue
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                bad[place] = ("bad character", f"{role}: half of a surrogate pair; no text in UTF-8 has one")
    return bad


class ContentHash:
    """sha256 of the values of all columns, whatever the batches they come in.

    Lengths and bytes go into hashes of their own for each column and each level of nesting.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._hashes: dict[str, Any] = {}

    def update(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        for name in batch.schema.names:
            self._array(name, batch.column(name))

    def hexdigest(self) -> str:
        parts = {path: digest.hexdigest() for path, digest in self._hashes.items()}
        return hashlib.sha256(json.dumps([self.rows, parts], sort_keys=True).encode()).hexdigest()

    def _add(self, path: str, data: Any) -> None:
        self._hashes.setdefault(path, hashlib.sha256()).update(data)

    def _array(self, path: str, array: pa.Array) -> None:
        assert array.null_count == 0, path
        path += f" {array.type}"
        if pa.types.is_struct(array.type):
            for number in range(array.type.num_fields):
                self._array(f"{path}.{array.type.field(number).name}", array.field(number))
        elif pa.types.is_list(array.type):
            self._add(path, _lengths(array))
            self._array(path, array.flatten())
        elif pa.types.is_string(array.type):
            self._add(f"{path} lengths", _lengths(array))
            self._add(path, _text_bytes(array))
        else:
            self._add(path, np.ascontiguousarray(array.to_numpy(zero_copy_only=False)))


def _offsets(array: pa.Array) -> np.ndarray:
    if len(array) == 0:
        return np.zeros(1, np.int32)
    return np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)


def _lengths(array: pa.Array) -> np.ndarray:
    return np.diff(_offsets(array)).astype("<i4")


def _text_bytes(array: pa.Array) -> memoryview:
    offsets = _offsets(array)
    data = array.buffers()[2]
    return memoryview(data)[offsets[0] : offsets[-1]] if data is not None else memoryview(b"")
