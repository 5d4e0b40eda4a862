"""Evaluation only: any existing checkpoint on the data of a recipe, by the code that evaluates in training."""

from __future__ import annotations

import datetime
import hashlib
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from finetune import (
    adapter,
    audit,
    behaviour,
    data,
    efficiency,
    evaluation,
    finish,
    hardware,
    mislabelling,
    model,
    preparation,
    pretrained,
    session,
    tasks,
)
from finetune.analysis.slices import column_problem
from finetune.carbon import Carbon
from finetune.errors import Attempts, DataError, ModelError, RecipeError
from finetune.events import Events
from finetune.features import Features
from finetune.folder import RunFolder
from finetune.recipe import Recipe
from finetune.record import Efficiency, ModelFacts, RunRecord, SplitResults
from finetune.rows import Rows
from finetune.tasks.base import Predictions, Task

__all__ = ["evaluate"]

PREFERRED = ("test", "validation", "train")
LONGEST_NAME = 80  # characters of a checkpoint in the name of a folder


def evaluate(
    recipe: Recipe,
    checkpoint: str,
    *,
    split: str | None = None,
    labels: dict[str, str] | None = None,
    events: Events | None = None,
) -> RunRecord:
    """Score `checkpoint` (folder, Hub id or package://…) in fp32 on one split of the recipe's data.

    A PEFT adapter is merged into the base that it names, or else into the recipe's checkpoint. labels: names in the
    checkpoint -> names in the data, where they differ. Writes `<output>/evaluations/<name>/{run.json,predictions/}`.
    Raises FinetuneError.
    """
    events = events or Events()
    folder = _folder(recipe, checkpoint)
    started = _now()
    hardware.reset_peak_memory()
    task_class = tasks.of(recipe.task)
    attempts = Attempts()
    given = attempts(lambda: _load(recipe, checkpoint, task_class))
    findings = attempts(lambda: audit.rows(recipe, *data.collect(recipe)))
    attempts(folder.probe)
    attempts.check()
    assert given is not None
    assert findings is not None
    (found, loaded), splits = given, findings.splits
    name = _split(split, splits)
    rows = splits[name]
    own = _own_labels(loaded)
    task = _task(recipe, task_class, loaded, splits, labels or {}, checkpoint)
    task.max_length = pretrained.longest_input(loaded.model.config, loaded.tokenizer, recipe.data.max_length)
    task.fit_to(loaded.model.config, loaded.tokenizer)
    preparation.check_evaluation(recipe, task, rows)
    features = preparation.encode({name: rows}, task, loaded.tokenizer, events)[name]
    accelerator = session.build_accelerator("fp32")
    torch.set_num_threads(hardware.threads_for(accelerator.num_processes))
    meter = Carbon(recipe.carbon.country if recipe.carbon else None, enabled=bool(accelerator.is_local_main_process))
    with meter.phase("evaluate"):
        predictions, seconds = _predict(accelerator, loaded, task, features, rows, events)
        tried = behaviour.trials(recipe, rows, accelerator, loaded.model, task, loaded.tokenizer, events)
    record = _record(recipe, checkpoint, accelerator)
    record.started = started
    record.model, record.data = _facts(loaded, found, task, rows), {name: preparation.facts(rows, features)}
    record.emissions = meter.close()
    if predictions is None:
        return record
    record.results = {name: evaluation.score_split(task, predictions, recipe.evaluate.metrics)}
    analysis = evaluation.analyse_split(task, predictions, features, rows)
    analysis.behaviour = behaviour.checks(task, predictions, tried)
    record.analysis = {name: analysis}
    record.baselines = _baselines(task, predictions, rows)
    record.warnings = [*_warnings(record, task, predictions, own, labels or {}), *_poor_slices(rows)]
    record.efficiency = _efficiency(record, loaded, found, task, rows, len(rows) / seconds, accelerator.device)
    record.ended = _now()
    _write(folder, recipe, record, rows, task.records(predictions), events)
    return record


def _load(recipe: Recipe, name: str, task: type[Task]) -> tuple[pretrained.Checkpoint, model.Loaded]:
    try:
        found = adapter.locate(name, recipe)
        return found, model.load_for_evaluation(found, task)
    except ModelError as error:
        prefix, rest = "model.checkpoint: ", str(error)
        if not rest.startswith(prefix):
            raise
        raise ModelError(f"--checkpoint: {rest.removeprefix(prefix)}") from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _split(wanted: str | None, splits: dict[str, Rows]) -> str:
    if wanted is None:
        return next(name for name in PREFERRED if name in splits)
    if wanted not in splits:
        raise DataError(f"--split: the recipe's data has no split {wanted!r}; it has {', '.join(splits)}")
    return wanted


def _own_labels(loaded: model.Loaded) -> list[str]:
    names = loaded.model.config.id2label
    return [names[number] for number in sorted(names)]


def _task(
    recipe: Recipe,
    task_class: type[Task],
    loaded: model.Loaded,
    splits: dict[str, Rows],
    renamed: dict[str, str],
    name: str,
) -> Task:
    """The task with the checkpoint's labels, spelled as in the data."""
    from_data = task_class.from_rows(recipe, splits)
    if not from_data.labels_must_match:
        if renamed:
            raise RecipeError("--labels: the model has no labels to be renamed; leave it out")
        task = from_data
    else:
        own = _own_labels(loaded)
        wanted = from_data.labels_for([renamed.get(label, label) for label in own])
        task = task_class.from_rows(recipe, splits, evaluation.match_labels(own, wanted, renamed, name))
    task.adopt(loaded.model.config)
    return task


def _predict(
    accelerator: Accelerator, loaded: model.Loaded, task: Task, features: Features, rows: Rows, events: Events
) -> tuple[Predictions | None, float]:
    """The predictions, and the seconds they took without what only the pipeline's callers see."""
    net = loaded.model.to(accelerator.device)
    started = time.perf_counter()
    predictions = evaluation.predict_split(accelerator, net, task, loaded.tokenizer, features, rows, events)
    seconds = time.perf_counter() - started
    evaluation.predict_published(accelerator, net, task, loaded.tokenizer, rows, predictions, events)
    return predictions, seconds


# ---------------------------------------------------------------------------------------- what the record says


def _record(recipe: Recipe, checkpoint: str, accelerator: Accelerator) -> RunRecord:
    return RunRecord(
        status="finished",
        exit_code=0,
        command=f"finetune evaluate {recipe.source.name} --checkpoint {checkpoint}",
        versions=hardware.versions(),
        hardware=hardware.describe(),
        processes=accelerator.num_processes,
        recipe_sha256=recipe.sha256(),
    )


def _facts(loaded: model.Loaded, found: pretrained.Checkpoint, task: Task, rows: Rows) -> ModelFacts:
    return ModelFacts(
        checkpoint=found.name,
        revision=found.revision,
        architecture=type(loaded.model).__name__,
        parameters=_parameters(loaded),
        tokenizer=f"{type(loaded.tokenizer).__name__}, {len(loaded.tokenizer):,} tokens",
        max_length=task.max_length,
        pipeline=task.pipeline,
        problem=task.problem,
        labels=task.labels,
        snippet=task.snippet(rows),
        notes=task.notes(),
    )


def _parameters(loaded: model.Loaded) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters())


def _baselines(task: Task, predictions: Predictions, rows: Rows) -> dict[str, dict[str, SplitResults]]:
    """What needs no training rows: always the most frequent gold answer, or the head's own trivial methods."""
    constant = task.constant(predictions)
    if constant is None:
        evaluated = "evaluated"  # not `train`, whose rows the methods would learn from, and are not scored on
        scored = task.baselines({evaluated: rows})
        return {method: {rows.split: found[evaluated]} for method, found in scored.items() if evaluated in found}
    results = SplitResults(n=len(rows), metrics=task.score(constant[1]))
    return {f"always {constant[0]}": {rows.split: results}}


def _warnings(
    record: RunRecord, task: Task, predictions: Predictions, own: list[str], renamed: dict[str, str]
) -> list[str]:
    [(split, results)] = record.results.items()
    found = []
    for method, scored in record.baselines.items():
        trivial = {name: one for name, one in scored[split].metrics.items() if one.value is not None}
        metric = next((name for name in (task.default_metric(), *trivial) if name in trivial), "")
        found.append(mislabelling.below_baseline(metric, results.metrics.get(metric), method, trivial.get(metric)))
    confusion = task.confusion(predictions)
    exchange = mislabelling.better_permutation(*confusion) if confusion is not None else None
    if exchange is not None:
        found.append(
            f"{exchange.right:,} of {exchange.total:,} are right; were its labels exchanged, {exchange.better:,}"
            " would be: the names in its config.json are probably in a wrong order; if so, add"
            f" --labels {mislabelling.renaming(exchange, own, task.labels, renamed)}"
        )
    return [text for text in found if text]


def _poor_slices(rows: Rows) -> list[str]:
    found = {name: column_problem(values) for name, values in rows.kept().items()}
    return [f"evaluate.slices: {name}: {problem}" for name, problem in found.items() if problem]


def _efficiency(
    record: RunRecord,
    loaded: model.Loaded,
    found: pretrained.Checkpoint,
    task: Task,
    rows: Rows,
    rows_per_second: float,
    device: torch.device,
) -> Efficiency:
    latency = efficiency.measure_latency(loaded.model, task, loaded.tokenizer, rows, device)
    phases = record.emissions.phases if record.emissions is not None else {}
    return Efficiency(
        parameters=_parameters(loaded),
        size_bytes=efficiency.size_bytes(found),
        rows_per_second=rows_per_second,
        latency_rows=len(latency.rows),
        latency_p50_seconds=float(np.percentile(latency.rows, 50)),
        latency_p95_seconds=float(np.percentile(latency.rows, 95)),
        first_token_p50_seconds=_median(latency.first_tokens),
        per_token_p50_seconds=_median(latency.next_tokens),
        peak_memory_bytes=hardware.peak_memory_bytes(),
        threads=torch.get_num_threads(),
        energy_kwh=phases.get("evaluate", {}).get("kwh"),
    )


def _median(seconds: list[float]) -> float | None:
    return float(np.median(seconds)) if seconds else None


def _folder(recipe: Recipe, checkpoint: str) -> RunFolder:
    """Where an evaluation of this checkpoint is written."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint).strip("-.") or "checkpoint"
    if len(name) > LONGEST_NAME:  # others may end alike
        name = f"{hashlib.sha256(checkpoint.encode()).hexdigest()[:8]}-{name[-LONGEST_NAME:]}"
    return RunFolder(Path(recipe.output) / "evaluations" / name)


def _write(
    folder: RunFolder, recipe: Recipe, record: RunRecord, rows: Rows, records: list[dict[str, Any]], events: Events
) -> None:
    folder.open()
    try:
        folder.write_lines(folder.predictions / f"{rows.split}.jsonl", records)
        folder.write_lines(folder.hard_rows, evaluation.hard_rows(record.analysis[rows.split], records, rows))
        folder.write_record(record)
        finish.write_report(recipe, folder, record, events)
    finally:
        folder.close()
