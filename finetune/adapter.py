"""PEFT adapters that others made: a folder beside its base checkpoint, loaded and merged into it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from finetune import pretrained
from finetune.errors import ModelError
from finetune.pretrained import Checkpoint
from finetune.recipe import Recipe
from finetune.tasks.base import Task

__all__ = ["locate", "merge", "set_labels"]

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INSIDE = "base_model.model."  # what PEFT puts before the names of the base's weights


def locate(name: str, recipe: Recipe) -> Checkpoint:
    """A checkpoint as `pretrained.locate` finds it, or the base of an adapter with `adapter` set.

    The base of an adapter that names none is the recipe's checkpoint. Raises ModelError.
    """
    folder, revision = pretrained.files(name)
    if not (folder / SETTINGS).is_file() or list(folder.glob("model*.safetensors")):
        return pretrained.checkpoint_in(folder, revision, name)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{name}: an adapter without {WEIGHTS}; pickled weights (.bin) can run code and are refused")
    base = settings.get("base_model_name_or_path")
    try:
        found = _base(folder, base, settings.get("revision")) if base else pretrained.find_checkpoint(recipe)
        found = pretrained.with_decoder(found, recipe)
    except ModelError as error:
        raise ModelError(
            f"{name}: an adapter of {base or recipe.model.checkpoint}, which cannot be had; write where the base is as"
            f" base_model_name_or_path in {SETTINGS}\n  {error}"
        ) from error
    return replace(found, name=name, revision=revision, adapter=folder)


def _base(folder: Path, name: str, revision: str | None) -> Checkpoint:
    """A base by Hub id or folder; relative ones count from here, or from the adapter."""
    beside = not Path(name).exists() and (folder / name).is_dir()
    return pretrained.locate(str(folder / name) if beside else name, revision)


def set_labels(checkpoint: Checkpoint, config: Any, task: type[Task] | Task) -> None:
    """Give the base's config the adapter's labels: from its own config.json, else as many as its head has outputs."""
    assert checkpoint.adapter is not None
    if (checkpoint.adapter / "config.json").is_file():
        own = transformers.AutoConfig.from_pretrained(
            checkpoint.adapter, trust_remote_code=False, local_files_only=True
        )
        config.id2label, config.label2id = own.id2label, own.label2id
        return
    with torch.device("meta"):
        model = getattr(transformers, task.auto_class).from_config(config, trust_remote_code=False)
    saved = _shapes(checkpoint.adapter)
    pairs = [(saved[name], tuple(weight.shape)) for name, weight in model.named_parameters() if name in saved]
    outputs = {own[0] for own, usual in pairs if own != usual and own[1:] == usual[1:]}
    if len(outputs) == 1:
        config.num_labels = outputs.pop()


def merge(checkpoint: Checkpoint, model: Any, new: list[str]) -> Any:
    """The base with the adapter merged into it. new: weights that the base lacks and the adapter must bring.

    Raises ModelError when the adapter does not bring them, does not fit, or is of a kind that cannot be merged.
    """
    import peft

    assert checkpoint.adapter is not None
    missing = sorted(set(new) - set(_shapes(checkpoint.adapter)))
    if missing:
        raise ModelError(
            f"{checkpoint.name}: neither the adapter nor its base has weights for {', '.join(missing[:5])}: the head"
            " would be random; save it with the adapter (modules_to_save), or evaluate the merged model"
        )
    settings = peft.PeftConfig.from_pretrained(str(checkpoint.adapter))
    if settings.is_prompt_learning:
        raise ModelError(
            f"{checkpoint.name}: an adapter of type {settings.peft_type.value}, which changes no weights and cannot be"
            " merged; expected one such as LoRA"
        )
    try:
        merged = peft.PeftModel.from_pretrained(model, str(checkpoint.adapter), config=settings).merge_and_unload()
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"{checkpoint.name}: the adapter does not fit its base: {why}") from error
    return merged.float()


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The adapter's weights that replace those of the base, by the base's name."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {
            name.removeprefix(INSIDE): tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118  (the file is no dictionary)
            if ".lora_" not in name
        }
