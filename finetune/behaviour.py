"""Behaviour checks: the model on changed rows, by the code that evaluates it on the rows as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import Accelerator

from finetune import evaluation
from finetune.analysis.directional import Pair, pairs_of
from finetune.analysis.perturb import KINDS, Change, change
from finetune.bootstrap import mean_interval
from finetune.events import Events
from finetune.heartbeat import Heartbeat
from finetune.preparation import encode_now
from finetune.recipe import Recipe
from finetune.record import Interval
from finetune.record.analysis import Check, Example, Measure
from finetune.rows import INPUTS, Rows
from finetune.signals import StopFlag
from finetune.tasks.base import Predictions, Task

__all__ = ["Trial", "checks", "trials"]

ROWS = 500  # changed at most, for each check
EXAMPLES = 5
QUESTION = ("question",)  # where there is one, only it gets typos: an answer is a part of the context as it stands
REPLACING = ("names", "gender")
TAGGED = {"tokens", "spans"}  # words that come or go would change a row's list of tags, whatever the model says


@dataclass
class Trial:
    """One check, predicted. Predictions are None on all processes but the main one."""

    name: str
    rows: Rows  # as they were changed; of a check of the user's own, with the second input of each pair
    predictions: Predictions | None
    index: np.ndarray  # which rows of the split these are, int (n,)
    changes: Sequence[Change] = ()
    pairs: Sequence[Pair] = ()
    first: tuple[Rows, Predictions | None] | None = None  # the first input of each pair


@dataclass
class _Runner:
    accelerator: Accelerator
    model: Any
    task: Task
    tokenizer: Any
    events: Events
    stop: StopFlag | None
    heart: Heartbeat | None

    def predict(self, rows: Rows) -> Predictions | None:
        features = encode_now(rows, self.task, self.tokenizer)
        return evaluation.predict_split(
            self.accelerator,
            self.model,
            self.task,
            self.tokenizer,
            features,
            rows,
            self.events,
            stop=self.stop,
            heart=self.heart,
        )


def trials(
    recipe: Recipe,
    rows: Rows,
    accelerator: Accelerator,
    model: Any,
    task: Task,
    tokenizer: Any,
    events: Events,
    stop: StopFlag | None = None,
    heart: Heartbeat | None = None,
) -> list[Trial]:
    """Predict the changed rows of every check that the recipe asks for; the same on all processes.

    Raises Preempted once `stop` is set.
    """
    runner = _Runner(accelerator, model, task, tokenizer, events, stop, heart)
    asked = recipe.evaluate.checks or []
    found = [_invariance(runner, kind, rows) for kind in (KINDS if asked == "all" else asked)]
    by_name: dict[str, list[Pair]] = {}
    for pair in pairs_of(recipe, rows, task.labels):
        by_name.setdefault(pair.name, []).append(pair)
    return found + [_directional(runner, name, pairs, rows) for name, pairs in by_name.items()]


def _invariance(runner: _Runner, kind: str, rows: Rows) -> Trial:
    index, changes, roles = _changed(kind, rows)
    chosen = rows.take(index)
    runner.events.message(f"check {kind}: {len(changes)} rows")
    if not changes:
        return Trial(kind, chosen, None, index)
    changed = _with_changes(chosen, roles, changes)
    return Trial(kind, changed, runner.predict(changed), index, changes)


def _changed(kind: str, rows: Rows) -> tuple[np.ndarray, list[Change], list[str]]:
    """Up to 500 rows in which there is something to change, drawn with seed 0, in their order."""
    roles = [role for role in INPUTS if role in rows.table.column_names]
    if "question" in roles and kind not in REPLACING:
        roles = list(QUESTION)
    if kind == "punctuation" and TAGGED & set(rows.table.column_names):
        return np.empty(0, dtype=np.int64), [], roles
    found: dict[int, Change] = {}
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))
    for start in range(0, len(order), ROWS):
        block = np.sort(order[start : start + ROWS])
        taken = rows.take(block)
        for row, texts in zip(block.tolist(), zip(*(taken.column(role) for role in roles), strict=True), strict=True):
            one = change(kind, _flat(texts))
            if one is not None and len(found) < ROWS:
                found[row] = one
        if len(found) == ROWS:
            break
    index = np.array(sorted(found), dtype=np.int64)
    return index, [found[row] for row in index.tolist()], roles


def _flat(values: Sequence[Any]) -> list[str]:
    """The texts of a row; words of a row that is already split are texts of their own."""
    return list(values[0]) if isinstance(values[0], list) else list(values)


def _with_changes(rows: Rows, roles: Sequence[str], changes: Sequence[Change]) -> Rows:
    columns = {role: rows.column(role) for role in roles}
    if roles[0] == "tokens":
        new = [one.texts(words) for one, words in zip(changes, columns["tokens"], strict=True)]
        return _replaced(rows, {"tokens": new})
    texts = [one.texts(values) for one, values in zip(changes, zip(*columns.values(), strict=True), strict=True)]
    replaced: dict[str, list[Any]] = {role: [row[place] for row in texts] for place, role in enumerate(roles)}
    if "spans" in rows.table.column_names:
        replaced["spans"] = [_moved_spans(one, spans) for one, spans in zip(changes, rows.column("spans"), strict=True)]
    if "context" in roles:
        place = roles.index("context")
        replaced["answers"] = [
            _moved_answers(one, place, given, row[place])
            for one, given, row in zip(changes, rows.column("answers"), texts, strict=True)
        ]
    return _replaced(rows, replaced)


def _moved_spans(one: Change, spans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [span | {key: one.moved(0, span[key]) for key in ("start", "end")} for span in spans]


def _moved_answers(one: Change, place: int, given: dict[str, Any], context: str) -> dict[str, Any]:
    starts = [one.moved(place, start) for start in given["answer_start"]]
    ends = [one.moved(place, a + len(b)) for a, b in zip(given["answer_start"], given["text"], strict=True)]
    return {"text": [context[a:b] for a, b in zip(starts, ends, strict=True)], "answer_start": starts}


def _replaced(rows: Rows, columns: dict[str, list[Any]]) -> Rows:
    table = rows.table
    for role, values in columns.items():
        place = table.schema.get_field_index(role)
        table = table.set_column(place, role, pa.array(values, table.schema.field(role).type))
    return replace(rows, table=table)


def _directional(runner: _Runner, name: str, pairs: list[Pair], rows: Rows) -> Trial:
    """The inputs of the pairs in rows whose labels are those of the first row: nobody looks at them."""
    template = rows.take(np.zeros(len(pairs), dtype=np.int64))
    first, second = (
        _replaced(template, {role: [getattr(pair, side)[role] for pair in pairs] for role in pairs[0].before})
        for side in ("before", "after")
    )
    index = np.arange(len(pairs))
    return Trial(name, second, runner.predict(second), index, (), pairs, (first, runner.predict(first)))


# ------------------------------------------------------------------------------------------------------- what came out


def checks(task: Task, predictions: Predictions, found: Sequence[Trial]) -> list[Check]:
    """What the record says of each trial; predictions: of the rows as they are, after the task was tuned."""
    whole = [record["prediction"] for record in task.records(predictions)]
    return [
        _judged(task, trial) if trial.pairs else _compared(task, trial, [whole[row] for row in trial.index.tolist()])
        for trial in found
    ]


def _compared(task: Task, trial: Trial, before: list[Any]) -> Check:
    """How many predictions are not what they were, with the replaced words replaced in them, too."""
    after = [] if trial.predictions is None else [record["prediction"] for record in task.records(trial.predictions)]
    if trial.predictions is None or after[0] is None:  # no row to change, or a model of which only the loss is known
        return Check(name=trial.name, n=0, changed=Interval(value=None))
    expected = [_translated(one, value) for one, value in zip(trial.changes, before, strict=True)]
    difference = np.array([_difference(a, b) for a, b in zip(expected, after, strict=True)])
    examples = [
        Example(
            id=trial.predictions.ids[row],
            words=_new_words(trial.changes[row]),
            before=_label(task, before[row]),
            after=_label(task, after[row]),
        )
        for row in np.argsort(-difference, kind="stable")[:EXAMPLES].tolist()
        if difference[row]
    ]
    numbers = isinstance(after[0], float)
    measure: Measure = "mean_difference" if numbers else "share"
    return Check(name=trial.name, n=len(after), measure=measure, changed=mean_interval(difference), examples=examples)


def _translated(one: Change, value: Any) -> Any:
    return one.translated(value) if isinstance(value, str) and one.words else value


def _difference(before: Any, after: Any) -> float:
    return abs(after - before) if isinstance(after, float) else float(after != before)


def _new_words(one: Change) -> list[str]:
    """The words that were put in; none where whole texts were changed."""
    words = [edit.text for edits in one.edits for edit in edits if len(edit.text.split()) == 1]
    return list(dict.fromkeys(words))[:EXAMPLES] if len(words) == sum(map(len, one.edits)) else []


def _label(task: Task, value: Any) -> str | None:
    """A prediction as the record may show it: names of labels and numbers, never a text of the model."""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list) and all(item in task.answer_labels for item in value) and task.labels_must_match:
        return ", ".join(value) if len(value) < EXAMPLES else None
    return value if value in task.answer_labels else None


def _judged(task: Task, trial: Trial) -> Check:
    """How many pairs did not go as the user expects."""
    assert trial.first is not None
    sides = [(rows, predictions) for rows, predictions in (trial.first, (trial.rows, trial.predictions))]
    scores, told = [], []
    for rows, predictions in sides:
        assert predictions is not None
        ranked = [case.expected for case in task.cases(rows, predictions)]
        scores.append([{item["label"]: item["score"] for item in items} for items in ranked])
        told.append([record["prediction"] for record in task.records(predictions)])
    wrong = [
        not _as_expected(pair, (scores[0][row], scores[1][row]), (told[0][row], told[1][row]))
        for row, pair in enumerate(trial.pairs)
    ]
    examples = [
        Example(id=f"line {trial.pairs[row].line}", before=_label(task, told[0][row]), after=_label(task, told[1][row]))
        for row in np.flatnonzero(wrong)[:EXAMPLES].tolist()
    ]
    changed = mean_interval(np.array(wrong))
    return Check(name=trial.name, n=len(wrong), measure="failed", changed=changed, examples=examples)


def _as_expected(pair: Pair, scores: tuple[dict[str, float], dict[str, float]], told: tuple[Any, Any]) -> bool:
    if pair.expect == "same":
        return bool(told[0] == told[1])
    if pair.expect == "different":
        return bool(told[0] != told[1])
    before, after = scores[0][pair.label], scores[1][pair.label]
    return after > before if pair.expect == "higher" else after < before
