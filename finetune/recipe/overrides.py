"""`key=value` on the command line: dotted keys into a recipe's values, typed by the recipe's model."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from finetune.recipe import keys
from finetune.recipe.blocks import DEFAULT_SPLITS
from finetune.recipe.messages import found
from finetune.recipe.types import LOCAL_SUFFIXES, is_local
from finetune.recipe.yaml_lines import FORBIDDEN, Document, KeyPath, Problem, dotted, read

__all__ = ["apply"]

SPLITS = ("data", "splits")
PATHS = (("data", "path"), ("model", "checkpoint"), ("model", "decoder"))
EXCLUSIVE = ((("train", "epochs"), ("train", "max_steps")), (("train", "batch_size"), ("train", "batch_tokens")))


def apply(document: Document, overrides: Sequence[str]) -> dict[KeyPath, str]:
    """Write overrides into a document's value and say which path each one is for; problems go to the document's.

    `key=null` removes a key. A block that does not exist is created. Of two keys that exclude each other, the one that
    is overridden takes the place of the one in the file. The last of several overrides of a key holds.
    """
    origins: dict[KeyPath, str] = {}
    given = _block(document.value, "data").get("splits") is not None
    for override in overrides:
        key, sign, text = override.partition("=")
        path = _path(key)
        try:
            if not sign or not all(path):
                raise ValueError("expected key=value with a dotted key, such as train.epochs=1")
            value = _value(document, path, text)
            _make_room(document.value, path, value, origins)
            _set(document.value, path, value)
            origins[path] = override
        except ValueError as error:
            origins[override,] = override
            document.problems.append(Problem(None, key, str(error), (override,)))
    if not given and SPLITS not in origins:
        _drop_impossible_splits(_block(document.value, "data"), origins)
    return origins


def _block(data: dict[Any, Any], name: str) -> dict[Any, Any]:
    block = data.get(name)
    return block if isinstance(block, dict) else {}


def _drop_impossible_splits(data: dict[Any, Any], origins: dict[KeyPath, str]) -> None:
    """Of the default splits that stand beside an overridden one, keep those that the path can have."""
    path = data.get("path")
    if isinstance(path, str) and path.lower().endswith(LOCAL_SUFFIXES) and "*" not in path:
        possible: Collection[Any] = ("train",)
    elif isinstance(path, dict):
        possible = path
    else:
        return
    for name in DEFAULT_SPLITS:
        if name not in possible and (*SPLITS, name) not in origins:
            _block(data, "splits").pop(name, None)


def _path(key: str) -> KeyPath:
    """Names inside a mapping, such as labels, may hold dots themselves."""
    path: KeyPath = ()
    parts = key.split(".")
    for number, part in enumerate(parts):
        if path and not keys.is_block(kind := keys.annotation(path)) and keys.accepts(kind, dict):
            return (*path, ".".join(parts[number:]))
        path = (*path, part)
    return path


def _value(document: Document, path: KeyPath, text: str) -> Any:
    """Raises ValueError when the text is no YAML value."""
    kind = keys.annotation(path)
    if text == "null":
        return None
    if FORBIDDEN.search(text):
        raise ValueError("holds a control character, or bytes that are not UTF-8; remove them")
    if kind is not None and keys.accepts(kind, str) and not _is_structure(kind, text):
        return _text_or_number(kind, path, text)
    if _is_words(kind) and not _is_structure(kind, text):
        return text
    if not text.strip():
        raise ValueError(f"expected {keys.expected(path)}, found nothing; null takes the default")
    parsed = read(text.encode("utf-8"))
    if parsed.problems:
        raise ValueError("; ".join(problem.text for problem in parsed.problems))
    document.written |= {(*path, *inner): raw for inner, raw in parsed.written.items()}
    return _absolute(path, parsed.value)


def _is_structure(kind: Any, text: str) -> bool:
    wanted = (keys.accepts(kind, dict) and text.startswith("{")) or (keys.accepts(kind, list) and text.startswith("["))
    return wanted or (text.startswith("{") and keys.is_block(kind))


def _is_words(kind: Any) -> bool:
    """A choice of words alone: neither numbers, switches nor structures."""
    others = (int, float, bool, dict, list)
    return kind is not None and not keys.is_block(kind) and not any(keys.accepts(kind, other) for other in others)


def _text_or_number(kind: Any, path: KeyPath, text: str) -> Any:
    """Text byte for byte, unless a number is allowed and written."""
    if keys.accepts(kind, float) and re.fullmatch(r"[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?", text):
        return float(text)
    return _absolute(path, text)


def _absolute(path: KeyPath, value: Any) -> Any:
    """Local paths in overrides count from the working directory."""
    if path[:2] not in PATHS:
        if path == ("data",) and isinstance(value, dict) and "path" in value:
            return value | {"path": _absolute(("data", "path"), value["path"])}
        return value
    if isinstance(value, dict):
        return {key: _absolute((*path, key), item) for key, item in value.items()}
    if isinstance(value, str) and value and (len(path) > 2 or is_local(value)):
        return os.path.abspath(value)  # noqa: PTH100 - Path.resolve would follow links
    return value


def _make_room(data: dict[str, Any], path: KeyPath, value: Any, origins: dict[KeyPath, str]) -> None:
    block = data.get(str(path[0]))
    for pair in EXCLUSIVE:
        if path in pair and value is not None and isinstance(block, dict):
            other = pair[1] if path == pair[0] else pair[0]
            if other not in origins:
                block.pop(other[-1], None)


def _set(data: dict[Any, Any], path: KeyPath, value: Any) -> None:
    """Raises ValueError when the path leads through something that is no mapping."""
    known = keys.annotation(path) is not None
    block = data
    for number, part in enumerate(path[:-1]):
        here = path[: number + 1]
        if block.get(part) is None:
            if value is None and known:
                return
            block[part] = dict(DEFAULT_SPLITS) if here == SPLITS else {}
        block = block[part]
        if not isinstance(block, dict):
            raise ValueError(f"{dotted(here)} is {found(block)} here, not a mapping; set {dotted(here)} as a whole")
    if value is None and known:
        block.pop(path[-1], None)
    else:
        block[path[-1]] = value
