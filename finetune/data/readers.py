"""Rows of local files, byte for byte, in blocks: csv, tsv, json, jsonl, SQuAD json.

CSV is read as RFC 4180 says (quotes, newlines inside them), every cell as text. TSV has no quoting: a quote is a
character like any other. Both have a first line with the names of the columns, unless the recipe names columns by
number; a first line of just these numbers is one of names all the same. JSON lines are read line by line; a JSON file
is read whole: a list of objects, {"data": [objects]}, lists by column ({"text": [...], "label": [...]}), or SQuAD (v1
and v2), whose questions become rows.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import DataError

__all__ = ["Block", "lines_of", "read_csv", "read_json", "read_jsonl", "read_tsv", "texts"]

BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 2000
CELL_CHARACTERS = 1 << 26  # a longer CSV cell comes from a quote that is never closed


@dataclass
class Block:
    """Neighbouring rows of a file, as the file has them."""

    records: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)  # where each begins: line from 1, or row from 0
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)  # position in the block -> kind, what is wrong
    columns: list[str] = field(default_factory=list)  # all columns of the file, where it has the same for every row

    def add(self, line: int, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.lines.append(line)

    def add_bad(self, line: int, message: str) -> None:
        self.bad[len(self.records)] = ("unreadable row", message)
        self.add(line, {})


def texts(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """The file in blocks of whole lines: number of the first line (from 1), text with its line ends as they are.

    A byte order mark of UTF-8 is left out. Raises DataError with file and line for bytes that are not UTF-8, or NUL.
    """
    line, rest = 1, b""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(BLOCK_BYTES):
                end = chunk.rfind(b"\n") + 1
                if not end:
                    rest += chunk
                    continue
                block, rest = rest + chunk[:end], chunk[end:]
                yield line, _decode(block, name, line)
                line += block.count(b"\n")
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    if rest:
        yield line, _decode(rest, name, line)


def _decode(block: bytes, name: str, line: int) -> str:
    if line == 1:
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{name}, line 1: expected UTF-8, found UTF-16; save the file as UTF-8")
        block = block.removeprefix(codecs.BOM_UTF8)
    if (place := block.find(b"\0")) >= 0:
        number = line + block.count(b"\n", 0, place)
        raise DataError(f"{name}, line {number}: a NUL byte; expected text in UTF-8")
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        number = line + block.count(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {number}: not UTF-8 (byte 0x{block[error.start]:02x}); save the file as UTF-8"
        ) from None


# ------------------------------------------------------------------------------------------------------------- tables


def read_csv(path: Path, name: str, numbered: bool = False) -> Iterator[Block]:
    """Rows of cells as text; numbered: columns are called "0", "1", … and no line names them, unless just so."""
    before = csv.field_size_limit(CELL_CHARACTERS)
    try:
        yield from _rows(_csv_cells(path, name), name, numbered)
    finally:
        csv.field_size_limit(before)


def _csv_cells(path: Path, name: str) -> Iterator[tuple[int, list[str] | str]]:
    """Line and cells of each row, or the reason why it has none."""
    reader = csv.reader((f"{line}\n" for _, text in texts(path, name) for line in lines_of(text)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, _csv_reason(str(error))
            continue
        if cells is None:
            return
        if cells:
            yield line, cells


def _csv_reason(error: str) -> str:
    if "unexpected end of data" in error or "field larger than" in error:
        return "a quote that is never closed"
    if "new-line character" in error:
        return "a carriage return outside quotes"
    return f"not CSV: {error}"


def read_tsv(path: Path, name: str, numbered: bool = False) -> Iterator[Block]:
    """Rows of cells as text, separated by tabs, without quoting; blank lines are skipped."""
    cells = (
        (first + number, line.removesuffix("\r").split("\t"))
        for first, text in texts(path, name)
        for number, line in enumerate(lines_of(text))
        if line.strip("\r")
    )
    yield from _rows(cells, name, numbered)


def lines_of(text: str) -> list[str]:
    """The lines of a text, without line feeds.

    Only a line feed ends a line: texts hold the other characters that `str.splitlines` splits at.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _rows(cells: Iterator[tuple[int, list[str] | str]], name: str, numbered: bool) -> Iterator[Block]:
    header: list[str] | None = None
    block = Block()
    for line, row in cells:
        if header is None:
            block.columns = header = _header(row, name, line, numbered)
            if not numbered or row == header:
                continue
        if isinstance(row, str):
            block.add_bad(line, row)
        elif len(row) != len(header):
            block.add_bad(line, f"expected {len(header)} cells, found {len(row)}")
        else:
            block.add(line, dict(zip(header, row, strict=True)))
        if len(block.records) == BLOCK_ROWS:
            yield block
            block = Block(columns=header)
    if header is None:
        raise DataError(f"{name}: the file is empty; expected a line with the names of the columns")
    yield block


def _header(row: list[str] | str, name: str, line: int, numbered: bool) -> list[str]:
    if isinstance(row, str):
        raise DataError(f"{name}, line {line}: {row}")
    if numbered:
        return [str(number) for number in range(len(row))]
    twice = sorted({column for column in row if row.count(column) > 1})
    if twice:
        raise DataError(f"{name}, line {line}: column {', '.join(map(repr, twice))} is named twice")
    return row


# --------------------------------------------------------------------------------------------------------------- JSON


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
# The scanner alone is twice as fast as `decode`, which also looks for blanks around the value.
SCAN: Callable[[str, int], tuple[Any, int]] = DECODER.scan_once  # type: ignore[attr-defined]


def read_jsonl(path: Path, name: str) -> Iterator[Block]:
    """One JSON object a line; blank lines are skipped."""
    for first, text in texts(path, name):
        block = Block()
        for number, line in enumerate(lines_of(text), first):
            line = line.strip(" \t\r")
            if line:
                _add_json(block, number, line)
        yield block


def _add_json(block: Block, number: int, line: str) -> None:
    try:
        record, end = SCAN(line, 0)
        if end != len(line):
            record = DECODER.decode(line)
    except StopIteration as error:
        # The scanner's word for "no value at this place".
        block.add_bad(number, f"not JSON: expected a value at column {int(error.value) + 1}")
    except json.JSONDecodeError as error:
        block.add_bad(number, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        block.add_bad(number, f"not JSON: {error}")
    else:
        _add_object(block, number, record)


def _add_object(block: Block, number: int, record: Any) -> None:
    if type(record) is dict:
        block.records.append(record)
        block.lines.append(number)
    else:
        block.add_bad(number, f"expected an object with a key for each column, found {type(record).__name__}")


def read_json(path: Path, name: str) -> Iterator[Block]:
    """A list of objects, alone or under "data"; a list for each column; SQuAD; or JSON lines with the wrong suffix."""
    text = "".join(part for _, part in texts(path, name))
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a second value: the file has one on each line
            yield from _counted(read_jsonl(path, name))
            return
        raise DataError(
            f"{name}, line {error.lineno}: not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON: {error}") from None
    rows = _list(value)
    if rows is None:
        raise DataError(f'{name}: expected a list of objects, or one under "data"; or one object a line (.jsonl)')
    if rows and isinstance(rows[0], dict) and "paragraphs" in rows[0]:
        rows = _questions(rows, name)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = Block()
        for number, record in enumerate(rows[start : start + BLOCK_ROWS], start):
            _add_object(block, number, record)
        yield block


def _counted(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same rows, placed by their number instead of their line."""
    first = 0
    for block in blocks:
        block.lines = list(range(first, first + len(block.lines)))
        first += len(block.lines)
        yield block


def _list(value: Any) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and isinstance(rows := value.get("data"), list) and (not rows or type(rows[0]) is dict):
        return rows
    if not isinstance(value, dict) or any(isinstance(item, dict) for item in value.values()):
        return None
    if not all(isinstance(item, list) for item in value.values()):
        return [value]  # one object of plain values: JSON lines with a single line
    same = len(set(map(len, value.values()))) == 1  # {"text": [...], "label": [...]}
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)] if same else None


def _questions(articles: list[Any], name: str) -> list[dict[str, Any]]:
    """The questions of a SQuAD file (v1 or v2), each with its context. Source: the file format of SQuAD."""
    rows: list[dict[str, Any]] = []
    for number, article in enumerate(articles):
        try:
            for paragraph in article["paragraphs"]:
                own = {"title": article.get("title"), "context": paragraph["context"]}
                rows += (
                    question | own | {"is_impossible": question.get("is_impossible", False)}
                    for question in paragraph["qas"]
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{name}, article {number}: expected SQuAD's paragraphs, context and qas, found {error!r}"
            ) from None
    return rows
