"""Checkpoints of a run: complete or absent, verified before use, exact.

    checkpoints/step-00000200/
      weights.safetensors     trainable weights; of the word embedding, the rows that are trained
      optimizer.safetensors   AdamW's tensors, named "<parameter>/<tensor>"
      best.safetensors        trainable weights of the best step so far, when that is not this step
      state.json              counters and all else that is not a tensor
      MANIFEST.json           size and sha256 of each file; written last

Written to a temporary folder, synced, renamed. No pickle.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.errors import ResumeError, StorageError
from finetune.store import content_sha256

__all__ = ["Progress", "Snapshot", "latest", "name_of", "prune", "read", "save", "steps_on_disk", "storage_errors"]

FORMAT = 4  # of the files, of the order of rows that a number of steps stands for, and of the labels of a new head
MANIFEST = "MANIFEST.json"
Tensors = dict[str, torch.Tensor]


@dataclass
class Progress:
    """Everything of a run's state that is not a tensor; floats survive JSON unchanged."""

    step: int = 0  # optimizer steps done
    examples: int = 0
    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0
    sample_log_sha256: str = ""
    window_loss: float = 0.0  # sum of the steps' losses since the last logged step
    window_steps: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    evaluation_owed: bool = False  # the step is done, its evaluation is not
    metrics_lines: int = 0  # of metrics.jsonl; a resume cuts it back to these
    skipped_steps: int = 0  # fp16: overflow, no update made
    processes: int = 1
    micro_rows: int = 0
    resumed_from: list[int] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    scaler: dict[str, Any] | None = None
    carried: dict[str, Any] = field(default_factory=dict)  # what others keep here: tracker ids, emissions, choices


@dataclass
class Snapshot:
    """One checkpoint in memory; tensors on the CPU."""

    progress: Progress
    weights: Tensors
    optimizer: Tensors
    best: Tensors | None = None


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn a failing disk into a StorageError that says what was being written and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        text = str(error)
        full = (
            number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text or "File too large" in text
        )
        why = "the disk is full; free some space" if full else f"{text}; check the folder and its rights"
        raise StorageError(f"{what}: {why}, then run the same command again: earlier checkpoints are intact") from error


def name_of(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def save(folder: Path, snapshot: Snapshot, keep_last: int) -> Path:
    """Commit a checkpoint under `folder`, then remove all but the newest `keep_last`. Raises StorageError."""
    target = folder / name_of(snapshot.progress.step)
    temporary = folder / f".tmp-{target.name}-{os.getpid()}"
    with storage_errors(f"saving {target.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(temporary, snapshot)
            if target.exists():
                _discard(target)
            temporary.rename(target)
            _sync(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        prune(folder, keep_last)
    return target


def _write(folder: Path, snapshot: Snapshot) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = {"weights": snapshot.weights, "optimizer": snapshot.optimizer, "best": snapshot.best}
    for name, group in tensors.items():
        if group is not None:
            save_file(group, folder / f"{name}.safetensors")
    _write_json(folder / "state.json", asdict(snapshot.progress))
    files = {
        path.name: {"size_bytes": path.stat().st_size, "sha256": _synced_sha256(path)}
        for path in sorted(folder.iterdir())
    }
    _write_json(folder / MANIFEST, {"format": FORMAT, "step": snapshot.progress.step, "files": files})
    _sync(folder / MANIFEST)
    _sync(folder)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _synced_sha256(path: Path) -> str:
    _sync(path)
    path.chmod(0o644)  # safetensors writes files that only their owner can read
    return content_sha256(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Remove a folder so that a kill half-way leaves no damaged checkpoint under its name."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def steps_on_disk(folder: Path) -> list[Path]:
    """Checkpoint folders under `folder`, newest first."""
    return sorted(folder.glob("step-????????"), reverse=True)


def prune(folder: Path, keep_last: int) -> None:
    """Remove what killed processes left, and all checkpoints but the newest `keep_last`."""
    for leftover in [*folder.glob(".tmp-*"), *folder.glob(".trash-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    for old in steps_on_disk(folder)[max(1, keep_last) :]:
        _discard(old)


def latest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest intact checkpoint, read into memory, and one line for each damaged one that was passed over.

    Those are removed, lest they be counted among the last ones that are kept. None when there is no checkpoint at all.
    Raises ResumeError when there are some and none is intact.
    """
    problems: list[str] = []
    for path in steps_on_disk(folder):
        problem = _damage(path)
        if problem is None:
            for damaged in steps_on_disk(folder)[: len(problems)]:
                _discard(damaged)
            return read(path), problems
        problems.append(f"{path.name}: {problem}")
    if problems:
        raise ResumeError(
            f"{folder.parent}: no checkpoint can be used: {'; '.join(problems)}; restore one from a backup, or start"
            " again in another output folder (--resume never)"
        )
    return None, []


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        return _mismatch(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _mismatch(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is missing or damaged ({type(error).__name__})"
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')}, expected {FORMAT}"
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["size_bytes"]:
            return f"{name} has {file.stat().st_size} bytes, expected {facts['size_bytes']}"
        if content_sha256(file) != facts["sha256"]:
            return f"{name} has another sha256 than when it was written"
    return None


def read(path: Path) -> Snapshot:
    """A checkpoint that is known to be intact."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    best = path / "best.safetensors"
    return Snapshot(
        progress=Progress(**state),
        weights=load_file(path / "weights.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        best=load_file(best) if best.is_file() else None,
    )
