"""Predictions on disk: found in a run, an evaluation or a file of their own; matched row by row."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError
from finetune.record import RunRecord
from finetune.scoring.names import NAMES, Kind
from finetune.tasks.tagging import Schema, is_entities, split_tag

__all__ = ["Predicted", "align", "convert", "infer_kind", "read"]

SPLITS = ("test", "validation", "train")
SHOWN = 5  # ids in a message
NO_UTF8 = re.compile("[\udc80-\udcff]")  # how a byte that is not UTF-8 is read
EXAMPLE = '{"id": "7", "gold": "pos", "prediction": "neg"}'


@dataclass(frozen=True)
class Predicted:
    """What one model says of the rows of one split; ids, gold and predicted have one entry per row."""

    name: str
    ids: list[str]
    gold: list[Any]
    predicted: list[Any]
    split: str | None = None
    record: RunRecord | None = None  # of the run or evaluation, where there is one


# ---------------------------------------------------------------------------------------- from disk


def read(names: Sequence[str], split: str | None) -> list[Predicted]:
    """The predictions of each run folder, evaluation folder, run.json or jsonl file, all on the same split.

    Without `split` it is the first of test, validation, train that all have. Raises DataError.
    """
    places = {name: _places(name) for name in names}
    folders = {name: files for name, files in places.items() if None not in files}
    if split is None and folders:
        split = next((one for one in SPLITS if all(one in files for files in folders.values())), None)
        if split is None:
            raise DataError(
                "compare: no split that all of them have; "
                + "; ".join(f"{name} has {', '.join(map(str, files)) or 'none'}" for name, files in folders.items())
                + "; run finetune evaluate with --split for those that lack one"
            )
    for name, files in folders.items():
        if split not in files:
            raise DataError(f"--split: {name} has no predictions of {split!r}; it has {', '.join(map(str, files))}")
    return [_read(name, files[split] if name in folders else files[None], split) for name, files in places.items()]


def _places(name: str) -> dict[str | None, Path]:
    """Split -> file of a folder; None -> the file itself."""
    path = Path(name)
    if path.is_file() and path.name != "run.json":
        if path.suffix == ".json":
            raise DataError(
                f"{name}: expected predictions, one JSON object per line, found a .json file; a record of results has"
                " no rows: name the folder <output>/evaluations/<name> that finetune evaluate wrote"
            )
        return {None: path}
    folder = path.parent if path.is_file() else path
    files: dict[str | None, Path] = {file.stem: file for file in sorted((folder / "predictions").glob("*.jsonl"))}
    if not files:
        what = "no such file or folder" if not path.exists() else "a folder without predictions/<split>.jsonl"
        raise DataError(
            f"{name}: {what}; name a run, what finetune evaluate wrote in <output>/evaluations/, or a file with lines"
            f" such as {EXAMPLE}"
        )
    return files


def _read(name: str, path: Path, split: str | None) -> Predicted:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = [_row(path, number, line) for number, line in enumerate(file, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path}: no rows")
    record = path.parent.parent / "run.json"
    try:
        known = RunRecord.read(record) if path.parent.name == "predictions" and record.is_file() else None
    except ValueError as error:
        raise DataError(f"{record}: {error}; a copy of {path} in another folder can be compared without it") from error
    ids, gold, predicted = (list(column) for column in zip(*rows, strict=True))
    return Predicted(name, ids, gold, predicted, split, known)


def _row(path: Path, number: int, line: str) -> tuple[str, Any, Any]:
    if byte := NO_UTF8.search(line):
        found = f"byte 0x{ord(byte[0]) - 0xDC00:02x}"
        raise DataError(f"{path}, line {number}: not UTF-8 ({found}); save the file as UTF-8")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}); expected a line such as {EXAMPLE}") from error
    keys = ("id", "gold", "prediction")
    missing = [key for key in keys if row.get(key) is None] if isinstance(row, dict) else list(keys)
    if missing:
        raise DataError(f"{path}, line {number}: no {' and no '.join(missing)}; expected a line such as {EXAMPLE}")
    return str(row["id"]), row["gold"], row["prediction"]


# ---------------------------------------------------------------------------------------- what kind they are


def infer_kind(models: Sequence[Predicted]) -> Kind:
    """The kind of prediction, from the record of a run, else from the values.

    Lists with one text each are answers; equally long lists of tags with prefixes, such as B-PER, and O entities, with
    other repeated values tags; other lists several labels; numbers with a fraction regression; texts are labels where
    each occurs twice on average, else generated texts.
    """
    gold, predicted = models[0].gold, list(chain.from_iterable(model.predicted for model in models))
    facts = next((model.record.model for model in models if model.record and model.record.model), None)
    if facts is not None and facts.problem in NAMES:
        return facts.problem
    if all(isinstance(value, list) for value in gold):
        return _kind_of_lists(gold, models)
    if any(isinstance(value, float) for value in (*gold, *predicted)):
        return "regression"
    if facts is not None:
        return "single" if facts.labels else "texts"
    return "single" if len({str(value) for value in gold}) <= len(gold) / 2 else "texts"


def _kind_of_lists(gold: list[list[Any]], models: Sequence[Predicted]) -> Kind:
    if all(isinstance(value, str) for model in models for value in model.predicted):
        return "answers"
    pairs = [(a, b) for model in models for a, b in zip(model.gold, model.predicted, strict=True)]
    if not all(isinstance(b, list) and len(a) == len(b) for a, b in pairs):
        return "multi"
    if all(split_tag(str(tag))[1] != str(tag) for pair in pairs for tags in pair for tag in tags):
        return "entities"
    return "tags" if any(len(set(map(str, tags))) < len(tags) for tags in gold) else "multi"


def convert(model: Predicted, kind: Kind) -> Predicted:
    """The values as the metrics of `kind` take them. Raises DataError naming the first row that does not fit."""
    as_gold, as_prediction = _CONVERTERS[kind]
    sides = []
    for what, values, change in (("gold", model.gold, as_gold), ("prediction", model.predicted, as_prediction)):
        try:
            sides.append([change(value) for value in values])
        except (TypeError, ValueError) as error:
            row = next(number for number, value in enumerate(values) if not _fits(change, value))
            raise DataError(
                f"{model.name}: {what} of row {model.ids[row]} is {str(values[row])[:60]!r}, which is no value of kind"
                f" {kind}; name the right kind with --kind ({', '.join(NAMES)})"
            ) from error
    if kind in ("entities", "tags"):
        _refuse_other_lengths(model)
    if kind == "entities":
        sides = [_iob2(side) for side in sides]
    return replace(model, gold=sides[0], predicted=sides[1])


def _refuse_other_lengths(model: Predicted) -> None:
    for row, gold, predicted in zip(model.ids, model.gold, model.predicted, strict=True):
        if len(gold) != len(predicted):
            raise DataError(
                f"{model.name}: row {row}: {len(gold)} gold tags, {len(predicted)} predicted tags; expected one each"
                " per token"
            )


def _iob2(rows: list[list[str]]) -> list[list[str]]:
    """Tags of any scheme as evaluation reads and writes them: where an I- cannot go on with an entity, one begins."""
    names = sorted(set(chain.from_iterable(rows)))
    if not is_entities(names):
        return rows  # the metrics name the tags that they cannot take
    numbers = {name: number for number, name in enumerate(names)}
    schema = Schema(names, entities=True)
    flat = np.array([numbers[tag] for tag in chain.from_iterable(rows)], dtype=np.int64)
    read = iter(schema.convert(flat, np.array([len(tags) for tags in rows], dtype=np.int64)).tolist())
    return [[schema.labels[next(read)] for _ in tags] for tags in rows]


def _fits(change: Callable[[Any], Any], value: Any) -> bool:
    try:
        change(value)
    except (TypeError, ValueError):
        return False
    return True


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _one(value: Any) -> str:
    if isinstance(value, (list, dict)):
        raise TypeError
    return str(value)


def _several(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError
    return [_one(item) for item in value]


def _set(value: Any) -> list[str]:
    return sorted(set(_several(value)))


def _answers(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else _several(value)


_CONVERTERS: dict[Kind, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "single": (_one, _one),
    "multi": (_set, _set),
    "regression": (_number, _number),
    "entities": (_several, _several),
    "tags": (_several, _several),
    "answers": (_answers, _one),
    "texts": (_one, _one),
}


# ---------------------------------------------------------------------------------------- the same rows


def align(models: Sequence[Predicted]) -> list[Predicted]:
    """All models in the order of the first. Raises DataError when rows or gold answers differ."""
    first = models[0]
    wanted = _keys(first.ids)
    found = []
    for model in models:
        places = {key: place for place, key in enumerate(_keys(model.ids))}
        _refuse_other_rows(first, model, set(wanted), set(places))
        order = [places[key] for key in wanted]
        gold, predicted = ([values[place] for place in order] for values in (model.gold, model.predicted))
        _refuse_other_gold(first, model, gold)
        found.append(replace(model, ids=first.ids, gold=gold, predicted=predicted))
    return found


def _keys(ids: list[str]) -> list[tuple[str, int]]:
    """Ids with a number where they repeat: the first, second, … row of that id."""
    seen: Counter[str] = Counter()
    keys = []
    for name in ids:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


def _refuse_other_rows(a: Predicted, b: Predicted, own: set[tuple[str, int]], theirs: set[tuple[str, int]]) -> None:
    if own == theirs:
        return
    sides = [(a.name, own - theirs, len(own)), (b.name, theirs - own, len(theirs))]
    parts = [
        f"  only in {name}: {len(extra):,} of {total:,} rows (id {_shown(key for key, _ in sorted(extra))})"
        for name, extra, total in sides
        if extra
    ]
    raise DataError(
        "compare: the rows differ; a difference is only fair on the same ones\n" + "\n".join(parts) + "\nevaluate both"
        " on one split of one recipe: finetune evaluate RECIPE --checkpoint A --checkpoint B --split test"
    )


def _refuse_other_gold(a: Predicted, b: Predicted, gold: list[Any]) -> None:
    other = [row for row, (own, theirs) in enumerate(zip(a.gold, gold, strict=True)) if own != theirs]
    if other:
        row = other[0]
        raise DataError(
            f"compare: the gold answers of {len(other):,} of {len(gold):,} rows differ between {a.name} and {b.name}"
            f" (id {_shown(a.ids[place] for place in other)}; the first is {str(a.gold[row])[:40]!r} against"
            f" {str(gold[row])[:40]!r}); both must be scored on the same data with the same label names"
        )


def _shown(ids: Any) -> str:
    several = list(ids)
    return ", ".join(several[:SHOWN]) + (", …" if len(several) > SHOWN else "")
