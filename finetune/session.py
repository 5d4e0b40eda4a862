"""What a run settles before its first step: the plan, what `auto` decides, the Accelerator, when to save."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

from finetune import hardware, unpadded
from finetune.batching import Plan
from finetune.errors import RecipeError
from finetune.features import Features
from finetune.recipe import TrainBlock
from finetune.tasks.base import Batch, Task

__all__ = ["SaveSchedule", "agree_on", "build_accelerator", "choose", "make_plan"]

MICRO_SLOTS = 32_768  # a micro-batch holds at most this many slots unless the recipe says otherwise
PAYS = 0.9  # a cheaper way to make a step is taken where it needs less than this share of the time
KERNEL_ERROR = 0.05  # relative: above the rounding of half precision, below attention to the wrong tokens
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARE_FOR_SAVING = 0.01
LONGEST_GAP_SECONDS = 600.0
DISK_BYTES_PER_SECOND = 300e6  # a guess until the first save has been timed


def agree_on(value: Any, state: PartialState | Accelerator) -> Any:
    """The main process's value, on every process."""
    if state.num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box, from_process=0)
    return box[0]


def make_plan(task: Task, features: Features, settings: TrainBlock) -> Plan:
    """All steps of the run."""
    return Plan(
        lengths=task.widths(features),
        batch_size=settings.batch_size if settings.batch_tokens is None else None,
        batch_tokens=settings.batch_tokens,
        seed=settings.seed,
        epochs=settings.epochs if settings.max_steps is None else None,
        max_steps=settings.max_steps,
        group_by_length=settings.group_by_length,
    )


def choose(
    settings: TrainBlock, plan: Plan, net: Any, task: Task, features: Features, tokenizer: Any, state: PartialState
) -> dict[str, Any]:
    """What `auto` decides, measured on the main process, the same on all: precision, rows of a micro-batch, padding."""
    threads = hardware.threads_for(state.num_processes if state.device.type == "cpu" else 1)
    torch.set_num_threads(threads)
    rows = _micro_rows(settings, plan, state.num_processes)
    chosen: dict[str, Any] = {"precision": settings.precision, "micro_batch_size": rows, "threads": threads}
    # The kernel for sequences of unequal length adds gradients up in no fixed order; torch cannot recompute its inputs.
    may_unpad = unpadded.can_unpad(net) and not settings.deterministic and not settings.gradient_checkpointing
    if state.is_main_process and (may_unpad or settings.precision == "auto"):
        net.to(state.device).train()
        batch = _typical_batch(task, features, tokenizer, rows)
        if settings.precision == "auto":
            chosen |= _probe_precision(net, task, batch, state.device)
        if may_unpad:
            chosen |= _probe_unpadded(net, task, batch, state.device, chosen["precision"])
    return dict(agree_on(chosen, state))


def _micro_rows(settings: TrainBlock, plan: Plan, processes: int) -> int:
    if settings.micro_batch_size != "auto":
        return int(settings.micro_batch_size)
    longest = max(1, int(plan.lengths.max(axis=0).sum()))
    rows = MICRO_SLOTS // longest
    return max(1, rows if settings.batch_size is None else min(rows, -(-settings.batch_size // processes)))


def _typical_batch(task: Task, features: Features, tokenizer: Any, micro_rows: int) -> Batch:
    """One micro-batch of typical length, on the CPU."""
    typical = np.argsort(features.lengths, kind="stable")[len(features) // 2 :][:micro_rows]
    return task.collate(features, typical, tokenizer)


def _step(net: Any, task: Task, batch: Batch, precision: str) -> Callable[[], None]:
    """Forward and backward of a batch, waited for."""
    device = next(net.parameters()).device

    def step() -> None:
        with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
            loss = task.loss(net(**batch.inputs), batch)
        torch.autograd.backward(loss)
        net.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _probe_precision(net: Any, task: Task, batch: Batch, device: torch.device) -> dict[str, Any]:
    """fp32, or bf16 where it pays."""
    if not hardware.has_bf16():
        return {"precision": "fp32"}
    there = batch.to(device)
    seconds = hardware.race({precision: _step(net, task, there, precision) for precision in ("fp32", "bf16")})
    precision = "bf16" if seconds["bf16"] < PAYS * seconds["fp32"] else "fp32"
    return {"precision": precision, "probe_seconds": {name: round(value, 5) for name, value in seconds.items()}}


def _probe_unpadded(net: Any, task: Task, batch: Batch, device: torch.device, precision: str) -> dict[str, Any]:
    """Whether micro-batches go without padding: where attention stays the same, and the step is faster.

    The batch is one that padding costs nothing in; others gain more.
    """
    padded, packed = batch.to(device), Batch(unpadded.pack(batch.inputs), batch.targets).to(device)
    try:
        error = unpadded.kernel_error(net, packed.inputs, DTYPES[precision])
        if not error <= KERNEL_ERROR:  # NaN, too
            return {"unpadded": False, "unpadded_refused": f"attention differs by {error:.1%}"}
        steps = {name: _step(net, task, each, precision) for name, each in (("padded", padded), ("unpadded", packed))}
        seconds = hardware.race(steps)
    except RuntimeError as error:  # no kernel for this device, shape or precision
        net.zero_grad(set_to_none=True)
        return {"unpadded": False, "unpadded_refused": str(error).splitlines()[0]}
    found = {name: round(value, 5) for name, value in seconds.items()}
    return {"unpadded": seconds["unpadded"] < PAYS * seconds["padded"], "unpadded_probe_seconds": found}


def build_accelerator(precision: str, *, leaves_out: bool = False) -> Accelerator:
    """The Accelerator of the run. Raises RecipeError when the launcher sets what a recipe owns.

    leaves_out: a step may leave weights without a gradient, for which processes must not wait.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"fp32": "no"}.get(precision, precision),
        step_scheduler_with_optimizer=False,
        # No buffer of a text model changes in training; sent along, they are a collective in the midst of the forward.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=leaves_out)],
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise RecipeError(
            f"the launcher sets gradient_accumulation_steps={accelerator.gradient_accumulation_steps}; accumulation"
            " follows from train.batch_size and train.micro_batch_size: remove it from the launcher"
        )
    return accelerator


@dataclass
class SaveSchedule:
    """When to save. `auto`: as often as keeps saving under 1 % of the time, and at least every 10 minutes.

    The first save comes late by the time that pays for the one after the last step, which every run makes.
    """

    every: int | str
    expected_bytes: int
    clock: Callable[[], float] = time.monotonic
    cost_seconds: float = field(init=False)
    last: float = field(init=False)
    first: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self.cost_seconds = self.expected_bytes / DISK_BYTES_PER_SECOND
        self.last = self.clock()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step` optimizer steps."""
        if self.every != "auto":
            return step % int(self.every) == 0
        gap = self.cost_seconds / SHARE_FOR_SAVING * (2 if self.first else 1)
        return self.clock() - self.last >= min(LONGEST_GAP_SECONDS, gap)

    def saved(self, seconds: float) -> None:
        """Book a save that took `seconds`."""
        self.cost_seconds, self.last, self.first = seconds, self.clock(), False
