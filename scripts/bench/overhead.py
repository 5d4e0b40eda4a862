"""The loop of finetune beside ten lines of PyTorch, step by step on the same batches, so that both see one machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune import attention, hardware, loop, model, optim, preparation, session
from finetune.checkpoint import Progress
from finetune.events import Events
from finetune.first_position import install_first_position
from finetune.preparation import Prepared
from finetune.recipe import load
from finetune.signals import StopFlag

__all__ = ["measure", "render"]

STEPS = 60  # even, so that both loops make all of them


class _Bare:
    """The same step, written out."""

    def __init__(self, ready: Prepared) -> None:
        settings = ready.recipe.train
        assert settings is not None
        self.ready, self.bf16, self.seconds = ready, settings.precision == "bf16", 0.0
        self.features = ready.features["train"]
        self.counts = ready.task.counts(self.features)
        self.net = _net(ready)
        self.optimizer = optim.adamw(self.net, settings.learning_rate, settings.weight_decay)

    def step(self, rows: np.ndarray) -> None:
        started = time.perf_counter()
        batch = self.ready.task.collate(self.features, rows, self.ready.tokenizer)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            outputs = self.net(**batch.inputs)
        torch.autograd.backward(self.ready.task.loss(outputs, batch) / float(self.counts[rows].sum()))
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds += time.perf_counter() - started


def measure(path: Path) -> dict[str, Any]:
    """Train for STEPS as the recipe at `path` says, each step made by both loops; the seconds of each."""
    recipe = load(path, ["train.epochs=null", f"train.max_steps={STEPS}"])
    settings = recipe.train
    assert settings is not None
    torch.set_num_threads(hardware.threads_for(1))
    hardware.keep_heap()
    ready = preparation.prepare(recipe, Events())
    bare = _Bare(ready)
    plan = session.make_plan(ready.task, ready.features["train"], settings)
    accelerator = session.build_accelerator(settings.precision)
    net = _net(ready)
    prepared, optimizer = accelerator.prepare(net, optim.adamw(net, settings.learning_rate, settings.weight_decay))

    def between(step: int) -> bool:  # the loop asks whether to save, and does not count the time
        # The first to meet a shape builds its kernels for both: so each loop is the first in every other step.
        if step % 2:
            bare.step(plan.rows(step - 1))
            bare.step(plan.rows(step))
        return False

    progress = Progress(micro_rows=settings.batch_size or 1)
    loop.fit(
        loop.Fit(
            accelerator=accelerator,
            model=prepared,
            optimizer=optimizer,
            task=ready.task,
            tokenizer=ready.tokenizer,
            features=ready.features["train"],
            rows=ready.splits["train"],
            plan=plan,
            settings=settings,
            progress=progress,
            stop=StopFlag(launched=False),
            evaluate_every=None,
            patience=None,
            larger_is_better=True,
            evaluate=None,
            log=lambda _: None,
            save=lambda _: None,
            save_due=between,
        )
    )
    return {"steps": plan.steps, "loop_seconds": progress.seconds, "bare_seconds": bare.seconds}


def _net(ready: Prepared) -> Any:
    net = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe).model.train()
    install_first_position(net)
    attention.install(net)
    return net


def render(found: dict[str, dict[str, Any]]) -> str:
    """One line for each task."""
    return "\n".join(
        f"{task}: the loop of finetune beside a bare PyTorch loop, {each['steps']} steps each, interleaved:"
        f" {each['loop_seconds']:.1f} s and {each['bare_seconds']:.1f} s, ratio"
        f" {each['loop_seconds'] / each['bare_seconds']:.3f}"
        for task, each in found.items()
    )
