"""Labels and numbers, one prediction per row: values on all rows, and counts for the bootstrap.

scikit-learn and scipy do the arithmetic. `finetune/scoring/names.py` says what each name means.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats
from finetune.errors import ModelError

__all__ = [
    "check_finite",
    "count_confusion",
    "count_labels",
    "multi_values",
    "one_against_rest",
    "regression_values",
    "single_values",
]


def check_finite(values: NDArray[Any], what: str) -> None:
    """Raises ModelError when a row (axis 0) holds NaN or infinity."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise ModelError(
            f"{what}: expected finite numbers, found NaN or infinity in {len(bad)} of {len(values)} rows "
            f"(the first is row {bad[0]}); the weights are damaged, or overflow in half precision"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    # scikit-learn and scipy warn of what `names.py` settles: labels without rows, constants, many labels for few rows.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def single_values(
    names: Sequence[str],
    gold: NDArray[Any],
    predicted: NDArray[Any],
    scores: Floats | None,
    labels: Sequence[int],
) -> dict[str, float]:
    """One label per row; gold, predicted: (n,) ids, scores: (n, K) for roc_auc, labels: all K ids. NaN if undefined."""
    options = {"labels": list(labels), "zero_division": 0.0}
    with _quiet():
        return {name: _single_value(name, gold, predicted, scores, options) for name in names}


def _single_value(
    name: str, gold: NDArray[Any], predicted: NDArray[Any], scores: Floats | None, options: dict[str, Any]
) -> float:
    from sklearn import metrics

    if name == "matthews":
        return float(metrics.matthews_corrcoef(gold, predicted))
    if name == "roc_auc":
        return _mean_roc_auc(*one_against_rest(gold, scores, options["labels"]))
    return _counted_value(name, gold, predicted, options)


def multi_values(
    names: Sequence[str], gold: NDArray[Any], predicted: NDArray[Any], scores: Floats | None
) -> dict[str, float]:
    """Several labels per row; gold, predicted: (n, K) of 0 and 1, scores: (n, K) for roc_auc. NaN if undefined."""
    with _quiet():
        return {
            name: _mean_roc_auc(gold, scores)
            if name == "roc_auc"
            else _counted_value(name, gold, predicted, {"zero_division": 0.0})
            for name in names
        }


def _counted_value(name: str, gold: NDArray[Any], predicted: NDArray[Any], options: dict[str, Any]) -> float:
    from sklearn import metrics

    averaged = {
        "f1": (metrics.f1_score, "macro"),
        "f1_micro": (metrics.f1_score, "micro"),
        "precision": (metrics.precision_score, "macro"),
        "recall": (metrics.recall_score, "macro"),
    }
    if name == "accuracy":
        return float(metrics.accuracy_score(gold, predicted))
    function, how = averaged[name]
    return float(function(gold, predicted, average=how, **options))


def one_against_rest(
    gold: NDArray[Any], scores: Floats | None, labels: Sequence[int]
) -> tuple[NDArray[Any], Floats | None]:
    """The columns (n, K) whose areas `roc_auc` averages: all labels, or the second of two."""
    columns = list(labels)[1:] if len(labels) == 2 else list(labels)
    return gold[:, None] == np.asarray(columns), scores if scores is None else scores[:, columns]


def _mean_roc_auc(gold: NDArray[Any], scores: Floats | None) -> float:
    from sklearn.metrics import roc_auc_score

    assert scores is not None, "roc_auc needs the scores of every label"
    check_finite(scores, "roc_auc")
    two_sided = [label for label in range(gold.shape[1]) if 0 < gold[:, label].sum() < len(gold)]
    areas = [float(roc_auc_score(gold[:, label], scores[:, label])) for label in two_sided]
    return float(np.mean(areas)) if areas else float("nan")


def regression_values(names: Sequence[str], gold: Floats, predicted: Floats) -> dict[str, float]:
    """Numbers; gold, predicted: (n,). Correlations are NaN where one side is constant. Raises ModelError on NaN."""
    from scipy import stats
    from sklearn.metrics import mean_squared_error

    check_finite(predicted, "predictions")
    varied = np.ptp(gold) > 0 and np.ptp(predicted) > 0
    measures: dict[str, Callable[[], float]] = {
        "pearson": lambda: float(stats.pearsonr(gold, predicted).statistic) if varied else float("nan"),
        "spearman": lambda: float(stats.spearmanr(gold, predicted).statistic) if varied else float("nan"),
        "mse": lambda: float(mean_squared_error(gold, predicted)),
    }
    with _quiet():
        return {name: measures[name]() for name in names}


def count_confusion(
    gold: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int
) -> tuple[NDArray[np.int64], Any]:
    """The filled cells of the confusion matrix: counts (c,) and features (c, 2 + 3K), sparse, for `label_statistic`."""
    cells, counts = np.unique(gold * num_labels + predicted, return_counts=True)
    labels = np.arange(num_labels)
    rows, columns = np.divmod(cells, num_labels)
    return counts, count_labels(rows[:, None] == labels, columns[:, None] == labels)


def count_labels(gold: NDArray[Any], predicted: NDArray[Any]) -> Any:
    """Rows (n, K) of 0 and 1 -> sparse (n, 2 + 3K) statistics for `label_statistic`."""
    from scipy.sparse import csr_array, hstack

    gold, predicted = gold.astype(bool), predicted.astype(bool)
    right = (gold == predicted).all(axis=1)
    parts = [np.column_stack([np.ones(len(gold)), right]), gold & predicted, predicted, gold]
    return hstack([csr_array(part.astype(np.float64)) for part in parts], format="csr")
