"""Data sets of the Hub, through `datasets`: their splits as sources of rows. Code that comes with a set never runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.columns import declared_names
from finetune.data.files import File
from finetune.data.readers import BLOCK_ROWS, Block
from finetune.errors import DataError
from finetune.store import cache_folder, file_sha256, keep, key_of

__all__ = ["HubSet", "HubSplit", "refuse_folder"]


@dataclass(frozen=True)
class HubSplit:
    """One split, or slice of splits ("train[:10%]"), as `datasets` has it on disk."""

    name: str  # "user/set (config) train"
    dataset: Any  # datasets.Dataset

    @property
    def place(self) -> str:
        return f"{self.name}, row"

    @property
    def cells(self) -> bool:
        return False

    def identity(self) -> list[Any]:
        """What decides the rows: the Arrow files, the slice of them, and the declared types."""
        files = [file_sha256(Path(file["filename"])) for file in self.dataset.cache_files]
        return [files, str(self.dataset.split), self.dataset.features.to_dict()]

    def read(self, wanted: set[str]) -> Iterator[Block]:
        names = [name for name in self.dataset.column_names if name in wanted] or self.dataset.column_names[:1]
        first = 0
        for table in self.dataset.select_columns(names).with_format("arrow").iter(BLOCK_ROWS):
            lines = list(range(first, first + len(table)))
            yield Block(table.to_pylist(), lines, columns=list(self.dataset.column_names))
            first += len(table)

    def class_names(self) -> dict[str, list[str]]:
        """Column -> names of its classes; a dot reaches inside a column."""
        return declared_names(self.dataset.features.to_dict())


class HubSet:
    """A data set of the Hub. Raises DataError with the reason in one line when it cannot be had.

    csv, tsv and JSON files without declared types are read by our own readers, since those of `datasets` take "NA" for
    nothing, "001" for 1 and "2020-01-01" for a date; everything else comes through `datasets`.
    """

    def __init__(self, path: str, name: str | None, revision: str | None) -> None:
        import datasets

        refuse_folder(path)
        datasets.config.USE_PARQUET_EXPORT = False  # else a host is looked up that only the real Hub has
        datasets.disable_progress_bars()
        self._what = (path, name, revision)
        self._builder: Any = None
        try:
            self._builder = datasets.load_dataset_builder(path, name, revision=revision)
            config = self._builder.config.name
            self.title = path if config == "default" else f"{path} ({config})"
            self._files = _fetch(self._builder, self.title)
            if self._files is None:
                self._builder.download_and_prepare()
        except _errors() as error:
            self.title, self._files = path, _remembered(self._what) if isinstance(error, ConnectionError) else None
            if self._files is None:
                raise DataError(_reason(path, name, revision, error)) from error
        else:
            _remember(self._what, self._files)
        self.names: list[str] = list(self._builder.info.splits if self._files is None else self._files)

    def sources(self, split: str) -> list[HubSplit] | list[File]:
        """The sources of one of `names`, or of a slice of some. Raises DataError for a slice that is none."""
        if self._files is not None and split in self._files:
            return self._files[split]
        if self._files is not None:
            raise DataError(f"data.splits: {split}: no slices of {self.title}, whose files are read as they are")
        try:
            dataset = self._builder.as_dataset(split=split)
        except ValueError as error:
            raise DataError(f"data.splits: {split}: {' '.join(str(error).split())}") from error
        return [HubSplit(f"{self.title} {split}", dataset)]

    def has(self, split: str) -> bool:
        """Whether all splits that a name or slice speaks of exist."""
        return all(part.partition("[")[0].strip() in self.names for part in split.split("+"))


PLAIN = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
NEUTRAL = {"name", "version", "data_dir", "data_files", "description", "sep"}  # settings that change no value


def _fetch(builder: Any, title: str) -> dict[str, list[File]] | None:
    """The files of each split, downloaded, where our own readers can read them: plain ones with default settings."""
    urls = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    default = vars(type(builder.config)())
    special = any(value != default[key] for key, value in vars(builder.config).items() if key not in NEUTRAL)
    every = [url for files in urls.values() for url in files]
    plain = all(_is_plain(url, builder.config) for url in every)
    if special or builder.info.features is not None or not plain or not urls or not all(urls.values()):
        return None
    return {split: [_download(url, title) for url in files] for split, files in urls.items()}


def _is_plain(url: str, config: Any) -> bool:
    suffix = Path(url).suffix.lower()
    separator = {".csv": ",", ".tsv": "\t"}.get(suffix)
    return suffix in PLAIN and (separator is None or config.sep == separator) and not url.startswith("http")


def _download(url: str, title: str) -> File:
    from huggingface_hub import hf_hub_download

    if not url.startswith("hf://"):
        return File(Path(url), f"{title}/{Path(url).name}")
    place = re.fullmatch("hf://datasets/([^@]+)@([^/]+)/(.+)", url)
    assert place is not None, url
    repo, commit, name = place.groups()
    return File(Path(hf_hub_download(repo, name, repo_type="dataset", revision=commit)), f"{title}/{name}")


def _memo(what: tuple[str | None, ...]) -> Path:
    return cache_folder() / "hub" / f"{key_of(what)}.json"


def _remember(what: tuple[str | None, ...], files: dict[str, list[File]] | None) -> None:
    """Keep where the files are, for a start without a network: `datasets` keeps only what it has converted."""
    if files is not None:
        places = {split: [[str(file.path), file.name] for file in each] for split, each in files.items()}
        keep(_memo(what), places)


def _remembered(what: tuple[str | None, ...]) -> dict[str, list[File]] | None:
    try:
        places = json.loads(_memo(what).read_text(encoding="utf-8"))
        files = {split: [File(Path(path), name) for path, name in each] for split, each in places.items()}
    except (OSError, ValueError):
        return None
    return files if all(file.path.exists() for each in files.values() for file in each) else None


def refuse_folder(path: str) -> None:
    """Raises DataError where a folder has the name of the set: `datasets` would silently read the folder instead."""
    if Path(path).exists():
        raise DataError(
            f"data.path: {path}: expected a set of the Hub, and the working directory has a folder of that name;"
            f" for the folder write ./{path}, for the set start elsewhere"
        )


def _errors() -> tuple[type[Exception], ...]:
    """What `datasets` and huggingface_hub raise for a set that is not there, not allowed, not reachable or broken."""
    import httpx2
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    return (DatasetsError, HfHubHTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError)


def _reason(path: str, name: str | None, revision: str | None, error: Exception) -> str:
    from datasets.exceptions import DatasetGenerationError

    text = " ".join(str(error).split()).rstrip(".")
    what = path + (f" ({name})" if name else "") + (f" at {revision}" if revision else "")
    if found := re.search(r"(?:Available|available configs): \[(.*?)\]", text):
        names = found[1].replace("'", "")
        problem = f"there is no configuration {name!r}" if name else "it has several configurations"
        return f"data.name: {what}: {problem}; expected one of {names}"
    if "scripts are no longer supported" in text:
        return (
            f"data.path: {what}: the set is loaded by code of its own, which is never run; data.revision:"
            " refs/convert/parquet may have it as Parquet files"
        )
    if isinstance(error, DatasetGenerationError) and error.__cause__:
        text = f"a file of the set cannot be read: {' '.join(str(error.__cause__).split())}"
    return f"data.path: {what}: {text}{_hint(text)}"


def _hint(text: str) -> str:
    if "cannot be accessed" in text:
        return "; check the name, or log in (HF_TOKEN) if it is private or gated"
    if "Couldn't reach" in text:
        return "; without a network, use local files or a set that was downloaded before (HF_HUB_OFFLINE=1)"
    return ""
