"""Calibration error, Brier score and temperature against hand-made cases, scikit-learn and known truths."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss

from finetune.analysis import labels
from finetune.analysis.calibration import Claims, calibrate, fit_temperature


def claims(score, right, row=None, rows=None):
    score, right = np.array(score, dtype=float), np.array(right, dtype=float)
    row = np.arange(len(score)) if row is None else np.array(row)
    return Claims("the predicted label", score, right, (score - right) ** 2, row, rows or len(score))


def sampled(rows, width, generator, sharpness=1.5):
    """Logits, and labels drawn with the probabilities that the logits say."""
    logits = sharpness * generator.normal(size=(rows, width))
    drawn = (softmax(logits, axis=1).cumsum(axis=1) < generator.random((rows, 1))).sum(axis=1)
    return logits, np.minimum(drawn, width - 1)


def test_error_and_bins_of_four_scores():
    found = calibrate(claims([0.95, 0.94, 0.55, 0.54], [1, 0, 1, 1]))
    assert found.ece.value == pytest.approx((abs(0.945 - 0.5) * 2 + abs(0.545 - 1.0) * 2) / 4)
    filled = {(round(one.low, 3), round(one.high, 3)): one for one in found.bins if one.n}
    assert {bounds: (one.n, one.accuracy) for bounds, one in filled.items()} == {
        (0.533, 0.6): (2, 1.0),
        (0.933, 1.0): (2, 0.5),
    }
    assert filled[0.933, 1.0].confidence == pytest.approx(0.945)
    assert sum(one.n for one in found.bins) == found.n == 4


def test_a_score_of_one_and_of_nothing_has_a_bin():
    found = calibrate(claims([0.0, 1.0], [0, 1]))
    assert (found.bins[0].n, found.bins[-1].n, found.ece.value) == (1, 1, 0.0)
    assert calibrate(claims([], [])) is None


def test_brier_is_that_of_scikit_learn():
    logits, gold = sampled(200, 4, np.random.default_rng(0))
    found, _ = labels.single(list(map(str, range(200))), np.zeros(200), gold, logits, list("abcd"), None)
    expected = brier_score_loss(gold, softmax(logits, axis=1), scale_by_half=True)
    assert found.calibration.brier.value == pytest.approx(expected)
    two = found.calibration.brier
    assert two.low < expected < two.high


def test_rows_with_several_scores_are_drawn_as_a_whole():
    generator = np.random.default_rng(1)
    score, right = generator.random(300), generator.random(300) < 0.5
    single = calibrate(claims(score, right))
    doubled = calibrate(claims(np.repeat(score, 2), np.repeat(right, 2), np.repeat(np.arange(300), 2), 300))
    assert (doubled.ece, doubled.brier) == (single.ece, single.brier)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_interval_of_the_error_covers_the_truth(factor):
    generator = np.random.default_rng(2)

    def one(rows):
        logits, gold = sampled(rows, 3, generator)
        scores = softmax(factor * logits, axis=1)
        return calibrate(claims(scores.max(axis=1), scores.argmax(axis=1) == gold))

    truth = one(400_000).ece.value
    covered = sum(
        found.ece.low <= truth + 2e-3 and truth - 2e-3 <= found.ece.high for found in (one(600) for _ in range(40))
    )
    assert covered >= 34


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_known_temperature_is_found(factor):
    logits, gold = sampled(4000, 5, np.random.default_rng(3))
    found = fit_temperature(factor * logits, gold)
    assert found.low < factor < found.high
    assert found.high / found.low < 1.15


def test_known_temperature_of_several_labels_is_found():
    generator = np.random.default_rng(4)
    logits = generator.normal(size=(2000, 6))
    gold = (generator.random(logits.shape) < expit(logits)).astype(np.uint8)
    found = fit_temperature(3 * logits, gold)
    assert found.low < 3 < found.high


def test_interval_of_the_temperature_covers_the_truth():
    generator = np.random.default_rng(5)
    fitted = [fit_temperature(2 * logits, gold) for logits, gold in (sampled(300, 3, generator) for _ in range(100))]
    assert 90 <= sum(one.low < 2 < one.high for one in fitted) <= 100


def test_interval_of_a_temperature_of_a_few_rows_ends_where_the_search_does():
    generator = np.random.default_rng(1)
    found = fit_temperature(generator.normal(size=(8, 2)) * 0.05, generator.integers(0, 2, 8))
    assert [found.low, found.high] == pytest.approx([0.02, 50])


def test_no_temperature_where_every_row_is_right_or_scores_say_nothing():
    logits, gold = sampled(200, 3, np.random.default_rng(6))
    assert fit_temperature(logits, logits.argmax(axis=1)) is None
    assert fit_temperature(logits, logits.argmin(axis=1)) is None
    assert fit_temperature(logits[:0], gold[:0]) is None


def test_too_sure_a_model_is_better_calibrated_after_its_temperature():
    logits, gold = sampled(4000, 4, np.random.default_rng(7))
    fitted = fit_temperature(3 * logits[:2000], gold[:2000])
    ids = list(map(str, range(2000)))
    found, scores = labels.single(ids, np.zeros(2000), gold[2000:], 3 * logits[2000:], list("abcd"), fitted)
    calibration = found.calibration
    assert calibration.temperature.value > 1
    assert calibration.ece_after.high < calibration.ece.low
    assert calibration.brier_after.value < calibration.brier.value
    assert scores.metric == "accuracy"
