"""`finetune.pipeline` and `finetune predict`: the published model as its reader calls it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from finetune import pretrained, tasks
from finetune.errors import DataError, ModelError
from finetune.model import quiet_transformers
from finetune.rows import INPUTS

__all__ = ["pipeline", "predict_lines"]

BLOCK = 256  # lines answered at a time
BATCH = 16


def pipeline(model: str) -> Any:
    """The transformers pipeline for a folder or Hub id, fp32; never runs code that comes with a model.

    Raises ModelError when the model has no head that this package knows.
    """
    found = pretrained.locate(str(model))
    config = pretrained.own_config(found)
    task = tasks.for_architectures(getattr(config, "architectures", None) or [])
    if task is None:
        raise ModelError(
            f"{model}: is saved as {config.architectures}; expected a model with a head for one of the tasks"
        )
    pretrained.read_config(found, task)
    with quiet_transformers():
        return task.make_pipeline(found.folder, config)


def predict_lines(model: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Each JSON line with a `prediction` added; lines are read with errors="surrogateescape".

    Raises DataError naming the line.
    """
    pipe = pipeline(model)
    task = tasks.for_architectures(pipe.model.config.architectures)
    assert task is not None
    bare = not pipe.tokenizer("")["input_ids"]  # where a batch would answer an empty text from its padding
    numbered = enumerate(lines, 1)
    while block := list(islice(numbered, BLOCK)):
        rows = [(number, _parsed(number, line)) for number, line in block if line.strip()]
        for number, row in rows:
            problem = task.input_problem(row)
            if problem is None and bare and not _has_token(pipe, row):
                problem = "the text is empty: the tokenizer of this model makes no token of it"
            if problem:
                raise DataError(f"input, line {number}: {problem}")
        answers = task.answers(pipe, [row for _, row in rows], BATCH)
        yield from (row | {"prediction": answer} for (_, row), answer in zip(rows, answers, strict=True))


def _has_token(pipe: Any, row: dict[str, Any]) -> bool:
    texts = [" ".join(text) if isinstance(text, list) else text for role in INPUTS if (text := row.get(role))]
    return any(pipe.tokenizer(text)["input_ids"] for text in texts)


def _parsed(number: int, line: str) -> dict[str, Any]:
    where = f"input, line {number}"
    if (byte := _foreign_byte(line)) is not None:
        raise DataError(f"{where}: not UTF-8 (byte 0x{byte:02x}); save the input as UTF-8")
    try:
        row = json.loads(line, parse_constant=_no_number)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    except RecursionError as error:
        raise DataError(f"{where}: not JSON (nested too deeply)") from error
    if _foreign_byte(json.dumps(row, ensure_ascii=False)) is not None:
        raise DataError(f"{where}: half of a surrogate pair; no text in UTF-8 has one")
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with roles as keys, found {line.strip()[:60]}")
    return row


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _foreign_byte(text: str) -> int | None:
    """The byte in the place of a character that UTF-8 cannot write, as errors="surrogateescape" reads it; or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ord(text[error.start]) & 0xFF
    return None
