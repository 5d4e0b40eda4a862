"""What settings of a recipe must agree on, and which have an effect on which task."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from finetune.recipe.blocks import DEFAULT_SPLITS
from finetune.recipe.model import Recipe
from finetune.recipe.tables import EXTRA_ROLES, METRICS, NEUTRAL, ONLY_FOR, PROBLEM_METRICS, ROLE_SETS, ROLES
from finetune.recipe.types import is_local

__all__ = ["Finding", "check", "problem_of"]

HUB_ID = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)
PACKAGE = re.compile(r"package://[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z0-9._-]+)+/?")
FOLDER_NAME = re.compile(r"[A-Za-z0-9._-]{1,96}")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a key; `reads`: other keys that the judgement depends on."""

    key: str
    text: str
    reads: tuple[str, ...] = ()


def check(recipe: Recipe) -> Iterator[Finding]:
    """Everything in which the settings of a recipe do not fit together."""
    for rule in (
        _without_effect,
        _checkpoints,
        _lengths,
        _path,
        _splits,
        _columns,
        _training,
        _evaluation,
        _generation,
        _hub,
        _output,
    ):
        yield from rule(recipe)


def _get(recipe: Recipe, key: str) -> object:
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def _without_effect(recipe: Recipe) -> Iterator[Finding]:
    for key, tasks in ONLY_FOR.items():
        if recipe.task not in tasks and _get(recipe, key) not in NEUTRAL:
            only = " and ".join(tasks)
            yield Finding(key, f"has no effect on task {recipe.task}, only on {only}; remove it", ("task",))
    problem = problem_of(recipe)
    if recipe.train is not None and recipe.task == "sequence" and problem in ("multi", "regression"):
        reads = ("task", "data.problem", "data.columns")
        if recipe.train.label_smoothing:
            text = f"has no effect on {problem} labels, only on single ones; remove it"
            yield Finding("train.label_smoothing", text, reads)
        if problem == "regression" and recipe.evaluate.calibrate:
            yield Finding(
                "evaluate.calibrate", "has no effect on regression: there are no probabilities; remove it", reads
            )
        if problem == "regression" and recipe.train.class_weights != "none":
            yield Finding("train.class_weights", "has no effect on regression: there are no classes; remove it", reads)
    if recipe.train is None:
        for key in ("evaluate.select_on", "evaluate.patience", "evaluate.calibrate"):
            if _get(recipe, key):
                yield Finding(key, "has no effect without a train block; remove it", ("train",))


def problem_of(recipe: Recipe) -> str | None:
    """single, multi or regression as far as the recipe alone decides it."""
    if recipe.task == "sequence" and recipe.data.problem is None and "labels" in recipe.data.columns:
        return "multi"
    return recipe.data.problem


def _checkpoints(recipe: Recipe) -> Iterator[Finding]:
    model = recipe.model
    if text := _bad_source(model.checkpoint, package=True):
        yield Finding("model.checkpoint", text)
    elif model.revision is not None and not _is_hub(model.checkpoint):
        text = "has no effect on a checkpoint that is not on the Hub; remove it"
        yield Finding("model.revision", text, ("model.checkpoint",))
    if model.decoder not in (None, "same") and (text := _bad_source(str(model.decoder), package=True)):
        yield Finding("model.decoder", f"{text}; or same")
    if model.init == "scratch" and model.lora is not None:
        text = "would train adapters on random weights that stay frozen; remove it, or set model.init: pretrained"
        yield Finding("model.lora", text, ("model.init",))
    if model.init == "scratch" and model.keep_head:
        text = "there is no head to keep with init: scratch; remove one of the two"
        yield Finding("model.keep_head", text, ("model.init",))


def _is_hub(path: str) -> bool:
    return not is_local(path) and not path.startswith("package://")


def _bad_source(path: str, package: bool) -> str | None:
    if path.startswith("~"):
        return f"~ stands for no folder here, found {path!r}; write the path in full"
    if path.startswith("package://"):
        inside = PACKAGE.fullmatch(path) and ".." not in path.split("/")
        form = "expected package://<top-level Python package>/<folder in it>"
        return None if inside and package else f"{form}, found {path!r}" if package else "a package holds no data set"
    if is_local(path):
        return None
    if HUB_ID.fullmatch(path) and not _bad_name(path):
        return None
    local = "a local path starts with . or /, ends in / or in a known suffix, or holds *"
    return f"{path!r} is no Hub id (namespace/name) and no local path; {local}"


def _bad_name(repo_id: str) -> str | None:
    """Source of the rules: huggingface_hub.utils.validate_repo_id."""
    name = repo_id.rpartition("/")[2]
    for wrong in ("..", "--"):
        if wrong in repo_id:
            return f"a Hub id holds no {wrong!r}"
    return "a name on the Hub ends in a letter or a digit, and not in .git" if _ends_badly(name) else None


def _ends_badly(name: str) -> bool:
    return name.endswith((".git", "-", "."))


def _lengths(recipe: Recipe) -> Iterator[Finding]:
    data, train = recipe.data, recipe.train
    if data.stride is not None and data.stride >= data.max_length:
        text = f"must be below data.max_length ({data.max_length}), found {data.stride}; windows would never advance"
        yield Finding("data.stride", text, ("data.max_length",))
    if train is not None and train.batch_tokens is not None and train.batch_tokens < data.max_length:
        text = f"must be at least data.max_length ({data.max_length}), found {train.batch_tokens}"
        yield Finding("train.batch_tokens", f"{text}; the longest input must fit", ("data.max_length",))


def _path(recipe: Recipe) -> Iterator[Finding]:
    data = recipe.data
    if isinstance(data.path, str):
        if text := _bad_source(data.path, package=False):
            yield Finding("data.path", text)
        if not is_local(data.path):
            return
    else:
        for split, path in data.path.items():
            if path.startswith("~") and (text := _bad_source(path, package=False)):
                yield Finding(f"data.path.{split}", text)
    for key in ("name", "revision"):
        if getattr(data, key) is not None:
            yield Finding(f"data.{key}", "has no effect on local files; remove it", ("data.path",))


def _splits(recipe: Recipe) -> Iterator[Finding]:
    splits, path = recipe.data.splits, recipe.data.path
    shares = {ours: theirs for ours, theirs in splits.items() if isinstance(theirs, float)}
    if "train" in shares:
        yield Finding("data.splits.train", "expected the name of a split; a share is cut off train itself")
    elif shares and "train" not in splits:
        yield Finding("data.splits", "a share is cut off train, and there is no train; add train: train")
    elif recipe.train is not None and "train" not in splits:
        text = "the train block needs rows to train on; add train: train, or train=null to evaluate only"
        yield Finding("data.splits", text, ("train",))
    if sum(shares.values()) >= 1:
        yield Finding("data.splits", "the shares leave nothing of train; make them smaller")
    for ours in recipe.data.limit:
        if ours not in splits:
            yield Finding(f"data.limit.{ours}", f"has no effect: data.splits has no {ours}", ("data.splits",))
    if isinstance(path, dict):
        yield from _mapped_files(recipe, path)


def _mapped_files(recipe: Recipe, path: dict[str, str]) -> Iterator[Finding]:
    splits = recipe.data.splits
    asked = "splits" in recipe.data.model_fields_set
    for ours, theirs in splits.items():
        if asked and isinstance(theirs, str) and theirs not in path:
            text = f"data.path has no split {theirs!r}, only {', '.join(path)}"
            yield Finding(f"data.splits.{ours}", text, ("data.path",))
    for theirs in path:
        if not asked and theirs not in DEFAULT_SPLITS:
            close = difflib.get_close_matches(theirs, [*DEFAULT_SPLITS], 1, 0.3)
            ours = close[0] if close else "validation"
            yield Finding(
                f"data.path.{theirs}", f"is not used; say for what, such as data.splits: {{{ours}: {theirs}}}"
            )


def _columns(recipe: Recipe) -> Iterator[Finding]:
    task, given = recipe.task, recipe.data.columns
    possible = [role for group in ROLES[task] for role in group]
    for role in given:
        if role not in possible:
            close = difflib.get_close_matches(role, possible, 1)
            hint = f"did you mean {close[0]}?" if close else f"its roles are {', '.join(possible)}"
            yield Finding(f"data.columns.{role}", f"no role of task {task}; {hint}", ("task",))
    if not given:
        return
    sets = ROLE_SETS[task]
    chosen = [one for one in sets if set(one) <= set(given)]
    if not chosen:
        needs = ", or ".join(" and ".join(one) for one in sets)
        text = f"task {task} needs {needs}; found {', '.join(given)}"
        yield Finding("data.columns", text, ("task", *(f"data.columns.{role}" for role in given)))
        return
    for role in given:
        if role in possible and role not in (*chosen[0], *EXTRA_ROLES[task]):
            text = f"has no effect beside {' and '.join(chosen[0])}; keep one"
            yield Finding(f"data.columns.{role}", text, ("task",))
    yield from _label_columns(recipe)


def _label_columns(recipe: Recipe) -> Iterator[Finding]:
    problem, columns = recipe.data.problem, recipe.data.columns
    if recipe.task != "sequence" or problem is None:
        return
    role = "labels" if problem == "multi" else "label"
    if role not in columns:
        yield Finding("data.problem", f"{problem} needs the role {role} in data.columns", ("task", "data.columns"))


def _training(recipe: Recipe) -> Iterator[Finding]:
    train = recipe.train
    if train is None:
        return
    if train.epochs is not None and train.max_steps is not None:
        yield Finding("train.max_steps", "given beside train.epochs; keep one", ("train.epochs",))
    if train.batch_size is not None and train.batch_tokens is not None:
        yield Finding("train.batch_tokens", "given beside train.batch_size; keep one", ("train.batch_size",))
    if train.warmup >= 1 and train.warmup != int(train.warmup):
        text = f"expected a share below 1 or a whole number of steps, found {train.warmup:g}"
        yield Finding("train.warmup", text)
    if train.max_steps is not None and train.warmup >= max(train.max_steps, 1):
        text = f"{train.warmup:g} steps of warm-up in {train.max_steps} steps of training; make it shorter"
        yield Finding("train.warmup", text, ("train.max_steps",))
    size = train.micro_batch_size
    if isinstance(size, int) and train.batch_size is not None and size > train.batch_size:
        text = f"larger than train.batch_size ({train.batch_size}), found {size}; make it smaller, or auto"
        yield Finding("train.micro_batch_size", text, ("train.batch_size",))


def _generation(recipe: Recipe) -> Iterator[Finding]:
    found = recipe.evaluate.generation
    if found is None:
        return
    key = "evaluate.generation"
    for name in ("temperature", "top_k", "top_p"):
        if getattr(found, name) is not None and not found.do_sample:
            yield Finding(f"{key}.{name}", "has no effect without do_sample: true; add it", (f"{key}.do_sample",))
    if found.length_penalty is not None and found.num_beams == 1:
        yield Finding(f"{key}.length_penalty", "has no effect with num_beams: 1; remove it", (f"{key}.num_beams",))
    if found.loss_only:
        for name in ("select_on", "metrics"):
            if getattr(recipe.evaluate, name) is not None:
                text = "has no effect with generation.loss_only: nothing is generated to score; remove one of the two"
                yield Finding(f"evaluate.{name}", text, (f"{key}.loss_only",))


def _evaluation(recipe: Recipe) -> Iterator[Finding]:
    evaluate, known = recipe.evaluate, METRICS[recipe.task]
    problem = problem_of(recipe)
    of = f"task {recipe.task}"
    if recipe.task == "sequence" and problem is not None:
        known, of = PROBLEM_METRICS[problem], f"{problem} labels"
    reads = ("task", "data.problem", "data.columns")
    if evaluate.select_on is not None and evaluate.select_on not in known:
        close = difflib.get_close_matches(evaluate.select_on, known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        text = f"expected a metric of {of} ({', '.join(known)}), found {evaluate.select_on!r}{hint}"
        yield Finding("evaluate.select_on", text, reads)
    ours = {name for names in (*METRICS.values(), *PROBLEM_METRICS.values()) for name in names}
    for number, name in enumerate(evaluate.metrics or []):
        if name in ours and name not in known:
            text = f"{name} is not defined for {of}; choose from {', '.join(known)}"
            yield Finding(f"evaluate.metrics.{number}", text, reads)
        elif name in (evaluate.metrics or [])[:number]:
            yield Finding(f"evaluate.metrics.{number}", f"{name} is given twice; keep one")
    if recipe.train is not None and "validation" not in recipe.data.splits:
        for key in ("select_on", "patience", "calibrate"):
            if getattr(evaluate, key):
                text = "needs validation rows; add data.splits.validation, such as 0.1"
                yield Finding(f"evaluate.{key}", text, ("data.splits",))


def _hub(recipe: Recipe) -> Iterator[Finding]:
    if recipe.hub is not None and (text := _bad_name(recipe.hub.repo_id)):
        yield Finding("hub.repo_id", f"{text}; found {recipe.hub.repo_id!r}")


def _output(recipe: Recipe) -> Iterator[Finding]:
    path = PurePosixPath(recipe.output)
    names = path.parts[-1:] if path.is_absolute() else path.parts
    if not names or names == ("/",):
        yield Finding("output", "names no folder; expected a path such as runs/my-run")
    for name in names:
        if name == ".." or not FOLDER_NAME.fullmatch(name):
            text = "folder names have 1 to 96 letters, digits, '.', '_' or '-', and are not '..'"
            yield Finding("output", f"{text}; found {name[:60]!r}")
            return
