"""What the model of a recipe says about a dotted key: its type, what it expects in words, its nearest neighbour."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from finetune.recipe.model import Recipe
from finetune.recipe.types import Expect
from finetune.recipe.yaml_lines import KeyPath, dotted

__all__ = [
    "accepts",
    "annotation",
    "description",
    "expected",
    "is_block",
    "is_optional",
    "key_words",
    "keys_of",
    "may_be_left_out",
    "nearest",
]

ELSEWHERE = {  # what other programs call our keys
    "accumulation": "train.micro_batch_size",
    "bf16": "train.precision",
    "clip_grad_norm": "train.max_grad_norm",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "device": "configs/ of accelerate launch",
    "eval_batch_size": "train.micro_batch_size",
    "eval_steps": "evaluate.every",
    "fp16": "train.precision",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_r": "model.lora.r",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "metric_for_best_model": "evaluate.select_on",
    "model_name_or_path": "model.checkpoint",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "output_dir": "output",
    "per_device_train_batch_size": "train.batch_size",
    "push_to_hub": "hub.repo_id",
    "report_to": "track",
    "rank": "model.lora.r",
    "save_steps": "train.save_every",
    "target_modules": "model.lora.targets",
    "train_batch_size": "train.batch_size",
    "train_sampling_strategy": "train.group_by_length",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
}


def _members(kind: Any) -> list[Any]:
    """The alternatives of a type, without what annotates them."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for part in get_args(kind) for member in _members(part)]
    return [kind]


def _block(kind: Any) -> type[BaseModel] | None:
    for member in _members(kind):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def is_block(kind: Any) -> bool:
    """Whether a type is a block of named keys."""
    return _block(kind) is not None


def accepts(kind: Any, value: type) -> bool:
    """Whether a type, or one of its alternatives, is `value` (a list or dict of anything counts as list or dict)."""
    return any(member is value or get_origin(member) is value for member in _members(kind))


def _step(kind: Any, part: str | int) -> Any:
    """The type of one part of a value of type `kind`; None when there is no such part."""
    for member in _members(kind):
        if isinstance(member, type) and issubclass(member, BaseModel) and part in member.model_fields:
            info = member.model_fields[str(part)]
            return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        if get_origin(member) is dict and isinstance(part, str):
            return get_args(member)[1]
        if get_origin(member) is list and isinstance(part, int):
            return get_args(member)[0]
    return None


def annotation(path: KeyPath) -> Any:
    """The type at a path; None when the recipe has no such key."""
    kind: Any = Recipe
    for part in path:
        kind = _step(kind, part)
        if kind is None:
            return None
    return kind


def _words(kind: Any) -> str | None:
    if get_origin(kind) is Annotated:
        inner, *metadata = get_args(kind)
        return next((item.words for item in reversed(metadata) if isinstance(item, Expect)), None) or _words(inner)
    if get_origin(kind) in (Union, UnionType):
        return next(filter(None, map(_words, get_args(kind))), None)
    return None


def expected(path: KeyPath) -> str:
    """What the key expects, in words."""
    return _words(annotation(path)) or "another value"


def is_optional(path: KeyPath) -> bool:
    """Whether the key may be left out."""
    block = _block(annotation(path[:-1]) if path[:-1] else Recipe)
    info = block.model_fields.get(str(path[-1])) if block else None
    return info is not None and not info.is_required()


def may_be_left_out(path: KeyPath) -> bool:
    """Whether the key is a block that null leaves out."""
    kind = annotation(path)
    return is_block(kind) and accepts(kind, type(None))


def description(path: KeyPath) -> str:
    """What the key is for."""
    block = _block(annotation(path[:-1]) if path[:-1] else Recipe)
    info = block.model_fields.get(str(path[-1])) if block else None
    return " ".join((info.description or "").split()) if info else ""


def key_words(path: KeyPath) -> str | None:
    """What the keys of the mapping at `path` must be, in words; None when anything goes."""
    for member in _members(annotation(path)):
        if get_origin(member) is dict:
            return _words(get_args(member)[0])
    return None


def keys_of(path: KeyPath) -> list[str]:
    """The keys that the block at `path` has."""
    block = _block(annotation(path) if path else Recipe)
    return list(block.model_fields) if block else []


def _all_keys(kind: Any = Recipe, path: KeyPath = ()) -> Iterator[KeyPath]:
    block = _block(kind)
    for name in block.model_fields if block else ():
        yield (*path, name)
        yield from _all_keys(_step(block, name), (*path, name))


def nearest(path: KeyPath, full: bool = False) -> tuple[str | None, str]:
    """For a key that does not exist: the dotted key that was meant, or None, and a hint for the user.

    full: name neighbours in the same block by their full path, too.
    """
    name, block = str(path[-1]), path[:-1]
    here = keys_of(block)
    close = difflib.get_close_matches(name.lower(), here, 1, 0.8)
    if close:
        key = dotted((*block, close[0]))
        return key, f"did you mean {key if full else close[0]}?"
    elsewhere = [dotted(key) for key in _all_keys() if key[-1] == name]
    if elsewhere:
        return elsewhere[0], f"it belongs to {' or '.join(elsewhere)}"
    if name in ELSEWHERE:
        return ELSEWHERE[name], f"here it is {ELSEWHERE[name]}"
    close = difflib.get_close_matches(name.lower(), here, 1, 0.6)
    if close:
        key = dotted((*block, close[0]))
        return key, f"did you mean {key if full else close[0]}?"
    far = {key[-1]: dotted(key) for key in _all_keys()}
    close = difflib.get_close_matches(name.lower(), list(map(str, far)), 1, 0.8)
    if close:
        return far[close[0]], f"did you mean {far[close[0]]}?"
    return None, f"{dotted(block) or 'a recipe'} has {', '.join(here)}"
