"""Recipes: one YAML file, checked as a whole before anything else happens. Imports no torch."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Collection, Container, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe import keys
from finetune.recipe import overrides as overriding
from finetune.recipe import rules as recipe_rules
from finetune.recipe.blocks import DEFAULT_SPLITS, AuditBlock, DataBlock, LoraBlock, ModelBlock, TrainBlock
from finetune.recipe.messages import explain
from finetune.recipe.model import (
    CarbonBlock,
    CardBlock,
    EvaluateBlock,
    GenerationBlock,
    HubBlock,
    Recipe,
    TrackBlock,
    WandbBlock,
)
from finetune.recipe.tables import METRICS, PROBLEM_METRICS, ROLES
from finetune.recipe.types import is_local
from finetune.recipe.yaml_lines import MAX_BYTES, Document, KeyPath, Problem, dotted, read

__all__ = [
    "DEFAULT_SPLITS",
    "METRICS",
    "PROBLEM_METRICS",
    "ROLES",
    "AuditBlock",
    "CarbonBlock",
    "CardBlock",
    "DataBlock",
    "EvaluateBlock",
    "GenerationBlock",
    "HubBlock",
    "LoraBlock",
    "ModelBlock",
    "Recipe",
    "TrackBlock",
    "TrainBlock",
    "WandbBlock",
    "difference",
    "is_local",
    "load",
    "schema",
]

MAX_SHOWN = 50
PATH_KEYS = ("data.path", "model.checkpoint", "model.decoder", "evaluate.directional")
MAX_KEY = 120  # characters of a key in a message
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
STAND_INS: dict[KeyPath, Any] = {  # so that the rest of a recipe can be judged where these are missing or wrong
    ("model",): {"checkpoint": "x"},
    ("model", "checkpoint"): "x",
    ("data",): {"path": "x"},
    ("data", "path"): "x",
    ("carbon", "country"): "XXX",
    ("hub", "repo_id"): "x/x",
    ("output",): "x",
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, write `key=value` overrides into it, and check all of it.

    Local paths in overrides become absolute, counted from the working directory.
    Raises RecipeError with every problem: line, dotted key, what was expected, what was found, what to do.
    """
    document = _open(Path(path))
    origins: dict[KeyPath, str] = {}
    problems = document.problems
    recipe = None
    if document.complete:
        if not isinstance(document.value, dict):
            raise RecipeError(f"{path}: expected a mapping of keys such as `task: sequence`; {_what(document.value)}")
        origins = overriding.apply(document, overrides)
        recipe, found = _validate(document, origins)
        known = {problem.path for problem in problems}
        problems += [problem for problem in found if problem.path not in known or "unknown" in problem.text]
        problems += _empty_blocks(document, origins)
    if problems or recipe is None:
        raise RecipeError(_message(str(path), document, origins))
    recipe._source = Path(path).absolute()
    return recipe


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe, with a description of every key."""
    found = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "finetune recipe"}


def difference(
    old_yaml: str, new: Recipe, settings: Callable[[Recipe], list[tuple[str, Any]]] = Recipe.decisive
) -> list[tuple[str, Any, Any]]:
    """Dotted key, old and new value of every one of the settings that is not the same.

    old_yaml: what `Recipe.to_yaml` gave, its local paths counted from the folder of `new`. Raises RecipeError when it
    cannot be read as a recipe.
    """
    document = read(old_yaml.encode())
    recipe, problems = _validate(document) if isinstance(document.value, dict) else (None, [])
    if recipe is None or problems or document.problems:
        document.problems += problems
        raise RecipeError(_message("recipe.yaml of the run", document, {}))
    old, now = dict(settings(recipe)), dict(settings(new))
    both = sorted({*old, *now})
    pairs = [(key, old.get(key), now.get(key)) for key in both if old.get(key) != now.get(key)]
    return [(key, a, b) for key, a, b in pairs if not (key.startswith(PATH_KEYS) and _one_place(new, a, b))]


def _one_place(recipe: Recipe, a: Any, b: Any) -> bool:
    """Whether both are local paths, and lead to the same place."""
    if not (isinstance(a, str) and isinstance(b, str) and is_local(a) and is_local(b)):
        return False
    return os.path.realpath(recipe.locate(a)) == os.path.realpath(recipe.locate(b))


def _open(path: Path) -> Document:
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder; expected a recipe, one YAML file")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; expected a recipe, one YAML file") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    return read(content)


def _what(value: Any) -> str:
    if value is None:
        return "the file is empty"
    return f"found {'a list' if isinstance(value, list) else 'a single value'}"


def _empty_blocks(document: Document, origins: Container[KeyPath]) -> list[Problem]:
    """`lora:` with nothing behind it could mean both "with the defaults" and "without"."""
    empty = (path for path, raw in document.written.items() if raw == "" and path not in origins)
    text = "empty; write {} for the defaults, or null to leave it out"
    return [Problem(None, dotted(path), text, path) for path in empty if keys.may_be_left_out(path)]


def _validate(document: Document, origins: Collection[KeyPath] = ()) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, and what is wrong with it; settings that are wrong themselves are left out of the other checks."""
    try:
        recipe = Recipe.model_validate(document.value)
        problems: list[Problem] = []
    except ValidationError as error:
        made = {origin[: end + 1] for origin in origins for end in range(len(origin))} - set(document.lines)
        problems = explain(error, document.value, document.written, made | set(origins))
        try:
            recipe = Recipe.model_validate(_without(document.value, [problem.path for problem in problems]))
        except ValidationError:
            return None, problems
    wrong = {problem.key for problem in problems}
    for finding in recipe_rules.check(recipe):
        if not any(_concerns(key, wrong) for key in (finding.key, *finding.reads)):
            problems.append(Problem(None, finding.key, finding.text, _as_path(finding.key, document.value)))
    return recipe, problems


def _concerns(key: str, wrong: set[str]) -> bool:
    return any(key == bad or bad.startswith(f"{key}.") or key.startswith(f"{bad}.") for bad in wrong)


def _as_path(key: str, data: Any) -> KeyPath:
    """A dotted key as the path of the part of `data` that it names."""
    path: KeyPath = ()
    rest = key.split(".")
    while rest:
        name: str | int = int(rest[0]) if isinstance(data, list) else rest[0]
        if isinstance(data, dict) and ".".join(rest) in data:
            return (*path, ".".join(rest))
        path, rest = (*path, name), rest[1:]
        try:
            data = data[name]
        except (KeyError, IndexError, TypeError):
            data = None
    return path


def _without(data: dict[str, Any], wrong: list[KeyPath]) -> dict[str, Any]:
    """A copy of `data` with stand-ins for what is wrong and needed, and without the rest of what is wrong."""
    kept: dict[str, Any] = copy.deepcopy(data)
    for path in sorted(wrong, key=len, reverse=True):
        whole = next((end for end, part in enumerate(path) if isinstance(part, int)), len(path))  # not parts of lists
        _remove(kept, path[:whole])
    return kept


def _remove(data: dict[str, Any], path: KeyPath) -> None:
    blocks: list[Any] = [data]
    for part in path[:-1]:
        blocks.append(blocks[-1].get(part) if isinstance(blocks[-1], dict) else None)
    if not isinstance(blocks[-1], dict):
        return
    blocks[-1].pop(path[-1], None)
    if path in STAND_INS:
        blocks[-1][path[-1]] = copy.deepcopy(STAND_INS[path])
    elif not blocks[-1] and len(path) > 1 and not keys.is_block(keys.annotation(path[:-1])):
        _remove(data, path[:-1])  # a mapping of names may not be empty


def _message(name: str, document: Document, origins: dict[KeyPath, str]) -> str:
    lines = [_line(problem, document, origins, order) for order, problem in enumerate(document.problems)]
    texts = [text for _, text in sorted(lines)]
    shown = texts[:MAX_SHOWN] + ([f"  … and {len(texts) - MAX_SHOWN} more"] if len(texts) > MAX_SHOWN else [])
    return "\n".join([f"{name}: {len(texts)} problem{'s' if len(texts) > 1 else ''}", *shown])


def _line(
    problem: Problem, document: Document, origins: dict[KeyPath, str], order: int
) -> tuple[tuple[int, int, int], str]:
    """A line of the message, and what it is sorted by: lines of the file, then overrides, then what is missing."""
    origin = _origin(problem.path, document, origins)
    if origin is not None:
        key = "" if origin == problem.path else f"{_short(problem.key)}: "
        return (1, list(origins).index(origin), order), f"  override {_short(origins[origin])}: {key}{problem.text}"
    missing = problem.text.startswith("missing;")
    line = problem.line or (None if missing else document.line(problem.path))
    key = f"{_short(problem.key)}: " if problem.key else ""
    if line is None:
        return (2, 0, order), f"  {key}{problem.text}"
    where = f"  line {line}, " if key else f"  line {line}: "
    return (0, line, order), f"{where}{key}{problem.text}"


def _short(text: str) -> str:
    """A key or an override as it can be printed on one line."""
    text = _UNPRINTABLE.sub("?", text)
    return text if len(text) <= MAX_KEY else f"{text[: MAX_KEY - 1]}…"


def _origin(path: KeyPath, document: Document, origins: dict[KeyPath, str]) -> KeyPath | None:
    """The override that put a value there, or on whose way a block was made."""
    for end in range(len(path), 0, -1):
        if path[:end] in origins:
            return path[:end]
    if not path or path in document.lines:
        return None
    return next((origin for origin in origins if origin[: len(path)] == path), None)
