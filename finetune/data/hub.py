"""Data sets of the Hub, through `datasets`: their splits as sources of rows. Code that comes with a set never runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
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
    known: dict[str, Any]  # its identity and class_names
    open: Callable[[], Any]  # datasets.Dataset

    @property
    def place(self) -> str:
        return f"{self.name}, row"

    @property
    def cells(self) -> bool:
        return False

    def identity(self) -> list[Any]:
        """What decides the rows: the Arrow files, the slice of them, and the declared types."""
        return list(self.known["identity"])

    def read(self, wanted: set[str]) -> Iterator[Block]:
        dataset = self.open()
        names = [name for name in dataset.column_names if name in wanted] or dataset.column_names[:1]
        first = 0
        for table in dataset.select_columns(names).with_format("arrow").iter(BLOCK_ROWS):
            lines = list(range(first, first + len(table)))
            yield Block(table.to_pylist(), lines, columns=list(dataset.column_names))
            first += len(table)

    def class_names(self) -> dict[str, list[str]]:
        """Column -> names of its classes; a dot reaches inside a column."""
        return dict(self.known["class_names"])


@dataclass
class _Memo:
    """What is kept of a set: a later start whose set has the same commit needs no `datasets` for it.

    Imported and asked, it takes two seconds and nine requests.
    """

    commit: str | None  # None: its files do not lie in one commit of the Hub, and may change unseen
    title: str
    names: list[str]  # of the splits
    files: dict[str, list[File]] | None  # split -> files that our own readers read
    splits: dict[str, dict[str, Any]]  # else: split or slice -> HubSplit.known


class HubSet:
    """A data set of the Hub. Raises DataError with the reason in one line when it cannot be had.

    csv, tsv and JSON files without declared types are read by our own readers, since those of `datasets` take "NA" for
    nothing, "001" for 1 and "2020-01-01" for a date; everything else comes through `datasets`.
    """

    left_out: tuple[str, ...] = ()

    def __init__(self, path: str, name: str | None, revision: str | None) -> None:
        refuse_folder(path)
        self._what = (path, name, revision)
        self._loaded: Any = None
        earlier = _remembered(self._what)
        if earlier is not None and earlier.commit is not None and earlier.commit == _commit(path, revision):
            self._memo = earlier
        else:
            self._memo = self._look_up(earlier)
        self.title, self.names, self.commit = self._memo.title, self._memo.names, self._memo.commit

    def sources(self, split: str) -> list[HubSplit] | list[File]:
        """The sources of one of `names`, or of a slice of some. Raises DataError for a slice that is none."""
        files, known = self._memo.files, self._memo.splits
        if files is not None and split in files:
            return files[split]
        if files is not None:
            raise DataError(f"data.splits: {split}: no slices of {self.title}, whose files are read as they are")
        if split not in known:
            known[split] = _known(self._dataset(split))
            _remember(self._what, self._memo)
        return [HubSplit(f"{self.title} {split}", known[split], lambda: self._dataset(split))]

    def has(self, split: str) -> bool:
        """Whether all splits that a name or slice speaks of exist."""
        return all(part.partition("[")[0].strip() in self.names for part in split.split("+"))

    def _look_up(self, earlier: _Memo | None) -> _Memo:
        """Ask the Hub; without a network, what an earlier start saw serves, if its files are still there."""
        try:
            builder = self._builder()
            config, urls = builder.config.name, _urls(builder)
            title = self._what[0] if config == "default" else f"{self._what[0]} ({config})"
            files = _fetch(builder, title)
            if files is None:
                builder.download_and_prepare()
        except _errors() as error:
            if isinstance(error, ConnectionError) and earlier is not None and earlier.files is not None:
                return earlier
            raise DataError(_reason(*self._what, error)) from error
        names = list(builder.info.splits if files is None else files)
        memo = _Memo(_commit_in(urls), title, names, files, {})
        _remember(self._what, memo)
        return memo

    def _builder(self) -> Any:
        import datasets

        if self._loaded is None:
            datasets.config.USE_PARQUET_EXPORT = False  # else a host is looked up that only the real Hub has
            datasets.disable_progress_bars()
            path, name, revision = self._what
            self._loaded = datasets.load_dataset_builder(path, name, revision=revision)
        return self._loaded

    def _dataset(self, split: str) -> Any:
        try:
            builder = self._builder()
            builder.download_and_prepare()
        except _errors() as error:
            raise DataError(_reason(*self._what, error)) from error
        try:
            return builder.as_dataset(split=split)
        except ValueError as error:
            raise DataError(f"data.splits: {split}: {' '.join(str(error).split())}") from error


def _known(dataset: Any) -> dict[str, Any]:
    """What `HubSplit` says without opening the data set; JSON."""
    features = dataset.features.to_dict()
    files = [file_sha256(Path(file["filename"])) for file in dataset.cache_files]
    return {"identity": [files, str(dataset.split), features], "class_names": declared_names(features)}


def _commit(path: str, revision: str | None) -> str | None:
    """The commit that the set has at `revision`; None where the Hub does not say."""
    import httpx2
    from huggingface_hub import HfApi

    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return HfApi().dataset_info(path, revision=revision, expand=["sha"]).sha
    except (OSError, ValueError, httpx2.HTTPError):
        return None


PINNED = re.compile("hf://datasets/([^@]+)@([^/]+)/(.+)")  # repository, commit, file
PLAIN = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
NEUTRAL = {"name", "version", "data_dir", "data_files", "description", "sep"}  # settings that change no value


def _urls(builder: Any) -> dict[str, list[str]]:
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}


def _commit_in(urls: dict[str, list[str]]) -> str | None:
    """The one commit that all files lie in."""
    places = [PINNED.fullmatch(url) for files in urls.values() for url in files]
    commits = {None if place is None else place[2] for place in places}
    return commits.pop() if len(commits) == 1 else None


def _fetch(builder: Any, title: str) -> dict[str, list[File]] | None:
    """The files of each split, downloaded, where our own readers can read them: plain ones with default settings."""
    urls = _urls(builder)
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
    place = PINNED.fullmatch(url)
    assert place is not None, url
    repo, commit, name = place.groups()
    return File(Path(hf_hub_download(repo, name, repo_type="dataset", revision=commit)), f"{title}/{name}")


def _place(what: tuple[str | None, ...]) -> Path:
    return cache_folder() / "hub" / f"{key_of(version('datasets'), what)}.json"


def _remember(what: tuple[str | None, ...], memo: _Memo) -> None:
    places = {split: [[str(file.path), file.name] for file in files] for split, files in (memo.files or {}).items()}
    keep(_place(what), vars(memo) | {"files": places or None})


def _remembered(what: tuple[str | None, ...]) -> _Memo | None:
    try:
        kept = json.loads(_place(what).read_text(encoding="utf-8"))
        places = kept["files"] or {}
        files = {split: [File(Path(path), name) for path, name in each] for split, each in places.items()}
        memo = _Memo(**kept | {"files": files or None})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return memo if all(file.path.exists() for each in files.values() for file in each) else None


def refuse_folder(path: str) -> None:
    """Raises DataError where a folder has the name of the set: `datasets` would silently read the folder instead."""
    if Path(path).exists():
        what = "folder" if Path(path).is_dir() else "file"
        raise DataError(
            f"data.path: {path}: expected a set of the Hub, and the working directory has a {what} of that name;"
            f" for the {what} write ./{path}, for the set start elsewhere"
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
