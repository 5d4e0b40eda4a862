"""Values of one role as one Python type, and what is wrong with the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from typing import Any

from finetune.rows import KEPT

__all__ = ["FILL_IN", "MAX_CHARACTERS", "MISSING", "TEXT_ROLES", "TYPE_WORDS", "Bad", "convert", "shown"]

MAX_CHARACTERS = 1_000_000  # of one text
FILL_IN = "fill it in, or leave such rows out with data.on_bad_row: skip"
KEPT_CHARACTERS = 80  # of a value that names a group of rows
TEXT_ROLES = ("text", "text_pair", "question", "context", "source", "target")

MISSING = object()  # what a record without the column holds
Bad = dict[int, tuple[str, str]]  # position -> kind, what is wrong

TYPE_WORDS: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
TYPE_WORDS |= {list: "a list", dict: "an object"}


def shown(value: Any) -> str:
    """A value for a message, cut to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _word(value: Any) -> str:
    return "nothing" if value is None or value is MISSING else TYPE_WORDS.get(type(value), type(value).__name__)


def convert(role: str, values: list[Any], cells: bool) -> tuple[list[Any], Bad]:
    """The values as the type of the role, and the positions of those that have another, are missing or too long.

    cells: the values come from csv or tsv, where everything is text; lists and objects are then JSON in the cell,
    labels alternatively separated by commas, tokens and tags by spaces.
    """
    if cells and role in CELLS:
        values = [CELLS[role](value) if isinstance(value, str) else value for value in values]
    if role.startswith(KEPT):
        return _kept(role.removeprefix(KEPT), values)
    if role in TEXT_ROLES:
        return values, _bad_texts(role, values)
    if role == "label" and _plain_labels(values):
        return values, {}
    checked = {position: CHECKS[role](value) for position, value in enumerate(values)}
    bad = {position: (kind, f"{role}: {text}") for position, (kind, text, _) in checked.items() if kind}
    return [value for _, _, value in checked.values()], bad


def _kept(name: str, values: list[Any]) -> tuple[list[Any], Bad]:
    """Single values as short texts, for groups of rows."""
    bad = {
        place: ("wrong type", f"evaluate.slices: {name}: expected a single value, found {_word(value)}")
        for place, value in enumerate(values)
        if isinstance(value, (list, dict))
    }
    return [_short(value) for value in values], bad


def _short(value: Any) -> str:
    if value is None or value is MISSING or value == "":
        return "(none)"
    return str(value).lower() if isinstance(value, bool) else str(value)[:KEPT_CHARACTERS]


Checked = tuple[str, str, Any]  # kind and text of the problem ("" for none), value


def _bad_texts(role: str, values: list[Any]) -> Bad:
    blank = role == "target" and not all(isinstance(value, str) and value.strip() for value in values)
    if not blank and set(map(type, values)) <= {str} and max(map(len, values), default=0) <= MAX_CHARACTERS:
        return {place: _nul(role) for place, value in enumerate(values) if "\0" in value}
    bad: Bad = {}
    for place, value in enumerate(values):
        if value is None or value is MISSING:
            bad[place] = ("missing text", f"{role}: missing; {FILL_IN}")
        elif not isinstance(value, str):
            bad[place] = ("wrong type", f"{role}: expected text, found {_word(value)} ({shown(value)})")
        elif len(value) > MAX_CHARACTERS:
            bad[place] = ("too long", _too_long(role, len(value)))
        elif "\0" in value:
            bad[place] = _nul(role)
        elif blank and not value.strip():
            bad[place] = ("empty target", f"{role}: empty; expected the text to be written")
    return bad


def _nul(role: str) -> tuple[str, str]:
    return "bad character", f"{role}: a NUL character; no text has one"


def _too_long(role: str, size: int) -> str:
    return (
        f"{role}: a text of {size:,} characters, more than {MAX_CHARACTERS:,}; split it into rows, or leave such rows"
        " out with data.on_bad_row: skip"
    )


def _wrong(expected: str, value: Any) -> Checked:
    if value is None or value is MISSING:
        return "missing value", f"missing; expected {expected}", None
    return "wrong type", f"expected {expected}, found {_word(value)} ({shown(value)})", None


def _id(value: Any) -> Checked:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return "", "", str(value)
    return _wrong("text or a whole number", value)


def _label(value: Any) -> Checked:
    if value is None or value is MISSING or (isinstance(value, str) and not value.strip()):
        return "missing label", f"missing; {FILL_IN}", None
    if isinstance(value, float) and not math.isfinite(value):
        return "wrong type", f"expected a finite number, found {value}", None
    if isinstance(value, int) and abs(value) >= 2**63:
        return "wrong type", f"{value} does not fit into 64 bits", None
    if isinstance(value, (str, int, float)):
        return "", "", value
    return _wrong("text or a number", value)


def _plain_labels(values: list[Any]) -> bool:
    """Whether all are labels that need no closer look: the quick way for a whole block."""
    kinds = set(map(type, values))
    return (kinds == {str} and all(map(str.strip, values))) or (kinds == {int} and max(map(abs, values)) < 2**63)


def _labels(value: Any) -> Checked:
    if value is None or value is MISSING:
        return "missing label", f"missing; {FILL_IN}", None
    return _list_of(value, (str, int), "a list of names or whole numbers")


def _list_of(value: Any, types: tuple[type, ...], expected: str) -> Checked:
    if not isinstance(value, (list, tuple)):
        return _wrong(expected, value)
    kinds = set(map(type, value))
    if not kinds <= set(types) or len(kinds) > 1:
        odd = next((item for item in value if type(item) not in types), None)
        found = f"{_word(odd)} in it" if not kinds <= set(types) else "both in one"
        return "wrong type", f"expected {expected}, found {found} ({shown(value)})", None
    return "", "", list(value)


def _tokens(value: Any) -> Checked:
    checked = _list_of(value, (str,), "a list of texts")
    if not checked[0] and sum(map(len, value)) > MAX_CHARACTERS:
        return "too long", _too_long("tokens", sum(map(len, value))).removeprefix("tokens: "), None
    return checked


def _flag(value: Any) -> Checked:
    return ("", "", value) if isinstance(value, bool) else _wrong("true or false", value)


def _answers(value: Any) -> Checked:
    """{text: [...], answer_start: [...]}, or a list of {text, answer_start}."""
    expected = "answers with text and answer_start"
    if isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value):
        value = {key: [item.get(key) for item in value] for key in ("text", "answer_start")}
    if not isinstance(value, dict):
        return _wrong(expected, value)
    found, starts = value.get("text"), value.get("answer_start")
    if not (isinstance(found, list) and isinstance(starts, list) and len(found) == len(starts)):
        return "wrong type", f"expected {expected} as lists of one length, found {shown(value)}", None
    if not (set(map(type, found)) <= {str} and set(map(type, starts)) <= {int}):
        return "wrong type", f"expected text, and whole numbers as answer_start, found {shown(value)}", None
    return "", "", {"text": found, "answer_start": starts}


SPAN_PARTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "start": ("a whole number", lambda value: type(value) is int),
    "end": ("a whole number", lambda value: type(value) is int),
    "label": ("the name of a type", lambda value: type(value) is int or (type(value) is str and bool(value.strip()))),
}


def _spans(value: Any) -> Checked:
    expected = "a list of {start, end, label}"
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, dict) for item in value):
        return _wrong(expected, value)
    for item, (key, (word, fits)) in product(value, SPAN_PARTS.items()):
        if not fits(item.get(key)):
            kind, text, _ = _wrong(word, item.get(key))
            return kind, f"{key}: {text}", None
    return "", "", [{key: item[key] for key in SPAN_PARTS} for item in value]


CHECKS: dict[str, Callable[[Any], Checked]] = {
    "id": _id,
    "label": _label,
    "labels": _labels,
    "tokens": _tokens,
    "tags": lambda value: _list_of(value, (str, int), "a list of names or whole numbers"),
    "is_impossible": _flag,
    "answers": _answers,
    "spans": _spans,
}


def _json_cell(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # stays text, which no role of this kind accepts


def _cell_list(separator: str | None) -> Callable[[str], Any]:
    def split(value: str) -> Any:
        if value.lstrip().startswith("["):
            return _json_cell(value)
        return [part.strip() for part in value.split(separator) if part.strip()]

    return split


CELLS: dict[str, Callable[[str], Any]] = {
    "labels": _cell_list(","),
    "tokens": _cell_list(" "),
    "tags": _cell_list(" "),
    "is_impossible": lambda value: {"true": True, "false": False}.get(value.lower(), value),
    "answers": _json_cell,
    "spans": _json_cell,
}
