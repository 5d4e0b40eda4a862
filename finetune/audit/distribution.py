"""How often each label is given, how long the texts are, and how far the splits are from train in both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from finetune.audit.findings import BLOCK_ROWS, blocks, finding, inputs, remark, texts
from finetune.record import AuditFinding, Quantiles, Shift
from finetune.rows import Rows, from_arrow
from finetune.tasks.gold import read_gold
from finetune.tasks.tagging import is_entities, split_tag

__all__ = ["characters", "label_counts", "label_findings", "quantiles", "shift_finding", "shifts"]

LABELS = ("label", "labels", "tags", "spans")
RARE = 10  # a label that train has less often is hardly learnt
SHOWN_LABELS = 6
DRAWS = 999
MOST_LABELS = 1_000  # compared one by one; the rest as one
LARGE_SHIFT = {"labels": 0.05, "values": 0.1, "characters": 0.1}  # a smaller distance is not worth a warning
_SEED = 20_240_229
_KOLMOGOROV_99 = 1.6276  # 99th percentile of Kolmogorov's distribution


# ------------------------------------------------------------------------------------------------------------- labels


def label_counts(splits: dict[str, Rows]) -> dict[str, dict[str, int]]:
    """Split -> label -> how often it is given, the most frequent first; empty where answers are no classes.

    Tags count as entities where they mark them, else by words; questions as answered or not, where some are not.
    """
    columns = next(iter(splits.values())).table.column_names
    if "tags" in columns or "spans" in columns:
        return _entities(splits)
    return {split: _answered(one) if "answers" in columns else _labels(one) for split, one in splits.items()}


def _entities(splits: dict[str, Rows]) -> dict[str, dict[str, int]]:
    gold = read_gold(splits)
    tags = gold.schema(gold.kinds())
    found = {}
    for split, one in splits.items():
        counts = np.zeros(len(tags.labels), dtype=np.int64)
        for batch in one.batches(BLOCK_ROWS):
            counts += np.bincount(tags.convert(*gold.numbers(batch)), minlength=len(counts))
        named = dict(zip(tags.labels, counts.tolist(), strict=True))
        if tags.entities:
            named = {kind: named[f"B-{kind}"] for kind in tags.kinds}
        found[split] = _ordered({name: count for name, count in named.items() if count})
    return found


def _answered(one: Rows) -> dict[str, int]:
    no_answer = sum(not each["text"] for _, (answers,) in blocks(one, ["answers"]) for each in answers)
    return _ordered({"answered": len(one) - no_answer, "no answer": no_answer}) if no_answer else {}


def _labels(one: Rows) -> dict[str, int]:
    role = next((role for role in ("label", "labels") if role in one.table.column_names), None)
    if role is None:
        return {}
    counts: Counter[Any] = Counter()
    for _, (values,) in blocks(one, [role]):
        counts.update(values if role == "label" else chain.from_iterable(values))
    names = one.class_names.get(role)
    return _ordered({names[value] if names else str(value): n for value, n in counts.items()})


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def label_findings(splits: dict[str, Rows], counts: dict[str, dict[str, int]]) -> Iterator[AuditFinding]:
    """Labels that train hardly has or lacks, and labels that an evaluation split lacks."""
    train = splits.get("train")
    if train is None or not counts["train"] or "answers" in train.table.column_names:
        return
    known = counts["train"]
    declared = [name for role in ("label", "labels") for name in train.class_names.get(role, [])]
    if absent := [name for name in declared if name not in known]:
        says = f"no row has the label {_listed(absent)}, which the data declares"
        yield remark("absent_labels", train, says, "it cannot be learnt: add rows, or take it out of the names")
    if rare := {name for name, count in known.items() if count < RARE}:
        shown = _listed([f"{name} ({count})" for name, count in reversed(known.items()) if name in rare])
        says = f"have a label that train gives less than {RARE} times: {shown}"
        yield finding("rare_labels", train, _rows_with(train, rare), says, remedy="add rows, or merge labels")
    if alike := _spellings(known):
        says = f"labels that differ in capitals or in blanks around them only: {_listed(alike)}"
        yield remark("label_spellings", train, says, "write them alike, or each is a class of its own")
    for split, one in splits.items():
        if unseen := [name for name in known if name not in counts[split]]:
            says = f"{len(unseen)} of the {len(known)} labels of train never come ({_listed(unseen)})"
            yield remark("unscored_labels", one, says, "scores on it say nothing of them", "note")


def _spellings(counts: dict[str, int]) -> list[str]:
    """Labels that are written in several ways, the ways side by side."""
    ways: dict[str, list[str]] = {}
    for name, count in counts.items():
        ways.setdefault(name.strip().casefold(), []).append(f"{name!r} ({count:,})")
    return [" and ".join(several) for several in ways.values() if len(several) > 1]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_LABELS]) + (", …" if len(names) > SHOWN_LABELS else "")


def _rows_with(one: Rows, wanted: set[str]) -> list[int]:
    """The rows that have one of the labels, as `label_counts` names them."""
    role = next(role for role in LABELS if role in one.table.column_names)
    names = one.class_names.get(role)
    tagged = role == "tags" and is_entities(names or list(map(str, _flat(one, role))))

    def named(value: Any) -> str:
        value = value["label"] if role == "spans" else value
        name = names[value] if names else str(value)
        return split_tag(name)[1] if tagged else name

    return [
        row
        for first, (values,) in blocks(one, [role])
        for row, value in enumerate(values, first)
        if any(named(each) in wanted for each in ([value] if role == "label" else value))
    ]


def _flat(one: Rows, role: str) -> list[Any]:
    return pc.unique(pc.list_flatten(one.table.column(role))).to_pylist()  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------------ lengths


def characters(one: Rows) -> np.ndarray:
    """Characters of all texts of each row, int64 (n,), without white space around a text."""
    total = np.zeros(len(one), dtype=np.int64)
    for role in inputs(one):
        total += from_arrow(pc.utf8_length(pc.utf8_trim_whitespace(texts(one, role))))
    return total


def quantiles(lengths: np.ndarray) -> Quantiles:
    """Of lengths (n,), n at least 1; values between two lengths are interpolated."""
    found = np.percentile(lengths, (5, 25, 50, 75, 95)).round(1).tolist()
    return Quantiles(**dict(zip(("p5", "p25", "p50", "p75", "p95"), found, strict=True)), max=int(lengths.max()))


# ------------------------------------------------------------------------------------------------------------- shifts


def shifts(
    counts: dict[str, dict[str, int]], values: dict[str, np.ndarray], lengths: dict[str, np.ndarray]
) -> Iterator[Shift]:
    """How far each split is from train: labels by counts, answers that are numbers (n,), characters of rows (n,).

    Labels: total variation distance, against 999 pairs of multinomial samples from both splits together. Words of one
    sentence and labels of one row count as if they were independent, so that `by_chance` is a little low for them.
    Numbers: two-sample Kolmogorov-Smirnov distance with its limit distribution (Smirnov 1948), conservative for ties.
    """
    for split in counts:
        if split == "train" or "train" not in counts:
            continue
        if counts[split] and counts["train"]:
            yield _label_shift(split, counts["train"], counts[split])
        if split in values and "train" in values:
            yield _number_shift(split, "values", values["train"], values[split])
        yield _number_shift(split, "characters", lengths["train"], lengths[split])


def _label_shift(split: str, train: dict[str, int], other: dict[str, int]) -> Shift:
    names = [*train, *(name for name in other if name not in train)]
    table = np.array([[counts.get(name, 0) for name in names] for counts in (train, other)])
    if table.shape[1] > MOST_LABELS:
        table = np.column_stack([table[:, :MOST_LABELS], table[:, MOST_LABELS:].sum(axis=1)])
    one, two = table.sum(axis=1)
    together = table.sum(axis=0) / table.sum()
    draw = np.random.default_rng(_SEED)
    distance = float(_total_variation(table[0] / one, table[1] / two))
    chance = _total_variation(
        draw.multinomial(one, together, DRAWS) / one, draw.multinomial(two, together, DRAWS) / two
    )
    p = (1 + int(np.sum(chance >= distance - 1e-12))) / (1 + DRAWS)
    by_chance = float(np.percentile(chance, 99))
    return Shift(split=split, of="labels", distance=round(distance, 4), by_chance=round(by_chance, 4), p=p)


def _total_variation(one: np.ndarray, other: np.ndarray) -> Any:
    return np.abs(one - other).sum(axis=-1) / 2


def _number_shift(split: str, of: Literal["values", "characters"], train: np.ndarray, other: np.ndarray) -> Shift:
    both = np.concatenate([train, other])
    shares = [np.searchsorted(np.sort(part), both, "right") / len(part) for part in (train, other)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    scale = np.sqrt(len(train) * len(other) / len(both))
    p = _kolmogorov(distance * float(scale))
    by_chance = min(1.0, _KOLMOGOROV_99 / scale)
    return Shift(split=split, of=of, distance=round(distance, 4), by_chance=round(by_chance, 4), p=float(f"{p:.2g}"))


def _kolmogorov(x: float) -> float:
    """The probability of Kolmogorov's distribution above x (scipy.special.kolmogorov, whose import takes longer).

    Two series for the same; each is used where a few terms give all digits.
    """
    if x <= 0:
        return 1.0
    terms = range(1, 12)
    if x < 1:
        below = sum(math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in terms)
        return 1.0 - math.sqrt(2 * math.pi) / x * below
    return 2 * sum((1 if k % 2 else -1) * math.exp(-2 * k * k * x * x) for k in terms)


def shift_finding(shift: Shift, one: Rows, counts: dict[str, dict[str, int]]) -> AuditFinding | None:
    """A finding where the distance is larger than chance makes it, and large."""
    if shift.distance <= max(shift.by_chance, LARGE_SHIFT[shift.of]):
        return None
    figures = f"distance {shift.distance:.2f}, below {shift.by_chance:.2f} by chance"
    if shift.of == "labels":
        moved = _moved(counts["train"], counts[shift.split])
        says = f"labels are given in other shares than in train ({figures}): {moved}"
        return remark("label_shift", one, says, "compare scores that weigh all labels alike, such as macro F1")
    what = "answers" if shift.of == "values" else "texts"
    word = "distributed otherwise" if shift.of == "values" else "of other lengths"
    says = f"{what} are {word} than in train ({figures})"
    return remark(f"{'value' if shift.of == 'values' else 'length'}_shift", one, says, "", "note")


def _moved(train: dict[str, int], other: dict[str, int]) -> str:
    """The labels whose shares differ most."""
    one, two = sum(train.values()), sum(other.values())
    gaps = {name: other.get(name, 0) / two - train.get(name, 0) / one for name in {**train, **other}}
    largest = sorted(gaps, key=lambda name: -abs(gaps[name]))[:2]
    return ", ".join(f"{name} {train.get(name, 0) / one:.1%} -> {other.get(name, 0) / two:.1%}" for name in largest)
