"""Everything before the weights: checkpoint, tokenizer, rows, labels, features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune import audit, data, metrics, pretrained, tasks
from finetune.analysis.directional import pairs_of
from finetune.errors import Attempts, RecipeError
from finetune.events import Events
from finetune.features import Features, in_memory
from finetune.recipe import Recipe
from finetune.record import Audit, SplitFacts
from finetune.rows import Rows
from finetune.store import key_of
from finetune.tasks.base import Task

__all__ = ["Prepared", "check_evaluation", "commits", "encode", "encode_now", "facts", "inputs", "prepare"]

PROBLEM_WORDS = {
    "single": "each row has one label",
    "multi": "each row has a list of labels",
    "regression": "labels are numbers with a fraction",
}
Pretrained = tuple[pretrained.Checkpoint, Any, Any]  # with its config and tokenizer


@dataclass
class Prepared:
    """A recipe checked against its checkpoint and its data."""

    recipe: Recipe
    checkpoint: pretrained.Checkpoint
    config: Any
    tokenizer: Any
    task: Task
    splits: dict[str, Rows]
    features: dict[str, Features]
    audit: Audit


def prepare(recipe: Recipe, events: Events) -> Prepared:
    """Find the checkpoint, load and check the rows, build the task, encode. Raises FinetuneError of exit code 2."""
    task_class = tasks.of(recipe.task)
    attempts = Attempts()
    loaded = attempts(lambda: _checkpoint(recipe, task_class))
    findings = attempts(lambda: audit.rows(recipe, *data.collect(recipe)))
    task = None if findings is None else attempts(lambda: _task(recipe, findings.splits, loaded))
    if task is not None and findings is not None:
        attempts(lambda: check_evaluation(recipe, task, next(iter(findings.splits.values()))))
        attempts(lambda: _check_calibration(recipe, findings.splits))
        attempts(lambda: None if loaded is None else _fit(recipe, task, loaded))
    attempts.check()
    assert loaded is not None
    assert findings is not None
    assert task is not None
    found, config, tokenizer = loaded
    if recipe.data.problem is None and task.problem in PROBLEM_WORDS:
        events.message(f"data.problem: {task.problem}, since {PROBLEM_WORDS[task.problem]}")
    features = encode(findings.splits, task, tokenizer, events)
    notes = [*findings.notes, *task.survey(findings.splits, features, tokenizer)]
    surveyed = audit.survey(
        recipe.audit,
        findings.splits,
        features,
        notes,
        regression=task.problem == "regression",
        max_length=task.max_length,
    )
    return Prepared(recipe, found, config, tokenizer, task, findings.splits, features, surveyed)


def _checkpoint(recipe: Recipe, task: type[Task]) -> Pretrained:
    found = pretrained.find_checkpoint(recipe)
    config = pretrained.read_config(found, task, needs_weights=recipe.model.init == "pretrained")
    return found, config, pretrained.load_tokenizer(found, config)


def _task(recipe: Recipe, splits: dict[str, Rows], loaded: Pretrained | None) -> Task:
    """The task with its labels, those of a head that is kept in their own order."""
    task_class = tasks.of(recipe.task)
    task = task_class.from_rows(recipe, splits)
    if loaded is None or not recipe.model.keep_head:
        return task
    config = loaded[1]
    own = [config.id2label[number] for number in sorted(config.id2label)]
    if task.labels_must_match and own and set(task.labels_for(own)) <= set(own):
        return task_class.from_rows(recipe, splits, own)
    return task


def check_evaluation(recipe: Recipe, task: Task, rows: Rows) -> None:
    """What only comes into play once a model has run. Raises RecipeError for metrics, DataError for pairs of texts."""
    attempts = Attempts()
    if (kind := task.metric_kind) is not None:
        wanted = [*(recipe.evaluate.metrics or []), recipe.evaluate.select_on or task.default_metric()]
        attempts(lambda: metrics.check_names([name for name in wanted if name != "loss"], kind))
    attempts(lambda: pairs_of(recipe, rows, task.labels))
    attempts.check()


def _check_calibration(recipe: Recipe, splits: dict[str, Rows]) -> None:
    if recipe.evaluate.calibrate and "validation" not in splits:
        raise RecipeError("evaluate.calibrate: needs validation rows; add data.splits.validation, such as 0.1")


def _fit(recipe: Recipe, task: Task, loaded: Pretrained) -> None:
    """Tell the task what the checkpoint takes. Raises ModelError."""
    _, config, tokenizer = loaded
    task.max_length = pretrained.longest_input(config, tokenizer, recipe.data.max_length)
    task.fit_to(config, tokenizer)


def encode(splits: dict[str, Rows], task: Task, tokenizer: Any, events: Events) -> dict[str, Features]:
    """Features of every split, from the cache where it has them."""
    key = pretrained.tokenizer_sha256(tokenizer)
    features = {}
    for name, rows in splits.items():
        features[name] = data.encode(rows, task, tokenizer, key)
        cached = " (from the cache)" if features[name].cached else ""
        events.message(f"{name}: {len(rows)} rows, {int(features[name].lengths.sum())} tokens{cached}")
    return features


def facts(rows: Rows, features: Features) -> SplitFacts:
    """What run.json says of one split."""
    return SplitFacts(
        source=rows.source,
        revision=rows.commit,
        rows=len(rows),
        fingerprint=rows.fingerprint,
        dropped={reason: len(ids) for reason, ids in rows.dropped.items()},
        dropped_ids={reason: ids[:100] for reason, ids in rows.dropped.items()},
        truncated=len(set(features.scalars["row"][features.scalars["truncated"]].tolist())),
        windows=len(features),
    )


def inputs(ready: Prepared) -> dict[str, str]:
    """Recipe key -> a hash of what it stands for at this moment: rows that were read, commit or files of a model.

    Raises ModelError.
    """
    rows = {f"data.splits.{name}": one.fingerprint for name, one in ready.splits.items()}
    return rows | {"model.checkpoint": key_of(pretrained.identity(ready.checkpoint))}


def commits(ready: Prepared) -> dict[str, str]:
    """Recipe key -> the commit that a Hub had under what the recipe names."""
    found = {"data.revision": next(iter(ready.splits.values())).commit, "model.revision": ready.checkpoint.revision}
    return {key: commit for key, commit in found.items() if commit is not None}


def encode_now(rows: Rows, task: Task, tokenizer: Any) -> Features:
    """Features of a handful of rows, in memory, past the cache."""
    columns = task.encode(next(rows.batches(len(rows))), tokenizer)
    return in_memory(columns)
