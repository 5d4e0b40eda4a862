"""The pictures a card may carry: their places in the export, and what they show, for those who do not see them."""

from __future__ import annotations

from collections.abc import Collection

from finetune.card.markdown import image

__all__ = ["CONFUSION", "CURVES", "INTERVALS", "RELIABILITY", "SHOWN", "pictures"]

CURVES = "figures/curves.png"
INTERVALS = "figures/intervals.png"
CONFUSION = "figures/confusion.png"
RELIABILITY = "figures/reliability.png"
SHOWN = {
    CURVES: "Loss over the steps of training",
    INTERVALS: "Metrics with 95 % intervals, beside the baselines",
    CONFUSION: "Confusion matrix: gold labels down, predicted labels across",
    RELIABILITY: "Reliability diagram: how often the model is right at each confidence",
}


def pictures(present: Collection[str], *wanted: str) -> list[str]:
    """As Markdown, those of `wanted` that are `present` in the export."""
    return [image(SHOWN[name], name) for name in wanted if name in present]
