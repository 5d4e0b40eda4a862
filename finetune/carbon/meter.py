"""The measuring process: CodeCarbon's offline tracker, alone, started as a file by `carbon.py`.

A process of its own because CodeCarbon runs `lscpu`, `nvidia-smi` and `scontrol` without a time limit, partly while it
is imported: a hang in a thread cannot be ended, a process can. In machine mode it does not matter which one measures.

One command a line on standard input, `<number> phase [NAME]` (book from now on to NAME, or to nothing) or
`<number> read`; one JSON line per command on standard output: `{"number", "phases", "facts"}` or `{"error"}`.
It ends when standard input closes, so it never outlives the run. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["Book", "main"]

# CodeCarbon has to read energy counters before they wrap around; its own timer would race with our readings.
INTERVAL_SECONDS = 15.0
AMOUNTS = {
    "kg": "emissions",
    "kwh": "energy_consumed",
    "cpu_kwh": "cpu_energy",
    "gpu_kwh": "gpu_energy",
    "ram_kwh": "ram_energy",
}
FACTS = (
    *("country_name", "country_iso_code", "os", "python_version", "codecarbon_version"),
    *("cpu_count", "cpu_model", "gpu_count", "gpu_model", "ram_total_size", "tracking_mode", "pue"),
)


class _NoFiguresError(Exception):
    """CodeCarbon swallowed a failure; its text is all there is to know."""


class Book:
    """Energy and emissions by phase, from CodeCarbon's totals; also CodeCarbon's output handler."""

    def __init__(self, country: str | None) -> None:
        from codecarbon import OfflineEmissionsTracker

        self.phases: dict[str, dict[str, float]] = {}
        self.failure = "CodeCarbon gave no figures"
        self.unknown_cpu = False
        self._phase: str | None = None
        self._total: Any = None
        self._seen = dict.fromkeys(AMOUNTS, 0.0)
        self._clock = time.monotonic()
        logging.getLogger("codecarbon").addHandler(_Log(self))
        self._tracker = OfflineEmissionsTracker(country_iso_code=country, output_handlers=[self], **settings())
        self._tracker.start()
        self.measure()

    def measure(self) -> None:
        """Book what was used since the last call. Raises _NoFiguresError when CodeCarbon gives nothing."""
        self._total = None
        self._tracker.flush()  # calls `out`, or logs what it swallowed
        if self._total is None:
            raise _NoFiguresError(self.failure)
        now = time.monotonic()
        totals = {name: float(getattr(self._total, column)) for name, column in AMOUNTS.items()}
        if self._phase is not None:
            booked = self.phases.setdefault(self._phase, dict.fromkeys(("seconds", *AMOUNTS), 0.0))
            booked["seconds"] += now - self._clock
            for name, total in totals.items():
                booked[name] += total - self._seen[name]
        self._seen, self._clock = totals, now

    def turn_to(self, phase: str | None) -> None:
        """Book up to now to the phase before, from now on to this one."""
        self.measure()
        self._phase = phase

    def facts(self) -> dict[str, Any]:
        """What the figures rest on, in CodeCarbon's column names, and `sensors`."""
        known = {name: getattr(self._total, name) for name in FACTS}
        return known | {"sensors": sensors(self._tracker, self.unknown_cpu)}

    def out(self, total: Any, delta: Any) -> None:  # noqa: ARG002
        self._total = total

    def live_out(self, total: Any, delta: Any) -> None:
        """CodeCarbon's periodic output: not used."""

    def task_out(self, data: Any, experiment_name: str) -> None:
        """CodeCarbon's output of tasks: not used."""

    def exit(self) -> None:
        """CodeCarbon's end of output: nothing to close."""


class _Log(logging.Handler):
    """Keeps what CodeCarbon only says in its log: exceptions it swallowed, a CPU it does not know."""

    def __init__(self, book: Book) -> None:
        super().__init__(logging.WARNING)
        self._book = book

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._book.failure = describe(record.exc_info[1])
        if "default power consumption" in record.getMessage():
            self._book.unknown_cpu = True


def settings() -> dict[str, Any]:
    """Every argument that the environment or a `.codecarbon.config` could set otherwise."""
    return {
        "allow_multiple_runs": True,  # False takes a lock and replaces our signal handlers
        "api_call_interval": -1,
        "cloud_provider": None,
        "cloud_region": None,
        "country_2letter_iso_code": None,
        "electricitymaps_api_token": "",  # None would fall back to the old name of this setting
        "emissions_endpoint": None,
        "force_carbon_intensity_g_co2e_kwh": None,
        "force_cpu_power": None,
        "force_mode_cpu_load": False,
        "force_ram_power": None,
        "gpu_ids": None,  # all, or those of CUDA_VISIBLE_DEVICES
        "log_level": "warning",
        "measure_power_secs": 1e6,  # never by its timer: we flush
        "output_dir": ".",
        "output_methods": [],
        "project_name": "finetune",
        "pue": 1.0,
        "rapl_include_dram": False,
        "rapl_prefer_psys": False,
        "region": None,
        "tracking_mode": "machine",
        "wue": 0.0,
    }


def sensors(tracker: Any, unknown_cpu: bool) -> str:
    """How power is known, part by part, as CodeCarbon set itself up."""
    parts = [_sensor(part, unknown_cpu) for part in getattr(tracker, "_hardware", [])]
    return "; ".join(sorted(parts)) or "not stated"


def _sensor(part: Any, unknown_cpu: bool) -> str:
    kind, mode, watts = type(part).__name__, getattr(part, "_mode", None), getattr(part, "_tdp", None)
    if kind == "RAM":
        return "RAM: estimated from its size"
    if kind == "GPU":
        return "GPU: by its own counters"
    if mode in ("intel_rapl", "windows_emi"):
        return f"CPU: measured ({mode})"
    if mode == "cpu_load":
        return f"CPU: estimated from its load, {watts} W at most" + ", its model unknown" * unknown_cpu
    if mode == "constant":
        return f"CPU: estimated, a constant share of {watts} W"
    return f"{kind}: {mode or 'measured'}"


def describe(error: BaseException) -> str:
    """One line: the exception's type and text."""
    text = str(error) if isinstance(error, _NoFiguresError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0][:200]


def isolate() -> None:
    """Hide CodeCarbon's configuration files and variables: the working folder is an empty one of ours."""
    for name in [name for name in os.environ if name.lower().startswith("codecarbon_")]:
        del os.environ[name]
    os.environ["HOME"] = os.environ["USERPROFILE"] = str(Path.cwd())


def main(country: str | None) -> None:
    """Measure until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    commands: queue.Queue[str] = queue.Queue()
    listener = threading.Thread(target=_listen, args=(commands,), daemon=True)
    listener.start()
    try:
        isolate()
        book = Book(country)
        _answer(answers, {"number": 0, "phases": book.phases, "facts": book.facts()})
        while True:
            _serve(book, commands, answers)
    except Exception as error:  # the parent turns it into a reason
        try:
            _answer(answers, {"error": describe(error)})
        except OSError:  # nobody reads any more: the listener removes the folder and ends this process
            listener.join()


def _listen(commands: queue.Queue[str]) -> None:
    for line in sys.stdin:
        commands.put(line)
    with contextlib.suppress(OSError):
        Path.cwd().rmdir()  # made for us, and nobody is left to remove it
    os._exit(0)  # the run is over, or gone; a measurement that hangs must not keep us


def _serve(book: Book, commands: queue.Queue[str], answers: Any) -> None:
    try:
        number, command, *phase = commands.get(timeout=INTERVAL_SECONDS).split()
    except queue.Empty:
        book.measure()
        return
    if command == "phase":
        book.turn_to(phase[0] if phase else None)
    else:
        book.measure()
    _answer(answers, {"number": int(number), "phases": book.phases, "facts": book.facts()})


def _answer(answers: Any, content: dict[str, Any]) -> None:
    print(json.dumps(content), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1] or None)
