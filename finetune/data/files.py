"""Which local files a recipe means, which split each belongs to, and how each is read."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.columns import declared_names
from finetune.data.conll import read_conll, read_conllu
from finetune.data.problems import Problems
from finetune.data.readers import BLOCK_ROWS, Block, read_csv, read_json, read_jsonl, read_tsv
from finetune.errors import DataError
from finetune.recipe import ROLES, Recipe
from finetune.recipe.types import PACKED_SUFFIXES
from finetune.store import file_sha256

__all__ = ["SUFFIXES", "File", "find", "left_out"]


def read_parquet(path: Path, name: str, wanted: set[str] | None = None) -> Iterator[Block]:
    """The rows of a Parquet file; only the columns in `wanted` are read, where it is given."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            read = names if wanted is None else [column for column in names if column in wanted]
            if twice := sorted({column for column in read if read.count(column) > 1}):
                raise DataError(f"{name}: column {', '.join(map(repr, twice))} is there twice; rename one of them")
            first = 0
            for batch in file.iter_batches(BLOCK_ROWS, columns=read or names[:1]):
                yield Block(batch.to_pylist(), list(range(first, first + len(batch))), columns=names)
                first += len(batch)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, after row {first}: not UTF-8: {error.reason}") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name}: cannot be read as Parquet: {error}") from None


SUFFIXES: dict[str, Callable[..., Iterator[Block]]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
    ".conll": read_conll,
    ".iob": read_conll,
    ".bio": read_conll,
    ".conllu": read_conllu,
}
# Words of a file name that tell its split. Source: datasets.data_files.SPLIT_KEYWORDS.
WORDS = {"train": "train", "training": "train", "dev": "validation", "val": "validation", "valid": "validation"}
WORDS |= {"validation": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}
TEST = {"test", "testing"}
JOINED = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # the words of TestSet1, TESTSet


@dataclass(frozen=True)
class File:
    """A local file of rows."""

    path: Path
    name: str  # for messages and the record: as seen from the recipe, never absolute
    numbered: bool = False  # csv, tsv: the recipe names columns by number, so there is no line of names
    sentences: bool = False  # the task reads tokens: a suffix we do not know is taken for CoNLL

    @property
    def suffix(self) -> str:
        suffix = self.path.suffix.lower()
        if self.sentences and (suffix not in (*SUFFIXES, *PACKED_SUFFIXES) or (suffix == ".tsv" and self.numbered)):
            return ".conll"
        return suffix

    @property
    def place(self) -> str:
        return f"{self.name}, {'row' if self.suffix in ('.json', '.parquet') else 'line'}"

    @property
    def cells(self) -> bool:
        return self.suffix in (".csv", ".tsv")

    def identity(self) -> list[Any]:
        """What decides the rows: content and way of reading. Raises DataError."""
        try:
            return [file_sha256(self.path), self.suffix, self.numbered]
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror or error}") from error

    def read(self, wanted: set[str]) -> Iterator[Block]:
        if self.suffix in PACKED_SUFFIXES:
            raise DataError(f"{self.name}: packed files are not read; unpack it first")
        if self.suffix not in SUFFIXES:
            raise DataError(f"{self.name}: unknown suffix; expected one of {', '.join(SUFFIXES)}")
        reader = SUFFIXES[self.suffix]
        options = {"numbered": self.numbered} if self.cells else {"wanted": wanted} if reader is read_parquet else {}
        return reader(self.path, self.name, **options)

    def class_names(self) -> dict[str, list[str]]:
        """Column -> names of its classes, where a Parquet file was written by `datasets`."""
        return _parquet_names(self.path, self.name) if self.suffix == ".parquet" else {}


def _parquet_names(path: Path, name: str) -> dict[str, list[str]]:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name}: cannot be read as Parquet: {error}") from None
    about = json.loads(metadata.get(b"huggingface", b"{}"))
    return declared_names(about.get("info", {}).get("features"))


# ----------------------------------------------------------------------------------------------- what a path stands for


def find(recipe: Recipe) -> dict[str, list[File]]:
    """The split names of a local `data.path` and the files of each, in the order of their names.

    Raises DataError, with the names that exist, when nothing is found.
    """
    path = recipe.data.path
    if isinstance(path, str):
        return _splits(_files(recipe, path, "data.path"), recipe, path)
    problems = Problems()
    found: dict[str, list[File]] = {}
    for split, pattern in path.items():
        try:
            found[split] = [_file(recipe, one, pattern) for one in _files(recipe, pattern, f"data.path.{split}")]
        except DataError as error:
            problems.add("missing files", str(error))
    problems.check("data")
    return found


def left_out(recipe: Recipe, found: dict[str, list[File]]) -> tuple[str, ...]:
    """The files that `data.path` stands for and whose names tell no split, where those of others do."""
    path = recipe.data.path
    if not isinstance(path, str):
        return ()
    used = {file.path for files in found.values() for file in files}
    return tuple(_name(recipe, one, path) for one in _files(recipe, path, "data.path") if one not in used)


def _files(recipe: Recipe, path: str, key: str) -> list[Path]:
    """The files that one path stands for: itself, those in a folder, or those that match."""
    place = recipe.locate(path)
    if "*" in path:
        found = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207  (Path.glob takes no absolute pattern)
        matches = [Path(match) for match in found if Path(match).is_file()]
        if not matches:
            raise DataError(f"{key}: {path}: no file matches{_neighbours(place)}")
        return matches
    if place.is_dir():
        suffixes = {*SUFFIXES, ".txt"} if _sentences(recipe) else set(SUFFIXES)
        inside = [one for one in sorted(place.iterdir()) if one.is_file() and one.suffix.lower() in suffixes]
        if not inside:
            raise DataError(f"{key}: {path}: no file in it has one of the suffixes {', '.join(sorted(suffixes))}")
        return inside
    if not place.exists():
        raise DataError(f"{key}: {path}: no such file{_neighbours(place)}")
    return [place]


def _neighbours(place: Path) -> str:
    folder = place.parent
    if not folder.is_dir():
        return f"; there is no folder {folder.name}"
    names = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    if not names:
        return "; its folder is empty"
    near = difflib.get_close_matches(place.name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"; its folder has {', '.join(names[:10])}{', …' if len(names) > 10 else ''}{hint}"


def _splits(paths: list[Path], recipe: Recipe, given: str) -> dict[str, list[File]]:
    """By the words in the file names when any has one (the others are left out), else all are `train`."""
    if len(paths) == 1 and not recipe.locate(given).is_dir():
        return {"train": [_file(recipe, paths[0], given)]}
    named: dict[str, list[Path]] = {}
    for path in paths:
        for split in sorted(_split_words(path.stem)):
            named.setdefault(split, []).append(path)
    named = named or {"train": paths}
    if "test" in named:  # those for evaluation are the test split where no other file is
        named["test"] = [path for path in named["test"] if _words(path.stem) & TEST] or named["test"]
    chosen = sorted({path for group in named.values() for path in group})
    several = len({path.suffix.lower() for path in chosen}) > 1
    if several or sum(map(len, named.values())) > len(chosen):
        what = "files of several kinds" if several else "a file whose name has the words of two splits"
        names = ", ".join(path.name for path in chosen)
        raise DataError(f"data.path: {given}: {what} ({names}); name the file of each split: {{train: …, test: …}}")
    order = [split for split in dict.fromkeys(WORDS.values()) if split in named]
    return {split: [_file(recipe, path, given) for path in named[split]] for split in order}


def _split_words(stem: str) -> set[str]:
    return {WORDS[word] for word in _words(stem)}


def _words(stem: str) -> set[str]:
    """Words of a file name that tell a split: those that stand alone, else those of joined ones.

    The name of a benchmark may end in Eval, as HumanEval and SemEval do.
    """
    alone = set(re.split("[^a-z]+", stem.lower())) & set(WORDS)
    joined = JOINED.findall(re.sub("(?<=[a-z])Eval(?![a-z])", "", stem))
    return alone or {word.lower() for word in joined} & set(WORDS)


def _sentences(recipe: Recipe) -> bool:
    return "tokens" in {role for group in ROLES[recipe.task] for role in group}


def _file(recipe: Recipe, path: Path, given: str) -> File:
    columns = list(recipe.data.columns.values())
    numbered = bool(columns) and all(column.isdigit() for column in columns)
    return File(path, _name(recipe, path, given), numbered, _sentences(recipe))


def _name(recipe: Recipe, path: Path, given: str) -> str:
    """How the file is called in messages and in the record: never by a path that tells of this machine."""
    if not Path(given).is_absolute() or path.is_relative_to(recipe.folder):
        return Path(os.path.relpath(path, recipe.folder)).as_posix()
    return f"{path.parent.name}/{path.name}"
