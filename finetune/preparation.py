"""Everything before the weights: checkpoint, tokenizer, rows, labels, features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from finetune import audit, data, metrics, pretrained, tasks
from finetune.analysis.directional import pairs_of
from finetune.errors import FinetuneError, RecipeError
from finetune.events import Events
from finetune.features import Features, in_memory
from finetune.recipe import Recipe
from finetune.record import Audit, SplitFacts
from finetune.rows import Rows
from finetune.store import key_of
from finetune.tasks.base import Task

__all__ = ["Prepared", "encode", "encode_now", "facts", "inputs", "prepare"]

A = TypeVar("A")
B = TypeVar("B")


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
    (found, config, tokenizer), findings = _both(
        lambda: _checkpoint(recipe, task_class), lambda: audit.rows(recipe, data.load(recipe))
    )
    task = task_class.from_rows(recipe, findings.splits)
    own = [config.id2label[number] for number in sorted(config.id2label)] if recipe.model.keep_head else []
    if task.labels_must_match and own and set(task.labels_for(own)) <= set(own):
        task = task_class.from_rows(recipe, findings.splits, own)  # in the order of the head that is kept
    if task.metric_kind is not None:
        wanted = [*(recipe.evaluate.metrics or []), recipe.evaluate.select_on or task.default_metric()]
        metrics.check_names([name for name in wanted if name != "loss"], task.metric_kind)
    task.max_length = pretrained.longest_input(config, tokenizer, recipe.data.max_length)
    task.fit_to(config, tokenizer)
    if recipe.evaluate.calibrate and "validation" not in findings.splits:
        raise RecipeError("evaluate.calibrate: needs validation rows; add data.splits.validation, such as 0.1")
    pairs_of(recipe, next(iter(findings.splits.values())), task.labels)  # a bad file is found before training
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


def _checkpoint(recipe: Recipe, task: type[Task]) -> tuple[pretrained.Checkpoint, Any, Any]:
    found = pretrained.find_checkpoint(recipe)
    config = pretrained.read_config(found, task, needs_weights=recipe.model.init == "pretrained")
    return found, config, pretrained.load_tokenizer(found, config)


def _both(one: Callable[[], A], other: Callable[[], B]) -> tuple[A, B]:
    """What both give. Raises the FinetuneError of either, or one of both together."""
    try:
        first = one()
    except FinetuneError as error:
        try:
            other()
        except FinetuneError as further:
            raise type(error)(f"{error}\n{further}") from error
        raise
    return first, other()


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
        rows=len(rows),
        fingerprint=rows.fingerprint,
        dropped={reason: len(ids) for reason, ids in rows.dropped.items()},
        dropped_ids={reason: ids[:100] for reason, ids in rows.dropped.items()},
        truncated=len(set(features.scalars["row"][features.scalars["truncated"]].tolist())),
        windows=len(features),
    )


def inputs(ready: Prepared) -> dict[str, str]:
    """Recipe key -> a hash of what it stands for at this moment: rows that were read, files that were loaded.

    Raises ModelError.
    """
    rows = {f"data.splits.{name}": one.fingerprint for name, one in ready.splits.items()}
    return rows | {"model.checkpoint": key_of(pretrained.file_hashes(ready.checkpoint))}


def encode_now(rows: Rows, task: Task, tokenizer: Any) -> Features:
    """Features of a handful of rows, in memory, past the cache."""
    columns = task.encode(next(rows.batches(len(rows))), tokenizer)
    return in_memory(columns)
