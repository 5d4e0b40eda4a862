"""One file per head; only this one knows them all."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from finetune.tasks.base import Task

__all__ = ["for_architectures", "of"]

CLASSES = {"sequence": "SequenceTask", "token": "TokenTask", "span": "SpanTask", "seq2seq": "Seq2SeqTask"}


def of(name: str) -> type[Task]:
    """The Task class for the word of a recipe's `task` key; loads no other head, since some are slow to import."""
    task: type[Task] = getattr(import_module(f"finetune.tasks.{name}"), CLASSES[name])
    return task


def for_architectures(names: Sequence[str]) -> type[Task] | None:
    """The Task class whose head a saved model has, by the architecture's name in its config."""
    return next((task for task in map(of, CLASSES) if any(name.endswith(task.head) for name in names)), None)
