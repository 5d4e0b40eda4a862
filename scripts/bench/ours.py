"""A run of finetune, and the same steps made by a bare PyTorch loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from finetune import attention, evaluation, hardware, model, optim, preparation, session
from finetune.events import Events
from finetune.first_position import install_first_position
from finetune.preparation import Prepared
from finetune.pretrained import Checkpoint
from finetune.recipe import load
from scripts.bench.limit import training_flops

__all__ = ["bare", "train"]


def train(path: Path) -> dict[str, Any]:
    """`finetune train` on a recipe; figures from its record, and the time of one more evaluation of its export."""
    from finetune.run import train as run

    recipe = load(path)
    record = run(recipe)
    ready = preparation.prepare(recipe, Events())
    training = record.training
    assert training is not None
    assert training.padding_share is not None
    return {
        "precision": record.precision,
        "steps": training.steps,
        "examples": training.examples,
        "tokens": training.tokens,
        "slots": round(training.tokens / (1 - training.padding_share)),
        "train_seconds": training.seconds,
        "first_step_seconds": training.seconds_to_first_step,
        "peak_memory_bytes": training.peak_memory_bytes,
        "evaluation_seconds": _evaluation_seconds(ready, Path(recipe.output) / "export"),
        "quality": {name: value.model_dump() for name, value in record.results["test"].metrics.items()},
        "flops": training_flops(ready.config, ready.features["train"].lengths),
    }


def _evaluation_seconds(ready: Prepared, folder: Path) -> float:
    """Predictions and scores of the test split from exported weights, in fp32, without loading them."""
    net = model.load_for_evaluation(Checkpoint("export", folder), type(ready.task)).model
    features, rows = ready.features["test"], ready.splits["test"]
    started = time.perf_counter()
    processes: Any = PartialState()  # the Accelerator of the run trains in another precision
    found = evaluation.predict_split(processes, net, ready.task, ready.tokenizer, features, rows, Events())
    assert found is not None
    evaluation.score_split(ready.task, found, ready.recipe.evaluate.metrics)
    return time.perf_counter() - started


def bare(path: Path) -> dict[str, Any]:
    """The same batches through the same model by ten lines of PyTorch: what the loop of finetune adds is the rest."""
    recipe = load(path)
    settings = recipe.train
    assert settings is not None
    ready = preparation.prepare(recipe, Events())
    torch.set_num_threads(hardware.threads_for(1))
    net = model.load_for_training(ready.checkpoint, ready.config, ready.task, recipe).model
    install_first_position(net)
    hardware.keep_heap()
    attention.install(net)
    features = ready.features["train"]
    plan = session.make_plan(ready.task, features, settings)
    optimizer = optim.adamw(net, settings.learning_rate, settings.weight_decay)
    counts = ready.task.counts(features)
    torch.manual_seed(settings.seed)
    net.train()
    first = None
    started = time.perf_counter()
    for step in range(plan.steps):
        rows = plan.rows(step)
        batch = ready.task.collate(features, rows, ready.tokenizer)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            outputs = net(**batch.inputs)
        torch.autograd.backward(ready.task.loss(outputs, batch) / float(counts[rows].sum()))
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        first = first or time.time()
    seconds = time.perf_counter() - started
    widths = ready.task.widths(features)
    return {
        "precision": settings.precision,
        "steps": plan.steps,
        "examples": len(features),
        "tokens": int(widths.sum()),
        "slots": _slots(widths, plan),
        "train_seconds": seconds,
        "first_step_seconds": hardware.seconds_since_start(first or time.time()),
        "peak_memory_bytes": hardware.peak_memory_bytes(),
        "flops": training_flops(ready.config, features.lengths),
    }


def _slots(widths: np.ndarray, plan: Any) -> int:
    return sum(len(rows) * int(widths[rows].max(axis=0).sum()) for rows in map(plan.rows, range(plan.steps)))
