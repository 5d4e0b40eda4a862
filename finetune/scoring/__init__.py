"""How each metric is computed: names, values on all rows, statistics per row, and as `evaluate.Metric` modules."""

from __future__ import annotations

__all__: list[str] = []
