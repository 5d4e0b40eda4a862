"""From the recipe to rows, and from rows to features; both kept in the cache on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from finetune.data import columns, conll, files, hub, parsing, readers, splits, values
from finetune.data.columns import Roles
from finetune.data.files import File, find, left_out
from finetune.data.hub import HubSet, HubSplit
from finetune.data.parsing import PLACES, Mapping, parse
from finetune.data.problems import Problems
from finetune.errors import DataError
from finetune.features import Features, FeatureWriter, read_features
from finetune.recipe import Recipe, is_local
from finetune.recipe.tables import EXTRA_ROLES, ROLE_SETS
from finetune.rows import KEPT, Rows, has_decimal_texts, infer_problem, take_batches
from finetune.store import cache_folder, entry, key_of

__all__ = ["cache_folder", "collect", "encode", "load", "subset", "task_code"]

FORMAT = 1  # of cache entries; another number leaves the old ones aside
ENCODE_ROWS = 20_000  # a word is tokenized once for all of them
ENCODE_BYTES = 8 << 20  # of rows; their features take several times as much
COPY_BYTES = 64 << 20  # a larger selection of rows goes to disk


class _Refused(Exception):  # noqa: N818  (carries nothing: the problems are already collected)
    """The rows of a split cannot be used."""


class _Local:
    """The splits of local files."""

    commit = None

    def __init__(self, recipe: Recipe) -> None:
        self._found = find(recipe)
        self.left_out = left_out(recipe, self._found)
        self.names = list(self._found)
        self.title = ", ".join(file.name for files in self._found.values() for file in files[:1])

    def sources(self, split: str) -> list[File]:
        return self._found[split]

    def has(self, split: str) -> bool:
        return split in self._found


def load(recipe: Recipe) -> dict[str, Rows]:
    """Our split names -> rows, as `recipe.data` says. Raises DataError with the problems of all splits."""
    loaded, problems = collect(recipe)
    problems.check("data")
    return loaded


def collect(recipe: Recipe) -> tuple[dict[str, Rows], Problems]:
    """As `load`, but with the problems beside the splits that have none, which are whole then: neither cut nor limited.

    Raises DataError when no split can be told.
    """
    data = recipe.data
    local = not isinstance(data.path, str) or is_local(data.path)
    given: _Local | HubSet = _Local(recipe) if local else HubSet(str(data.path), data.name, data.revision)
    wanted, shares = _requested(recipe, given)
    problems = Problems()
    loaded: dict[str, Rows] = {}
    for ours, theirs in wanted.items():
        try:
            rows = _rows(recipe, ours, given.sources(theirs), problems)
            loaded[ours] = replace(rows, commit=given.commit, files_left_out=given.left_out)
        except _Refused:
            continue
        except DataError as error:
            problems.add("unusable splits", str(error))
    if problems:
        return loaded, problems
    for ours, part in shares.items():
        loaded["train"], loaded[ours] = _cut(recipe, loaded["train"], ours, part)
    for ours, size in (data.limit or {}).items():
        loaded[ours] = _limit(loaded, ours, size)
    return {ours: loaded[ours] for ours in data.splits if ours in loaded}, problems


def _requested(recipe: Recipe, given: _Local | HubSet) -> tuple[dict[str, str], dict[str, float]]:
    """Our split names with theirs, and those that are shares of train. Raises DataError for one that does not exist."""
    asked = "splits" in recipe.data.model_fields_set
    shares = {ours: float(theirs) for ours, theirs in recipe.data.splits.items() if not isinstance(theirs, str)}
    wanted = {ours: theirs for ours, theirs in recipe.data.splits.items() if isinstance(theirs, str)}
    missing = {ours: theirs for ours, theirs in wanted.items() if not given.has(theirs)}
    exist = f"{given.title} has {', '.join(given.names)}"
    if missing and asked:
        lines = "; ".join(f"data.splits.{ours}: no split {theirs!r}" for ours, theirs in missing.items())
        raise DataError(
            f"{lines}; {exist}; name one of those, or leave the split out with data.splits.{next(iter(missing))}=null"
        )
    wanted = {ours: theirs for ours, theirs in wanted.items() if ours not in missing}
    if not wanted:
        raise DataError(f"data.splits: none of {', '.join(missing.values())} exists; {exist}; name what to use")
    if shares and "train" not in wanted:
        raise DataError(f"data.splits.{next(iter(shares))}: a share is cut off train, and there is no train split")
    return wanted, shares


# ------------------------------------------------------------------------------------------------------ rows of a split


def _rows(recipe: Recipe, split: str, sources: list[File] | list[HubSplit], problems: Problems) -> Rows:
    roles = Roles(ROLE_SETS[recipe.task], EXTRA_ROLES[recipe.task])
    skip = recipe.data.on_bad_row == "skip"
    kept = tuple(name for name in recipe.evaluate.slices if name != "length")
    mapping = Mapping(dict(recipe.data.columns), roles, skip, kept)
    title = _title(sources)
    code = _sources((readers, conll, values, columns, parsing, files, hub))
    key = key_of(code, [source.identity() for source in sources], mapping.columns, roles.sets, roles.extras, skip, kept)

    def build(folder: Path) -> dict[str, Any]:
        parsed = parse(sources, mapping, folder / "rows.arrow", problems)
        if parsed is None:
            raise _Refused
        if not parsed.rows:
            dropped = ", ".join(f"{len(ids)} dropped: {reason}" for reason, ids in parsed.dropped.items())
            raise DataError(f"split {split}: 0 rows in {title}{f' ({dropped})' if dropped else ''}")
        return {"class_names": parsed.class_names, "content": parsed.content} | {
            "dropped": parsed.dropped,
            "columns": parsed.columns,
            "unused": parsed.unused,
        }

    found = entry("rows", key, build)
    table, places = _open(found.folder / "rows.arrow")
    names = _declared(sources, found.facts["columns"]) | found.facts["class_names"]
    fingerprint = key_of(found.facts["content"], {role: n for role, n in names.items() if not role.startswith(KEPT)})
    marks = tuple(source.place for source in sources)
    unused = tuple(found.facts["unused"])
    return Rows(split, table, names, title, fingerprint, found.facts["dropped"], unused, places, marks)


def _title(sources: list[File] | list[HubSplit]) -> str:
    names = [source.name for source in sources]
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more files"


def _declared(sources: list[File] | list[HubSplit], roles: dict[str, str]) -> dict[str, list[str]]:
    """Role -> names of classes. Raises DataError where two files of a split declare different ones."""
    declared = [source.class_names() for source in sources]
    names = {}
    for role, column in roles.items():
        column = f"{column}.label" if role == "spans" else column
        own = [each.get(column) for each in declared]
        if any(each != own[0] for each in own):
            raise DataError(f"{_title(sources)}: the files name the classes of {column} differently")
        if own[0] is not None:
            names[role] = own[0]
    return names


def _open(path: Path) -> tuple[pa.Table, pa.Table]:
    """The rows and their places, mapped from disk."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return table.drop_columns(list(PLACES)), table.select(list(PLACES)).rename_columns(["file", "line"])


# --------------------------------------------------------------------------------------------------- shares and samples


def _cut(recipe: Recipe, train: Rows, ours: str, part: float) -> tuple[Rows, Rows]:
    """Train without a share of its rows, and that share as split `ours`."""
    if len(train) < 2:
        raise DataError(f"data.splits.{ours}: {len(train)} row in train; a share needs at least 2")
    by_label = "label" in train.table.column_names and not _are_numbers(recipe, train)
    stay, cut = splits.share(train, part, by_label)
    how = "stratified by label, " if by_label else ""
    rest = replace(subset(train, stay), source=f"{train.source} without {ours}")
    return rest, replace(
        subset(train, cut), split=ours, source=f"{train.source} ({part:g} of its rows, {how}seed 0)", dropped={}
    )


def _are_numbers(recipe: Recipe, rows: Rows) -> bool:
    """Whether labels are, or may be, numbers: a share then draws from all rows alike."""
    if recipe.data.problem is not None:
        return bool(recipe.data.problem == "regression")
    return infer_problem(rows) == "regression" or has_decimal_texts(rows)


def _limit(loaded: dict[str, Rows], ours: str, size: int) -> Rows:
    if ours not in loaded:
        raise DataError(f"data.limit.{ours}: there is no split {ours}; the splits are {', '.join(loaded)}")
    rows = loaded[ours]
    return subset(rows, splits.sample(len(rows), size)) if size < len(rows) else rows


def subset(rows: Rows, index: np.ndarray) -> Rows:
    """`rows.take(index)` for an ascending index; what is large is written to the cache, so that memory stays flat."""
    if rows.table.nbytes * (len(index) / len(rows)) < COPY_BYTES:
        return rows.take(index)
    derived = rows.take(index[:0])  # for the rest of its fields
    fingerprint = hashlib.sha256(f"{rows.fingerprint} take ".encode() + index.astype("<i8").tobytes()).hexdigest()

    def build(folder: Path) -> dict[str, Any]:
        places = rows.places
        assert places is not None
        table = rows.table
        for name, own in zip(PLACES, ("file", "line"), strict=True):
            table = table.append_column(name, places.column(own))
        with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            for batch in take_batches(table, index):
                writer.write_batch(batch)
        return {}

    found = entry("rows", key_of("subset", fingerprint), build)
    table, places = _open(found.folder / "rows.arrow")
    return replace(derived, table=table, places=places, fingerprint=fingerprint)


# ------------------------------------------------------------------------------------------------------------- features


class Encoder(Protocol):
    """What `encode` asks of a task."""

    def encode(self, batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, Any]: ...

    def encoding_key(self) -> str: ...


def encode(rows: Rows, task: Encoder, tokenizer: Any, tokenizer_key: str) -> Features:
    """The features of all rows, mapped from disk; encoded block by block by one process of a node, once.

    tokenizer_key: what identifies the tokenizer's files. The entry also depends on the rows, on the settings of the
    task and on its code. Raises StorageError when the cache cannot be written.
    """
    key = key_of(
        FORMAT, version("tokenizers"), rows.fingerprint, tokenizer_key, task.encoding_key(), task_code(type(task))
    )

    def build(folder: Path) -> dict[str, Any]:
        writer = FeatureWriter(folder)
        start = 0
        try:
            for batch in rows.batches(ENCODE_ROWS, ENCODE_BYTES):
                encoded = dict(task.encode(batch, tokenizer))
                encoded["row"] = np.asarray(encoded["row"], dtype=np.int64) + start
                encoded["truncated"] = np.asarray(encoded["truncated"], dtype=bool)
                writer.append(encoded)
                start += len(batch["id"])
        finally:
            writer.close()
        return {}

    found = entry("features", key, build)
    return read_features(found.folder, found.found)


def task_code(task: type) -> str:
    """sha256 of the modules that define a task, and of those it names as the ones that encode for it.

    Features of an older version of its code are not taken up.
    """
    names = [part.__module__ for part in task.__mro__ if part.__module__ not in ("builtins", "abc")]
    modules = [import_module(name) for name in [*names, *getattr(task, "encoders", ())]]
    return _sources([module for module in modules if getattr(module, "__file__", None)]) + task.__qualname__


def _sources(modules: Iterable[ModuleType]) -> str:
    """sha256 of the source of some modules, which all come from a file."""
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()
