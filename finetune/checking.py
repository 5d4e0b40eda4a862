"""`finetune check`: everything that can be found wrong before training, all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune import model, preparation, services, session
from finetune.errors import FinetuneError, RecipeError
from finetune.events import Events
from finetune.folder import RunFolder
from finetune.recipe import Recipe
from finetune.record import HeadSwap

__all__ = ["check"]

SHOWN_WEIGHTS = 6
PREVIEW_ROWS = 3


def check(recipe: Recipe, events: Events) -> str:
    """A report: the resolved recipe, the head swap, the splits and a preview.

    Raises FinetuneError with every problem of services, output folder, data and checkpoint that was found.
    """
    problems = services.problems(recipe)
    try:
        ready = preparation.prepare(recipe, events)
        loaded = model.load_for_training(ready.checkpoint, ready.config, ready.task, recipe)
        RunFolder(Path(recipe.output)).require_space(session.space_needed(loaded.model, recipe))
    except FinetuneError as error:
        if not problems:
            raise
        raise type(error)("\n".join([str(error), *problems])) from error
    if problems:
        raise RecipeError("\n".join(problems))
    sections = [
        recipe.to_yaml().rstrip(),
        _head_swap(loaded.head_swap),
        _splits(ready),
        _preview(ready),
        "everything checked is in order",
    ]
    return "\n\n".join(sections)


def _head_swap(swap: HeadSwap) -> str:
    lines = ["head swap"]
    for word, part in (("reused", swap.reused), ("new", swap.new), ("dropped", swap.dropped)):
        shown = ", ".join(part.names[:SHOWN_WEIGHTS]) + (" …" if part.count > SHOWN_WEIGHTS else "")
        lines.append(f"  {word:8} {part.count:4}  {shown}")
    return "\n".join(lines)


def _splits(ready: preparation.Prepared) -> str:
    lines = ["data"]
    for name in ready.splits:
        facts = preparation.facts(ready.splits[name], ready.features[name])
        lengths = ready.features[name].lengths
        lines.append(
            f"  {name:10} {facts.rows} rows, {facts.truncated} truncated at {ready.task.max_length} tokens,"
            f" longest {int(lengths.max())}, mean {lengths.mean():.1f}"
        )
    return "\n".join([*lines, *(f"  {note}" for note in ready.notes)])


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
