"""The sections on where the model fails: calibration, confusion, groups of rows, hard rows, changed texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.card.figures import bounds, count, interval
from finetune.card.public_names import metric_name
from finetune.card.weaknesses import kind_of, shown_analysis
from finetune.record import Analysis, Interval, RunRecord
from finetune.record.analysis import MEASURES, Calibration, Confusion, Slice, Suspect, WorstRow
from finetune.report.blocks import Beside, Block, Chart, Facts, Note, Section, Table
from finetune.report.charts import draw_matrix, draw_reliability, matrix_size
from finetune.report.drawing import blank, svg

__all__ = ["Shown", "failing", "hard_rows"]

Shown = Mapping[str, Mapping[str, Mapping[str, Any]]]  # split -> id -> a line of hard_rows.jsonl
PAIRS = 10  # of confused labels
GROUPS = 30  # of one kind
CUT = 400  # characters of a text
SIZE = (5.2, 3.6)  # inches


def failing(record: RunRecord) -> Section:
    """What the analysis of the most telling split says of labels, scores and groups of rows."""
    section, found = Section("failing", "Where it fails"), shown_analysis(record)
    if found is None:
        return section
    split, analysis = found
    parts = [*_calibration(analysis.calibration), *_confusion(analysis.confusion)]
    wide = [part for part in parts if isinstance(part, Chart) and part.wide]
    section.blocks += [*wide, Beside([part for part in parts if part not in wide])] if parts else []
    section.blocks += _outcomes(analysis)
    groups = list(_groups(analysis.slices))
    section.blocks += [Beside(groups)] if groups else []
    section.blocks += _behaviour(analysis)
    if section.blocks:
        section.blocks.insert(0, Note(f"On the {split} split; other splits are in run.json."))
    return section


def _calibration(found: Calibration | None) -> Iterator[Chart | Table]:
    if found is None or not found.bins:
        return
    with blank(*SIZE) as (figure, axes):
        draw_reliability(axes, found)
        drawing = svg(figure, "reliability", "Reliability diagram: share that is right at each confidence")
    yield Chart(drawing, f"Reliability of the scores of {found.scores}; bars: share of {count(found.n)} scores")
    rows = [["calibration error (ECE)", *_figures("ece", found.ece)], ["Brier score", *_figures("brier", found.brier)]]
    for name, value in (
        ("temperature", found.temperature),
        ("ECE with temperature", found.ece_after),
        ("Brier score with temperature", found.brier_after),
    ):
        rows += [[name, *_figures(name, value)]] if value is not None else []
    header = ["measure", "value", "95 % interval"]
    fitted = "; the temperature divides the logits and is fitted on validation" if found.temperature else ""
    yield Table(f"Calibration: 0 is best{fitted}", header, rows, right=(1, 2))


def _figures(metric: str, found: Interval) -> list[str]:
    return [interval(metric, found), bounds(metric, found)]


def _confusion(found: Confusion | None) -> Iterator[Chart | Table]:
    if found is None or not found.labels:
        return
    size = matrix_size(found)
    with blank(*size) as (figure, axes):
        draw_matrix(axes, found)
        drawing = svg(figure, "confusion", "Confusion matrix: gold labels down, predicted labels across")
    merged = f"; the {count(found.merged)} labels with the fewest mistakes are counted together" if found.merged else ""
    yield Chart(drawing, f"Confusion: gold labels down, predicted across; shade: share of the row{merged}", size[0] > 6)
    totals = [sum(row) for row in found.counts]
    pairs = sorted(
        (
            (number, gold, given)
            for gold, row in enumerate(found.counts)
            for given, number in enumerate(row)
            if gold != given and number
        ),
        key=lambda pair: -pair[0],
    )
    rows = [
        [found.labels[gold], found.labels[given], f"{count(number)} of {count(totals[gold])}"]
        for number, gold, given in pairs[:PAIRS]
    ]
    if rows:
        yield Table("Most frequent mistakes", ["gold", "taken for", "times"], rows, right=(2,))


def _outcomes(analysis: Analysis) -> Iterator[Block]:
    facts = [(kind.replace("_", " "), count(number)) for kind, number in analysis.errors.items()]
    facts += [(name.replace("_", " "), interval(name, found)) for name, found in analysis.measures.items()]
    if facts:
        yield Facts(facts)


def _groups(slices: Sequence[Slice]) -> Iterator[Table]:
    """A table for each kind of group: a row for each group, a column for each metric."""
    for by in dict.fromkeys(one.by for one in slices):
        mine = [one for one in slices if one.by == by]
        metrics = list(dict.fromkeys(one.metric for one in mine))
        groups: dict[str, dict[str, Slice]] = {}
        for one in mine:
            groups.setdefault(one.value, {})[one.metric] = one
        rows = [
            [value, count(next(iter(found.values())).n), *(_of(found.get(metric)) for metric in metrics)]
            for value, found in list(groups.items())[:GROUPS]
        ]
        kind = kind_of(by)
        more = f"; the first {GROUPS} of {count(len(groups))}" if len(groups) > GROUPS else ""
        header = [kind, "rows", *(metric_name(metric, None) for metric in metrics)]
        yield Table(f"By {kind}{more}", header, rows, right=range(1, len(header)))


def _of(one: Slice | None) -> str:
    return "–" if one is None else interval(one.metric, one.result)


def _behaviour(analysis: Analysis) -> Iterator[Block]:
    if analysis.behaviour:
        rows = [
            [check.name, count(check.n), MEASURES[check.measure], interval("share", check.changed)]
            for check in analysis.behaviour
        ]
        caption = "Behaviour: changes of the text that should not matter, and pairs of the user's own"
        yield Table(caption, ["check", "rows", "measured", "value"], rows, right=(1, 3))
    examples = [
        [check.name, one.id, ", ".join(one.words) or "–", one.before or "–", one.after or "–"]
        for check in analysis.behaviour
        for one in check.examples
    ]
    if examples:
        header = ["check", "id", "put in", "before", "after"]
        yield Table("Rows whose prediction changed, for example", header, examples, mono=(1,))


# -------------------------------------------------------------------------------------------------------- hard rows


def hard_rows(record: RunRecord, shown: Shown) -> Section:
    """The rows with the highest loss, and those whose label is perhaps wrong, with their texts."""
    section, found = Section("hard-rows", "Hardest rows"), shown_analysis(record)
    if found is None:
        return section
    split, analysis = found
    texts = shown.get(split, {})
    if analysis.worst:
        rows = [[row.id, f"{row.loss:.3f}", *_row(texts.get(row.id), row)] for row in analysis.worst]
        header = ["id", "loss", "gold", "predicted", "text"]
        section.blocks.append(Table(f"Highest loss on {split}", header, rows, right=(1,), mono=(0,), wide=(4,)))
    if analysis.suspects:
        rows = [_suspect(row, texts.get(row.id)) for row in analysis.suspects]
        header = ["id", "gold", "score", "perhaps", "score", "text"]
        caption = f"Labels on {split} that are perhaps wrong: another is as probable as where it is given"
        section.blocks.append(Table(caption, header, rows, right=(2, 4), mono=(0,), wide=(5,)))
    return section


def _suspect(row: Suspect, line: Mapping[str, Any] | None) -> list[str]:
    text = _row(line)[2]
    words = line["inputs"].get("tokens") if line is not None else None
    if words is not None and row.word is not None and row.word < len(words):
        text = f"{_written(words[row.word])} · {text}"
    return [row.id, row.gold, f"{row.gold_score:.3f}", row.likely, f"{row.likely_score:.3f}", text]


def _row(line: Mapping[str, Any] | None, row: WorstRow | None = None) -> list[str]:
    """Gold, prediction and text of a row, as far as they are known."""
    if line is None:
        return [(row and row.gold) or "–", (row and row.prediction) or "–", "–"]
    gold, given, inputs = line["gold"], line["prediction"], line["inputs"]
    words = inputs.get("tokens")
    if words is not None and isinstance(gold, list) and len(gold) == len(words) == len(given):
        gold, given = (_tagged(words, own, other) for own, other in ((gold, given), (given, gold)))
    text = " · ".join(_written(" ".join(value) if role == "tokens" else value) for role, value in inputs.items())
    return [_written(gold), _written(given), text]


def _tagged(words: Sequence[str], tags: Sequence[str], others: Sequence[str]) -> list[str]:
    """The words on which two taggings differ, each with its tag."""
    if tags == others:
        return ["all right"]
    return [f"{word} {tag}" for word, tag, other in zip(words, tags, others, strict=True) if tag != other]


def _written(value: Any) -> str:
    if isinstance(value, list):
        whole = ", ".join(map(str, value))
    else:
        whole = f"{value:.3f}" if isinstance(value, float) else str(value)
    if not whole.strip():
        return "(empty)"
    return whole if len(whole) <= CUT else whole[: CUT - 1] + "…"
