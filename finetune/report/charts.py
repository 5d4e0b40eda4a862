"""The charts: each draws on the axes of a figure and knows nothing of pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from finetune.card.markdown import visible
from finetune.record import Interval
from finetune.record.analysis import Calibration, Confusion
from finetune.report.curves import Series, thinned
from finetune.report.drawing import COLOURS

__all__ = [
    "LINE_COLOURS",
    "draw_curves",
    "draw_intervals",
    "draw_legend",
    "draw_matrix",
    "draw_reliability",
    "matrix_size",
    "shortened",
]

LINE_COLOURS = {"train": COLOURS["baseline"], "validation": COLOURS["model"]}
MARKED = 40  # points; a longer series is a line without dots
LONGEST_NAME = 24  # characters at an axis
MARKS = "osD^v"  # of the methods, in their order


def draw_curves(
    axes: Axes, series: Mapping[str, Series], *, steps: int = 0, best: int | None = None, resumed: Sequence[int] = ()
) -> None:
    """Lines over all `steps` of a run with their intervals; `best` and `resumed` are steps that are marked."""
    for name, full in series.items():
        line, colour = thinned(full), LINE_COLOURS.get(name, COLOURS["model"])
        dots = "o" if len(line) <= MARKED and name != "train" else ""
        axes.plot(line.steps, line.values, color=colour, linewidth=1.5, marker=dots or None, markersize=3.5, label=name)
        if np.isfinite(line.low).any():
            axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    for step in resumed:
        axes.axvline(step, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (1, 2)))
    if best is not None:
        axes.axvline(best, color=COLOURS["second"], linewidth=1.2, linestyle=(0, (4, 3)))
    if len(series) > 1:
        axes.legend(loc="best", handlelength=1.4)
    axes.set_xlabel("step")
    axes.set_xlim(0, 1.02 * max([steps, *(float(full.steps[-1]) for full in series.values())]))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.grid(axis="x", visible=False)


def _thousands(value: float, _position: int | None) -> str:
    return f"{value:,.0f}"


def draw_intervals(axes: Axes, metrics: Sequence[str], methods: Mapping[str, Mapping[str, Interval]]) -> None:
    """A row for each metric, in it a dot with its interval for each method; the first method is the model.

    methods: name -> metric -> value and interval.
    """
    for number, (method, found) in enumerate(methods.items()):
        known = [(row, found[metric]) for row, metric in enumerate(metrics) if metric in found]
        points = [(row, *_sides(item)) for row, item in known if item.value is not None]
        if not points:
            continue
        rows, values, below, above = np.array(points, np.float64).T
        axes.errorbar(
            values,
            rows + 0.2 * (number - (len(methods) - 1) / 2),
            xerr=np.stack([below, above]),
            fmt=MARKS[number % len(MARKS)],
            color=COLOURS["model"] if number == 0 else COLOURS["baseline"],
            markerfacecolor=None if number == 0 else COLOURS["surface"],
            markersize=6 if number == 0 else 4.5,
            linewidth=1.6,
            label=shortened(method),
        )
    axes.set_yticks(range(len(metrics)), [shortened(metric) for metric in metrics])
    axes.set_ylim(len(metrics) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))


def draw_legend(figure: Figure) -> None:
    """The names of all that is drawn, each once, above the axes."""
    drawn = [axes.get_legend_handles_labels() for axes in figure.axes]
    marks = {label: handle for handles, labels in drawn for handle, label in zip(handles, labels, strict=True)}
    figure.legend(marks.values(), marks.keys(), loc="outside upper left", ncols=2, handlelength=1.2)


def _sides(found: Interval) -> tuple[float, float, float]:
    """Value, and how far the interval reaches below and above it."""
    assert found.value is not None
    if found.low is None or found.high is None:
        return found.value, 0.0, 0.0
    return found.value, max(0.0, found.value - found.low), max(0.0, found.high - found.value)


def matrix_size(found: Confusion) -> tuple[float, float]:
    """Inches of a confusion matrix."""
    side = 1.9 + 0.36 * len(found.labels)
    return max(5.2, side + 0.4), max(3.6, side)


def draw_matrix(axes: Axes, found: Confusion) -> None:
    """Gold labels down, predicted ones across; the shade is the share of the row, the number counts."""
    matrix = np.asarray(found.counts)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [shortened(label) for label in found.labels]
    for (row, column), share in np.ndenumerate(shares):
        if matrix[row, column]:
            colour = COLOURS["model"] if row == column else COLOURS["second"]
            axes.add_patch(_cell(column, row, colour, 0.12 + 0.78 * float(share)))
            written = COLOURS["surface"] if share > 0.6 else COLOURS["ink"]
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=8, color=written)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    axes.grid(visible=False)
    axes.tick_params(length=0)


def _cell(column: int, row: int, colour: str, alpha: float) -> Rectangle:
    return Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, alpha=alpha, linewidth=0)


def shortened(name: str) -> str:
    """A name as it fits beside an axis."""
    line = " ".join(visible(name[: 4 * LONGEST_NAME]).split())
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"


def draw_reliability(axes: Axes, found: Calibration) -> None:
    """How often scores come true at each confidence, the diagonal being perfect, and how many scores there are."""
    bins = [one for one in found.bins if one.n and one.confidence is not None and one.accuracy is not None]
    confidence = np.array([one.confidence for one in bins], np.float64)
    accuracy = np.array([one.accuracy for one in bins], np.float64)
    shares = np.array([one.n for one in bins], np.float64) / max(1, sum(one.n for one in bins))
    left = np.array([one.low for one in bins])
    width = np.array([one.high for one in bins]) - left
    axes.bar(left, shares, width, align="edge", color=COLOURS["grid"], edgecolor=COLOURS["surface"], linewidth=0.8)
    axes.plot([0, 1], [0, 1], color=COLOURS["baseline"], linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(confidence, accuracy, color=COLOURS["model"], marker="o", markersize=4.5, linewidth=1.5)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share that is right")
