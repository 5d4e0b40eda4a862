"""The figures of all runs of a file as one table for each task."""

from __future__ import annotations

from statistics import median
from typing import Any

from scripts.bench import overhead, scale

__all__ = ["render"]

COLUMNS = ("arm", "runs", "train s", "ours / arm", "first step s", "tokens/s", "padding", "peak MB", "evaluate s")


def render(results: dict[str, Any]) -> str:
    """Markdown. Medians over the runs of an arm, in brackets the least and the most; quality by seed."""
    tasks = list(dict.fromkeys(run["task"] for run in results["runs"]))
    parts = [_task(task, [run for run in results["runs"] if run["task"] == task], results) for task in tasks]
    if "overhead" in results:
        parts.append(f"\n{overhead.render(results['overhead'])}")
    if "scale" in results:
        parts.append(f"\n{scale.render(results['scale'])}")
    return "\n".join(parts)


def _task(task: str, runs: list[dict[str, Any]], results: dict[str, Any]) -> str:
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    by_arm = {arm: [run for run in runs if run["arm"] == arm] for arm in arms}
    names = list(dict.fromkeys(name for run in runs for name in run.get("quality", {}) if name != "loss"))[:2]
    limits = results.get("limits")
    header = [*COLUMNS, *names, *(["share of GEMM peak"] if limits else [])]
    lines = [f"\n**{task}**: {runs[0]['examples']} examples, {runs[0]['steps']} steps\n", _row(header)]
    lines.append(_row(["---"] + ["---:"] * (len(header) - 1)))
    base = by_arm.get("ours")
    for arm, found in by_arm.items():
        cells = [arm, str(len(found)), _spread(found, "train_seconds"), _ratio(base, found)]
        cells += [
            _spread(found, "first_step_seconds"),
            f"{median(r['tokens'] / r['train_seconds'] for r in found):.0f}",
        ]
        cells += [f"{median(1 - r['tokens'] / r['slots'] for r in found):.1%}"]
        cells += [f"{median(r['peak_memory_bytes'] for r in found) / 1e6:.0f}", _spread(found, "evaluation_seconds")]
        cells += [_quality(found, name) for name in names]
        lines.append(_row(cells + ([_share(found, limits)] if limits else [])))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(runs: list[dict[str, Any]], key: str) -> str:
    values = [run[key] for run in runs if run.get(key) is not None]
    if not values:
        return ""
    middle = f"{median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f}–{max(values):.1f})"


def _ratio(base: list[dict[str, Any]] | None, runs: list[dict[str, Any]]) -> str:
    if base is None or base is runs:
        return ""
    return f"{median(r['train_seconds'] for r in base) / median(r['train_seconds'] for r in runs):.2f}"


def _quality(runs: list[dict[str, Any]], name: str) -> str:
    """The value of each seed, with half the interval over rows."""
    found = sorted(
        ((r["seed"], r["quality"][name]) for r in runs if name in r.get("quality", {})), key=lambda pair: pair[0]
    )
    values = {seed: f"{metric['value']:.3f} ± {(metric['high'] - metric['low']) / 2:.3f}" for seed, metric in found}
    return ", ".join(values.values())


def _share(runs: list[dict[str, Any]], limits: dict[str, float]) -> str:
    if runs[0].get("flops") is None:
        return ""
    peak = limits[f"{runs[0]['precision']}_gemm_flops_per_second"]
    return f"{median(run['flops'] / run['train_seconds'] for run in runs) / peak:.0%}"
