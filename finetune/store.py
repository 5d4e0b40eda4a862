"""The cache on disk: entries are folders, complete or absent, and built once however many processes ask for one.

    <cache>/<kind>/<key>/    the files of an entry, and manifest.json with their sizes, which is written last
    <cache>/<kind>/<key>.lock
    <cache>/hub/             where the plain files of a Hub set are
    <cache>/hashes/          sha256 of files, remembered by path, size, time and inode

Nothing is ever evicted: an entry is found by the content it was made of, so the folder can be deleted at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import StorageError
from finetune.record import write_atomic

__all__ = ["Entry", "cache_folder", "content_sha256", "entry", "file_sha256", "keep", "key_of"]

MANIFEST = "manifest.json"
SETTLED_SECONDS = 2.0  # a file younger than this may change again within the resolution of its time stamp


@dataclass(frozen=True)
class Entry:
    """A complete entry: its folder, what its builder returned, and whether it was there before."""

    folder: Path
    facts: dict[str, Any]
    found: bool


def cache_folder() -> Path:
    """`$FINETUNE_CACHE`, else `finetune` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if named := os.environ.get("FINETUNE_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "finetune"


def key_of(*parts: Any) -> str:
    """sha256 of JSON values, order of object keys left out."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def entry(kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
    """The entry `key`; if it is missing or damaged, `build(folder)` fills it and returns facts for the manifest (JSON).

    One process builds, the others wait for it. Whatever `build` raises leaves no entry behind. Raises StorageError
    when the cache cannot be written.
    """
    folder = cache_folder() / kind / key
    facts = _read(folder)
    if facts is not None:
        return Entry(folder, facts, found=True)
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{key}.lock")):
            facts = _read(folder)  # another process may have built it meanwhile
            if facts is not None:
                return Entry(folder, facts, found=True)
            return Entry(folder, _build(folder, build), found=False)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise StorageError(
            f"cache {cache_folder()}: cannot be written: {reason}; set FINETUNE_CACHE to a folder with space"
        ) from error


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    temporary = folder.with_name(f"{folder.name}.tmp")
    if temporary.exists():  # left by a process that was killed; the lock is ours
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        facts: dict[str, Any] = json.loads(json.dumps(build(temporary)))  # as a later reader will see them
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"facts": facts, "files": sizes}), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return facts


def _read(folder: Path) -> dict[str, Any] | None:
    """The facts of a complete entry; None when it is absent, or when a file is missing or of another size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if any((folder / name).stat().st_size != size for name, size in manifest["files"].items()):
            return None
        facts: dict[str, Any] = manifest["facts"]
    except (OSError, ValueError, KeyError):
        return None
    return facts


def content_sha256(path: Path) -> str:
    """sha256 of the bytes of a file as they are, hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of the content of a file; read again only when its size, time or inode has changed. Raises OSError."""
    stat = path.stat()
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    memo = cache_folder() / "hashes" / (key_of(str(path.resolve())) + ".json")
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
        if known["state"] == state:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError):
        pass
    digest = content_sha256(path)
    if time.time() - stat.st_mtime > SETTLED_SECONDS:
        keep(memo, {"state": state, "sha256": digest})
    return digest


def keep(memo: Path, value: dict[str, Any]) -> None:
    """Write a small JSON file into the cache. Raises StorageError."""
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memo, json.dumps(value))
    except OSError as error:
        raise StorageError(
            f"cache {cache_folder()}: cannot be written: {error}; set FINETUNE_CACHE to a folder that can be"
        ) from error
