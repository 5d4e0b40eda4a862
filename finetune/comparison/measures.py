"""The metrics of several models on the same rows, as statistics per row that a resample or a swap of rows can sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import (
    Floats,
    PairedDifference,
    Statistic,
    approximate_randomization,
    mcnemar,
    paired_differences,
    paired_rows_difference,
)
from finetune.errors import RecipeError
from finetune.scoring import formulas
from finetune.scoring.labels import count_labels
from finetune.scoring.names import DEFAULTS, NAMES, Kind
from finetune.scoring.tags import count_entities, count_tags
from finetune.scoring.texts import answer_scores, text_scores

__all__ = ["KNOWN", "Measure", "differences", "measure", "row_scores", "tested"]

_MICRO = {"f1": "micro_f1", "precision": "micro_precision", "recall": "micro_recall", "accuracy": "accuracy"}
_MACRO = {"f1": "macro_f1", "precision": "macro_precision", "recall": "macro_recall", "accuracy": "accuracy"}
_FORMULAS: dict[Kind, dict[str, str]] = {
    "single": _MACRO | {"f1_micro": "micro_f1", "matthews": "matthews"},
    "multi": _MACRO | {"f1_micro": "micro_f1"},
    "entities": _MICRO,
    "tags": _MACRO,
}
KNOWN: dict[Kind, tuple[str, ...]] = {kind: tuple(names) for kind, names in DEFAULTS.items()} | {
    kind: tuple(name for name in NAMES[kind] if name in known) for kind, known in _FORMULAS.items()
}
"""The metrics that can be computed from gold answers and predictions alone."""


@dataclass(frozen=True)
class Measure:
    """One metric of m models on the same n rows.

    rows: per-row statistics (n, s) of each model. whole: sums (R, s) -> (R,), the metric where the sums are over all
    rows. sampled: the same for sums over resamples, one function per model. yes_or_no: each row is 0 or 1 and the
    metric their mean. ranked: the metric needs the weight of each row (R, n) instead of sums, and has no `whole`.
    """

    name: str
    rows: list[Floats]
    sampled: list[Statistic]
    whole: Statistic | None
    yes_or_no: bool = False
    ranked: bool = False

    def value(self, model: int) -> float:
        """The metric of one model on all rows; NaN where it is undefined."""
        if self.whole is None:
            return float(self.sampled[model](np.ones((1, len(self.rows[model]))))[0])
        return float(self.whole(self.rows[model].sum(axis=0, keepdims=True))[0])

    def mean(self, models: Sequence[int]) -> Statistic:
        """The mean over `models`: of their sums side by side (R, m * s), or of the weights of rows (R, n)."""
        width = 0 if self.ranked else self.rows[0].shape[1]  # rank metrics all read the same weights

        def mean(sums: Floats) -> Floats:
            parts = [sums[:, place * width : (place + 1) * width] if width else sums for place in range(len(models))]
            values = [self.sampled[model](part) for model, part in zip(models, parts, strict=True)]
            average: Floats = np.mean(values, axis=0)
            return average

        return mean


def differences(measures: Sequence[Measure], a: Sequence[int], b: Sequence[int]) -> list[PairedDifference]:
    """Of each measure the mean over models `a` minus that over models `b`; each resample takes the same rows of all.

    Measures of the same statistics share their resamples.
    """
    alike: dict[tuple[int, bool], list[int]] = {}
    for place, one in enumerate(measures):
        alike.setdefault((id(one.rows), one.ranked), []).append(place)
    found: dict[int, PairedDifference] = {}
    for places in alike.values():
        found |= zip(places, _differences([measures[place] for place in places], a, b), strict=True)
    return [found[place] for place in range(len(measures))]


def _differences(alike: Sequence[Measure], a: Sequence[int], b: Sequence[int]) -> list[PairedDifference]:
    rows = alike[0].rows
    if alike[0].ranked:
        return [paired_rows_difference(len(rows[0]), one.mean(a), one.mean(b)) for one in alike]
    statistic_a, statistic_b = (_together([one.mean(models) for one in alike]) for models in (a, b))
    sides = [np.hstack([rows[model] for model in models]) for models in (a, b)]
    return paired_differences(sides[0], sides[1], statistic_a, statistic_b)


def _together(statistics: Sequence[Statistic]) -> Statistic:
    return lambda sums: np.column_stack([statistic(sums) for statistic in statistics])


def tested(one: Measure, a: int, b: int, gap: PairedDifference) -> tuple[str, float | None]:
    """The name and two-sided p of the test that fits the metric: two models, of which each row has one answer."""
    if one.yes_or_no:
        return "McNemar", mcnemar(one.rows[a][:, 0] > 0, one.rows[b][:, 0] > 0).p
    if one.whole is None:
        return "bootstrap", None if gap.difference.low is None else gap.p  # no interval: undefined on other rows
    return "randomisation", approximate_randomization(one.rows[a], one.rows[b], one.whole)


def measure(
    kind: Kind, names: Sequence[str], gold: list[Any], runs: list[list[Any]], labels: list[str]
) -> list[Measure]:
    """The metrics of each of `runs` (predictions, one list per model) against `gold`; labels: all of the task.

    Raises RecipeError for a name that `KNOWN` does not have for the kind.
    """
    unknown = [name for name in names if name not in KNOWN[kind]]
    if unknown:
        raise RecipeError(
            f"--metric: {', '.join(unknown)} cannot be recomputed from predictions of kind {kind};"
            f" expected {', '.join(KNOWN[kind])}"
        )
    predicted = [value for run in runs for value in run]
    return _MAKERS[kind](kind, names, gold * len(runs), predicted, labels, len(runs))


def row_scores(kind: Kind, gold: list[Any], predicted: list[Any]) -> tuple[str, Floats]:
    """What says which of two models does better on one row, higher is better: its name and (n,)."""
    if kind == "regression":
        return "squared error", -((np.array(gold) - np.array(predicted)) ** 2)
    if kind == "answers":
        return "F1", answer_scores(gold, predicted)[:, 1]
    if kind == "texts":
        return "chrF", formulas.chrf(text_scores(["chrf"], gold, predicted)["chrf"])
    return "right", np.array([a == b for a, b in zip(gold, predicted, strict=True)], dtype=np.float64)


# ---------------------------------------------------------------------------------------- by kind


def _counted(
    kind: Kind, names: Sequence[str], gold: list[Any], predicted: list[Any], labels: list[str], models: int
) -> list[Measure]:
    """Labels and tags: hits, predicted and gold items of each label in each row."""
    rows = _split(_COUNTS[kind](gold, predicted, labels), models)
    found = []
    for name in names:
        formula = _FORMULAS[kind][name]
        if formula == "accuracy" and kind in ("single", "multi"):
            found.append(_means(name, [stats[:, 1:2] for stats in rows], yes_or_no=True))
            continue
        sampled = [_first(formulas.label_statistic([formula], stats.sum(axis=0))) for stats in rows]
        found.append(Measure(name, rows, sampled, _first(formulas.label_statistic([formula]))))
    return found


def _first(statistic: Statistic) -> Statistic:
    return lambda sums: statistic(sums)[:, 0]


def _split(stats: Any, models: int) -> list[Floats]:
    dense = stats.toarray() if hasattr(stats, "toarray") else np.asarray(stats, dtype=np.float64)
    return list(np.split(dense, models))


def _means(name: str, rows: list[Floats], *, yes_or_no: bool = False) -> Measure:
    def mean(sums: Floats) -> Floats:
        return sums[:, 0] / len(rows[0])

    return Measure(name, rows, [mean] * len(rows), mean, yes_or_no=yes_or_no)


def _numbers(
    kind: Kind, names: Sequence[str], gold: list[Any], predicted: list[Any], labels: list[str], models: int
) -> list[Measure]:
    del kind, labels
    x, y = np.array(gold), np.array(predicted)
    sides = list(zip(np.split(x, models), np.split(y, models), strict=True))
    moments = _split(formulas.standard_moments(x, y), models)  # one scale for all, so that rows can be swapped
    made: dict[str, Callable[[], Measure]] = {
        "pearson": lambda: Measure("pearson", moments, [formulas.pearson] * models, formulas.pearson),
        "mse": lambda: _means("mse", [((a - b) ** 2)[:, None] for a, b in sides]),
        "spearman": lambda: Measure(
            "spearman", moments, [formulas.spearman_statistic(*side) for side in sides], None, ranked=True
        ),
    }
    return [made[name]() for name in names]


def _answered(
    kind: Kind, names: Sequence[str], gold: list[Any], predicted: list[Any], labels: list[str], models: int
) -> list[Measure]:
    del kind, labels
    columns = dict(zip(("exact_match", "f1"), answer_scores(gold, predicted).T[:, :, None], strict=True))
    return [_means(name, _split(columns[name], models), yes_or_no=name == "exact_match") for name in names]


def _written(
    kind: Kind, names: Sequence[str], gold: list[Any], predicted: list[Any], labels: list[str], models: int
) -> list[Measure]:
    del kind, labels
    corpus: dict[str, Statistic] = {"bleu": formulas.bleu, "chrf": formulas.chrf}
    stats = {name: _split(rows, models) for name, rows in text_scores(names, gold, predicted).items()}
    return [
        Measure(name, stats[name], [corpus[name]] * models, corpus[name])
        if name in corpus
        else _means(name, stats[name], yes_or_no=name == "exact_match")
        for name in names
    ]


def _one_hot(values: list[list[str]], labels: list[str]) -> NDArray[np.bool_]:
    place = {label: number for number, label in enumerate(labels)}
    flags = np.zeros((len(values), len(labels)), dtype=bool)
    for row, several in enumerate(values):
        flags[row, [place[label] for label in several]] = True
    return flags


_COUNTS: dict[Kind, Callable[[list[Any], list[Any], list[str]], Any]] = {
    "single": lambda gold, predicted, labels: count_labels(
        _one_hot([[one] for one in gold], labels), _one_hot([[one] for one in predicted], labels)
    ),
    "multi": lambda gold, predicted, labels: count_labels(_one_hot(gold, labels), _one_hot(predicted, labels)),
    "entities": lambda gold, predicted, labels: count_entities(gold, predicted).stats,  # noqa: ARG005
    "tags": count_tags,
}
_MAKERS: dict[Kind, Callable[..., list[Measure]]] = {
    "single": _counted,
    "multi": _counted,
    "entities": _counted,
    "tags": _counted,
    "regression": _numbers,
    "answers": _answered,
    "texts": _written,
}
