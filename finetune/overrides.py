"""`key=value` on the command line: dotted keys into a recipe's values, typed by the recipe's model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from finetune import recipe_keys as keys
from finetune.recipe_model import DEFAULT_SPLITS, is_local
from finetune.yaml_lines import Document, KeyPath, Problem, read

__all__ = ["apply"]

PATHS = (("data", "path"), ("model", "checkpoint"), ("model", "decoder"))
EXCLUSIVE = ((("train", "epochs"), ("train", "max_steps")), (("train", "batch_size"), ("train", "batch_tokens")))
_NO_VALUE = object()


def apply(document: Document, overrides: Sequence[str]) -> dict[KeyPath, str]:
    """Write overrides into a document's value and say which path each one set; what is wrong goes to its problems.

    `key=null` removes a key. A block that does not exist is created. Of two keys that exclude each other, the one that
    is overridden takes the place of the one in the file. The last of several overrides of a key holds.
    """
    origins: dict[KeyPath, str] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key or any(not part for part in key.split(".")):
            problem = "expected key=value with a dotted key, such as train.epochs=1"
            document.problems.append(Problem(None, "", f"override {override}: {problem}"))
            continue
        path = _path(key)
        value = _value(document, override, path, text)
        if value is _NO_VALUE:
            continue
        _make_room(document, path, origins, value)
        if _set(document, override, path, value):
            origins[path] = override
    return origins


def _path(key: str) -> KeyPath:
    """Names inside a mapping, such as labels, may hold dots themselves."""
    path: KeyPath = ()
    parts = key.split(".")
    for number, part in enumerate(parts):
        if path and not keys.is_block(kind := keys.annotation(path)) and keys.accepts(kind, dict):
            return (*path, ".".join(parts[number:]))
        path = (*path, part)
    return path


def _value(document: Document, override: str, path: KeyPath, text: str) -> Any:
    kind = keys.annotation(path)
    if text == "null":
        return None
    if kind is not None and keys.accepts(kind, str) and not _is_structure(kind, text):
        return _text_or_number(kind, path, text)
    if _is_words(kind) and not _is_structure(kind, text):
        return text
    parsed = read(text.encode("utf-8", "surrogatepass"))
    for problem in parsed.problems:
        document.problems.append(Problem(None, "", f"override {override}: {problem.text}"))
    if parsed.problems:
        return _NO_VALUE
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


def _make_room(document: Document, path: KeyPath, origins: dict[KeyPath, str], value: Any) -> None:
    block = document.value.get("train")
    for pair in EXCLUSIVE:
        if path in pair and value is not None and isinstance(block, dict):
            other = pair[1] if path == pair[0] else pair[0]
            if other not in origins:
                block.pop(other[-1], None)


def _set(document: Document, override: str, path: KeyPath, value: Any) -> bool:
    block = document.value
    for number, part in enumerate(path[:-1]):
        here = path[: number + 1]
        if block.get(part) is None:
            if value is None:
                return False
            block[part] = dict(DEFAULT_SPLITS) if here == ("data", "splits") else {}
        block = block[part]
        if not isinstance(block, dict):
            what = f"{'.'.join(map(str, here))} is no mapping here; replace it as a whole"
            document.problems.append(Problem(None, "", f"override {override}: {what}"))
            return False
    if value is None and keys.annotation(path) is not None:
        block.pop(path[-1], None)
    else:
        block[path[-1]] = value
    return True
