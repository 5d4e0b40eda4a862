"""Metrics with their 95 % bootstrap intervals, per kind of prediction.

The value comes from the `evaluate.Metric` modules of `finetune/scoring/modules.py`, the interval from resampled rows
(`finetune/bootstrap.py`). What a name means is written in `finetune/scoring/names.py`. A name that is not ours is
fetched from the Hub; such a metric has no interval, since it would have to be computed thousands of times.

Every function returns name -> `Interval` in the order of `names`. All three numbers are None where a metric is
undefined (no rows; a correlation with a constant; an area without rows on both sides); `low` and `high` are None below
two rows. "loss" is passed over: it is in every result anyway. RecipeError is raised for a metric that cannot be had,
ModelError for scores that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats, Statistic, interval, mean_interval, resample_cells, resample_rows, resample_sums
from finetune.record import Interval
from finetune.scoring import formulas
from finetune.scoring.labels import count_confusion, count_labels, one_against_rest
from finetune.scoring.modules import as_evaluate, check_names, hub_metric, hub_value, is_ours
from finetune.scoring.names import DEFAULTS, LOWER_IS_BETTER, NAMES, Kind
from finetune.scoring.tags import EntityCounts, count_entities, count_tags, entity_type_values
from finetune.scoring.texts import has_answer, signatures

__all__ = [
    "DEFAULTS",
    "LOWER_IS_BETTER",
    "NAMES",
    "Kind",
    "answers",
    "as_evaluate",
    "check_names",
    "entities",
    "entity_types",
    "hub_metric",
    "regression",
    "sequence_multi",
    "sequence_single",
    "signatures",
    "tags",
    "texts",
]

Samples = dict[str, Floats]  # metric -> its values over resamples (R,)
Resample = Callable[[list[str], Any], Samples]  # names of ours, the module's per-row statistics -> samples

_LABEL_FORMULAS = {
    "accuracy": "accuracy",
    "f1": "macro_f1",
    "f1_micro": "micro_f1",
    "precision": "macro_precision",
    "recall": "macro_recall",
    "matthews": "matthews",
}
_ENTITY_FORMULAS = {
    "accuracy": "accuracy",
    "f1": "micro_f1",
    "f1_macro": "macro_f1",
    "precision": "micro_precision",
    "recall": "micro_recall",
}


def sequence_single(
    names: Sequence[str],
    gold: NDArray[Any],
    predicted: NDArray[Any],
    probabilities: NDArray[Any] | None = None,
    num_labels: int | None = None,
) -> dict[str, Interval]:
    """One label per row: accuracy, f1, f1_micro, precision, recall, matthews, roc_auc.

    gold, predicted: (n,) int label ids; probabilities: (n, K), for roc_auc; num_labels: K where these do not give it.
    """
    gold, predicted = np.asarray(gold, np.int64), np.asarray(predicted, np.int64)
    labels = range(num_labels or 0) if probabilities is None else range(np.shape(probabilities)[1])
    assert not len(gold) or max(gold.max(), predicted.max()) < len(labels), "a label id beyond the number of labels"
    scores = None if probabilities is None else np.asarray(probabilities, np.float64)

    def resample(ours: list[str], _: Any) -> Samples:
        counts, features = count_confusion(gold, predicted, len(labels))
        statistic = _label_statistic(ours, _LABEL_FORMULAS, counts @ features)
        samples = _columns(ours, _LABEL_FORMULAS, resample_cells(counts, statistic, features))
        return samples | _area(ours, *one_against_rest(gold, scores, labels))

    inputs = {"predictions": predicted, "references": gold, "prediction_scores": scores}
    return _measure("single", names, inputs, resample, labels)


def sequence_multi(
    names: Sequence[str], gold: NDArray[Any], predicted: NDArray[Any], probabilities: NDArray[Any] | None = None
) -> dict[str, Interval]:
    """Several labels per row: accuracy (all labels of a row right), f1, f1_micro, precision, recall, roc_auc.

    gold, predicted: (n, K) of 0 and 1; probabilities: (n, K), for roc_auc.
    """
    gold, predicted = np.asarray(gold, np.int64), np.asarray(predicted, np.int64)
    scores = None if probabilities is None else np.asarray(probabilities, np.float64)

    def resample(ours: list[str], _: Any) -> Samples:
        return _counted(ours, _LABEL_FORMULAS, count_labels(gold, predicted)) | _area(ours, gold == 1, scores)

    inputs = {"predictions": predicted, "references": gold, "prediction_scores": scores}
    return _measure("multi", names, inputs, resample)


def regression(names: Sequence[str], gold: NDArray[Any], predicted: NDArray[Any]) -> dict[str, Interval]:
    """Numbers, gold and predicted (n,): pearson, spearman, mse."""
    gold, predicted = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)

    def summed(sums: Floats) -> Floats:
        return np.column_stack([formulas.pearson(sums[:, :-1]), sums[:, -1] / len(gold)])

    def resample(ours: list[str], _: Any) -> Samples:
        stats = np.column_stack([formulas.standard_moments(gold, predicted), (gold - predicted) ** 2])
        samples = dict(zip(("pearson", "mse"), resample_sums(stats, summed).T, strict=True))
        if "spearman" in ours:
            samples["spearman"] = resample_rows(len(gold), formulas.spearman_statistic(gold, predicted))
        return samples

    return _measure("regression", names, {"predictions": predicted, "references": gold}, resample)


def entities(
    names: Sequence[str], gold: list[list[str]], predicted: list[list[str]], counts: EntityCounts | None = None
) -> dict[str, Interval]:
    """Entities, strict, from IOB2 tags, n rows each: f1, precision, recall, f1_macro, accuracy (of tokens).

    counts: of `count_entities`, where they are known. Raises DataError for tags of unequal number, or other than O,
    B-<type>, I-<type>.
    """

    def resample(ours: list[str], counts: Any) -> Samples:
        return _counted(ours, _ENTITY_FORMULAS, counts.stats)

    return _measure("entities", names, {"predictions": predicted, "references": gold}, resample, rows=counts)


def entity_types(
    gold: list[list[str]], predicted: list[list[str]], counts: EntityCounts | None = None
) -> dict[str, dict[str, Interval]]:
    """Per entity type, precision, recall and f1; counts, and what is raised, as for `entities`."""
    counts = counts or count_entities(gold, predicted)
    values = entity_type_values(gold, predicted, counts)
    found: dict[str, dict[str, Interval]] = {}
    ours = ["precision", "recall", "f1"]
    for number, name in enumerate(counts.types):
        stats = np.zeros((len(gold), 5))  # without the token counts, so that most rows are alike
        stats[:, 2:] = counts.stats[:, [2 + block * len(counts.types) + number for block in range(3)]].toarray()
        samples = _counted(ours, _ENTITY_FORMULAS, stats)
        found[name] = {
            metric: interval(float(value), samples[metric]) for metric, value in zip(ours, values[number], strict=True)
        }
    return found


def tags(
    names: Sequence[str], gold: list[list[str]], predicted: list[list[str]], labels: Sequence[str]
) -> dict[str, Interval]:
    """Plain tags, n rows each, over tokens: accuracy, and f1, precision, recall as macro averages over labels.

    labels: all tags of the task. Intervals are over rows. Raises DataError for tags of unequal number.
    """

    def resample(ours: list[str], _: Any) -> Samples:
        return _counted(ours, _LABEL_FORMULAS, count_tags(gold, predicted, labels))

    return _measure("tags", names, {"predictions": predicted, "references": gold}, resample, labels)


def answers(
    names: Sequence[str], gold: Sequence[Sequence[str]], predicted: Sequence[str], scores: Floats | None = None
) -> dict[str, Interval]:
    """Answers, each against a row's gold answers: exact_match, f1; no answer is an empty list, and an empty string.

    scores: (n, 2) of `answer_scores`, where they are known.
    Where rows without an answer exist, `has_answer_<name>` and `no_answer_<name>` follow, over `n` of the rows.
    """
    rows: dict[str, Floats] = {}

    def resample(ours: list[str], scores: Any) -> Samples:
        rows.update({name: scores[:, NAMES["answers"].index(name)] for name in ours})
        return {name: _mean_samples(column) for name, column in rows.items()}

    inputs = {"predictions": list(predicted), "references": [list(several) for several in gold]}
    found = _measure("answers", names, inputs, resample, rows=scores)
    answered = has_answer(gold)
    if not answered.all():
        for share, chosen in (("has_answer", answered), ("no_answer", ~answered)):
            for name, scores in rows.items():
                found[f"{share}_{name}"] = mean_interval(scores[chosen]).model_copy(update={"n": int(chosen.sum())})
    return found


def texts(
    names: Sequence[str],
    targets: Sequence[str],
    predictions: Sequence[str],
    stats: Mapping[str, Floats] | None = None,
) -> dict[str, Interval]:
    """Generated texts: rouge1, rouge2, rougeL, bleu, chrf (0 to 100) and exact_match (0 to 1); see `signatures`.

    stats: of `text_scores`, of each name, where they are known.
    """
    corpus: dict[str, Statistic] = {"bleu": formulas.bleu, "chrf": formulas.chrf}

    def resample(ours: list[str], rows: Any) -> Samples:
        return {
            name: resample_sums(rows[name], corpus[name]) if name in corpus else _mean_samples(rows[name][:, 0])
            for name in ours
        }

    inputs = {"predictions": list(predictions), "references": list(targets)}
    return _measure("texts", names, inputs, resample, rows=stats)


def _measure(
    kind: Kind,
    names: Sequence[str],
    inputs: Mapping[str, Any],
    resample: Resample,
    labels: Sequence[Any] | None = None,
    rows: Any = None,
) -> dict[str, Interval]:
    names = [name for name in names if name != "loss"]
    ours = [name for name in names if is_ours(name, kind)]
    assert "roc_auc" not in ours or inputs["prediction_scores"] is not None, "roc_auc needs the scores of every label"
    if len(inputs["references"]) == 0:
        return {name: Interval(value=None) for name in names}
    module = as_evaluate(ours, kind, labels, rows)
    values = module.compute(**{name: inputs[name] for name in module.features}) if ours else {}
    samples = resample(ours, module.rows) if ours else {}
    return {
        name: interval(values[name], samples[name])
        if name in values
        else Interval(value=hub_value(name, inputs["predictions"], inputs["references"]))
        for name in names
    }


def _counted(ours: Sequence[str], known: Mapping[str, str], stats: Any) -> Samples:
    """Samples of the metrics made of counted labels; stats: (n, 2 + 3K)."""
    statistic = _label_statistic(ours, known, stats.sum(axis=0))
    return _columns(ours, known, resample_sums(stats, statistic))


def _label_statistic(ours: Sequence[str], known: Mapping[str, str], full: Floats) -> Statistic:
    return formulas.label_statistic([known[name] for name in ours if name in known], full)


def _columns(ours: Sequence[str], known: Mapping[str, str], samples: Floats) -> Samples:
    return dict(zip([name for name in ours if name in known], samples.T, strict=True))


def _area(ours: Sequence[str], gold: NDArray[Any], scores: Floats | None) -> Samples:
    if "roc_auc" not in ours or scores is None:
        return {}
    return {"roc_auc": resample_rows(len(gold), formulas.roc_auc_statistic(gold, scores))}


def _mean_samples(values: Floats) -> Floats:
    return resample_sums(values[:, None], lambda sums: sums[:, 0] / len(values))
