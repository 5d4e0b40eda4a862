"""Which rows go where: shares cut off a split, and random samples. The same rows on every machine and version."""

from __future__ import annotations

import numpy as np

from finetune.rows import Rows, from_arrow

__all__ = ["sample", "share"]


def _shuffled(count: int) -> np.ndarray:
    """A random order of `count` rows, the same for ever: raw words of PCG64 with seed 0, whose stream numpy keeps."""
    return np.argsort(np.random.PCG64(0).random_raw(count), kind="stable")


def sample(count: int, size: int) -> np.ndarray:
    """`size` of `count` rows drawn with seed 0, in their order: int64 (size,)."""
    return np.sort(_shuffled(count)[:size])


def share(rows: Rows, part: float, by_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stay and rows that are cut off, drawn with seed 0, each in their order.

    round(part * n) rows are cut off, at least one. by_label: as nearly as whole rows allow, each label loses the same
    share, and keeps at least one row, even if fewer rows are cut off then.
    """
    total = min(len(rows) - 1, max(1, round(part * len(rows))))
    order = _shuffled(len(rows))
    cut = order[:total]
    if by_label:
        cut = _stratified(rows, order, total)
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[cut] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _stratified(rows: Rows, order: np.ndarray, total: int) -> np.ndarray:
    # By first appearance, which depends on nothing but the rows; no Python object per row.
    encoded = rows.table.column("label").combine_chunks().dictionary_encode()
    labels = from_arrow(encoded.indices)
    counts = np.bincount(labels)
    exact = counts * (total / len(rows))
    sizes = np.floor(exact).astype(int)  # less than counts, since total < len(rows)
    # What is left goes to the labels with the largest remainder, of those that can spare a row.
    while sizes.sum() < total and (sizes < counts - 1).any():
        for label in np.argsort(-(exact - sizes), kind="stable"):
            sizes[label] += sizes.sum() < total and sizes[label] < counts[label] - 1
    ordered = order[np.argsort(labels[order], kind="stable")]  # by label, random within each
    starts = np.cumsum(counts) - counts
    return np.concatenate([ordered[start : start + size] for start, size in zip(starts, sizes, strict=True)])
