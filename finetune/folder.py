"""The run folder: its places, its lock, its log of metrics. Only the main process writes."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetune.checkpoint import steps_on_disk, storage_errors
from finetune.errors import OutputError, StorageError
from finetune.recipe import Recipe, difference
from finetune.record import RunRecord, write_atomic

__all__ = ["WHOLE", "RunFolder", "space_needed"]

PINS = frozenset({"data.revision", "model.revision"})  # added to a run, they change nothing unless the content changes
WHOLE = ("finished", "published")  # states of a run with nothing left to train


class RunFolder:
    """A run's folder on disk; the layout of the contract."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.recipe = path / "recipe.yaml"
        self.metrics = path / "metrics.jsonl"
        self.predictions = path / "predictions"
        self.hard_rows = path / "hard_rows.jsonl"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.emissions = path / "emissions.csv"
        self.verification = path / "verification.jsonl"
        self._lock = FileLock(str(path / ".lock"), timeout=0)

    def open(self) -> None:
        """Create the folder, prove that files can be written and renamed in it, and lock it.

        Raises OutputError when another process holds it or it cannot be written, StorageError when the disk is full.
        """
        self.probe()
        try:
            self._lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"output: {self.path} is used by another run ({self._holder()}); wait for it, end it, or choose another"
                " output"
            ) from error
        (self.path / ".holder").write_text(
            f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n",
            encoding="utf-8",
        )

    def probe(self) -> None:
        """Show that files can be written, synced and renamed here. Raises OutputError, StorageError for a full disk."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            write_atomic(probe, "probe\n")
            probe.unlink()
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"output: {self.path}: {why}; free some space or choose another output") from error
            raise OutputError(f"output: {self.path} cannot be written ({why}); choose another output") from error

    def close(self) -> None:
        """Release the lock."""
        if self._lock.is_locked:
            (self.path / ".holder").unlink(missing_ok=True)
            self._lock.release()

    def _holder(self) -> str:
        try:
            return (self.path / ".holder").read_text(encoding="utf-8").strip()
        except OSError:
            return "its holder left no name"

    def require_space(self, needed_bytes: int) -> None:
        """Raises StorageError when the disk has less free than `needed_bytes` beyond those that are written already."""
        try:
            free = shutil.disk_usage(self.path).free
            written = sum(_size(folder) for folder in (self.checkpoints, self.export))
        except OSError:
            return  # no place to write to, which `probe` says
        if free + written < needed_bytes:
            raise StorageError(
                f"output: {self.path} needs about {(needed_bytes - written) / 1e9:.1f} GB for checkpoints and the"
                f" export, {free / 1e9:.1f} GB are free; free some space or choose another output"
            )

    def read_record(self) -> RunRecord | None:
        """The record of an earlier start, or None. Raises OutputError when run.json is no record."""
        try:
            return RunRecord.read(self.record)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OutputError(f"{self.record}: {error}; else move the folder away") from error

    def earlier(self, recipe: Recipe, resume: str = "auto") -> RunRecord | None:
        """The record of an earlier start here. Raises OutputError when this recipe may not continue it.

        resume: auto; or never, which refuses what any earlier start left.
        """
        record = self.read_record()
        saved = bool(steps_on_disk(self.checkpoints))
        status = "its checkpoints" if record is None else record.status
        if resume == "never" and (record is not None or saved):
            raise OutputError(
                f"output: {self.path} holds a run ({status}); choose another output, or leave --resume never out"
            )
        if saved or (record is not None and record.status in WHOLE):
            self._refuse_another(recipe, status)
        return record

    def _refuse_another(self, recipe: Recipe, status: str) -> None:
        """Raises OutputError when the run here was begun with another recipe."""
        changed = self._difference(recipe, Recipe.decisive)
        lines = [f"  {key}: was {old!r}, is {new!r}" for key, old, new in changed if old is not None or key not in PINS]
        if lines:
            raise OutputError(
                f"output: {self.path} holds a run of another recipe ({status}); keys that decide the result differ:\n"
                + "\n".join(lines)
                + "\nundo the change, or choose another output"
            )

    def changed(self, recipe: Recipe) -> list[str]:
        """Keys that decide no number of a run and have another value in this recipe than in that of the run here."""
        return [key for key, _, _ in self._difference(recipe, Recipe.harmless) if key != "output"]

    def _difference(
        self, recipe: Recipe, settings: Callable[[Recipe], list[tuple[str, Any]]]
    ) -> list[tuple[str, Any, Any]]:
        """Key, value here and value in `recipe` of each setting that differs from that of the run here, if any."""
        if not self.recipe.is_file():
            return []
        return difference(self.recipe.read_text(encoding="utf-8"), recipe.moved_to(self.path), settings)

    def write_record(self, record: RunRecord) -> None:
        """Raises StorageError."""
        with storage_errors("writing run.json"):
            record.write(self.record)

    def write_recipe(self, recipe: Recipe, versions: dict[str, str]) -> None:
        """The resolved recipe, with the versions it runs with as comments. Raises StorageError."""
        header = "".join(f"# {name} {number}\n" for name, number in versions.items())
        with storage_errors("writing recipe.yaml"):
            write_atomic(self.recipe, header + recipe.moved_to(self.path).to_yaml())

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl. Raises StorageError."""
        with storage_errors("writing metrics.jsonl"), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def sync_metrics(self) -> None:
        """Force metrics.jsonl to the disk, before a checkpoint counts its lines. Raises StorageError."""
        with storage_errors("writing metrics.jsonl"), open(self.metrics, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def cut_metrics(self, lines: int) -> None:
        """Keep the first `lines` lines of metrics.jsonl: what was logged after the resumed checkpoint comes again.

        Raises StorageError.
        """
        if self.metrics.is_file():
            with storage_errors("writing metrics.jsonl"):
                kept = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
                write_atomic(self.metrics, "".join(kept))

    def write_lines(self, path: Path, lines: Iterable[dict[str, Any]]) -> None:
        """A JSON-lines file, by temporary file and rename. Raises StorageError."""
        with storage_errors(f"writing {path.name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, which need not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def space_needed(parameters: int, trained: int, keep_last: int) -> int:
    """Bytes on disk for the export and the checkpoints of a model with so many parameters, in fp32.

    A checkpoint holds the trained weights, two moments of each, and the best weights.
    """
    return 4 * parameters + (keep_last + 1) * 16 * trained
