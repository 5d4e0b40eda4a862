"""`finetune check`: everything that can be found wrong before training, all at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import preparation, services
from finetune.audit import wording
from finetune.errors import Attempts
from finetune.events import Events
from finetune.folder import RunFolder, space_needed
from finetune.hardware import refuse_impossible_precision
from finetune.recipe import Recipe
from finetune.record import Audit, HeadSwap
from finetune.seen_vocabulary import left_out
from finetune.tryout import TriedOut, try_out

__all__ = ["Checked", "check"]

SHOWN_WEIGHTS = 6
PREVIEW_ROWS = 3


@dataclass(frozen=True)
class Checked:
    """What the check found: a report for people, and the audit of the rows for programs."""

    report: str
    audit: Audit


def check(recipe: Recipe, events: Events) -> Checked:
    """The resolved recipe, the head swap, a preview and the audit of the rows, which comes last.

    Raises FinetuneError with every problem of services, output folder, data and checkpoint that was found.
    """
    attempts = Attempts()
    attempts(lambda: services.check(recipe))
    attempts(lambda: None if recipe.train is None else RunFolder(Path(recipe.output)).earlier(recipe))
    attempts(lambda: None if recipe.train is None else refuse_impossible_precision(recipe.train.precision))
    ready = attempts(lambda: preparation.prepare(recipe, events))
    head_swap = None if ready is None else attempts(lambda: _fitting(ready))
    attempts.check()
    assert ready is not None
    assert head_swap is not None
    sections = [
        recipe.to_yaml().rstrip(),
        _head_swap(head_swap),
        _preview(ready),
        wording.report(ready.audit),
        "everything checked is in order",
    ]
    return Checked("\n\n".join(sections), ready.audit)


def _fitting(ready: preparation.Prepared) -> HeadSwap:
    """What the swap of the head does. Raises ModelError, or StorageError when the output has too little space."""
    tried = try_out(ready)
    settings = ready.recipe.train
    if settings is not None:
        needed = space_needed(tried.parameters, _trained(ready, tried), settings.keep_last)
        RunFolder(Path(ready.recipe.output)).require_space(needed)
    return tried.head_swap


def _trained(ready: preparation.Prepared, tried: TriedOut) -> int:
    """How many numbers a run will train, but for the token of padding."""
    if tried.adapter_parameters is not None:
        return tried.adapter_parameters
    return tried.parameters - left_out(tried.word_embedding, ready.features["train"])


def _head_swap(swap: HeadSwap) -> str:
    lines = ["head swap"]
    for word, part in (("reused", swap.reused), ("new", swap.new), ("dropped", swap.dropped)):
        shown = ", ".join(part.names[:SHOWN_WEIGHTS]) + (" …" if part.count > SHOWN_WEIGHTS else "")
        lines.append(f"  {word:8} {part.count:4}  {shown}")
    return "\n".join(lines)


def _preview(ready: preparation.Prepared) -> str:
    name, rows = next(iter(ready.splits.items()))
    features = ready.features[name]
    lines = [f"first rows of {name}, and how they are encoded"]
    block: dict[str, list[Any]] = next(rows.batches(PREVIEW_ROWS))
    for number in range(len(block["id"])):
        shown = {role: values[number] for role, values in block.items()}
        lines.append("  " + json.dumps(shown, ensure_ascii=False)[:200])
        feature = int((features.scalars["row"] == number).argmax())
        tokens = ready.tokenizer.convert_ids_to_tokens(features.sequences["input_ids"][feature].tolist())
        lines.append("    " + " ".join(tokens)[:200])
    return "\n".join(lines)
