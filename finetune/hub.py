"""Data sets of the Hub, through `datasets`: their splits as sources of rows. Code that comes with a set never runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.columns import declared_names
from finetune.errors import DataError
from finetune.readers import BLOCK_ROWS, Block
from finetune.store import file_sha256

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
    """A data set, downloaded. Raises DataError with the reason in one line when it cannot be had."""

    def __init__(self, path: str, name: str | None, revision: str | None) -> None:
        import datasets

        refuse_folder(path)
        datasets.config.USE_PARQUET_EXPORT = False  # else a host is looked up that only the real Hub has
        datasets.disable_progress_bars()
        try:
            self._builder = datasets.load_dataset_builder(path, name, revision=revision)
            self._builder.download_and_prepare()
        except _errors() as error:
            raise DataError(_reason(path, name, revision, error)) from error
        self.names: list[str] = list(self._builder.info.splits)
        config = self._builder.config.name
        self.title = path if config == "default" else f"{path} ({config})"

    def sources(self, split: str) -> list[HubSplit]:
        """The sources of one of `names`, or of a slice of some. Raises DataError for a slice that is none."""
        try:
            dataset = self._builder.as_dataset(split=split)
        except ValueError as error:
            raise DataError(f"data.splits: {split}: {' '.join(str(error).split())}") from error
        return [HubSplit(f"{self.title} {split}", dataset)]

    def has(self, split: str) -> bool:
        """Whether all splits that a name or slice speaks of exist."""
        return all(part.partition("[")[0].strip() in self.names for part in split.split("+"))


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
