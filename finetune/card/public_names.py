"""What a published page may call things: ids of the Hub as they are, local places by their last name only."""

from __future__ import annotations

import re
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from ruamel.yaml import YAML

from finetune.recipe import Recipe, is_local
from finetune.recipe.tables import ONLY_FOR
from finetune.recipe.yaml_lines import dump
from finetune.record import RunRecord

__all__ = [
    "base_model",
    "data_revision",
    "dataset_id",
    "dataset_name",
    "hub_id",
    "is_hub_id",
    "metric_name",
    "metric_on_hub",
    "model_name",
    "place_name",
    "public_recipe",
    "source_name",
]

# Source: huggingface_hub.utils.validate_repo_id; an id has one or two parts here.
HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
PACKAGE = "package://"
GENERIC = {"all", "data", "dataset", "dev", "eval", "test", "train", "training", "valid", "validation"}
PRIVATE_BLOCKS = ("hub", "track")  # where results go: it does not change them, and it is nobody's business
METRICS = {  # ours -> (id on the Hub, name for people)
    "accuracy": ("accuracy", "accuracy"),
    "bleu": ("sacrebleu", "BLEU"),
    "chrf": ("chrf", "chrF"),
    "exact_match": ("exact_match", "exact match"),
    "f1": ("f1", "F1"),
    "f1_macro": ("f1", "macro F1"),
    "f1_micro": ("f1", "micro F1"),
    "f1_pipeline": ("f1", "F1 through the pipeline"),
    "has_answer_exact_match": ("exact_match", "exact match where there is an answer"),
    "has_answer_f1": ("f1", "F1 where there is an answer"),
    "matthews": ("matthews_correlation", "Matthews correlation"),
    "mse": ("mse", "mean squared error"),
    "no_answer_exact_match": ("exact_match", "exact match where there is no answer"),
    "no_answer_f1": ("f1", "F1 where there is no answer"),
    "pearson": ("pearsonr", "Pearson correlation"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
    "roc_auc": ("roc_auc", "ROC AUC"),
    "rouge1": ("rouge", "ROUGE-1"),
    "rouge2": ("rouge", "ROUGE-2"),
    "rougeL": ("rouge", "ROUGE-L"),
    "spearman": ("spearmanr", "Spearman correlation"),
}
MACRO = {"f1", "precision", "recall"}  # averages over classes in the problems of CLASSES
CLASSES = {"single", "multi", "tags"}


def is_hub_id(value: object) -> bool:
    """Whether `value` has the form of a repository id: `name` or `owner/name`."""
    return isinstance(value, str) and HUB_ID.fullmatch(value) is not None


def hub_id(value: object) -> str | None:
    """The id if `value` names a repository on the Hub by the recipe's rules, else None."""
    if not isinstance(value, str) or value.startswith(PACKAGE) or is_local(value):
        return None
    return value if is_hub_id(value) else None


def base_model(recipe: Recipe) -> str | None:
    """The Hub id of the model whose weights training started from; None when there were none, or no id is known."""
    if recipe.model.init == "scratch":
        return None
    return hub_id(recipe.card.base_model) or hub_id(recipe.model.checkpoint)


def dataset_id(recipe: Recipe) -> str | None:
    """The Hub id of the data set, or None for local data."""
    return hub_id(recipe.data.path)


def data_revision(recipe: Recipe, record: RunRecord) -> str | None:
    """The commit of the data set that was read, else what the recipe names."""
    return next((facts.revision for facts in record.data.values() if facts.revision), recipe.data.revision)


def dataset_name(recipe: Recipe) -> str:
    """The Hub id with its configuration; for local data the name of its folder or file, else that of the recipe."""
    found = dataset_id(recipe)
    if found:
        return f"{found} ({recipe.data.name})" if recipe.data.name else found
    paths = recipe.data.path.values() if isinstance(recipe.data.path, dict) else [recipe.data.path]
    stems = {PurePosixPath(_last(path)).stem for path in paths if "*" not in _last(path)}
    named = sorted(stem for stem in stems if stem.lower() not in GENERIC and stem.strip("."))
    return named[0] if len(named) == 1 else recipe.source.stem


def model_name(recipe: Recipe, model_id: str | None) -> str:
    """The last part of the repository id, or the name of the run folder."""
    return (model_id or recipe.output).rstrip("/").rpartition("/")[2]


def place_name(value: str) -> str:
    """A checkpoint: as it is where it names a repository or a package, else the last part of its path."""
    return value if hub_id(value) or value.startswith(PACKAGE) else _last(value)


def source_name(recipe: Recipe, source: str) -> str:
    """The source of a split as the record has it; local files by their names only."""
    if dataset_id(recipe):
        return source
    return ", ".join(_last(part) for part in source.split(", "))


def metric_name(metric: str, problem: str | None) -> str:
    """The name of a metric for people; `problem` tells whether the average is over classes. f1/PER: F1 of PER."""
    metric, _, part = metric.partition("/")
    if part:
        return f"{metric_name(metric, None)} of {part}"
    name = METRICS.get(metric, (metric, metric.replace("_", " ")))[1]
    return f"macro {name}" if metric in MACRO and problem in CLASSES else name


def metric_on_hub(metric: str) -> str:
    """The id of a metric on the Hub."""
    metric = metric.partition("/")[0]
    return METRICS.get(metric, (metric, metric))[0]


def public_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: local paths by their last name, no tracker, no repository, nothing of no effect."""
    settings = YAML(typ="safe", pure=True).load(recipe.to_yaml())
    for block, _, name in (key.partition(".") for key, tasks in ONLY_FOR.items() if recipe.task not in tasks):
        (settings.get(block) or {}).pop(name, None)
    content = {key: value for key, value in settings.items() if key not in PRIVATE_BLOCKS}
    return dump(_public(content | {"output": _last(recipe.output)}))


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items() if item not in (None, {}, [])}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return _last(value) if isinstance(value, str) and _is_place(value) else value


def _is_place(value: str) -> bool:
    return not value.startswith(PACKAGE) and (
        is_local(value) or value.startswith("~") or PureWindowsPath(value).is_absolute()
    )


def _last(path: str) -> str:
    return PurePath(path.replace("\\", "/")).name or "."
