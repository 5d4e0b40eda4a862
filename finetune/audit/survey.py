"""The audit of the rows as they will be used: what is odd about them, and which rules of the recipe that breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from finetune.analysis.slices import column_problem
from finetune.audit import distribution, near_duplicates, overlaps, scripts
from finetune.audit.findings import NAMED_ROWS, finding, remark
from finetune.data.problems import Problems
from finetune.features import Features
from finetune.recipe import AuditBlock
from finetune.record import Audit, AuditFinding, SplitAudit
from finetune.rows import Rows

__all__ = ["survey"]

IMPORTANT = (  # what misleads most comes first
    *("leakage", "near_leakage", "shared_contexts", "conflicts", "truncated", "absent_labels"),
    *("label_spellings", "rare_labels", "label_shift", "value_shift", "script_shift", "unscored_labels"),
    *("duplicates", "near_duplicates", "poor_slices", "overlap", "near_overlap", "one_character"),
    *("other_script", "length_shift"),
)
LEVELS = ("warning", "note")
MUCH_TRUNCATED = 0.1  # of the rows of a split


def survey(
    rules: AuditBlock | None,
    splits: dict[str, Rows],
    features: dict[str, Features],
    notes: Sequence[str] = (),
    *,
    regression: bool = False,
    max_length: int = 0,
) -> Audit:
    """Look at all splits. Raises DataError, with the rows, when one of the recipe's rules is broken.

    notes: what else is known of the rows. regression: labels are numbers.
    """
    begun = time.perf_counter()
    rules = rules or AuditBlock()
    rows = sum(map(len, splits.values()))
    near = rows <= overlaps.NEAR_ROWS or rules.max_near_leakage is not None
    counts = {split: {} for split in splits} if regression else distribution.label_counts(splits)
    values = {split: _numbers(one) for split, one in splits.items()} if regression else {}
    lengths = {split: distribution.characters(one) for split, one in splits.items()}
    written = {split: scripts.of_rows(one) for split, one in splits.items()}
    truncated = {split: _truncated(features[split]) for split in splits}
    shifts = list(distribution.shifts(counts, values, lengths))
    found = [
        *overlaps.find(splits, near_duplicates_too=near),
        *distribution.label_findings(splits, counts),
        *filter(None, (distribution.shift_finding(shift, splits[shift.split], counts) for shift in shifts)),
        *_short(splits, lengths),
        *_cut(splits, truncated, max_length),
        *scripts.findings(splits, written),
        *_slices(splits),
    ]
    problems = Problems()
    for one in found:
        _judge(one, rules, problems)
    problems.check("data")
    return Audit(
        findings=sorted(found, key=lambda one: (LEVELS.index(one.level), IMPORTANT.index(one.kind))),
        splits={
            split: SplitAudit(
                rows=len(one),
                labels=counts[split],
                characters=distribution.quantiles(lengths[split]),
                tokens=distribution.quantiles(features[split].lengths),
                truncated=len(truncated[split]),
                scripts=_script_counts(written[split]),
            )
            for split, one in splits.items()
        },
        shifts=shifts,
        notes=[*notes, *_left_out(splits), *_unused(splits), *([] if near else [_not_near(rows)])],
        method=near_duplicates.METHOD if near else "",
        seconds=round(time.perf_counter() - begun, 3),
    )


def _not_near(rows: int) -> str:
    return (
        f"near-duplicates were not looked for: {rows:,} rows are more than {overlaps.NEAR_ROWS:,};"
        " audit.max_near_leakage asks for it"
    )


def _numbers(one: Rows) -> np.ndarray:
    return np.array(one.column("label"), dtype=np.float64)


def _truncated(features: Features) -> list[int]:
    """The rows that lose tokens."""
    return np.unique(features.scalars["row"][features.scalars["truncated"].astype(bool)]).tolist()  # type: ignore[no-any-return]


def _script_counts(written: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(written.astype(str), return_counts=True)
    return {str(names[place]): int(counts[place]) for place in np.argsort(-counts, kind="stable")}


def _short(splits: dict[str, Rows], lengths: dict[str, np.ndarray]) -> Iterator[AuditFinding]:
    for split, one in splits.items():
        if rows := np.flatnonzero(lengths[split] == 1).tolist():
            remedy = "is that a text? leave them out if not"
            yield finding("one_character", one, rows, "have one character only", level="note", remedy=remedy)


def _cut(splits: dict[str, Rows], truncated: dict[str, list[int]], max_length: int) -> Iterator[AuditFinding]:
    for split, one in splits.items():
        if rows := truncated[split]:
            much = len(rows) > MUCH_TRUNCATED * len(one)
            says = f"are cut at {max_length} tokens"
            remedy = "raise data.max_length, unless what decides comes first"
            yield finding("truncated", one, rows, says, level="warning" if much else "note", remedy=remedy)


def _slices(splits: dict[str, Rows]) -> Iterator[AuditFinding]:
    """Columns of `evaluate.slices` whose values are too many to be scored apart."""
    remedy = "choose a column with fewer values, or group them"
    for split, one in splits.items():
        for name, values in one.kept().items() if split != "train" else ():
            if problem := column_problem(values):
                yield remark("poor_slices", one, f"evaluate.slices: {name}: {problem}", remedy)


def _left_out(splits: dict[str, Rows]) -> Iterator[str]:
    """Files of the folder that belong to no split, where there are any."""
    for names in {one.files_left_out for one in splits.values() if one.files_left_out}:
        yield f"files of no split, by their names: {_shown(names)}; data.path: {{train: …, test: …}} names each file"


def _unused(splits: dict[str, Rows]) -> Iterator[str]:
    """Columns of the source that no role reads, where there are any."""
    for names in dict.fromkeys(one.unused for one in splits.values() if one.unused):
        where = ", ".join(split for split, one in splits.items() if one.unused == names)
        yield f"{where}: columns that no role reads: {_shown(names)}"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_ROWS]) + (", …" if len(names) > NAMED_ROWS else "")


def _judge(found: AuditFinding, rules: AuditBlock, problems: Problems) -> None:
    """A problem where the share of the rows is above a limit of the recipe."""
    limit = getattr(rules, f"max_{found.kind}", None)
    if limit is None or found.count <= limit * found.rows:
        return
    rows = "; ".join(found.places) + ("; …" if found.count > len(found.places) else "")
    text = f"{found.text}; audit.max_{found.kind} allows {limit:.4g} of them: {rows}; {found.remedy}"
    problems.add(f"audit.max_{found.kind}", text)
