"""Exchanged labels are found where they matter, and not where a model is merely bad."""

import numpy as np
import pytest

from finetune.mislabelling import below_baseline, better_permutation, renaming
from finetune.record import Interval


def confused(gold, predicted, labels):
    counts = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(counts, (gold, predicted), 1)
    return counts


@pytest.mark.parametrize("labels", [2, 7, 40])
def test_a_permutation_is_found(labels):
    rng = np.random.default_rng(labels)
    gold = rng.integers(0, labels, 600)
    said = np.where(rng.random(600) < 0.8, gold, rng.integers(0, labels, 600))
    order = np.roll(np.arange(labels), 1)
    names = [f"l{number}" for number in range(labels)]
    found = better_permutation(names, confused(gold, order[said], labels))
    assert found.names == {f"l{order[number]}": f"l{number}" for number in range(labels)}
    assert found.better == int((said == gold).sum())
    assert better_permutation(names, confused(gold, said, labels)) is None


@pytest.mark.parametrize("labels", [2, 5, 77])
def test_guessing_is_no_permutation(labels):
    """Of 200 models that guess, the best exchange of the labels is pointed out for almost none."""
    rng = np.random.default_rng(labels)
    names = list(map(str, range(labels)))
    found = [
        better_permutation(names, confused(*rng.integers(0, labels, (2, 400)), labels)) is not None for _ in range(200)
    ]
    assert sum(found) <= 4


def test_two_labels_that_are_confused_are_not_exchanged():
    assert better_permutation(["a", "b", "c"], np.array([[60, 0, 0], [0, 28, 32], [0, 32, 28]])) is None


def test_nothing_to_say_without_rows_or_with_one_label():
    assert better_permutation(["a", "b"], np.zeros((2, 2), dtype=np.int64)) is None
    assert better_permutation(["a"], np.array([[5]])) is None


def test_the_flag_names_the_checkpoints_own_labels():
    found = better_permutation(["LOC", "PER"], np.array([[0, 90], [80, 0]]))
    own = ["O", "B-LOC", "I-LOC", "B-person", "I-person"]
    spelled = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    flag = renaming(found, own, spelled, {"B-person": "B-PER"})
    assert flag == "B-LOC=B-PER,I-LOC=I-PER,B-person=B-LOC,I-person=I-LOC"


def test_below_the_baseline():
    high, low = Interval(value=0.6), Interval(value=0.4)
    assert below_baseline("accuracy", low, "always pos", high) == "accuracy is 0.400, below the 0.600 of always pos"
    assert below_baseline("accuracy", high, "always pos", low) is None
    bleu = below_baseline("bleu", Interval(value=12.34), "copy", Interval(value=57.71))
    assert bleu == "bleu is 12.3, below the 57.7 of copy"
    assert below_baseline("mse", high, "always 1", low).startswith("mse is 0.600, above the 0.400")
    assert below_baseline("mse", low, "always 1", high) is None
    assert below_baseline("f1", Interval(value=None), "x", high) is None
    assert below_baseline("f1", None, "x", high) is None
