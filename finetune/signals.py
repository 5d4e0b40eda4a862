"""A request to stop: signals, and under a launcher the death of the parent, become a flag or an exception."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from finetune.errors import Preempted

__all__ = ["STOPPING", "StopFlag", "stop_requests", "under_launcher"]

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ECHO_SECONDS = 5.0  # a signal to a whole group arrives twice: from its sender, and passed on by the launcher
WATCH_SECONDS = 0.2  # between two looks at the parent
LAUNCHER_DIED = "the launcher died"
REASONS = (*(number.name for number in STOPPING), LAUNCHER_DIED)  # the later, the more it tells


class _Stopped(BaseException):
    """Leaves the block of `at_once`; no `except Exception` on the way may take it for a failure of its own."""


class StopFlag:
    """Whether a stop was asked for, and by what."""

    def __init__(self, launched: bool) -> None:
        self.reason: str | None = None  # one of REASONS
        self.obeyed = False  # what was to be saved is saved: a launcher that ends its processes must not disturb
        self._launched, self._parent = launched, os.getppid()
        self._first = 0.0
        self._at_once = False
        self._elsewhere: str | None = None  # why another process was asked to stop

    def __bool__(self) -> bool:
        return self.reason is not None

    @property
    def code(self) -> int:
        """The reason as a number that processes can exchange; 0: none."""
        return 0 if self.reason is None else 1 + REASONS.index(self.reason)

    def agree(self, code: int) -> None:
        """Take over the largest code of all processes, above 0, as what the message says."""
        self._elsewhere = REASONS[code - 1]

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The first signal sets the flag; the second ends the process at once, which loses no committed file."""
        if self.reason is not None:
            if not self._launched or not (self.obeyed or time.monotonic() - self._first < ECHO_SECONDS):
                os._exit(128 + number)
            return
        orphaned = self._launched and os.getppid() != self._parent
        self.reason = LAUNCHER_DIED if orphaned else signal.Signals(number).name
        self._first = time.monotonic()
        if self._at_once:
            raise _Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block a stop does not wait to be asked about: Preempted leaves it from wherever the main thread is.

        For work that begins again from what is on disk.
        """
        try:
            self._at_once = True
            if self:
                raise _Stopped
            yield
        except _Stopped:
            self.obeyed = True
            raise Preempted(self.message()) from None
        finally:
            self._at_once = False

    def message(self, where: str = "") -> str:
        """What the user is told of a stop; `where` begins with a blank."""
        return f"stopped{where} ({self._elsewhere or self.reason}); the same command continues"

    def watch_parent(self, over: threading.Event) -> None:
        """Until `over`: when the launcher dies, send SIGTERM to the main thread, as it would have.

        Not when a stop was asked for before: what is being saved for it must not be ended by a second signal.
        """
        main = threading.main_thread().ident
        while main is not None and not over.wait(WATCH_SECONDS):
            if os.getppid() != self._parent:
                if not self:
                    signal.pthread_kill(main, signal.SIGTERM)
                return


def under_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether accelerate launch or torchrun started this process: with one process they do not pass signals on."""
    return "LOCAL_RANK" in environment or any(name.startswith("ACCELERATE_") for name in environment)


@contextmanager
def stop_requests() -> Iterator[StopFlag]:
    """Handle SIGTERM, SIGINT and SIGUSR1 by a StopFlag until the block ends; then the earlier handlers are back.

    Signals reach the main thread only: in another one, the flag stays unset.
    """
    launched = under_launcher()
    flag, over = StopFlag(launched), threading.Event()
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, flag.on_signal) for number in STOPPING if mine}
    if launched and mine:
        threading.Thread(target=flag.watch_parent, args=(over,), name="parent", daemon=True).start()
    try:
        yield flag
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)
