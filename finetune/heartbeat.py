"""Several processes: name the one that died or hangs, and end the others in bounded time.

Every process makes the same moves: a step begun, its gradient ready, an evaluation begun, a batch of it predicted.
Once a second a thread of each tells the others, through a store that all reach, how many it has made. A process whose
thread falls silent is gone; one that stands still at an earlier move than the others hangs. Without this, the others
would wait in a collective until the timeout of the group, which names nobody.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from finetune.errors import MachineError, Preempted

__all__ = ["Heartbeat", "Sign", "Watch", "beating"]

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 60.0  # without a beat, after which a process counts as gone
STEP_SECONDS = 60.0  # a step may take this long, or STEP_FACTOR times the longest so far
STEP_FACTOR = 10
PHASE_SECONDS = 600.0  # for the first step, and between two moves outside the steps
START_SECONDS = 3600.0  # for what comes before: one process may fetch or encode what the others find done
FAILED_SECONDS = 30.0  # after another process has failed, this one must have seen it


@dataclass(frozen=True)
class Sign:
    """What one process tells the others."""

    beats: int = 0
    moves: int = 0
    place: str = "the start"
    patience: float = PHASE_SECONDS  # seconds this place may take
    left: str | None = None  # why the process left; empty when all was well


class Watch:
    """Judges the signs of all processes, which it is shown once per beat. Times are in seconds of one clock."""

    def __init__(self, processes: int, now: float) -> None:
        self.signs = [Sign()] * processes
        self._beat = [now] * processes  # when its beats last changed
        self._stood = [now] * processes  # since when it has stood still, with none behind it

    def show(self, signs: Sequence[Sign], now: float) -> None:
        """Take in the signs of all processes."""
        behind = _behind(signs)
        for rank, (old, sign) in enumerate(zip(self.signs, signs, strict=True)):
            self._beat[rank] = now if sign.beats != old.beats else self._beat[rank]
            # One that is ahead waits for the others: what it waited is not held against it once they have passed.
            stands = sign.moves == old.moves and rank in behind
            self._stood[rank] = self._stood[rank] if stands else now
        self.signs = list(signs)

    def problem(self, now: float) -> str | None:
        """Which process keeps the others waiting, or None."""
        return self.failed(now, FAILED_SECONDS) or self.silent(now, SILENCE_SECONDS) or self._hanging(now)

    def failed(self, now: float, seconds: float) -> str | None:
        """A process that left with an error so long ago."""
        for rank, sign in enumerate(self.signs):
            if sign.left and now - self._beat[rank] >= seconds:
                return f"process {rank} failed at {sign.place}: {sign.left}"
        return None

    def silent(self, now: float, seconds: float) -> str | None:
        """A process that has not left, and has not been heard for so long."""
        for rank, sign in enumerate(self.signs):
            if sign.left is None and now - self._beat[rank] >= seconds:
                return f"process {rank} is gone: not heard for {seconds:.0f} s, last seen at {sign.place}"
        return None

    def _hanging(self, now: float) -> str | None:
        """Processes that stand still behind the others; or all of them, when they wait for each other."""
        running, behind = sum(sign.left is None for sign in self.signs), _behind(self.signs)
        if running < 2 or any(now - self._stood[rank] < self.signs[rank].patience for rank in behind):
            return None
        where = f"past {self.signs[behind[0]].place} for {self.signs[behind[0]].patience:.0f} s"
        if len(behind) == running:
            return f"no process has got {where}"
        names = " and ".join(f"process {rank}" for rank in behind)
        return f"{names} has not got {where}, and the others wait for it"


def _behind(signs: Sequence[Sign]) -> list[int]:
    """The processes that have made the fewest moves of those that have not left."""
    moves = {rank: sign.moves for rank, sign in enumerate(signs) if sign.left is None}
    least = min(moves.values(), default=0)
    return [rank for rank, made in moves.items() if made == least]


class Heartbeat:
    """One process's part. Without `start` it only counts."""

    def __init__(self, rank: int = 0, processes: int = 1) -> None:
        self.rank, self.processes = rank, processes
        self._moves, self._place, self._patience = 0, "the start", START_SECONDS
        self._begun: float | None = None  # when the step began
        self._longest = 0.0  # step so far
        self._beats = 0
        self._over = threading.Event()
        self._store: Any = None
        self._watch = Watch(processes, time.monotonic())

    def step(self, number: int) -> None:
        """The main thread begins step `number`."""
        self._end_step()
        self._begun = time.monotonic()
        patience = max(STEP_SECONDS, STEP_FACTOR * self._longest) if self._longest else PHASE_SECONDS
        self._enter(f"step {number}", patience)

    def move(self) -> None:
        """The main thread got on within the step or the phase: its gradient is ready, or a batch is predicted."""
        self._moves += 1

    def phase(self, name: str) -> None:
        """The main thread begins something that is no step."""
        self._end_step()
        self._enter(name, PHASE_SECONDS)

    def _end_step(self) -> None:
        if self._begun is not None:
            self._longest = max(self._longest, time.monotonic() - self._begun)
        self._begun = None

    def _enter(self, place: str, patience: float) -> None:
        self._place, self._patience = place, patience
        self.move()

    def start(self, store: Any, on_loss: Callable[[str], None]) -> None:
        """Beat through a `torch.distributed.Store` that all processes of the group share.

        on_loss is told why, before the process is ended because of another one.
        """
        self._store = store
        self._tell(None)
        threading.Thread(target=self._beat, args=(on_loss,), name="heartbeat", daemon=True).start()

    def _beat(self, on_loss: Callable[[str], None]) -> None:
        while not self._over.wait(BEAT_SECONDS):
            problem = self._watch.problem(time.monotonic()) if self._look() else self._without_store()
            if problem is not None and not self._over.is_set():
                self._end(explain(problem), on_loss)

    def _without_store(self) -> str | None:
        """It went with the launcher, whose death asks for a stop: the main thread may be saving."""
        self._over.wait(PHASE_SECONDS)
        return f"the store of the process group is gone, and {self._place} has not ended since"

    def _end(self, text: str, on_loss: Callable[[str], None]) -> None:
        """End this process, whose main thread may be stuck in a collective for good."""
        try:
            on_loss(text)
            time.sleep(2 * BEAT_SECONDS)  # for the others to come to the same view
        finally:
            sys.stderr.write(f"[process {self.rank}] {text}\n")
            sys.stderr.flush()
            os._exit(MachineError.exit_code)

    def _look(self) -> bool:
        """Exchange signs; False when the store is gone."""
        try:
            self._tell(None)
            found = self._store.multi_get([_key(rank) for rank in range(self.processes)])
        except RuntimeError:  # torch.distributed.DistError is one
            return False
        self._watch.show([Sign(**json.loads(content)) for content in found], time.monotonic())
        return True

    def _tell(self, left: str | None) -> None:
        self._beats += 1
        sign = Sign(self._beats, self._moves, self._place, self._patience, left)
        self._store.set(_key(self.rank), json.dumps(asdict(sign)))

    def lost(self) -> str | None:
        """After a collective failed here: which other process is the reason, if that shows within seconds."""
        if self._store is None:
            return None
        self._over.set()
        for _ in range(4):
            if not self._look():
                return "process 0, or the launcher, is gone"
            time.sleep(BEAT_SECONDS)
        now = time.monotonic()
        watch = self._watch
        return watch.problem(now) or watch.failed(now, 0) or watch.silent(now, 3 * BEAT_SECONDS)

    def leave(self, why: str) -> None:
        """The others are not to wait for this process any more; `why` is empty when all is well."""
        self._over.set()
        if self._store is not None:
            try:
                self._tell(why)
            except RuntimeError:
                self._store = None


def explain(problem: str) -> str:
    """What is wrong, for the user."""
    return f"{problem}; what was saved is intact: the same command continues from the last checkpoint, if there is one"


def _key(rank: int) -> str:
    return f"finetune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def _store() -> Any:
    """A connection of our own to the store of the process group: the group's may be blocked by its main thread."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout = datetime.timedelta(seconds=SILENCE_SECONDS)
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)


def _of_a_collective(error: BaseException) -> bool:
    """NCCL's errors are of a class of their own; gloo's name gloo."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def beating(rank: int, processes: int, on_loss: Callable[[str], None]) -> Iterator[Heartbeat]:
    """A heartbeat for the length of the block. A collective that failed in it becomes a MachineError with a name."""
    heart = Heartbeat(rank, processes)
    if processes > 1:
        heart.start(_store(), on_loss)
    try:
        yield heart
    except Preempted:
        heart.leave("")
        raise
    except BaseException as error:
        reason = heart.lost() if _of_a_collective(error) else None
        heart.leave(reason or str(error) or type(error).__name__)
        if reason is not None:
            raise MachineError(explain(reason)) from error
        raise
    heart.leave("")
