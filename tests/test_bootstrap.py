from __future__ import annotations

import math
import time
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array

from finetune import bootstrap
from finetune.bootstrap import (
    approximate_randomization,
    interval,
    mcnemar,
    mean_interval,
    paired_differences,
    paired_rows_difference,
    resample_cells,
    resample_rows,
    resample_sums,
    sums_interval,
)
from finetune.record import Interval


def f1(sums: np.ndarray) -> np.ndarray:
    return 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)


def entity_rows(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    gold, predicted = rng.poisson(2, n), rng.poisson(2, n)
    return np.column_stack([rng.binomial(np.minimum(gold, predicted), 0.7), predicted, gold])


def paired_difference(a: np.ndarray, b: np.ndarray, statistic: Any = None, statistic_b: Any = None) -> Any:
    """`paired_differences` in one metric; of scores (n,) that is their mean."""
    measure_a = statistic or (lambda sums: sums[:, 0] / max(len(a), 1))
    measure_b = statistic_b or measure_a
    one, other = (side[:, None] if side.ndim == 1 else side for side in (a, b))
    [found] = paired_differences(
        one, other, lambda sums: measure_a(sums)[:, None], lambda sums: measure_b(sums)[:, None]
    )
    return found


@pytest.mark.parametrize(("n", "right"), [(50, 30), (400, 320), (10_000, 9_100)])
def test_accuracy_interval_is_the_exact_binomial_one(n: int, right: int) -> None:
    found = mean_interval(np.arange(n) < right)
    exact = stats.binom.ppf([0.025, 0.975], n, right / n) / n  # the law of the resampled mean
    assert found.value == right / n
    assert [found.low, found.high] == pytest.approx(exact, abs=1.01 / n)


def test_accuracy_interval_agrees_with_clopper_pearson_and_the_normal_law() -> None:
    found = mean_interval(np.arange(1_000) < 800)
    clopper = stats.binomtest(800, 1_000).proportion_ci(0.95, "exact")
    normal = 0.8 + np.array([-1.96, 1.96]) * math.sqrt(0.8 * 0.2 / 1_000)
    assert [found.low, found.high] == pytest.approx([clopper.low, clopper.high], abs=0.003)
    assert [found.low, found.high] == pytest.approx(normal, abs=0.002)


def test_mean_of_numbers_agrees_with_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2_000)
    found = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [mean_interval(rng.random(200) < 0.7) for _ in range(400)]
    covered = np.mean([one.low <= 0.7 <= one.high for one in found])
    assert 0.91 <= covered <= 0.98


def test_ratio_interval_agrees_with_the_delta_method() -> None:
    rows = entity_rows(2_000, seed=2)
    found = sums_interval(rows, f1)
    value = 2 * rows[:, 0].sum() / rows[:, 1:].sum()
    influence = (2 * rows[:, 0] - value * rows[:, 1:].sum(axis=1)) / rows[:, 1:].sum(axis=1).mean()
    half = 1.96 * influence.std() / math.sqrt(len(rows))
    assert found.value == pytest.approx(value)
    assert [found.low, found.high] == pytest.approx([value - half, value + half], abs=0.06 * half)


def test_equal_rows_in_one_cell_or_each_alone_give_the_same_law() -> None:
    rows = entity_rows(500, seed=3).astype(float)
    gathered, single = resample_sums(rows, f1), resample_sums(csr_array(rows), f1)
    assert len(np.unique(rows, axis=0)) < 500 / 4  # else nothing is gathered
    assert stats.ks_2samp(gathered, single).pvalue > 0.01
    assert gathered.std() == pytest.approx(single.std(), rel=0.05)


def test_cells_of_any_size_are_drawn_by_the_multinomial_law() -> None:
    counts = np.array([400, 3, 0, 60, 16, 1, 17, 3])
    weights = resample_cells(counts, lambda drawn: drawn)
    assert weights.shape == (bootstrap.RESAMPLES, len(counts))
    assert (weights.sum(axis=1) == 500).all()
    shares = counts / 500
    expected = 500 * (np.diag(shares) - np.outer(shares, shares))  # covariance of a multinomial draw
    assert weights.mean(axis=0) == pytest.approx(counts, abs=5 * math.sqrt(100 / bootstrap.RESAMPLES))
    np.testing.assert_allclose(np.cov(weights.T), expected, atol=5)
    for cell, count in enumerate(counts):
        values, seen = np.unique(weights[:, cell], return_counts=True)
        law = stats.binom(500, count / 500).pmf(values)
        assert np.abs(seen / bootstrap.RESAMPLES - law).max() < 0.02


def test_equal_rows_of_a_sparse_array_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[1.0, 0, 2], [0, 0, 0], [1, 0, 2], [0, 3, 0], [1, 0, 2]])
    found: list[list[int]] = []
    monkeypatch.setattr(bootstrap, "resample_cells", lambda counts, *_: found.append(sorted(counts)))
    for stats_of_rows in (rows, csr_array(rows), np.asfortranarray(rows)):
        resample_sums(stats_of_rows, f1)
    assert found == [[1, 1, 3]] * 3


def test_rows_are_weighed_as_in_a_resample() -> None:
    values = np.random.default_rng(5).normal(size=400)
    weights = resample_rows(400, lambda drawn: drawn)
    assert weights.shape == (bootstrap.ROW_RESAMPLES, 400)
    assert (weights.sum(axis=1) == 400).all()
    assert weights.mean(axis=0) == pytest.approx(1.0, abs=0.2)
    assert weights.var() == pytest.approx(1 - 1 / 400, abs=0.02)
    by_weights = interval(values.mean(), weights @ values / 400)
    assert by_weights.model_dump() == pytest.approx(mean_interval(values).model_dump(), abs=0.02)


def test_same_rows_same_interval_and_nobody_elses_numbers_move() -> None:
    values = np.random.default_rng(6).normal(size=300)
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    assert mean_interval(values) == mean_interval(values)
    assert np.random.random() == expected


@pytest.mark.parametrize("rows", [entity_rows(60, 8), np.random.default_rng(8).normal(size=(60, 3))])
def test_block_size_bounds_memory_and_leaves_the_numbers(rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def total(sums: np.ndarray) -> np.ndarray:
        sizes.append(len(sums))
        return sums[:, 0]

    whole = resample_sums(rows, total)
    monkeypatch.setattr(bootstrap, "_BLOCK", 6_000)
    sizes.clear()
    assert resample_sums(rows, total) == pytest.approx(whole, abs=1e-9)
    assert max(sizes) <= 6_000 / 3
    assert sum(sizes) == bootstrap.RESAMPLES


def test_very_many_different_rows_are_resampled_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_DRAWS", 10_000)
    values = np.random.default_rng(9).normal(size=(100, 1))
    assert len(resample_sums(values, lambda sums: sums[:, 0])) == 1_000
    assert len(resample_sums(np.ones((100, 1)), lambda sums: sums[:, 0])) == bootstrap.RESAMPLES


def test_accuracy_of_ten_thousand_rows_takes_under_a_second() -> None:
    right = np.random.default_rng(10).random(10_000) < 0.8
    start = time.perf_counter()
    mean_interval(right)
    assert time.perf_counter() - start < 1.0


def test_no_row_and_one_row() -> None:
    nothing = Interval(value=None)
    assert mean_interval(np.array([])) == nothing
    assert sums_interval(np.empty((0, 3)), f1) == nothing
    assert mean_interval(np.array([0.5])) == Interval(value=0.5)
    assert sums_interval(np.array([[1, 1, 1]]), f1) == Interval(value=1.0)
    assert mean_interval(np.ones(20)) == Interval(value=1.0, low=1.0, high=1.0)


def test_undefined_values() -> None:
    samples = np.linspace(0, 1, 1_001)
    assert interval(None, samples) == interval(float("nan"), samples) == Interval(value=None)
    assert interval(0.5, samples) == Interval(value=0.5, low=0.025, high=0.975)
    samples[:40] = np.nan
    assert interval(0.5, samples).low == pytest.approx(0.064)
    samples[:60] = np.nan
    assert interval(0.5, samples) == Interval(value=0.5)
    assert interval(0.5, np.full(10, np.nan)) == Interval(value=0.5)


def test_paired_difference_agrees_with_the_t_test() -> None:
    rng = np.random.default_rng(11)
    shared = rng.normal(size=300)
    a, b = shared + rng.normal(0.05, 0.5, 300), shared + rng.normal(0.0, 0.5, 300)
    found = paired_difference(a, b)
    expected = stats.ttest_rel(a, b)
    assert found.n == 300
    assert found.difference.value == pytest.approx((a - b).mean())
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    low, high = expected.confidence_interval(0.95)
    assert [found.difference.low, found.difference.high] == pytest.approx([low, high], abs=0.006)


def test_a_mean_of_runs_against_one_run() -> None:
    rng = np.random.default_rng(14)
    one, runs = rng.random(200), rng.random((200, 3))
    found = paired_difference(one, runs, lambda sums: sums[:, 0] / 200, lambda sums: sums.mean(axis=1) / 200)
    plain = one - runs.mean(axis=1)
    assert found.difference.value == pytest.approx(plain.mean())
    assert found.error == pytest.approx(plain.std() / math.sqrt(200), rel=0.05)


def test_weighted_rows_give_the_same_difference() -> None:
    rng = np.random.default_rng(15)
    a, b = rng.random(150), rng.random(150)
    found = paired_rows_difference(150, *((lambda drawn, side=side: drawn @ side / 150) for side in (a, b)))
    expected = paired_difference(a, b)
    assert found.difference.value == pytest.approx(expected.difference.value)
    assert found.error == pytest.approx(expected.error, rel=0.1)
    assert found.p == pytest.approx(expected.p, abs=0.05)
    assert paired_rows_difference(0, np.sum, np.sum).p is None


def test_counts_of_many_labels_resample_as_those_of_few() -> None:
    rng = np.random.default_rng(16)
    stats_a, stats_b = (rng.random((80, 2)) < share for share in (0.6, 0.4))
    empty = np.zeros((80, bootstrap._WIDE))
    measure = lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1)  # noqa: E731
    narrow = paired_difference(stats_a, stats_b, measure)
    wide_a, wide_b = (np.hstack([side, empty]).astype(float) for side in (stats_a, stats_b))
    wide = paired_difference(wide_a, wide_b, measure)  # other draws of the same law: cells stand in another order
    assert wide.difference.value == narrow.difference.value
    assert wide.difference.model_dump() == pytest.approx(narrow.difference.model_dump(), abs=0.03)
    assert (wide.p, wide.error) == pytest.approx((narrow.p, narrow.error), abs=0.01)
    assert approximate_randomization(wide_a, wide_b, measure) == approximate_randomization(stats_a, stats_b, measure)


def test_pairing_removes_what_the_rows_share() -> None:
    rng = np.random.default_rng(12)
    hard = rng.normal(0, 5, 300)
    a, b = hard + rng.normal(0.5, 1, 300), hard + rng.normal(0, 1, 300)
    assert paired_difference(a, b).p < 0.001
    assert mean_interval(a).low < mean_interval(b).high  # the separate intervals overlap


def test_no_difference_is_seldom_significant() -> None:
    rng = np.random.default_rng(13)
    p = [paired_difference(rng.random(100) < 0.8, rng.random(100) < 0.8).p for _ in range(300)]
    assert np.mean(np.array(p) < 0.05) < 0.08
    assert np.mean(np.array(p) < 0.5) > 0.35


def test_paired_difference_of_a_ratio() -> None:
    a, b = entity_rows(800, 14), entity_rows(800, 15)
    a[:, 0] = np.minimum(a[:, 0] + (np.arange(800) % 4 == 0), a[:, 1:].min(axis=1))
    found = paired_difference(a, b, f1)
    assert found.difference.value == pytest.approx((f1(a.sum(0, keepdims=True)) - f1(b.sum(0, keepdims=True)))[0])
    assert found.difference.low < found.difference.value < found.difference.high
    assert found.p == pytest.approx(approximate_randomization(a, b, f1), abs=0.03)


def test_equal_models_and_missing_rows() -> None:
    rows = entity_rows(50, 16)
    same = paired_difference(rows, rows, f1)
    assert (same.difference, same.p) == (Interval(value=0.0, low=0.0, high=0.0), 1.0)
    assert approximate_randomization(rows, rows, f1) == 1.0
    assert paired_difference(np.empty(0), np.empty(0)).p is None
    assert paired_difference(np.ones(1), np.zeros(1)) == bootstrap.PairedDifference(Interval(value=1.0), None, 1)
    assert approximate_randomization(rows[:0], rows[:0], f1) is None
    with pytest.raises(AssertionError, match="the same rows"):
        paired_difference(np.ones(3), np.ones(4))


def test_mcnemar_by_hand() -> None:
    a = np.array([1] * 10 + [0] * 2 + [1] * 30 + [0] * 8)
    b = np.array([0] * 10 + [1] * 2 + [1] * 30 + [0] * 8)
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b) == (10, 2)
    assert found.p == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # sum of C(12, k), k <= 2
    assert mcnemar(b, a).p == found.p


def test_mcnemar_of_many_and_of_no_discordant_rows() -> None:
    a, b = np.arange(1_100) < 600, np.arange(1_100) >= 600
    chi2 = (600 - 500 - 1) ** 2 / 1_100
    assert mcnemar(a, b).p == pytest.approx(math.erfc(math.sqrt(chi2 / 2)))  # one degree of freedom
    assert mcnemar(a, a) == bootstrap.McNemar(0, 0, 1.0)
    assert mcnemar(a[:0], a[:0]).p is None


def test_a_point_over_four_hundred_rows_is_not_called_significant() -> None:
    a = np.arange(400) < 320
    b = np.roll(np.arange(400) < 316, 12)
    assert a.mean() - b.mean() == pytest.approx(0.01)
    assert mcnemar(a, b).p > 0.3
    assert paired_difference(a, b).p > 0.3


def test_approximate_randomization_against_all_swaps() -> None:
    a, b = entity_rows(9, 17), entity_rows(9, 18)
    observed = abs(f1(a.sum(0, keepdims=True)) - f1(b.sum(0, keepdims=True)))[0]
    gaps = []
    for swapped in product([False, True], repeat=9):
        kept = np.array(swapped)[:, None]
        one, other = np.where(kept, b, a).sum(0, keepdims=True), np.where(kept, a, b).sum(0, keepdims=True)
        gaps.append(abs(f1(one) - f1(other))[0])
    exact = np.mean(np.array(gaps) >= observed - 1e-12)
    assert approximate_randomization(a, b, f1) == pytest.approx(exact, abs=0.02)
