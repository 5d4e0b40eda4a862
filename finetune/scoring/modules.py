"""The metrics as `evaluate.Metric` modules: ours need no download; one of the Hub's is fetched by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

import numpy as np

from finetune.errors import RecipeError
from finetune.scoring import labels as label_scores
from finetune.scoring import tags as tag_scores
from finetune.scoring import texts as text_scores
from finetune.scoring.names import NAMES, Kind

__all__ = ["as_evaluate", "check_names", "hub_metric", "hub_value", "is_ours"]

_HUB_NAME = re.compile(r"[a-z][a-z0-9_]*")
_HUB_OWNER = "evaluate-metric"


def as_evaluate(names: str | Sequence[str], kind: Kind, labels: Sequence[Any] | None = None, rows: Any = None) -> Any:
    """An `evaluate.Metric` of one or several of our metrics, computed in memory; works with `evaluate.combine`.

    `compute(predictions=, references=)` takes, by kind: label ids (n,); rows of 0 and 1 (n, K); numbers (n,); rows of
    tags; texts against lists of answers; texts. `roc_auc` takes `prediction_scores=` (n, K) too, or instead. labels:
    all label ids, or tags, of the task, over which macro averages go; left out, those that occur. rows: the per-row
    statistics of entity and text metrics, where they are known; else `rows` holds them after `compute`. Undefined is
    NaN.
    Raises RecipeError for a name that `NAMES` does not have for this kind.
    """
    chosen = (names,) if isinstance(names, str) else tuple(names)
    unknown = [_unknown(name, kind) for name in chosen if name not in NAMES[kind]]
    if unknown:
        raise RecipeError("\n".join(unknown))
    return _metric_class()(chosen, kind, labels, rows)


def _unknown(name: str, kind: Kind) -> str:
    near = get_close_matches(name, NAMES[kind], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"evaluate.metrics: no metric {name!r} for this kind of prediction{hint} (there are {', '.join(NAMES[kind])})"
    )


@cache
def _metric_class() -> Any:
    import evaluate  # takes seconds to import

    class PackagedMetric(evaluate.Metric):  # type: ignore[misc]
        """Metrics of this package behind the interface of `evaluate`."""

        def __init__(self, names: tuple[str, ...], kind: Kind, labels: Sequence[Any] | None, rows: Any) -> None:
            self.names, self.kind, self.labels = names, kind, labels
            self.rows = rows
            super().__init__(keep_in_memory=True)
            self.info.module_name = "_".join(names)

        def _build_data_dir(self) -> str:
            return ""  # everything is in memory: no cache folder, which may be read-only

        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=f"{', '.join(self.names)} ({self.kind})",
                citation="",
                features=_features(self.kind, self.names),
                inputs_description="See finetune/scoring/names.py.",
            )

        def _compute(
            self, references: Any, predictions: Any = None, prediction_scores: Any = None, **_: Any
        ) -> dict[str, float]:
            # `evaluate.combine` hands every input to every module, hence the rest.
            if self.kind in {"single", "multi", "regression"}:
                references, predictions = np.asarray(references), np.asarray(predictions)
            scores = None if prediction_scores is None else np.asarray(prediction_scores)
            if self.kind in {"single", "multi", "regression", "tags"}:
                return _values(self.kind, self.names, references, predictions, scores, self.labels)
            if self.rows is None:
                self.rows = _row_statistics(self.kind, self.names, references, predictions)
            return _values_of_rows(self.kind, self.names, references, predictions, self.rows)

    return PackagedMetric


def _features(kind: Kind, names: tuple[str, ...]) -> Any:
    from datasets import Features, Sequence, Value

    item: dict[Kind, tuple[Any, Any]] = {
        "single": (Value("int64"), Value("int64")),
        "multi": (Sequence(Value("int64")), Sequence(Value("int64"))),
        "regression": (Value("float64"), Value("float64")),
        "entities": (Sequence(Value("string")), Sequence(Value("string"))),
        "tags": (Sequence(Value("string")), Sequence(Value("string"))),
        "answers": (Value("string"), Sequence(Value("string"))),
        "texts": (Value("string"), Value("string")),
    }
    features = {"predictions": item[kind][0], "references": item[kind][1]}
    if "roc_auc" in names:
        features["prediction_scores"] = Sequence(Value("float64"))
        if len(names) == 1:
            del features["predictions"]
    return Features(features)


def _values(
    kind: Kind, names: tuple[str, ...], gold: Any, predicted: Any, scores: Any, labels: Sequence[Any] | None
) -> dict[str, float]:
    if kind == "single":
        ids = _label_ids(gold, predicted, scores) if labels is None else labels
        return label_scores.single_values(names, gold, predicted, scores, ids)
    if kind == "multi":
        return label_scores.multi_values(names, gold, predicted, scores)
    if kind == "regression":
        return label_scores.regression_values(names, gold, predicted)
    known = sorted({tag for side in (gold, predicted) for row in side for tag in row}) if labels is None else labels
    return tag_scores.tag_values(names, gold, predicted, known)


def _row_statistics(kind: Kind, names: tuple[str, ...], gold: Any, predicted: Any) -> Any:
    if kind == "entities":
        return tag_scores.count_entities(gold, predicted)
    if kind == "answers":
        return text_scores.answer_scores(gold, predicted)
    return text_scores.text_scores(names, gold, predicted)


def _values_of_rows(kind: Kind, names: tuple[str, ...], gold: Any, predicted: Any, rows: Any) -> dict[str, float]:
    if kind == "entities":
        return tag_scores.entity_values(names, gold, predicted, rows)
    if kind == "answers":
        means = dict(zip(NAMES["answers"], rows.mean(axis=0).tolist(), strict=True))
        return {name: means[name] for name in names}
    return {name: text_scores.text_value(name, rows[name]) for name in names}


def _label_ids(gold: Any, predicted: Any, scores: Any) -> Sequence[int]:
    if scores is not None:
        return range(scores.shape[1])
    return [int(label) for label in np.union1d(gold, predicted)]


def hub_metric(name: str) -> Any:
    """A metric of the Hub's own collection, `evaluate-metric/<name>`, as an `evaluate.Metric`.

    This downloads and runs the metric's code, so names of other owners and paths are refused; under HF_HUB_OFFLINE only
    what was fetched before is used. Raises RecipeError when the name is none, cannot be reached, or needs a package
    that is not installed. (evaluate 0.4.6 says that a module does not exist when it is the network that is missing.)
    """
    if not _HUB_NAME.fullmatch(name):
        raise RecipeError(
            f"evaluate.metrics: {name!r} is no metric of ours{_near(name)}; of the Hub, only the metrics of "
            f"{_HUB_OWNER} are run, by their plain name"
        )
    import evaluate
    from datasets import DownloadConfig
    from huggingface_hub import constants

    evaluate.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else a request to another host, even when offline
    config = DownloadConfig(local_files_only=constants.HF_HUB_OFFLINE)
    try:
        return evaluate.load(f"{_HUB_OWNER}/{name}", keep_in_memory=True, download_config=config)
    except ImportError as error:
        raise RecipeError(f"evaluate.metrics: the Hub's metric {name!r} cannot be imported: {error}") from error
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"evaluate.metrics: {name!r} is no metric of ours{_near(name)}; {_HUB_OWNER}/{name} could not be fetched "
            f"from the Hub either: there is none, there is no network, or offline mode is set ({type(error).__name__})"
        ) from error


def _near(name: str) -> str:
    near = get_close_matches(name, sorted({known for several in NAMES.values() for known in several}), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def hub_value(name: str, predictions: Any, references: Any) -> float:
    """The value of a Hub metric of these predictions and references.

    Raises RecipeError as `hub_metric`, and when the metric refuses the inputs or its result is not one number.
    """
    module = hub_metric(name)
    try:
        result = module.compute(predictions=predictions, references=references)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"evaluate.metrics: the Hub's metric {name!r} does not fit this task: {error}") from error
    numbers = {key: float(value) for key, value in result.items() if isinstance(value, int | float | np.number)}
    if name in numbers or len(numbers) == 1:
        return numbers.get(name, next(iter(numbers.values())))
    raise RecipeError(f"evaluate.metrics: the Hub's metric {name!r} gives no single number, but {sorted(result)}")


def check_names(names: Sequence[str], kind: Kind) -> None:
    """Find out before training whether every metric can be had; fetches those that are not ours.

    Raises RecipeError with all problems, one per line.
    """
    problems = []
    for name in names:
        try:
            if not is_ours(name, kind):
                hub_metric(name)
        except RecipeError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError("\n".join(problems))


def is_ours(name: str, kind: Kind) -> bool:
    """Whether the metric is in this package. Raises RecipeError for one of ours that is of another kind."""
    if name in NAMES[kind]:
        return True
    if any(name in several for several in NAMES.values()):
        raise RecipeError(_unknown(name, kind))
    return False
