"""A run of finetune."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from accelerate import PartialState

from finetune import evaluation, model, preparation
from finetune.events import Events
from finetune.preparation import Prepared
from finetune.pretrained import Checkpoint
from finetune.recipe import load
from scripts.bench.limit import training_flops

__all__ = ["train"]


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
