"""Predictions and results of a model on a split; labels of a checkpoint matched to those of the data by name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator

from finetune import loop
from finetune.analysis.slices import column_groups, length_groups, slices
from finetune.bootstrap import mean_interval
from finetune.errors import ModelError
from finetune.events import Events
from finetune.features import Features, in_memory
from finetune.first_position import install_first_position
from finetune.heartbeat import Heartbeat
from finetune.record import Analysis, SplitResults
from finetune.rows import INPUTS, Rows
from finetune.signals import StopFlag
from finetune.tasks.base import Predictions, Task

__all__ = ["analyse_split", "hard_rows", "match_labels", "predict_published", "predict_split", "score_split"]


def predict_split(
    accelerator: Accelerator,
    model: Any,
    task: Task,
    tokenizer: Any,
    features: Features,
    rows: Rows,
    events: Events,
    *,
    as_published: bool = False,
    stop: StopFlag | None = None,
    heart: Heartbeat | None = None,
) -> Predictions | None:
    """Predictions for every row, in the order of the rows, on the main process; None on the others.

    as_published: `predict_published`, too. Raises Preempted once `stop` is set.
    """
    was_training = model.training
    model.eval()
    restore = install_first_position(model)

    def tell(done: int, total: int) -> None:
        events.progress(f"evaluate {rows.split}", done, total, {})

    try:
        outputs = loop.predict(accelerator, model, task, features, tokenizer, on_batch=tell, stop=stop, heart=heart)
    finally:
        restore()
        model.train(was_training)
    predictions = None if outputs is None else task.decode(outputs, features, rows)
    if as_published:
        predict_published(accelerator, model, task, tokenizer, rows, predictions, events, stop, heart)
    return predictions


def predict_published(
    accelerator: Accelerator,
    model: Any,
    task: Task,
    tokenizer: Any,
    rows: Rows,
    predictions: Predictions | None,
    events: Events,
    stop: StopFlag | None = None,
    heart: Heartbeat | None = None,
) -> None:
    """Where callers of the pipeline give their texts otherwise than the rows do: predict those, and compare."""
    given = task.published(rows)
    if given is None:
        return
    read = in_memory(task.encode(next(given.batches(len(given))), tokenizer))
    found = predict_split(accelerator, model, task, tokenizer, read, given, events, stop=stop, heart=heart)
    if predictions is not None and found is not None:
        task.compare_published(predictions, found, rows)


def score_split(task: Task, predictions: Predictions, names: Sequence[str] | None) -> SplitResults:
    """Metrics and the mean loss, with intervals; `names` None means the defaults of the task."""
    results = task.score(predictions, names)
    return SplitResults(n=len(predictions.ids), metrics=results | {"loss": mean_interval(predictions.loss)})


def analyse_split(task: Task, predictions: Predictions, features: Features, rows: Rows) -> Analysis:
    """Where the model fails: what the task says of it, and its metric by length and by columns kept for this."""
    started = time.perf_counter()
    found, scores = task.examine(predictions, rows)
    tokens = np.bincount(features.scalars["row"], weights=features.lengths, minlength=len(rows))
    found.slices += slices(scores, "length", length_groups(tokens))
    for name, values in rows.kept().items():
        found.slices += slices(scores, name, column_groups(values))
    found.seconds = round(time.perf_counter() - started, 3)
    return found


def hard_rows(analysis: Analysis, records: Sequence[dict[str, Any]], rows: Rows) -> Iterator[dict[str, Any]]:
    """The rows that the analysis names, with what they say: for the report, which stays on this machine.

    records: of all rows, in their order, as in `predictions/`. Yields them with `split` and `inputs`, role -> value.
    """
    named = {one.id for one in analysis.worst} | {one.id for one in analysis.suspects}
    index = np.array([number for number, line in enumerate(records) if line["id"] in named], np.int64)
    chosen = rows.take(index)
    inputs = {role: chosen.column(role) for role in INPUTS if role in chosen.table.column_names}
    for place, number in enumerate(index.tolist()):
        said = {role: values[place] for role, values in inputs.items()}
        yield {"split": rows.split, **records[number], "inputs": said}


def match_labels(own: Sequence[str], wanted: Sequence[str], renamed: dict[str, str], checkpoint: str) -> list[str]:
    """The labels of a checkpoint, in its order, spelled as in the data.

    own: names in the checkpoint's config. wanted: names in the data. renamed: the user's own mapping, old name to new.
    Names are equal when they differ only in case or in a prefix LABEL_ or __label__. Raises ModelError with both lists
    when a label of the data is left without a partner.
    """
    unknown = sorted(set(renamed) - set(own))
    if unknown:
        raise ModelError(f"--labels: {checkpoint} has no label {', '.join(unknown)}; it has {', '.join(own)}")
    spelling = {_plain(name): name for name in wanted} | {name: name for name in wanted}
    found = [renamed.get(name) or spelling.get(name) or spelling.get(_plain(name), name) for name in own]
    missing = sorted(set(wanted) - set(found))
    if missing or len(set(found)) < len(found):
        raise ModelError(
            f"{checkpoint}: its labels are {', '.join(own)}; the data's are {', '.join(wanted)};"
            f" without a partner: {', '.join(missing) or 'none, but two become one'}; say which is which:"
            f" --labels old=new,…{_example(own, found, missing)}"
        )
    return found


def _plain(name: str) -> str:
    folded = name.casefold()
    return next(
        (folded.removeprefix(prefix) for prefix in ("label_", "__label__") if folded.startswith(prefix)), folded
    )


def _example(own: Sequence[str], found: Sequence[str], missing: Sequence[str]) -> str:
    """How the mapping would be written, were the labels without a partner in the same order on both sides."""
    left = [name for name, new in zip(own, found, strict=True) if name == new]
    if not missing or len(left) != len(missing):
        return ""
    return f" (for example --labels {','.join(map('='.join, zip(left, missing, strict=True)))}, if that is their order)"
