"""What metrics.jsonl says about a run, as series over its steps, thinned to what an eye can tell apart."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Series", "read_curves", "thinned", "throughput"]

COLUMNS = 300  # of a chart; in each, a long series keeps its lowest and its highest point

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Values over steps, all (n,); `low` and `high` are the 95 % interval, NaN where there is none."""

    steps: Floats
    values: Floats
    low: Floats
    high: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def take(self, index: NDArray[Any]) -> Series:
        """The points at `index`."""
        return Series(self.steps[index], self.values[index], self.low[index], self.high[index])


def read_curves(path: Path) -> dict[tuple[str, str], Series]:
    """(split, name) -> its series, for every name that metrics.jsonl has. Also (train, tokens) and (train, seconds).

    No file, no curves. Raises ValueError when a line is no JSON.
    """
    if not path.is_file():
        return {}
    points: dict[tuple[str, str], list[tuple[float, float, float, float]]] = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            split, step, bounds = row["split"], row["step"], row.get("intervals", {})
            for name, value in row["values"].items():
                if value is not None:
                    low, high = bounds.get(name) or (np.nan, np.nan)
                    points[split, name].append((step, value, low, high))
            if split == "train":
                for name in ("tokens", "seconds"):
                    points[split, name].append((step, row[name], np.nan, np.nan))
    return {key: Series(*np.array(found, np.float64).T) for key, found in points.items()}


def throughput(curves: Mapping[tuple[str, str], Series]) -> Series | None:
    """Tokens a second between one logged step and the next; None below two of them."""
    tokens, seconds = curves.get(("train", "tokens")), curves.get(("train", "seconds"))
    if tokens is None or seconds is None or len(tokens) < 2:
        return None
    elapsed = np.diff(seconds.values)
    rate = np.divide(np.diff(tokens.values), elapsed, out=np.full(len(elapsed), np.nan), where=elapsed > 0)
    unknown = np.full(len(rate), np.nan)
    return Series(tokens.steps[1:], rate, unknown, unknown)


def thinned(series: Series, columns: int = COLUMNS) -> Series:
    """At most two points in each of `columns` equal stretches: the lowest and the highest."""
    if len(series) <= 2 * columns:
        return series
    kept = []
    for stretch in np.array_split(np.arange(len(series)), columns):
        values = series.values[stretch]
        kept += [stretch[np.argmin(values)], stretch[np.argmax(values)]]
    return series.take(np.unique(kept))
