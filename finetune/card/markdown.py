"""Pieces of Markdown in which a value stays text: nothing a value holds becomes markup, HTML or a link."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["HUB", "bullets", "code", "fence", "image", "link", "prose", "table", "text", "visible"]

HUB = "https://huggingface.co"
LONGEST = 160  # characters of one value; a label or a name of megabytes must not fill the page
SENTENCES = 1200  # characters of one note
BLANKED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, line and paragraph separators
BIDI = dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])  # reorder what is shown
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
WORD_JOINER = "\u2060"  # invisible; keeps renderers from turning addresses into links, which they do after unescaping


def text(value: object) -> str:
    """One line of plain text for any place of a page, cells of tables included."""
    return _escape(_line(value))


def prose(value: str) -> str:
    """Sentences in which only pairs of single backticks mean something: what they hold is shown as code."""
    pieces = re.split(r"`([^`]+)`", _line(value, SENTENCES))
    return "".join(code(piece) if number % 2 else _escape(piece) for number, piece in enumerate(pieces))


def _escape(clean: str) -> str:
    escaped = re.sub(r"[\\`*_\[\]~$]", r"\\\g<0>", clean)
    escaped = re.sub(r"[&<>|]", lambda found: ENTITIES[found[0]], escaped)
    escaped = re.sub(r"^([-+=#:]|\d+(?=[.)]))", _escape_start, escaped)
    return re.sub(r"(?<=:)(?=//)|(?<=@)|(?<=www)(?=\.)", WORD_JOINER, escaped, flags=re.IGNORECASE)


def code(value: object) -> str:
    """A code span on one line; text where a table could not hold the span (a pipe)."""
    clean = _line(value)
    if "|" in clean:
        return text(clean)
    marks = "`" * (_longest_run(clean) + 1)
    room = " " if clean.startswith("`") or clean.endswith("`") else ""
    return f"{marks}{room}{clean}{room}{marks}" if clean else "(empty)"


def fence(value: str, language: str = "") -> str:
    """A block of code; its fence is longer than any run of backticks in it."""
    marks = "`" * max(3, _longest_run(value) + 1)
    body = visible(value, keep="\n\t", instead="").rstrip()
    return f"{marks}{language}\n{body}\n{marks}"


def link(label: str, address: str) -> str:
    """A link; `label` is Markdown already, `address` an address of ours without spaces or brackets."""
    assert re.fullmatch(r"https://[\w./-]+", address, re.ASCII), address
    return f"[{label}]({address})"


def image(shown: str, place: str) -> str:
    """A picture of this repository; `shown`, of ours, says what is on it."""
    return f"![{shown}]({place})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table of cells that are Markdown already; columns `right` are aligned to the right."""
    aligned = set(right)
    rule = ["---:" if column in aligned else "---" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def bullets(items: Iterable[str]) -> str:
    """A list of items that are Markdown already."""
    return "\n".join(f"- {item}" for item in items)


def _line(value: object, longest: int = LONGEST) -> str:
    line = " ".join(visible(str(value)[: 4 * longest]).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def visible(value: str, keep: str = "", instead: str = " ") -> str:
    """`value` without characters that reorder what is shown; `instead` of each control character not in `keep`."""
    shown = (instead if unicodedata.category(char) in BLANKED and char not in keep else char for char in value)
    return "".join(shown).translate(BIDI)


def _longest_run(value: str) -> int:
    return max((len(run) for run in re.findall("`+", value)), default=0)


def _escape_start(found: re.Match[str]) -> str:
    # A digit cannot be escaped, the point after it can.
    return found[0] + "\\" if found[0].isdigit() else "\\" + found[0]
