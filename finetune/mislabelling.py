"""Signs that the labels of a checkpoint do not mean what its config says, or that it has learned nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.card.figures import score
from finetune.metrics import LOWER_IS_BETTER
from finetune.record import Interval

__all__ = ["Exchange", "below_baseline", "better_permutation", "renaming"]

SHUFFLES = 100
SEED = 0


@dataclass(frozen=True)
class Exchange:
    """Labels whose exchange would give more right answers: name -> better name; right answers now, then, and of all."""

    names: dict[str, str]
    right: int
    better: int
    total: int


def better_permutation(labels: Sequence[str], confusion: NDArray[np.int64]) -> Exchange | None:
    """Other names for the same outputs, where they would score far better.

    confusion: (K, K), gold on axis 0. Far better: the 95 % intervals (Wilson's) of the shares found do not meet, and in
    none of 100 shuffles of the predictions, which keep how often each label is gold and is predicted, the best exchange
    finds as many.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import binomtest, random_table

    total = int(confusion.sum())
    if total == 0 or len(confusion) < 2:
        return None
    meant, said = linear_sum_assignment(confusion, maximize=True)
    now, best = int(np.trace(confusion)), int(confusion[meant, said].sum())
    spans = [binomtest(count, total).proportion_ci(0.95, "wilson") for count in (now, best)]
    if spans[1].low <= spans[0].high:
        return None
    for table in random_table(confusion.sum(axis=1), confusion.sum(axis=0), seed=SEED).rvs(SHUFFLES):
        if table[linear_sum_assignment(table, maximize=True)].sum() >= best:
            return None
    moved = {labels[old]: labels[new] for old, new in zip(said, meant, strict=True) if old != new}
    return Exchange(moved, now, best, total)


def renaming(exchange: Exchange, own: Sequence[str], spelled: Sequence[str], renamed: Mapping[str, str]) -> str:
    """The value of --labels that makes the exchange.

    own: labels as the checkpoint calls them; spelled: as they were read; renamed: what --labels said of them.
    """
    pairs = []
    for name, reading in zip(own, spelled, strict=True):
        prefix, dash, kind = reading.partition("-")  # B-PER
        better = exchange.names.get(reading) or (dash and kind in exchange.names and f"{prefix}-{exchange.names[kind]}")
        if better or name in renamed:
            pairs.append(f"{name}={better or reading}")
    return ",".join(pairs)


def below_baseline(name: str, found: Interval | None, method: str, trivial: Interval | None) -> str | None:
    """What to say when a metric is worse than that of a method that learns nothing; None when it is not."""
    if found is None or trivial is None or found.value is None or trivial.value is None:
        return None
    worse = found.value > trivial.value if name in LOWER_IS_BETTER else found.value < trivial.value
    if not worse:
        return None
    where = "above" if name in LOWER_IS_BETTER else "below"
    return f"{name} is {score(name, found.value)}, {where} the {score(name, trivial.value)} of {method}"
