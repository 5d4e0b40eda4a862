"""python -m scripts.bench: run arms in fresh processes one after the other, add to the file, print the table."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench import tasks


@dataclass(frozen=True)
class Arm:
    """One way to train; padded is for the Trainer, lora for finetune."""

    precision: str = "auto"
    grouped: bool = False
    padded: bool = False
    lora: bool = False


ARMS = {
    "ours": Arm(grouped=True),
    "trainer": Arm(precision="fp32"),
    "trainer-grouped": Arm(precision="fp32", grouped=True),
    "trainer-padded": Arm(precision="fp32", padded=True),
    "trainer-bf16": Arm(precision="bf16"),
    "trainer-bf16-grouped": Arm(precision="bf16", grouped=True),
    "trainer-bf16-padded": Arm(precision="bf16", padded=True),
    "ours-random": Arm(),
    "ours-fp32": Arm(precision="fp32", grouped=True),
    "ours-lora": Arm(grouped=True, lora=True),
}
IN_BF16 = ["ours", "trainer", "trainer-bf16", "trainer-bf16-grouped", "trainer-bf16-padded"]
IN_FP32 = ["ours", "trainer", "trainer-grouped", "trainer-padded"]


def main() -> None:
    """Read the arguments; one child process for each task, seed and arm."""
    options = _options()
    if options.arms is None:
        from finetune import hardware

        options.arms = IN_BF16 if hardware.has_bf16() else IN_FP32
    if options.one:
        _one(options)
        return
    results = _read(options.out)
    if options.limit_model:
        from scripts.bench.limit import limits

        results["limits"] = limits()
    if options.rows:
        from scripts.bench import scale

        results["scale"] = [*results.get("scale", []), *scale.measure(options.rows, options.checkpoint)]
    if options.overhead:
        results["overhead"] = {task: _overhead(task, options) for task in options.tasks}
    for task in options.tasks if options.data else []:
        for seed in options.seeds:
            for arm in options.arms:
                results["runs"].append(_child(task, seed, arm, options))
                _write(options.out, results)
    _write(options.out, results)
    from scripts.bench.table import render

    print(render(results))


def _overhead(task: str, options: argparse.Namespace) -> dict[str, Any]:
    from finetune import hardware
    from scripts.bench import overhead

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        precision = "bf16" if hardware.has_bf16() else "fp32"
        settings = {"checkpoint": options.checkpoint, "seed": options.seeds[0], "precision": precision}
        path = tasks.write_recipe(task, options.data, Path(name), **settings, lora=False, grouped=True)
        return overhead.measure(path)


def _options() -> argparse.Namespace:
    files = "; ".join(name for files in tasks.FILES.values() for name in files.values())
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description=__doc__,
        epilog=f"--data is a folder with {files}; only those of --tasks are read. Without --arms: {' '.join(IN_BF16)};"
        f" where there are no bf16 instructions {' '.join(IN_FP32)}. Without --data the table of --out is printed.",
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--tasks", nargs="+", choices=tasks.RECIPES, default=["sequence"])
    parser.add_argument("--arms", nargs="*", choices=ARMS, help="in turn, for each seed; or none")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--checkpoint", default=tasks.CHECKPOINT, help="encoder: Hub id, folder or package://…")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), help="runs are added to this file")
    parser.add_argument("--limit-model", action="store_true", help="measure the machine's matrix products, too")
    parser.add_argument("--overhead", action="store_true", help="measure the loop beside a bare PyTorch loop, too")
    parser.add_argument("--rows", nargs="+", type=int, help="generate so many rows and measure each stage of a run")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "RESULT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"runs": []}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def _write(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _child(task: str, seed: int, arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a process and a cache of its own."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder, result = Path(name), Path(name) / "result.json"
        command = [sys.executable, "-m", "scripts.bench", "--data", str(options.data), "--tasks", task]
        command += ["--arms", arm, "--seeds", str(seed), "--checkpoint", options.checkpoint]
        own = {"FINETUNE_CACHE": str(folder / "cache"), "HF_DATASETS_CACHE": str(folder / "datasets")}
        with open(folder / "log", "w+", encoding="utf-8") as log:
            done = subprocess.run(
                [*command, "--one", name, str(result)], env=os.environ | own, stdout=log, stderr=log, check=False
            )
            if done.returncode != 0:
                log.seek(0)
                raise SystemExit(f"{task}, {arm}, seed {seed} failed:\n{log.read()[-3000:]}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    print(f"{task}, {arm}, seed {seed}: {found['train_seconds']:.1f} s", flush=True)
    return found


def _one(options: argparse.Namespace) -> None:
    """The child: write the recipe, train, write the figures."""
    folder, result = map(Path, options.one)
    (task,), (arm,), (seed,) = options.tasks, options.arms, options.seeds
    way = ARMS[arm]
    path = tasks.write_recipe(
        task,
        options.data,
        folder,
        checkpoint=options.checkpoint,
        seed=seed,
        precision=way.precision,
        lora=way.lora,
        grouped=way.grouped,
    )
    figures = _figures(arm, path)
    from finetune import hardware

    about = {"task": task, "arm": arm, "seed": seed}
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    machine = {"machine": hardware.describe(), "versions": hardware.versions(), "ended": moment}
    _write(result, about | figures | machine)


def _figures(arm: str, path: Path) -> dict[str, Any]:
    if arm.startswith("trainer"):
        from scripts.bench import trainer

        return trainer.train(path, padded=ARMS[arm].padded)
    from scripts.bench import ours

    return ours.train(path)


if __name__ == "__main__":
    main()
