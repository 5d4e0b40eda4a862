"""The part of a model card on where the model fails: calibration, groups of rows, kinds of errors, behaviour."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.analysis.perturb import LIMITS
from finetune.card.figures import bounds, count, interval, with_bounds
from finetune.card.markdown import bullets, code, table, text
from finetune.card.metadata import splits
from finetune.card.public_names import metric_name
from finetune.record import Analysis, Interval, RunRecord
from finetune.record.analysis import MEASURES, Calibration, Check, Confusion, Slice
from finetune.scoring.names import LOWER_IS_BETTER

__all__ = ["kind_of", "shown_analysis", "weaknesses"]

GROUPS = 3  # shown of each kind
BIAS = (
    "Names and words of gender are a probe, no proof: a model that passes may treat people unequally in ways that these"
    " short lists do not touch."
)
UNITS = {"length": "length in tokens"}
FEW = 2  # a table of fewer groups says nothing


def shown_analysis(record: RunRecord) -> tuple[str, Analysis] | None:
    """The split whose analysis the card shows: test where there is one."""
    name = next((name for name in splits(record) if name in record.analysis), None)
    return None if name is None else (name, record.analysis[name])


def weaknesses(record: RunRecord) -> str:
    """The whole section; empty where nothing was analysed."""
    found = shown_analysis(record)
    if found is None:
        return ""
    name, analysis = found
    multi = record.model is not None and record.model.problem == "multi"
    said = [*_calibration(analysis.calibration, multi), *_confused(analysis.confusion), *_errors(analysis)]
    parts = [f"## Where it fails\n\nOn the {text(name)} split."]
    parts += [bullets(said)] if said else []
    parts += [_groups(analysis.slices), _behaviour(analysis.behaviour)]
    return "\n\n".join(part for part in parts if part) if any(parts[1:]) else ""


def _calibration(found: Calibration | None, multi: bool) -> Iterator[str]:
    if found is None:
        return
    yield (
        f"Scores as probabilities, of {text(found.scores)}: expected calibration error {with_bounds('ece', found.ece)}"
        f" (0 is best; {len(found.bins)} bins), Brier score {with_bounds('brier', found.brier)}."
    )
    temperature = found.temperature
    if temperature is None or temperature.value is None or found.ece_after is None:
        return
    labels = "the thresholds of the labels are for scores without it" if multi else "the predicted labels stay the same"
    yield (
        f"On validation {_lean(temperature)}: dividing the logits by {with_bounds('temperature', temperature)} fits"
        " best (stored as `calibration_temperature` in config.json; the pipeline does not apply it). With it the"
        f" calibration error is {with_bounds('ece', found.ece_after)}; {labels}."
    )


def _lean(temperature: Interval) -> str:
    """What a temperature says of the scores as they are."""
    assert temperature.value is not None
    if temperature.low is not None and temperature.high is not None and temperature.low <= 1 <= temperature.high:
        return "no temperature is clearly better than 1"
    return "scores are too sure" if temperature.value > 1 else "scores are not sure enough"


def _confused(found: Confusion | None) -> Iterator[str]:
    if found is None:
        return
    pairs = [
        (number, gold, given)
        for gold, row in zip(found.labels, found.counts, strict=True)
        for given, number in zip(found.labels, row, strict=True)
        if gold != given and number
    ]
    worst = sorted(pairs, key=lambda pair: -pair[0])[:GROUPS]
    if worst:
        listed = ", ".join(f"{code(gold)} taken for {code(given)} ({count(number)})" for number, gold, given in worst)
        yield f"Most frequent mistakes: {listed}."


def _errors(analysis: Analysis) -> Iterator[str]:
    kinds = [f"{text(kind.replace('_', ' '))} {count(number)}" for kind, number in analysis.errors.items()]
    if kinds:
        yield f"Outcomes: {', '.join(kinds)}."
    for name, found in analysis.measures.items():
        yield f"{text(name.replace('_', ' ').capitalize())}: {with_bounds(name, found)}."


def _groups(slices: list[Slice]) -> str:
    """The worst groups of each kind: those whose interval ends lowest, so that few rows alone make no group bad."""
    kinds: dict[str, list[Slice]] = {}
    for one in slices:
        if one.metric not in ("precision", "recall") and one.result.value is not None:
            kinds.setdefault(one.by, []).append(one)
    rows = [
        [
            text(kind_of(one.by)),
            code(one.value),
            count(one.n),
            text(metric_name(one.metric, None)),
            interval(one.metric, one.result),
            bounds(one.metric, one.result),
        ]
        for found in kinds.values()
        if len(found) >= FEW
        for one in sorted(found, key=_badness)[:GROUPS]
    ]
    if not rows:
        return ""
    header = ["By", "Group", "Rows", "Metric", "Value", "95 % interval"]
    return f"The weakest groups of each kind:\n\n{table(header, rows, right=[2, 4, 5])}"


def kind_of(by: str) -> str:
    """What a group of rows has in common, in words."""
    return UNITS.get(by, by.replace("_", " "))


def _badness(one: Slice) -> tuple[bool, float, float]:
    """Sorts the worst first; groups without an interval, of one row, come last."""
    value, low, high = one.result.value, one.result.low, one.result.high
    if value is None or low is None or high is None:
        return True, 0.0, 0.0
    return (False, -low, -value) if one.metric in LOWER_IS_BETTER else (False, high, value)


def _behaviour(checks: list[Check]) -> str:
    if not checks:
        return ""
    rows = [
        [
            text(one.name),
            LIMITS.get(one.name, "pairs of texts of the author's own, with what was expected of them"),
            count(one.n),
            MEASURES[one.measure],
            _share(one),
        ]
        for one in checks
    ]
    listed = table(["Check", "Change", "Cases", "Measured", "Value"], rows, right=[2, 4])
    said = "Behaviour checks: small changes of the text that should not change what the model says."
    return (
        f"{said}\n\n{listed}\n\n{BIAS}" if {one.name for one in checks} & {"names", "gender"} else f"{said}\n\n{listed}"
    )


def _share(one: Check) -> str:
    return with_bounds("share", one.changed) if one.n else "–"
