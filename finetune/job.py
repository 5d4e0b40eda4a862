"""What every part of one run needs, on one process."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import PartialState

from finetune.events import Events
from finetune.folder import RunFolder
from finetune.heartbeat import Heartbeat
from finetune.recipe import Recipe
from finetune.record import RunRecord
from finetune.signals import StopFlag

__all__ = ["Job"]


@dataclass
class Job:
    """One run; only the main process writes to `folder` and `record`."""

    recipe: Recipe
    folder: RunFolder
    record: RunRecord
    events: Events
    stop: StopFlag
    state: PartialState
    heart: Heartbeat

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.state.is_main_process)
