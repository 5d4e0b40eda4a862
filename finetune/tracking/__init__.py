"""W&B and TensorBoard behind a guard: each in a thread of its own, off after its first failure, never in the way.

What is logged is also in `metrics.jsonl`; a tracker may lose it, training never waits for it.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.logins import wandb_problem
from finetune.recipe import TrackBlock, WandbBlock
from finetune.record import RunRecord, Tracker, write_atomic
from finetune.tracking.trackers import Backend, TensorBoard, Wandb

__all__ = ["Tracking", "preflight"]

MAX_WAITING = 10_000


class Tracking:
    """The trackers of one run, on its main process, after the Accelerator was built.

    wandb, tensorboard: from the recipe's `track`. folder: the run folder; files go under its `tracking/`, its
    `recipe.yaml` is logged as a file. config: the resolved recipe. previous: what `ids()` gave to an earlier process of
    this run. warn: called on the caller's thread with one line per failure.
    """

    def __init__(
        self,
        wandb: WandbBlock | None,
        tensorboard: bool,
        folder: Path,
        config: Mapping[str, Any],
        previous: Mapping[str, Tracker] | None = None,
        *,
        warn: Callable[[str], None] = lambda _: None,
        patience_seconds: float = 20.0,
        finish_seconds: float = 10.0,
    ) -> None:
        previous = previous or {}
        self._warn = warn
        self._finish_seconds = finish_seconds
        backends: list[Backend] = []
        if wandb is not None and wandb.mode != "disabled":
            run_id = previous["wandb"].id if "wandb" in previous else None
            backends.append(Wandb(wandb, folder, config, run_id, patience_seconds, 0.8 * finish_seconds))
        if tensorboard:
            backends.append(TensorBoard(folder))
        self._guarded = [
            _Guarded(backend, _Sent(folder / "tracking" / f"{backend.name}.json", backend.name in previous))
            for backend in backends
        ]

    def ids(self) -> dict[str, Tracker]:
        """The trackers as known so far, for checkpoints and run.json."""
        return {guarded.backend.name: guarded.backend.info.model_copy() for guarded in self._guarded}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of an optimizer step, except what was sent under its name for this step or a later one."""
        for guarded in self._guarded:
            guarded.put(("log", dict(values), step))
        self._pass_on_warnings()

    def finish(self, record: RunRecord) -> dict[str, Tracker]:
        """Send the results of `record` and end all trackers, in at most `finish_seconds` and one more."""
        deadline = time.monotonic() + self._finish_seconds
        for guarded in self._guarded:
            guarded.put(("close", summary(record), record.exit_code or 0))
        for guarded in self._guarded:
            guarded.join(deadline, deadline - 0.5 * self._finish_seconds)
        self._pass_on_warnings()
        return self.ids()

    def _pass_on_warnings(self) -> None:
        for guarded in self._guarded:
            while guarded.warnings:
                self._warn(guarded.warnings.pop(0))


class _Guarded:
    """A tracker, and the daemon thread that alone talks to it."""

    def __init__(self, backend: Backend, sent: _Sent) -> None:
        self.backend = backend
        self.warnings: list[str] = []
        self._sent = sent
        self._off = False
        self._orders: queue.Queue[tuple[str, dict[str, float], int]] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name=backend.name, daemon=True)
        self._thread.start()

    def put(self, order: tuple[str, dict[str, float], int]) -> None:
        """Never waits: a tracker this far behind is switched off."""
        if self._off:
            return
        try:
            self._orders.put_nowait(order)
        except queue.Full:
            self._switch_off(f"{MAX_WAITING} points wait to be sent")
            self.backend.abort()

    def join(self, deadline: float, hurry_from: float) -> None:
        """Wait until `deadline` for the end; after it, end what the thread waits for."""
        while self._thread.is_alive() and (now := time.monotonic()) < deadline:
            self._thread.join(min(0.1, deadline - now))
            if now > hurry_from:  # a short run, and a server that does not answer
                self.backend.hurry()
        if self._thread.is_alive():
            self._switch_off("it did not finish in time")
            self.backend.abort()
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            self._work()
        except (Exception, SystemExit) as error:  # somebody else's code and service: training goes on without them
            self._switch_off(f"{type(error).__name__}: {error}".splitlines()[0][:300])
        if self._off:
            self.backend.abort()
            self.backend.release()

    def _work(self) -> None:
        self.backend.open()
        if self.backend.warning:
            self._say(self.backend.warning)
        while not self._off:
            what, values, number = self._orders.get()
            if what == "close":
                self.backend.close(values, number)
                return
            if new := self._sent.take(values, number):
                self.backend.log(new, number)

    def _switch_off(self, why: str) -> None:
        if not self._off:
            self._off = True
            self._say(f"{why}; {self.backend.name} is switched off, metrics.jsonl has everything")

    def _say(self, text: str) -> None:
        note = self.backend.info.note
        self.warnings.append(f"{self.backend.name}: {text}" + (f"; {note}" if note and note not in text else ""))


class _Sent:
    """The last step sent under each name, in a file: a resumed run does not send a point again."""

    def __init__(self, path: Path, resumed: bool) -> None:
        self._path = path
        self._steps: dict[str, int] = {}
        if resumed and path.is_file():
            self._steps = json.loads(path.read_text(encoding="utf-8"))

    def take(self, values: Mapping[str, float], step: int) -> dict[str, float]:
        """The values not sent yet; they count as sent from now on: a crash rather loses one than doubles it."""
        new = {name: value for name, value in values.items() if self._steps.get(name, -1) < step}
        if new:
            self._steps |= dict.fromkeys(new, step)
            write_atomic(self._path, json.dumps(self._steps))
        return new


def summary(record: RunRecord) -> dict[str, float]:
    """The final figures of a run under flat names such as `test/accuracy`, `test/accuracy/low`, `emissions/kg`."""
    figures: dict[str, float | None] = {}
    for split, results in record.results.items():
        figures[f"{split}/n"] = results.n
        for name, metric in results.metrics.items():
            figures |= {f"{split}/{name}": metric.value}
            figures |= {f"{split}/{name}/low": metric.low, f"{split}/{name}/high": metric.high}
    if record.best is not None:
        figures |= {"best/step": record.best.step, f"best/{record.best.metric}": record.best.value}
    for part in ("training", "emissions"):
        fields = getattr(record, part)
        for name, value in fields.model_dump().items() if fields is not None else ():
            if isinstance(value, int | float) and not isinstance(value, bool):
                figures[f"{part}/{name}"] = value
    return {name: value for name, value in figures.items() if value is not None}


def preflight(track: TrackBlock) -> list[str]:
    """What would keep the trackers asked for from working, one line each with the way out; asks no server."""
    problems = []
    if track.wandb is not None and track.wandb.mode != "disabled":
        if importlib.util.find_spec("wandb") is None:
            problems.append("track.wandb: wandb is not installed; run `pip install wandb`, or leave track.wandb out")
        elif track.wandb.mode == "online" and (problem := wandb_problem()):
            problems.append(
                f"track.wandb: {problem}; run `wandb login`, set WANDB_API_KEY, or set track.wandb.mode=offline"
            )
    if track.tensorboard and importlib.util.find_spec("tensorboard") is None:
        problems.append(
            "track.tensorboard: tensorboard is not installed; run `pip install tensorboard`, or set it to false"
        )
    return problems
