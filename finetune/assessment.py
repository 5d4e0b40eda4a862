"""Evaluation only: any existing checkpoint on the data of a recipe, by the code that evaluates in training."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import torch

from finetune import audit, data, evaluation, finish, hardware, model, preparation, pretrained, session, tasks
from finetune.carbon import Carbon
from finetune.errors import DataError
from finetune.events import Events
from finetune.folder import RunFolder
from finetune.recipe import Recipe
from finetune.record import ModelFacts, RunRecord
from finetune.rows import Rows
from finetune.tasks.base import Task

__all__ = ["evaluate"]

PREFERRED = ("test", "validation", "train")


def evaluate(
    recipe: Recipe,
    checkpoint: str,
    *,
    split: str | None = None,
    labels: dict[str, str] | None = None,
    events: Events | None = None,
) -> RunRecord:
    """Score `checkpoint` (folder, Hub id or package://…) in fp32 on one split of the recipe's data.

    labels: names in the checkpoint -> names in the data, where they differ. Writes
    `<output>/evaluations/<name>/{run.json,predictions/}`. Raises FinetuneError.
    """
    events = events or Events()
    started = datetime.datetime.now(datetime.UTC)
    task_class = tasks.of(recipe.task)
    found = pretrained.locate(checkpoint)
    loaded = model.load_for_evaluation(found, task_class)
    splits = audit.rows(recipe, data.load(recipe)).splits
    name = _split(split, splits)
    task = _task(recipe, task_class, loaded, splits, labels or {}, checkpoint)
    task.max_length = pretrained.longest_input(loaded.model.config, loaded.tokenizer, recipe.data.max_length)
    task.fit_to(loaded.model.config, loaded.tokenizer)
    chosen = {name: splits[name]}
    features = preparation.encode(chosen, task, loaded.tokenizer, events)
    accelerator = session.build_accelerator("fp32")
    torch.set_num_threads(hardware.threads_for(accelerator.num_processes))
    meter = Carbon(recipe.carbon.country if recipe.carbon else None, enabled=bool(accelerator.is_local_main_process))
    with meter.phase("evaluate"):
        predictions = evaluation.predict_split(
            accelerator,
            loaded.model.to(accelerator.device),
            task,
            loaded.tokenizer,
            features[name],
            chosen[name],
            events,
            as_published=True,
        )
    record = RunRecord(
        status="finished",
        exit_code=0,
        command=f"finetune evaluate {recipe.source.name} --checkpoint {checkpoint}",
        started=started.isoformat(timespec="seconds"),
        versions=hardware.versions(),
        hardware=hardware.describe(),
        processes=accelerator.num_processes,
        recipe_sha256=recipe.sha256(),
        model=_facts(loaded, found, task, chosen[name]),
        data={name: preparation.facts(chosen[name], features[name])},
    )
    record.emissions = meter.close()
    if predictions is None:
        return record
    record.results = {name: evaluation.score_split(task, predictions, recipe.evaluate.metrics)}
    record.analysis = {name: evaluation.analyse_split(task, predictions, features[name], chosen[name])}
    record.ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _write(recipe, checkpoint, record, chosen[name], task.records(predictions), events)
    return record


def _split(wanted: str | None, splits: dict[str, Rows]) -> str:
    if wanted is None:
        return next(name for name in PREFERRED if name in splits)
    if wanted not in splits:
        raise DataError(f"--split: the recipe's data has no split {wanted!r}; it has {', '.join(splits)}")
    return wanted


def _task(
    recipe: Recipe,
    task_class: type[Task],
    loaded: model.Loaded,
    splits: dict[str, Rows],
    renamed: dict[str, str],
    name: str,
) -> Task:
    """The task with the checkpoint's labels, spelled as in the data."""
    config = loaded.model.config
    from_data = task_class.from_rows(recipe, splits)
    if not from_data.labels_must_match:
        task = from_data
    else:
        own = [config.id2label[number] for number in sorted(config.id2label)]
        wanted = from_data.labels_for([renamed.get(label, label) for label in own])
        task = task_class.from_rows(recipe, splits, evaluation.match_labels(own, wanted, renamed, name))
    task.adopt(config)
    return task


def _facts(loaded: model.Loaded, found: pretrained.Checkpoint, task: Task, rows: Rows) -> ModelFacts:
    return ModelFacts(
        checkpoint=found.name,
        revision=found.revision,
        architecture=type(loaded.model).__name__,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        pipeline=task.pipeline,
        problem=task.problem,
        labels=task.labels,
        snippet=task.snippet(rows),
        notes=task.notes(),
    )


def _write(
    recipe: Recipe, checkpoint: str, record: RunRecord, rows: Rows, records: list[dict[str, Any]], events: Events
) -> None:
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint).strip("-.")[-80:] or "checkpoint"
    folder = RunFolder(Path(recipe.output) / "evaluations" / short)
    folder.open()
    try:
        folder.write_lines(folder.predictions / f"{rows.split}.jsonl", records)
        folder.write_lines(folder.hard_rows, evaluation.hard_rows(record.analysis[rows.split], records, rows))
        folder.write_record(record)
        finish.write_report(recipe, folder, record, events)
    finally:
        folder.close()
