"""The section on what is odd about the rows, and how long they are."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.card.figures import count, share
from finetune.record import Audit, RunRecord
from finetune.report.blocks import Block, Facts, Folded, Note, Section, Table

__all__ = ["auditing"]

LABELS = 40  # of a table


def auditing(record: RunRecord) -> Section:
    """The findings of the audit, the most important first; lengths, labels and how far splits are apart."""
    section, found = Section("audit", "Data audit"), record.audit
    if found is None:
        return section
    section.blocks += [*_findings(found), *_lengths(found), *_labels(found), *_shifts(found), *_scripts(found)]
    said = " ".join([*found.notes, found.method]).strip()
    section.blocks += [Note(said)] if said else []
    return section


def _findings(found: Audit) -> Iterator[Block]:
    if not found.findings:
        yield Note("Nothing odd was found.")
        return
    rows = [
        [
            one.level,
            one.kind.replace("_", " "),
            one.split + (f", {one.other}" if one.other else ""),
            f"{count(one.count)} ({share(one.count / one.rows)})" if one.rows else count(one.count),
            f"{one.text} {one.remedy}".strip(),
        ]
        for one in found.findings
    ]
    yield Table("Findings", ["level", "kind", "split", "rows", "what, and what to do"], rows, right=(3,), wide=(4,))
    for one in found.findings:
        if one.places or one.ids:
            yield Folded(f"{one.kind.replace('_', ' ')}, {one.split}: rows", "\n".join(one.places or one.ids))


def _lengths(found: Audit) -> Iterator[Block]:
    rows = [
        [name, unit, *(count(value) for value in (of.p5, of.p25, of.p50, of.p75, of.p95, of.max))]
        for name, split in found.splits.items()
        for unit, of in (("characters", split.characters), ("tokens", split.tokens))
        if of is not None
    ]
    header = ["split", "unit", "5 %", "25 %", "median", "75 %", "95 %", "longest"]
    if rows:
        yield Table("Length of the rows: quantiles", header, rows, right=range(2, 8))


def _labels(found: Audit) -> Iterator[Block]:
    names = list(dict.fromkeys(label for split in found.splits.values() for label in split.labels))
    if not names:
        return
    totals = {name: sum(split.labels.values()) for name, split in found.splits.items()}
    rows = [
        [label, *(_portion(split.labels.get(label, 0), totals[name]) for name, split in found.splits.items())]
        for label in names[:LABELS]
    ]
    more = f"; the first {LABELS} of {count(len(names))}" if len(names) > LABELS else ""
    header = ["label", *found.splits]
    yield Table(f"Labels by split{more}", header, rows, right=range(1, len(header)))


def _portion(number: int, total: int) -> str:
    return f"{count(number)} ({share(number / total)})" if total else "–"


def _shifts(found: Audit) -> Iterator[Block]:
    rows = [[one.split, one.of, f"{one.distance:.3f}", f"{one.by_chance:.3f}", f"{one.p:.3f}"] for one in found.shifts]
    header = ["split", "in", "distance", "by chance below", "p"]
    if rows:
        yield Table("Distance from train: 0 alike, 1 nothing in common", header, rows, right=(2, 3, 4))


def _scripts(found: Audit) -> Iterator[Block]:
    facts = [
        (
            f"scripts of {name}",
            ", ".join(f"{kind or 'no letters'} {count(rows)}" for kind, rows in split.scripts.items()),
        )
        for name, split in found.splits.items()
        if split.scripts
    ]
    if facts:
        yield Facts(facts)
