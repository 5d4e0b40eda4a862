"""Progress for people: bars on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from finetune.events import Events

__all__ = ["reporting", "silent"]

LINE_SECONDS = 15.0  # between two lines of the same phase in a log file


@contextmanager
def silent() -> Iterator[Events]:
    """Nothing is shown."""
    yield Events()


@contextmanager
def reporting() -> Iterator[Events]:
    """Bars when standard error is a terminal, else lines; both on standard error."""
    with _bars() if sys.stderr.isatty() else _lines() as events:
        yield events


def _described(values: dict[str, float]) -> str:
    """`loss 0.412`: what a bar or a line says beside its count; the rest stands in metrics.jsonl."""
    shown = {name.removeprefix("train "): value for name, value in values.items() if name != "train learning_rate"}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def _scored(values: dict[str, float]) -> bool:
    """Whether these are scores of an evaluation split, not the loss of some steps."""
    return any(not name.startswith("train") for name in values)


@contextmanager
def _lines() -> Iterator[Events]:
    last: dict[str, float] = {}

    def progress(phase: str, done: int, total: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        if done < total and not _scored(values) and now - last.get(phase, 0.0) < LINE_SECONDS:
            return
        last[phase] = now
        message(f"{phase} {done}/{total}  {_described(values)}".rstrip())

    def message(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    yield Events(message, progress)


@contextmanager
def _bars() -> Iterator[Events]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description:19}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def progress(phase: str, done: int, total: int, values: dict[str, float]) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total, values="")
            if _scored(values):
                message(f"{phase} {done}/{total}  {_described(values)}")
            elif values:
                bars.update(tasks[phase], values=_described(values))
            bars.update(tasks[phase], completed=done, total=total)
            if done >= total and phase != "train":
                bars.remove_task(tasks.pop(phase))

        def message(text: str) -> None:
            console.print(text, markup=False)

        yield Events(message, progress)
