"""The two pictures of the model card: how training went, and what says most about the results."""

from __future__ import annotations

from pathlib import Path

from finetune.card.pictures import CURVES, INTERVALS
from finetune.record import RunRecord
from finetune.report.charts import draw_curves
from finetune.report.curves import read_curves
from finetune.report.drawing import blank, png
from finetune.report.results import draw_results, drawn_split, results_size

__all__ = ["write"]


def write(export: Path, record: RunRecord, metrics: Path) -> None:
    """Write what there is to show into `figures/` of an export; nothing without curves or results."""
    (export / "figures").mkdir(exist_ok=True)
    found = read_curves(metrics)
    loss = {split: found[split, "loss"] for split in ("train", "validation") if (split, "loss") in found}
    if loss:
        with blank(6.4, 3.2) as (figure, axes):
            draw_curves(axes, loss, best=record.best.step if record.best is not None else None)
            axes.set_ylabel("loss")
            (export / CURVES).write_bytes(png(figure))
    split = drawn_split(record)
    if split is not None:
        with blank(*results_size(record, split)) as (figure, axes):
            draw_results(axes, record, split)
            (export / INTERVALS).write_bytes(png(figure))
