"""What each stage of a run costs as the rows grow: seconds, and the most memory of this process that no file backs."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["measure", "render"]

WORDS = ("a", "the", "of", "film", "plot", "good", "bad", "very", "not", "dull", "bright", "story", "actor", "long")
STEPS = 50


def measure(sizes: list[int], checkpoint: str) -> list[dict[str, Any]]:
    """One measurement for each number of rows, in a process of its own, from a generated file to its first 50 steps."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        return list(pool.map(_measure, sizes, [checkpoint] * len(sizes)))


def _measure(rows: int, checkpoint: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="benchmark-scale-") as name:
        folder = Path(name)
        os.environ["FINETUNE_CACHE"] = str(folder / "cache")
        _write_rows(folder / "train.jsonl", rows)
        _write_rows(folder / "test.jsonl", 200)
        stages: dict[str, dict[str, float]] = {}
        tokens = _stages(_recipe(folder, checkpoint), stages)
    encode = stages["encode"]
    speed = {f"encoded_tokens_per_{unit[:-1]}": tokens / encode[unit] for unit in ("seconds", "cpu_seconds")}
    return {"rows": rows, "tokens": tokens} | speed | {"stages": stages}


def _write_rows(path: Path, rows: int) -> None:
    """Rows of 4 to 13 words, all different, the label a function of the words."""
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            words = draw.choices(WORDS, k=draw.randint(3, 12))
            label = "pos" if "good" in words or "bright" in words else "neg"
            file.write(json.dumps({"text": f"{' '.join(words)} {number}", "label": label}) + "\n")


def _recipe(folder: Path, checkpoint: str) -> Any:
    from finetune.recipe import load

    content = {
        "task": "sequence",
        "model": {"checkpoint": checkpoint},
        "data": {
            "path": {"train": "./train.jsonl", "test": "./test.jsonl"},
            "columns": {"text": "text", "label": "label"},
            "max_length": 128,
        },
        "train": {"max_steps": STEPS, "batch_size": 32, "learning_rate": 5.0e-5},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
    return load(folder / "recipe.yaml")


def _stages(recipe: Any, stages: dict[str, dict[str, float]]) -> int:
    """Parse, build the task, encode, plan and train as a run does; the tokens of all rows."""
    with _stage(stages, "import"):
        from finetune import data, pretrained, session, tasks
        from finetune.run import train
    task_class = tasks.of(recipe.task)
    checkpoint = pretrained.find_checkpoint(recipe)
    config = pretrained.read_config(checkpoint, task_class)
    tokenizer = pretrained.load_tokenizer(checkpoint, config)
    with _stage(stages, "parse"):
        splits = data.load(recipe)
    with _stage(stages, "task"):
        task = task_class.from_rows(recipe, splits)
        task.max_length = recipe.data.max_length
        task.fit_to(config, tokenizer)
    with _stage(stages, "encode"):
        features = data.encode(splits["train"], task, tokenizer, pretrained.tokenizer_sha256(tokenizer))
    with _stage(stages, "plan"):
        plan = session.make_plan(task, features, recipe.train)
        plan.rows(0)
    with _stage(stages, "train"):  # the whole command, on rows and features that are in the cache
        record = train(recipe)
    assert record.training is not None
    stages[f"{STEPS} steps of it"] = stages["train"] | {"seconds": record.training.seconds}
    return int(features.lengths.sum())


@contextmanager
def _stage(stages: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    """Time a block, and sample the anonymous memory of this process meanwhile (Linux)."""
    peak, done = [_anonymous_bytes()], threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], _anonymous_bytes())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    started, used = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds, used = time.perf_counter() - started, time.process_time() - used
        done.set()
        sampler.join()
        stages[name] = {"seconds": seconds, "cpu_seconds": used, "peak_bytes": max(peak[0], _anonymous_bytes())}


def _anonymous_bytes() -> int:
    """Resident memory that is not a mapped file. Source: proc(5), RssAnon."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def render(found: list[dict[str, Any]]) -> str:
    """Markdown: a row for each size, seconds and peak megabytes of each stage."""
    stages = list(found[0]["stages"])
    header = ["rows", *(f"{name}, s (MB)" for name in stages), "encoded tokens/s (of one core)"]
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join(['---:'] * len(header))} |"]
    for each in found:
        cells = [f"{s['seconds']:.1f} ({s['peak_bytes'] / 1e6:.0f})" for s in map(each["stages"].get, stages)]
        lines.append(f"| {each['rows']:,} | {' | '.join(cells)} | {_speed(each)} |")
    return "\n".join(lines)


def _speed(each: dict[str, Any]) -> str:
    return f"{each['encoded_tokens_per_second']:,.0f} ({each['encoded_tokens_per_cpu_second']:,.0f})"
