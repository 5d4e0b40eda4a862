"""What it takes to run a model: latency of one row, seconds per token, size on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.features import in_memory
from finetune.pretrained import Checkpoint
from finetune.rows import Rows
from finetune.tasks.base import Task

__all__ = ["Latency", "measure_latency", "size_bytes"]

ROWS, SECONDS = 50, 10.0  # where a measurement ends, whichever is reached first
WARM_UPS = 3


@dataclass
class Latency:
    """Seconds of each row, and of the tokens where text is generated: the first of a row, and each after it."""

    rows: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    next_tokens: list[float] = field(default_factory=list)


def measure_latency(model: Any, task: Task, tokenizer: Any, rows: Rows, device: torch.device) -> Latency:
    """Answer up to 50 rows, evenly taken, one at a time from text to output, for about 10 s at most.

    Three rows come before as a warm-up and count towards the time; at least one row is measured.
    """
    index = np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(np.int64))
    columns = next(rows.take(index).batches(len(index)))
    found = Latency()
    end = time.perf_counter() + SECONDS
    model.eval()
    for place in [*range(-WARM_UPS, 0), *range(len(index))]:
        if time.perf_counter() > end and found.rows:
            break
        one = {name: [values[max(place, 0)]] for name, values in columns.items()}
        moments = _answer(model, task, tokenizer, one, device)
        if place >= 0:
            _book(found, moments)
    return found


def _answer(model: Any, task: Task, tokenizer: Any, row: dict[str, list[Any]], device: torch.device) -> list[float]:
    """The moments of a row: its start, each generated token, its end."""
    moments: list[float] = []
    tick = _ticker(moments, device)
    tick()
    features = in_memory(task.encode(row, tokenizer))
    batch = task.collate(features, np.arange(len(features)), tokenizer).to(device)
    with torch.inference_mode():
        task.respond(model, batch, tick)
    tick()
    return moments


def _ticker(moments: list[float], device: torch.device) -> Callable[[], None]:
    def tick() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments.append(time.perf_counter())

    return tick


def _book(found: Latency, moments: list[float]) -> None:
    start, *tokens, end = moments
    found.rows.append(end - start)
    if tokens:
        found.first_tokens.append(tokens[0] - start)
        found.next_tokens += np.diff(tokens).tolist()


def size_bytes(checkpoint: Checkpoint) -> int:
    """Of the weights on disk, those of an adapter with those of its base."""
    folders: dict[Path, str] = {checkpoint.folder: "model*.safetensors"}
    if checkpoint.adapter is not None:
        folders[checkpoint.adapter] = "adapter_model.safetensors"
    return sum(path.stat().st_size for folder, names in folders.items() for path in folder.glob(names))
