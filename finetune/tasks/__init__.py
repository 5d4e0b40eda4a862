"""One file per head; only this one knows them all."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.tasks.base import Task

__all__ = ["for_architectures", "of"]


def _all() -> tuple[type[Task], ...]:
    from finetune.tasks.seq2seq import Seq2SeqTask
    from finetune.tasks.sequence import SequenceTask
    from finetune.tasks.span import SpanTask
    from finetune.tasks.token import TokenTask

    return (SequenceTask, TokenTask, SpanTask, Seq2SeqTask)


def of(name: str) -> type[Task]:
    """The Task class for the word of a recipe's `task` key."""
    return {task.name: task for task in _all()}[name]


def for_architectures(names: Sequence[str]) -> type[Task] | None:
    """The Task class whose head a saved model has, by the architecture's name in its config."""
    return next((task for task in _all() if any(name.endswith(task.head) for name in names)), None)
