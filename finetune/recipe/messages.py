"""What pydantic finds wrong with a recipe, in the words of the user: expected this, found that, do so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Mapping
from typing import Any

from pydantic import ValidationError

from finetune.recipe import keys
from finetune.recipe.yaml_lines import KeyPath, Problem, dotted

__all__ = ["explain", "found"]

FALSE_WORDS = ("no", "off", "n", "false")
TRUE_WORDS = ("yes", "on", "y", "true")
MAX_DETAILED = 100  # finding a near key takes a millisecond
LATER_TASKS = ("masked", "causal")


def found(value: Any, written: str | None = None) -> str:
    """A value as a message names it; `written`: how it stands in the file."""
    if value is None:
        return "null" if written else "nothing"
    if isinstance(value, (dict, list)):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:57]}…")
    return (written or str(value).lower())[:60]


def explain(
    error: ValidationError, data: dict[str, Any], written: Mapping[KeyPath, str], full: Container[KeyPath]
) -> list[Problem]:
    """One problem for each key that is wrong.

    data: what was validated; written: scalars as they stand in the file; full: keys that are not read in their block,
    so that a neighbour is named with its full path.
    """
    problems: dict[KeyPath, Problem] = {}
    meant = set()
    for item in error.errors(include_url=False, include_context=False):
        path, value = _place(item["loc"], data)
        if item["type"] == "missing":
            text = f"missing; {_about((*path, item['loc'][-1]))}"
            path = (*path, item["loc"][-1])
        elif item["type"] == "extra_forbidden":
            key, hint = keys.nearest(path, path in full) if len(problems) < MAX_DETAILED else (None, "remove it")
            meant.add(key)
            text = f"unknown key; {hint}"
        elif item["loc"][-1] == "[key]":
            text = _wrong_name(path)
        elif len(problems) < MAX_DETAILED:
            text = _wrong_value(path, value, written.get(path))
        else:
            text = f"expected another value, found {found(value, written.get(path))}"
        problems.setdefault(path, Problem(None, dotted(path), text, path))
    above = {path[:end] for path in problems for end in range(len(path))}
    return [problem for path, problem in problems.items() if not _repeated(problem, path in above, meant)]


def _repeated(problem: Problem, above: bool, meant: set[str | None]) -> bool:
    """A deeper problem says it better; a key that is missing because it is misspelt is named once."""
    return problem.key in meant if problem.text.startswith("missing;") else above


def _place(location: tuple[str | int, ...], data: Any) -> tuple[KeyPath, Any]:
    """Path and value in `data`: a location also names the alternatives of a type that were tried."""
    path: list[str | int] = []
    for part in location:
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            path.append(part)
            data = data[part]
    return tuple(path), data


def _about(path: KeyPath) -> str:
    text = keys.description(path)
    lower = text[1:2].islower() and not text.startswith("Hub ")
    return (text[:1].lower() if lower else text[:1]) + text[1:].rstrip(".")


def _wrong_name(path: KeyPath) -> str:
    words = keys.key_words(path[:-1]) or "another name"
    close = difflib.get_close_matches(str(path[-1]), re.findall(r"\w+", words), 1, 0.4)
    return f"expected {words}" + (f"; did you mean {close[0]}?" if close else "")


def _wrong_value(path: KeyPath, value: Any, written: str | None) -> str:
    kind = keys.annotation(path)
    if path == ("task",) and value in LATER_TASKS:
        return f"{value} is not available yet; expected {keys.expected(path)}"
    return f"expected {keys.expected(path)}, found {found(value, written)}{_hint(kind, path, value, written)}"


def _hint(kind: Any, path: KeyPath, value: Any, written: str | None) -> str:
    if isinstance(value, str):
        if keys.accepts(kind, bool) and value.lower() in FALSE_WORDS + TRUE_WORDS:
            return f"; write {'true' if value.lower() in TRUE_WORDS else 'false'}"
        if _is_number(value) and (keys.accepts(kind, int) or keys.accepts(kind, float)):
            return f"; write {value} without quotes" if written is None else ""
        close = difflib.get_close_matches(value, re.findall(r"[\w-]+", keys.expected(path)), 1, 0.7)
        return f"; did you mean {close[0]}?" if close and close[0] != value else ""
    if value is None and keys.is_optional(path):
        return "; remove it for the default"
    if isinstance(value, (bool, int, float)) and keys.accepts(kind, str):
        return f"; put it in quotes: '{written or value}'"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
