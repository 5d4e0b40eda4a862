"""The audit in words, for `finetune check`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from finetune.audit.findings import SHOWN_ROWS
from finetune.record import Audit, AuditFinding, SplitAudit

__all__ = ["report"]

WIDTH = 100
MARKS = {"warning": "!", "note": "-"}
SHOWN_LABELS = 8
SHOWN_SCRIPTS = 2


def report(audit: Audit) -> str:
    """A table of the splits, their labels, and the findings, the most important first."""
    lines = ["data", *_table(audit.splits), *_labels(audit.splits)]
    lines += ["", f"findings ({_counted(audit)})"]
    for _, alike in groupby(audit.findings, key=lambda finding: (finding.level, finding.kind)):
        lines += _findings(list(alike))
    for note in audit.notes:
        lines += _wrapped(f"- {note}", "  ")
    return "\n".join(lines)


def _counted(audit: Audit) -> str:
    warnings = sum(finding.level == "warning" for finding in audit.findings)
    others = len(audit.findings) - warnings + len(audit.notes)
    words = [f"{warnings} to act on"] * bool(warnings) + [f"{others} to know"] * bool(others)
    return ", ".join(words) or "nothing odd"


def _table(splits: dict[str, SplitAudit]) -> Iterator[str]:
    heading = ["", "rows", "labels", "tokens: 5 %", "median", "95 %", "most", "cut", "script"]
    rows = [heading, *(_cells(name, one) for name, one in splits.items())]
    widths = [max(len(row[place]) for row in rows) for place in range(len(heading))]
    for row in rows:
        first, *numbers, last = (
            cell.ljust(width) if place in (0, len(row) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"  {first}  {'  '.join(numbers)}  {last}".rstrip()


def _cells(name: str, one: SplitAudit) -> list[str]:
    tokens = one.tokens
    lengths = [f"{tokens.p5:g}", f"{tokens.p50:g}", f"{tokens.p95:g}", str(tokens.max)] if tokens else [""] * 4
    shares = [f"{script or 'none'} {count / one.rows:.0%}" for script, count in one.scripts.items()]
    more = ", …" if len(shares) > SHOWN_SCRIPTS else ""
    labels = str(len(one.labels)) if one.labels else "-"
    return [name, f"{one.rows:,}", labels, *lengths, f"{one.truncated:,}", ", ".join(shares[:SHOWN_SCRIPTS]) + more]


def _labels(splits: dict[str, SplitAudit]) -> Iterator[str]:
    for name, one in splits.items():
        if one.labels:
            yield from _wrapped(f"{name}: {_label_words(one.labels)}", "  ", "    ")


def _label_words(counts: dict[str, int]) -> str:
    if len(counts) <= SHOWN_LABELS:
        return ", ".join(f"{name} ({count:,})" for name, count in counts.items())
    (most, largest), (least, smallest) = next(iter(counts.items())), list(counts.items())[-1]
    return f"{len(counts)} labels, from {most} ({largest:,}) to {least} ({smallest:,})"


def _findings(alike: list[AuditFinding]) -> Iterator[str]:
    """Findings of one kind, split by split, with their remedy."""
    mark = MARKS[alike[0].level]
    for finding in alike:
        yield from _wrapped(f"{mark} {finding.text}", "  ")
        if finding.places:
            yield from _wrapped(_fitting(finding), "    ", "      ")
        mark = " "
    if alike[0].remedy:
        yield from _wrapped(f"-> {alike[0].remedy}", "    ", "       ")


def _fitting(finding: AuditFinding) -> str:
    """As many places as fit on a line, one at least."""
    shown = finding.places[0]
    for number, place in enumerate(finding.places[1:SHOWN_ROWS], 2):
        if len(shown) + len(place) + 9 > WIDTH:
            return f"{shown}; …"
        shown = f"{shown}; {place}" + ("; …" if number == SHOWN_ROWS < finding.count else "")
    return shown


def _wrapped(text: str, first: str, rest: str = "    ") -> Sequence[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
