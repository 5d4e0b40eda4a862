"""Thresholds of several labels: each its own where rows are enough, else the common one."""

import numpy as np

from finetune.analysis.thresholds import ENOUGH, fit_thresholds


def test_each_label_gets_its_own_threshold():
    rows = 4 * ENOUGH
    gold = np.zeros((rows, 2), dtype=np.uint8)
    gold[:ENOUGH] = 1
    scores = np.where(gold == 1, [0.31, 0.81], [0.29, 0.79])
    assert fit_thresholds(gold, scores).tolist() == [0.31, 0.8]


def test_a_rare_label_gets_the_common_threshold():
    gold = np.zeros((4 * ENOUGH, 3), dtype=np.uint8)
    gold[:ENOUGH, :2] = 1
    gold[0, 2] = 1
    scores = np.where(gold == 1, 0.6, 0.4)
    scores[0, 2] = 0.1  # alone it would ask for a low threshold, which finds nothing else
    found = fit_thresholds(gold, scores)
    assert found[2] == found[0] == 0.5


def test_without_a_difference_thresholds_are_one_half():
    assert (fit_thresholds(np.zeros((50, 3)), np.full((50, 3), 0.01)) == 0.5).all()
