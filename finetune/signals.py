"""A request to stop: signals, and under a launcher the death of the parent, become a flag that the loop reads."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

__all__ = ["STOPPING", "StopFlag", "stop_requests", "under_launcher"]

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ECHO_SECONDS = 5.0  # a signal to a whole group arrives twice: from its sender, and passed on by the launcher


class StopFlag:
    """Whether a stop was asked for, and by what."""

    def __init__(self, watch_parent: bool) -> None:
        self.reason: str | None = None
        self.obeyed = False  # the checkpoint is saved: a launcher that ends its processes must not disturb the rest
        self._first = 0.0
        self._parent = os.getppid() if watch_parent else None

    def __bool__(self) -> bool:
        if self.reason is None and self._parent is not None and os.getppid() != self._parent:
            self._ask("the launcher died")
        return self.reason is not None

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The first signal sets the flag; the second ends the process at once, which loses no committed file."""
        echo = self._parent is not None and time.monotonic() - self._first < ECHO_SECONDS
        if self.reason is not None and not echo and not self.obeyed:
            os._exit(128 + number)
        if self.reason is None:
            self._ask(signal.Signals(number).name)

    def _ask(self, reason: str) -> None:
        self.reason, self._first = reason, time.monotonic()


def under_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether accelerate launch or torchrun started this process: with one process they do not pass signals on."""
    return "LOCAL_RANK" in environment or any(name.startswith("ACCELERATE_") for name in environment)


@contextmanager
def stop_requests() -> Iterator[StopFlag]:
    """Handle SIGTERM, SIGINT and SIGUSR1 by a StopFlag until the block ends; then the earlier handlers are back."""
    flag = StopFlag(watch_parent=under_launcher())
    before = {number: signal.signal(number, flag.on_signal) for number in STOPPING}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
