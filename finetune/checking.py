"""`finetune check`: everything that can be found wrong before training, all at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import data, preparation, pretrained, services
from finetune.audit import wording
from finetune.errors import Attempts
from finetune.events import Events
from finetune.folder import RunFolder, space_needed
from finetune.recipe import Recipe
from finetune.record import Audit, HeadSwap
from finetune.seen_vocabulary import cuttable, left_out
from finetune.store import content_sha256, entry, key_of

__all__ = ["Checked", "check"]

SHOWN_WEIGHTS = 6
PREVIEW_ROWS = 3
WEIGHTS_CODE = ("checking.py", "decoder.py", "lora.py", "model.py", "pretrained.py", "seen_vocabulary.py")


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
    facts = _weights(ready)
    settings = ready.recipe.train
    if settings is not None:
        needed = space_needed(facts["parameters"], _trained(ready, facts), settings.keep_last)
        RunFolder(Path(ready.recipe.output)).require_space(needed)
    return HeadSwap.model_validate(facts["head_swap"])


def _trained(ready: preparation.Prepared, facts: dict[str, Any]) -> int:
    """About how many numbers a run will train: those of an adapter are known once it is made."""
    if ready.recipe.model.lora is not None:
        return int(facts["parameters"] // 10)
    return int(facts["parameters"] - left_out(facts["word_embedding"], ready.features["train"]))


def _weights(ready: preparation.Prepared) -> dict[str, Any]:
    """What is known of the weights. Raises ModelError when they cannot be used.

    head_swap: where they come from; parameters: their numbers; word_embedding: the `cuttable` table among them.

    Weights that were found in order are not loaded again: that, and the import of the model's code, takes longer than
    all the rest of a check whose rows and features are in the cache.
    """

    def build(folder: Path) -> dict[str, Any]:
        from finetune import model

        del folder  # the facts are all
        loaded = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
        return {
            "head_swap": loaded.head_swap.model_dump(mode="json"),
            "parameters": loaded.num_parameters,
            "word_embedding": cuttable(loaded.model),
        }

    return entry("weights", _weights_key(ready), build).facts


def _weights_key(ready: preparation.Prepared) -> str:
    """Of all that decides whether the weights can be used: files, labels, settings, and the code that looks at them."""
    checkpoint, task = ready.checkpoint, ready.task
    code = [content_sha256(Path(__file__).with_name(name)) for name in WEIGHTS_CODE]
    versions = [version(name) for name in ("transformers", "torch", "safetensors")]
    files = pretrained.file_hashes(checkpoint)
    recipe = ready.recipe
    settings = [recipe.model.model_dump(mode="json"), recipe.train is not None and recipe.train.gradient_checkpointing]
    return key_of(versions, code, data.task_code(type(task)), files, settings, task.labels, task.problem)


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
