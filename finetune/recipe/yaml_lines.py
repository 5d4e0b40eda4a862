"""Untrusted YAML 1.2 as plain Python values that know their lines.

Built from parser events, so nothing is expanded or constructed before it is checked. Scalars follow the core schema of
YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): `no`, `off` and dates are text, `1e-5` is a number. Anchors,
aliases, merge keys and tags are refused, and so are duplicate keys, numbers that are not finite, NUL and lone
surrogates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FORBIDDEN", "MAX_BYTES", "MAX_DEPTH", "Document", "KeyPath", "Problem", "dotted", "dump", "read", "scalar"]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 5_000
MAX_LINE = 16_384  # characters; the scanner looks far ahead in a line, and some of its loops are quadratic

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LINE_SEPARATORS = re.compile("[\u2028\u2029\ufeff]")  # line breaks to a YAML reader
_PLAIN = re.compile(r"([A-Za-z_/]|\.\.?/)[\w./@+-]*( [\w./@+-]+)*", re.ASCII)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: at which line (from 1) of which key, and what to do about it."""

    line: int | None
    key: str
    text: str
    path: KeyPath = ()


@dataclass
class Document:
    """A value with, for each key path in it, the line it stands on (from 1) and the scalar as it is written."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    complete: bool = True  # False: reading stopped at a problem

    def line(self, path: KeyPath) -> int | None:
        """The line of the deepest part of `path` that the document holds."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path) if path else None


class _StopError(Exception):
    """Reading further would cost too much or make no sense."""


def scalar(text: str) -> Any:
    """The value of an unquoted scalar. Raises ValueError when it is a number that is not finite or is too large."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        if len(text) > 40 or abs(number := int(text, base)) >= 2**63:
            raise ValueError("a whole number of more than 64 bits")
        return number
    if _FLOAT.fullmatch(text):
        if abs(value := float(text)) == float("inf"):
            raise ValueError(f"{text[:40]} is too large for a number")
        return value
    return text


def dotted(path: KeyPath) -> str:
    """`data.columns.text`; list positions count from 0."""
    return ".".join(map(str, path))


class _Reader:
    def __init__(self, events: Iterator[Any]) -> None:
        self.events = events
        self.found = Document()
        self.count = 0

    def refuse(self, event: Any, path: KeyPath, text: str) -> None:
        self.found.problems.append(Problem(event.start_mark.line + 1, dotted(path), text, path))

    def stop(self, event: Any, path: KeyPath, text: str) -> _StopError:
        self.refuse(event, path, text)
        return _StopError()

    def document(self) -> None:
        for event in self.events:
            match type(event).__name__:
                case "StreamStartEvent" | "StreamEndEvent" | "DocumentEndEvent":
                    continue
                case "DocumentStartEvent" if self.count:
                    raise self.stop(event, (), "a second document starts here; write one file for each")
                case "DocumentStartEvent":
                    if event.version not in (None, (1, 2)):
                        raise self.stop(event, (), "only YAML 1.2 is read; remove the %YAML line")
                case _:
                    self.found.value = self.node(event, (), 1)

    def node(self, event: Any, path: KeyPath, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.stop(event, (), f"more than {MAX_VALUES} values; a recipe is small")
        if depth > MAX_DEPTH:
            raise self.stop(event, (), f"nested more than {MAX_DEPTH} levels deep; a recipe has 4")
        name = type(event).__name__
        if name == "AliasEvent":
            self.refuse(event, path, f"aliases (*{event.anchor[:40]}) are not read; quote a text that starts with *")
            return None
        if event.anchor is not None:
            self.refuse(event, path, f"anchors (&{event.anchor[:40]}) are not read; quote a text that starts with &")
        if event.tag is not None:
            self.refuse(event, path, f"tags ({str(event.tag)[:60]}) are not read; quote a text that starts with !")
        if name == "MappingStartEvent":
            return self.mapping(path, depth)
        if name == "SequenceStartEvent":
            return self.sequence(path, depth)
        return self.scalar(event, path)

    def mapping(self, path: KeyPath, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while type(event := next(self.events)).__name__ != "MappingEndEvent":
            key, line = self.key(event, path, depth), event.start_mark.line + 1
            here = (*path, key)
            if key == "<<" and event.implicit[0]:
                self.refuse(event, here, "merge keys are not read; write the keys out")
                self.skip(here, depth)
            elif key in found:
                self.refuse(event, here, f"given twice, first on line {self.found.lines[here]}; keep one")
                self.skip(here, depth)
            else:
                self.found.lines[here] = line
                found[key] = self.node(next(self.events), here, depth + 1)
        return found

    def skip(self, path: KeyPath, depth: int) -> None:
        """Read a value for its problems only."""
        kept, self.found = self.found, Document(problems=self.found.problems)
        self.node(next(self.events), path, depth + 1)
        self.found = kept

    def key(self, event: Any, path: KeyPath, depth: int) -> str:
        if type(event).__name__ != "ScalarEvent":
            raise self.stop(event, path, "a key must be a word, not a mapping, a list or an alias")
        value = self.node(event, path, depth)
        self.found.written.pop(path, None)
        if isinstance(value, str):
            return value
        text = f"expected a name as key, found {event.value or 'nothing'}; put it in quotes"
        self.refuse(event, (*path, event.value), text)
        return str(event.value)

    def sequence(self, path: KeyPath, depth: int) -> list[Any]:
        found: list[Any] = []
        while type(event := next(self.events)).__name__ != "SequenceEndEvent":
            here = (*path, len(found))
            self.found.lines[here] = event.start_mark.line + 1
            found.append(self.node(event, here, depth + 1))
        return found

    def scalar(self, event: Any, path: KeyPath) -> Any:
        if FORBIDDEN.search(event.value):
            self.refuse(event, path, "holds a control character or half of a surrogate pair; remove it")
            return FORBIDDEN.sub("?", event.value)
        if not event.implicit[0]:
            return event.value
        self.found.written[path] = event.value
        try:
            return scalar(event.value)
        except ValueError as error:
            self.refuse(event, path, f"{error}; write a finite number")
            return 0


def read(content: bytes) -> Document:
    """Read one YAML document of at most MAX_BYTES in UTF-8 (a byte order mark is skipped).

    Whatever is wrong with it is in `.problems`; `.value` then holds what could be read.
    """
    if len(content) > MAX_BYTES:
        return _refused(None, f"larger than {MAX_BYTES // 1024} KB; a recipe is small")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return _refused(line, f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8")
    if found := FORBIDDEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        return _refused(line, f"character U+{ord(found[0]):04X} is not allowed; remove it")
    for number, written in enumerate(text.split("\n"), 1):
        if len(written) > MAX_LINE:
            return _refused(number, f"a line of more than {MAX_LINE} characters; break it up")
    return _read(text)


def _refused(line: int | None, text: str) -> Document:
    return Document(complete=False, problems=[Problem(line, "", text)])


def _read(text: str) -> Document:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = _Reader(iter(YAML(typ="safe", pure=True).parse(text)))
    try:
        reader.document()
        return reader.found
    except _StopError:
        pass  # said in its problems
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        about = ", ".join(filter(None, (error.problem, error.context)))
        if error.context_mark and mark and error.context_mark.line != mark.line:
            about += f" that starts on line {error.context_mark.line + 1}"
        reader.found.problems.append(Problem(mark.line + 1 if mark else None, "", f"not valid YAML: {about}"))
    except YAMLError as error:
        reader.found.problems.append(Problem(None, "", f"not valid YAML: {str(error).splitlines()[0]}"))
    reader.found.complete = False
    return reader.found


def dump(value: Mapping[str, Any], indent: int = 0) -> str:
    """Plain values as YAML that `read` reads back unchanged: blocks of keys, other text in JSON's quotes."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines.append(f"{' ' * indent}{_inline(key)}:\n{dump(item, indent + 2)}")
        else:
            lines.append(f"{' ' * indent}{_inline(key)}: {_inline(item)}\n")
    return "".join(lines)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _inline(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and scalar(value) == value
        return value if plain else _LINE_SEPARATORS.sub(_escaped, json.dumps(value, ensure_ascii=False))
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_inline(key)}: {_inline(item)}' for key, item in value.items())}}}"
    return json.dumps(value)
