"""Sentences from files with one token a line: CoNLL of any number of columns, and CoNLL-U.

CoNLL: columns separated by a tab where the line has one, else by spaces; a blank line ends a sentence; `-DOCSTART-`
lines are skipped, and lines that begin with # unless they have as many columns as the others (a tweet's `#tag O`).
A row has `tokens` (first column), `tags` (last column), and every column by its number: "0", "1", …
CoNLL-U: `tokens` (FORM), `tags` (UPOS), every column by its name in lower case, `id` (sent_id) and `text`; multiword
tokens and empty nodes are skipped. Source: universaldependencies.org/format.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetune.data.readers import BLOCK_ROWS, Block, lines_of, texts
from finetune.errors import DataError

__all__ = ["read_conll", "read_conllu"]

CONLLU = ("form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")  # after ID


def _sentences(path: Path, name: str) -> Iterator[list[tuple[int, str]]]:
    """The lines of each sentence with their numbers; comments included."""
    sentence: list[tuple[int, str]] = []
    for first, text in texts(path, name):
        for number, line in enumerate(lines_of(text), first):
            line = line.removesuffix("\r")
            if line.strip(" \t"):
                sentence.append((number, line))
            elif sentence:
                yield sentence
                sentence = []
    if sentence:
        yield sentence


def _columns(line: str) -> list[str]:
    # Not str.split(): a token may hold a no-break space.
    return line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]


def read_conll(path: Path, name: str) -> Iterator[Block]:
    """Sentences of a CoNLL file. Raises DataError where the file has fewer than two columns."""
    width = 0
    block = Block()
    for sentence in _sentences(path, name):
        if not width:
            width = _width(sentence)
        lines = [(number, _columns(line)) for number, line in sentence if not line.startswith("-DOCSTART-")]
        lines = [(n, cells) for n, cells in lines if not cells[0].startswith("#") or len(cells) == width]
        if not lines:
            continue
        _check_width(width, lines[0][0], name)
        wrong = next(((number, len(cells)) for number, cells in lines if len(cells) != width), None)
        if wrong:
            block.add_bad(wrong[0], f"expected {width} columns, found {wrong[1]} ({_within(lines[0][0])})")
        else:
            columns = [list(column) for column in zip(*(cells for _, cells in lines), strict=True)]
            record = {str(number): column for number, column in enumerate(columns)}
            block.add(lines[0][0], record | {"tokens": columns[0], "tags": columns[-1]})
        if len(block.records) == BLOCK_ROWS:
            yield block
            block = Block()
    yield block


def _within(line: int) -> str:
    return f"in the sentence that begins on line {line}"


def _width(sentence: list[tuple[int, str]]) -> int:
    """Columns of the first line that is certainly a token; 0 when the sentence has none."""
    lines = [line for _, line in sentence if not line.startswith("-DOCSTART-")]
    plain = [line for line in lines if not line.startswith("#")]
    return len(_columns(plain[0])) if plain else 0


def _check_width(width: int, line: int, name: str) -> None:
    if width < 2:
        raise DataError(f"{name}, line {line}: expected a token and a tag, separated by a tab or a space")


def read_conllu(path: Path, name: str) -> Iterator[Block]:
    """Sentences of a CoNLL-U file."""
    block = Block()
    for sentence in _sentences(path, name):
        comments = [line[1:].split(" = ", 1) for _, line in sentence if line.startswith("#") and " = " in line]
        about = {key.strip(): value for key, value in comments}
        lines = [(number, line.split("\t")) for number, line in sentence if not line.startswith("#")]
        wrong = next(((number, len(cells)) for number, cells in lines if len(cells) != 10), None)
        if wrong:
            what = f"expected 10 columns separated by tabs, found {wrong[1]} ({_within(sentence[0][0])})"
            block.add_bad(wrong[0], what)
        elif words := [cells[1:] for _, cells in lines if cells[0].isdigit()]:
            record = {key: list(column) for key, column in zip(CONLLU, zip(*words, strict=True), strict=True)}
            known = {"id": about["sent_id"]} if "sent_id" in about else {}
            known |= {"text": about["text"]} if "text" in about else {}
            block.add(lines[0][0], record | {"tokens": record["form"], "tags": record["upos"]} | known)
        if len(block.records) == BLOCK_ROWS:
            yield block
            block = Block()
    yield block
