"""What the loop asks of its run between two steps: evaluate, log, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from finetune import checkpoint, evaluation, loop, optim
from finetune.carbon import Carbon
from finetune.checkpoint import Snapshot
from finetune.job import Job
from finetune.preparation import Prepared
from finetune.session import SaveSchedule, agree_on
from finetune.tracking import Tracking

__all__ = ["Callbacks"]


class Callbacks:
    """Bound to one run; `fit` and `select_on` are set before the loop starts."""

    fit: loop.Fit
    select_on: str

    def __init__(
        self, job: Job, ready: Prepared, meter: Carbon, tracking: Tracking | None, carried: dict[str, Any]
    ) -> None:
        self.job, self.ready, self.meter, self.tracking = job, ready, meter, tracking
        self.carried = carried  # what every checkpoint says, settled before the first step
        self.saves: SaveSchedule | None = None

    def schedule(self, every: int | str, net: Any) -> Callable[[int], bool]:
        """The function that says when a save is due."""
        self.saves = SaveSchedule(every, expected_bytes=16 * optim.trained_parameters(net))
        return self.saves.due

    def evaluate(self) -> float | None:
        """Score validation; the value of the selecting metric, the same on every process. Raises Preempted."""
        job, ready = self.job, self.ready
        accelerator = self.fit.accelerator
        with self.meter.phase("evaluate"):
            predictions = evaluation.predict_split(
                accelerator,
                accelerator.unwrap_model(self.fit.model),
                ready.task,
                ready.tokenizer,
                ready.features["validation"],
                ready.splits["validation"],
                job.events,
                stop=job.stop,
                heart=job.heart,
            )
            value: float | None = None
            if predictions is not None:
                ready.task.tune(predictions)
                names = [self.select_on, *(job.recipe.evaluate.metrics or [])]
                found = evaluation.score_split(ready.task, predictions, names).metrics
                value = found[self.select_on].value
                intervals = {name: (item.low, item.high) for name, item in found.items() if item.low is not None}
                self._write({name: item.value for name, item in found.items()}, "validation", intervals=intervals)
        agreed: float | None = agree_on(value, job.state)
        return agreed

    def log(self, values: dict[str, float]) -> None:
        """One line of the training loss."""
        if self.job.main:
            self._write(values, "train")

    def _write(self, values: Mapping[str, float | None], split: str, **more: Any) -> None:
        progress, fit = self.fit.progress, self.fit
        line = {
            "step": progress.step,
            "epoch": round(fit.plan.epochs_done(progress.step), 6),
            "examples": progress.examples,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            "split": split,
            "values": values,
            **more,
        }
        self.job.folder.append_metrics(line)
        progress.metrics_lines += 1
        self.job.events.progress(
            "train", progress.step, fit.plan.steps, {f"{split} {k}": v for k, v in values.items() if v is not None}
        )
        if self.tracking is not None:
            self.tracking.log(
                {f"{split}/{key}": value for key, value in values.items() if value is not None}, progress.step
            )

    def save(self, snapshot: Snapshot) -> None:
        """Commit a checkpoint; on the main process only."""
        if not self.job.main:
            return
        started = time.perf_counter()
        progress = snapshot.progress
        progress.carried = self.carried | {
            "emissions": self.meter.snapshot().model_dump(),
            "tracking": {} if self.tracking is None else {k: v.model_dump() for k, v in self.tracking.ids().items()},
        }
        assert self.job.recipe.train is not None
        self.job.folder.sync_metrics()
        checkpoint.save(self.job.folder.checkpoints, snapshot, self.job.recipe.train.keep_last)
        if self.saves is not None:
            self.saves.saved(time.perf_counter() - started)
