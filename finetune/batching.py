"""Which rows form optimizer step k, and the key of its randomness: pure functions, so that a resume needs no state.

The rows of a step depend on (seed, epoch, lengths, batch size) alone, never on the number of processes. Batches hold
rows of similar length (little padding), unless rows of any length are asked for, and come in random order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Plan", "epoch_batches", "random_key", "share_of_rank", "sorted_batches"]

POOL_BATCHES = 200  # batches that are sorted by length together: enough for little padding, few enough to stay random
POOL_ROWS = 6_400  # at least: where batches are small, more of them still come in random order, and pad less
POOL_BATCHES_OF_SEVERAL = 400  # where source and target are padded apart, both must be alike


def epoch_batches(
    lengths: np.ndarray,
    batch_size: int | None,
    seed: int,
    epoch: int,
    batch_tokens: int | None = None,
    *,
    group_by_length: bool = True,
) -> list[np.ndarray]:
    """The global batches of one epoch, in order; each int64 (rows of the step,), longest row first.

    lengths: tokens of each feature, int (n,), or (n, k) where k tensors are padded apart. Exactly one of `batch_size`
    (rows of a step) and `batch_tokens` (slots of a step, padding included) is given. Every row comes once; one batch
    may be smaller than the others. group_by_length: whether the rows of a batch are of similar length.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    widths = lengths.reshape(len(lengths), -1)
    total = widths.sum(axis=1)
    if not group_by_length:
        return [_longest_first(rows, total) for rows in _cut(order, widths, batch_size, batch_tokens)]
    several = widths.shape[1] > 1
    typical = batch_size or max(1, batch_tokens // max(1, int(total.mean())))  # type: ignore[operator]
    pool = max(typical * (POOL_BATCHES_OF_SEVERAL if several else POOL_BATCHES), POOL_ROWS)
    batches: list[np.ndarray] = []
    for rows in _pools(order, typical, pool):
        rows = _longest_first(rows, total)
        if not several:
            batches += _cut(rows, total, batch_size, batch_tokens)
            continue
        for alike in _alike(rows, widths, typical):
            batches += _cut(_longest_first(alike, total), widths, batch_size, batch_tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def _longest_first(rows: np.ndarray, total: np.ndarray) -> np.ndarray:
    return rows[np.argsort(-total[rows], kind="stable")]


def _pools(order: np.ndarray, size: int, least: int) -> list[np.ndarray]:
    """Pools of nearly equal size and of at least `least` rows, if there are so many; all but one of whole batches.

    A small pool pads more: of each, the longest batch is the one whose rows differ the most.
    """
    batches, pools = -(-len(order) // size), max(1, len(order) // least)
    return np.split(order, [batches * number // pools * size for number in range(1, pools)])


def _alike(rows: np.ndarray, widths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Groups of `size` rows (one may be smaller) that are alike in each of their widths (n, k).

    Cuts the rows in two, again and again, each time along the width and at the place that leaves the fewest slots.
    """
    batches = -(-len(rows) // size)
    if batches <= 1:
        yield rows
        return
    best, found = np.inf, (rows, 1)
    for column in range(widths.shape[1]):
        rest = np.delete(widths[rows], column, axis=1).sum(axis=1)
        ordered = rows[np.lexsort((-rest, -widths[rows, column]))]
        for cut in sorted({max(1, batches * share // 8) * size for share in (1, 2, 4, 6)}):
            slots = sum(len(part) * int(widths[part].max(axis=0).sum()) for part in (ordered[:cut], ordered[cut:]))
            if slots < best:
                best, found = slots, (ordered, cut)
    ordered, cut = found
    yield from _alike(ordered[:cut], widths, size)
    yield from _alike(ordered[cut:], widths, size)


def _cut(rows: np.ndarray, lengths: np.ndarray, size: int | None, tokens: int | None) -> list[np.ndarray]:
    """Cut rows, in the order they come in, into batches of `size` rows, or of at most `tokens` slots.

    lengths: (n,), or (n, k) where k tensors are padded apart.
    """
    if size is not None:
        # The smaller batch, if any, takes the last rows: the shortest, where they are sorted.
        return [rows[i : i + size] for i in range(0, len(rows), size)]
    assert tokens is not None
    batches = []
    start = 0
    while start < len(rows):
        rest = lengths[rows[start:]].reshape(len(rows) - start, -1)[: tokens + 1]
        slots = np.maximum.accumulate(rest, axis=0).sum(axis=1) * np.arange(1, len(rest) + 1)
        count = max(1, int(np.searchsorted(slots, tokens, side="right")))
        batches.append(rows[start : start + count])
        start += count
    return batches


def sorted_batches(lengths: np.ndarray, rows: int, tokens: int) -> list[np.ndarray]:
    """All features, longest first, in batches of at most `rows` rows and `tokens` slots: for evaluation.

    The longest batch comes first, so that a shortage of memory shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        count = min(rows, max(1, tokens // max(1, int(lengths[order[start]]))))
        batches.append(order[start : start + count])
        start += count
    return batches


def share_of_rank(batch: np.ndarray, rank: int, processes: int, micro_rows: int) -> list[np.ndarray]:
    """The micro-batches of one process: every `processes`-th row of the batch, cut into pieces of nearly equal size.

    Every process gets the same number of pieces; a piece may be empty when the batch has fewer rows than processes.
    """
    longest_share = -(-len(batch) // processes)
    pieces = max(1, -(-longest_share // micro_rows))
    return np.array_split(batch[rank::processes], pieces)


def random_key(*parts: int | str) -> int:
    """A seed in [0, 2^63) from all parts. Source: SHA-256 of their decimal text."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class Plan:
    """All steps of a run. `steps` counts optimizer steps; step k (from 0) trains `rows(k)`."""

    lengths: np.ndarray  # as epoch_batches takes them
    batch_size: int | None
    batch_tokens: int | None
    seed: int
    epochs: float | None
    max_steps: int | None
    group_by_length: bool = True
    steps: int = 0
    steps_per_epoch: list[int] = field(default_factory=list)  # of the epochs seen so far
    _epoch: int = -1
    _batches: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            self.steps = self.max_steps
            return
        assert self.epochs is not None
        whole = int(self.epochs)
        begun = whole + (self.epochs > whole)
        if self.batch_size is not None:  # known without making the batches, which takes seconds for many rows
            self.steps_per_epoch = [-(-len(self.lengths) // self.batch_size)] * begun
        counts = self.steps_per_epoch or [self._load(epoch) for epoch in range(begun)]
        last = round((self.epochs - whole) * counts[-1]) if self.epochs > whole else 0
        self.steps = max(1, sum(counts[:whole]) + last)

    def _load(self, epoch: int) -> int:
        """Make the batches of `epoch` current; their number."""
        if epoch != self._epoch:
            self._batches = epoch_batches(
                self.lengths,
                self.batch_size,
                self.seed,
                epoch,
                self.batch_tokens,
                group_by_length=self.group_by_length,
            )
            self._epoch = epoch
        if epoch == len(self.steps_per_epoch):
            self.steps_per_epoch.append(len(self._batches))
        assert self.steps_per_epoch[epoch] == len(self._batches)
        return len(self._batches)

    def place(self, step: int) -> tuple[int, int]:
        """The epoch of a step and its number within that epoch."""
        epoch = 0
        while True:
            count = self.steps_per_epoch[epoch] if epoch < len(self.steps_per_epoch) else self._load(epoch)
            if step < count:
                return epoch, step
            step -= count
            epoch += 1

    def rows(self, step: int) -> np.ndarray:
        """The global batch of step `step`, int64 (rows,), longest first."""
        epoch, number = self.place(step)
        self._load(epoch)
        return self._batches[number]

    def epochs_done(self, steps: int) -> float:
        """How many epochs `steps` optimizer steps are."""
        if steps == 0:
            return 0.0
        epoch, number = self.place(steps - 1)
        return epoch + (number + 1) / self.steps_per_epoch[epoch]

    def ends_epoch(self, step: int) -> bool:
        """Whether step `step` is the last one of its epoch."""
        epoch, number = self.place(step)
        return number + 1 == self.steps_per_epoch[epoch]
