"""The two pictures of the model card: how training went, and what says most about the results."""

from __future__ import annotations

from pathlib import Path

from finetune.card.pictures import CONFUSION, CURVES, INTERVALS, RELIABILITY
from finetune.card.weaknesses import shown_analysis
from finetune.record import Analysis, RunRecord
from finetune.record.analysis import Confusion
from finetune.report.charts import draw_curves, draw_matrix, draw_reliability, matrix_size, shortened
from finetune.report.curves import read_curves
from finetune.report.drawing import blank, drawable, png
from finetune.report.results import draw_results, drawn_split

__all__ = ["write"]

LABELS = 20  # of a confusion matrix on a card


def write(export: Path, record: RunRecord, metrics: Path) -> None:
    """Write what there is to show into `figures/` of an export; nothing without curves or results."""
    (export / "figures").mkdir(exist_ok=True)
    curves = read_curves(metrics)
    loss = {split: curves[split, "loss"] for split in ("train", "validation") if (split, "loss") in curves}
    if loss:
        with blank(6.4, 3.2) as (figure, axes):
            draw_curves(axes, loss, best=record.best.step if record.best is not None else None)
            axes.set_ylabel("loss")
            (export / CURVES).write_bytes(png(figure))
    found = shown_analysis(record)
    analysis = Analysis() if found is None else found[1]
    split = drawn_split(record)
    if analysis.confusion is not None and _fits(analysis.confusion):
        with blank(*matrix_size(analysis.confusion)) as (figure, axes):
            draw_matrix(axes, analysis.confusion)
            (export / CONFUSION).write_bytes(png(figure))
    elif analysis.calibration is not None and analysis.calibration.bins:
        with blank(6.4, 4.0) as (figure, axes):
            draw_reliability(axes, analysis.calibration)
            (export / RELIABILITY).write_bytes(png(figure))
    elif split is not None:
        with draw_results(record, split) as figure:
            (export / INTERVALS).write_bytes(png(figure))


def _fits(found: Confusion) -> bool:
    """Whether a reader can take in the matrix, and the font of the picture has the names of its labels."""
    return 1 < len(found.labels) <= LABELS and all(drawable(shortened(label)) for label in found.labels)
