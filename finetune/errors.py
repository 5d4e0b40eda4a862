"""What can go wrong, and the exit code each kind ends the process with.

    FinetuneError
    ├── MachineError     1   a process of the run died, failed or hangs; memory ran out
    ├── RecipeError      2   the recipe, or a command line, is wrong
    ├── DataError        2   rows, columns, labels or files of the data are wrong
    ├── ModelError       2   the checkpoint or its tokenizer cannot be used
    ├── OutputError      2   the run folder is taken, or holds another run
    ├── PublishError     3   trained and saved, but not published
    ├── NonFiniteError   4   a loss or a gradient was not a finite number
    ├── StorageError     5   the disk is full, read-only or failed
    ├── ResumeError      6   checkpoints exist, but none can be used
    └── Preempted       75   stopped on request; the same command continues

The text of a FinetuneError is for the user: where, what was expected, what was found, what to do. It reaches the
terminal without a traceback. Any other exception is a bug of ours: traceback, exit code 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = [
    "Attempts",
    "DataError",
    "FinetuneError",
    "MachineError",
    "ModelError",
    "NonFiniteError",
    "OutputError",
    "Preempted",
    "PublishError",
    "RecipeError",
    "ResumeError",
    "StorageError",
]


A = TypeVar("A")


class FinetuneError(Exception):
    """The base of everything a user can act on."""

    exit_code = 2


class MachineError(FinetuneError):
    """A process of the run died, failed or hangs, or memory ran out; none of the other codes fits."""

    exit_code = 1


class RecipeError(FinetuneError):
    """The recipe, an override or a command-line argument is wrong."""


class DataError(FinetuneError):
    """Files, columns, rows or labels of the data are wrong."""


class ModelError(FinetuneError):
    """The checkpoint, its head or its tokenizer cannot be used as asked."""


class OutputError(FinetuneError):
    """The run folder is used by another process, or holds another run."""


class PublishError(FinetuneError):
    """The run is complete on disk, but was not published."""

    exit_code = 3


class NonFiniteError(FinetuneError):
    """A loss or a gradient is NaN or infinite; no step was made from it."""

    exit_code = 4


class StorageError(FinetuneError):
    """Writing to disk failed."""

    exit_code = 5


class ResumeError(FinetuneError):
    """The run folder holds checkpoints, and none of them is intact."""

    exit_code = 6


class Preempted(FinetuneError):  # noqa: N818  (a stop on request is no error)
    """A signal asked for a stop; a checkpoint was saved."""

    exit_code = 75


class Attempts:
    """Steps that do not need each other: what went wrong in all of them is raised together."""

    def __init__(self) -> None:
        self._errors: list[FinetuneError] = []

    def __call__(self, step: Callable[[], A]) -> A | None:
        """What `step` gives; None when it raised a FinetuneError, which is kept."""
        try:
            return step()
        except FinetuneError as error:
            self._errors.append(error)
            return None

    @property
    def failed(self) -> bool:
        """Whether a step went wrong."""
        return bool(self._errors)

    def check(self) -> None:
        """Raises an error of the first one's kind with the texts of all, if there are any."""
        if self._errors:
            first = self._errors[0]
            raise type(first)("\n".join(map(str, self._errors))) from first
