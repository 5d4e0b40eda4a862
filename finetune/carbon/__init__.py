"""CodeCarbon behind a guard: energy and emissions by phase, or a reason why there are none.

The measuring runs in `meter.py`, a process of its own that can hang, crash and end without touching training. Figures
are CodeCarbon's estimate for the whole machine: measure once per node and add the nodes up with `combine`. Nothing here
raises because measuring failed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.carbon.emissions import add, combine, from_measurement, known_country, suggest_countries, write_csv
from finetune.record import Emissions

__all__ = ["Carbon", "combine", "known_country", "suggest_countries", "write_csv"]

SNAPSHOT_SECONDS = 0.04
MAX_UNANSWERED = 500  # commands; far below what a pipe holds, so that writing never blocks


class Carbon:
    """Measures one run on this node.

    country: ISO 3166-1 alpha-3 code of the grid, or None for energy alone. enabled: False on all but one process of a
    node. previous: what earlier processes of this run used, on the main process only (of a killed one: its last
    snapshot, with `lower_bound` set by the caller). deadline_seconds: for CodeCarbon to start, in the background.
    """

    def __init__(
        self, country: str | None, enabled: bool, previous: Emissions | None = None, deadline_seconds: float = 10.0
    ) -> None:
        self.enabled = enabled
        self._country = country
        self._previous = previous
        self._deadline_seconds = deadline_seconds
        self._deadline = time.monotonic() + deadline_seconds
        self._phases: list[str] = []
        self._meter: _Meter | None = None
        self._closed = not enabled
        self._reason = None if enabled else "not measured by this process"
        if enabled:
            self._start()

    @property
    def facts(self) -> dict[str, Any]:
        """What the figures rest on, in CodeCarbon's column names; empty before the first phase, or without figures."""
        return dict(self._meter.answer.get("facts", {})) if self._meter else {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the energy between enter and exit to `name` ("train", "evaluate"); an inner phase interrupts an outer.

        The first phase waits for CodeCarbon's start, at most until the deadline.
        """
        self._phases.append(name)
        self._turn()
        try:
            yield
        finally:
            self._phases.pop()
            self._turn()

    def snapshot(self) -> Emissions:
        """So far, for a checkpoint: takes at most 0.05 s, and may miss what a busy meter has not answered yet."""
        if self._usable():
            self._ask("read", SNAPSHOT_SECONDS)
        return self._emissions()

    def close(self, deadline_seconds: float = 5.0) -> Emissions:
        """The whole run, earlier processes included; ends the measuring process. May be called again."""
        if self._meter and not self._closed:
            if self._usable() and not self._ask("read", deadline_seconds):
                self._reason = self._reason or f"CodeCarbon did not answer within {deadline_seconds:g} s"
            self._meter.end()
            self._closed = True
        return self._emissions()

    def _start(self) -> None:
        try:
            self._meter = _Meter(self._country)
        except (OSError, ValueError) as error:  # no memory, no processes, no temporary folder
            self._reason = f"the measuring process did not start ({type(error).__name__})"
        else:
            weakref.finalize(self, self._meter.end)

    def _turn(self) -> None:
        if self._usable():
            self._ask(f"phase {self._phases[-1]}" if self._phases else "phase", 0.0)

    def _usable(self) -> bool:
        if self._meter is None or self._closed or self._reason:
            return False
        if not self._meter.wait_for(0, self._deadline - time.monotonic()):
            self._reason = self._meter.failure or f"CodeCarbon did not start within {self._deadline_seconds:g} s"
        self._reason = self._reason or self._meter.failure
        if self._reason:
            self._meter.end()
        return self._reason is None

    def _ask(self, command: str, timeout: float) -> bool:
        assert self._meter is not None
        answered = self._meter.ask(command, timeout)
        self._reason = self._reason or self._meter.failure
        return answered

    def _emissions(self) -> Emissions:
        answer = self._meter.answer if self._meter else {}
        if self._previous is not None and self._closed and self._meter is None:
            return self._previous
        current = from_measurement(answer.get("phases", {}), answer.get("facts", {}), self._country, self._reason)
        return current if self._previous is None else add(self._previous, current)


class _Meter:
    """The process of `meter.py`. Its methods return in the time they are given; `failure` says why it is of no use."""

    def __init__(self, country: str | None) -> None:
        self.answer: dict[str, Any] = {}
        self.failure: str | None = None
        self._changed = threading.Condition()
        self._asked = 0
        self._owner: int | None = os.getpid()
        self._folder = tempfile.mkdtemp(prefix="finetune-meter-")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("meter.py")), country or ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                env=_environment(),
                start_new_session=True,  # ends as one group with the tool it waits for; a terminal's Ctrl-C misses it
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._reader = threading.Thread(target=self._read, name="carbon", daemon=True)
        self._reader.start()

    def ask(self, command: str, timeout: float) -> bool:
        """Send a command; True when it was answered in time."""
        self._asked += 1
        if self._asked - self.answer.get("number", 0) > MAX_UNANSWERED:
            self.failure = self.failure or "CodeCarbon stopped answering"
        if self.failure:
            return False
        with suppress(OSError, ValueError):  # the process is gone: the reader says so
            assert self._process.stdin is not None
            self._process.stdin.write(f"{self._asked} {command}\n".encode())
            self._process.stdin.flush()
        return self.wait_for(self._asked, timeout)

    def wait_for(self, number: int, timeout: float) -> bool:
        """True when the answer to this command, or to a later one, is there in time."""

        def answered() -> bool:
            return bool(self.answer.get("number", -1) >= number)

        with self._changed:
            self._changed.wait_for(lambda: answered() or self.failure is not None, max(timeout, 0.0))
            return answered()

    def end(self) -> None:
        """Kill the process and what it started; keeps the last answer. A forked copy of us does nothing."""
        if self._owner != os.getpid():
            return
        self._owner = None
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        self._reader.join(timeout=1.0)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._take(json.loads(line))
        with self._changed:
            self.failure = self.failure or "the measuring process ended early"
            self._changed.notify_all()

    def _take(self, answer: dict[str, Any]) -> None:
        with self._changed:
            if "error" in answer:
                self.failure = f"CodeCarbon failed: {answer['error']}"
            else:
                self.answer = answer
            self._changed.notify_all()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().startswith("codecarbon_")}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
