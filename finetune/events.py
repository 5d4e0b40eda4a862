"""How a run tells its caller what it does: callbacks, silent unless somebody listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Events"]


def _no_message(_text: str) -> None:
    return None


def _no_progress(_phase: str, _done: int, _total: int, _values: dict[str, float]) -> None:
    return None


@dataclass(frozen=True)
class Events:
    """message: one line for the user. progress: phase, units done, units in all, values of the moment."""

    message: Callable[[str], None] = _no_message
    progress: Callable[[str, int, int, dict[str, float]], None] = _no_progress
