"""Groups of rows and the metric on each, labels against scikit-learn, the hardest and the suspicious rows."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from finetune.analysis import labels
from finetune.analysis.hard_rows import WordTags, label_suspects, suspects, word_suspects, worst_rows
from finetune.analysis.slices import Groups, column_groups, column_problem, length_groups, row_means, row_ratios, slices


def test_slices_score_their_own_rows():
    scores = row_means("accuracy", np.array([1, 1, 0, 0, 1, 0]))
    found = slices(scores, "source", Groups(["a", "b"], np.array([1, 1, 0, 0, 1, 0])))
    assert [(one.by, one.value, one.n, one.metric, one.result.value) for one in found] == [
        ("source", "a", 3, "accuracy", 0.0),
        ("source", "b", 3, "accuracy", 1.0),
    ]


def test_interval_of_a_slice_is_binomial():
    right = np.arange(1000) % 10 < 7
    [found] = slices(row_means("accuracy", right), "all", Groups(["all"], np.zeros(1000, np.int64)))
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert (found.result.high - found.result.low) / 2 == pytest.approx(half, rel=0.06)


def test_a_ratio_is_that_of_the_sums():
    found = slices(
        row_ratios("f1", np.array([2, 0, 4]), np.array([4, 2, 4])), "x", Groups(["a", "b"], np.array([0, 0, 1]))
    )
    assert [one.result.value for one in found] == [2 / 6, 1.0]


def test_groups_with_nothing_to_find_have_no_value():
    found = slices(
        row_ratios("f1", np.array([0, 0, 4]), np.array([0, 0, 4])), "x", Groups(["a", "b"], np.array([0, 0, 1]))
    )
    assert [one.result.value for one in found] == [None, 1.0]
    gold = np.array([[1, 0], [1, 0], [0, 0]])
    found, _ = labels.multi(list("abc"), np.zeros(3), gold, np.zeros((3, 2)), gold == 1, ["x", "never"], None)
    assert {(one.value, one.result.value) for one in found.slices} == {("x", 1.0), ("never", None)}


def test_one_row_has_no_interval():
    [found] = slices(row_means("f1", np.array([0.5])), "length", length_groups(np.array([7])))
    assert (found.value, found.n, found.result.low, found.result.high) == ("7", 1, None, None)


def test_lengths_fall_into_quarters():
    groups = length_groups(np.array([8, 1, 2, 3, 4, 5, 6, 7]))
    assert groups.names == ["1 to 3", "4 to 5", "6 to 7", "8"]
    assert groups.place.tolist() == [3, 0, 0, 0, 1, 1, 2, 2]
    assert length_groups(np.array([5, 5, 5])).names == ["5"]


def test_large_numbers_are_written_out():
    days = 1614556800.0 + 86400 * np.arange(8)
    assert length_groups(days).names[0] == "1614556800 to 1614729600"
    assert length_groups(np.array([0.25, 1e20])).names == ["0.25 to 1e+20"]


def test_values_of_a_column_are_scored_apart_from_ten_rows_on():
    groups = column_groups(["a"] * 10 + ["b"] * 12 + ["c"] * 9 + ["d"])
    assert groups.names == ["b", "a", "(2 other values)"]
    assert np.bincount(groups.place).tolist() == [12, 10, 10]
    assert column_groups(["1"] * 11 + ["0"] * 10).names == ["1", "0"]


def test_of_many_values_eleven_are_scored_apart_and_numbers_are_quartered():
    words = [f"w{number % 30:02}" for number in range(600)] + ["w03"]
    groups = column_groups(words)
    assert groups.names == ["w03", *(f"w{number:02}" for number in range(11) if number != 3), "(19 other values)"]
    assert np.bincount(groups.place).tolist() == [21, *[20] * 10, 380]
    assert len(column_groups([str(number) for number in range(100)]).names) == 4
    twelve = [f"w{number:02}" for number in range(12)] * 10
    assert column_groups(twelve).names == twelve[:12]


def test_a_column_in_which_most_rows_have_a_value_of_their_own_is_a_problem():
    titles = [f"title {number}" for number in range(200)]
    assert column_groups(titles).names == []
    assert slices(row_means("accuracy", np.ones(200)), "title", column_groups(titles)) == []
    assert column_problem(titles) == "200 different values in 200 rows, none with 10 rows: nothing is scored apart"
    mixed = titles + ["a"] * 100
    said = "201 different values in 300 rows: those that are scored apart (1) have 33% of the rows"
    assert column_problem(mixed) == said
    assert column_problem([*titles, *["a"] * 200]) is None
    assert column_problem(list(map(str, range(200)))) is None


def test_labels_have_the_values_of_scikit_learn():
    generator = np.random.default_rng(0)
    gold, logits = generator.integers(0, 3, 200), generator.normal(size=(200, 4))
    found, _ = labels.single(list(map(str, range(200))), np.zeros(200), gold, logits, list("abcd"), None)
    expected = precision_recall_fscore_support(gold, logits.argmax(axis=1), labels=range(4), zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        ours = [one for one in found.slices if one.metric == name]
        assert [one.value for one in ours] == list("abcd")
        np.testing.assert_allclose([one.result.value for one in ours], values)
        assert [one.n for one in ours] == expected[3].tolist()
        assert all(one.result.low <= one.result.value <= one.result.high for one in ours)


def test_confusion_counts_gold_by_row():
    found = labels.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), ["a", "b", "c"])
    assert found.counts == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_labels_without_mistakes_are_merged_in_a_large_confusion_matrix():
    gold = np.arange(60)
    predicted = np.where(gold < 50, gold, 59)
    found = labels.confusion(gold, predicted, [f"l{number}" for number in gold])
    assert (len(found.labels), found.labels[-1], found.merged) == (40, "(all others)", 21)
    assert np.sum(found.counts) == 60
    assert "l59" in found.labels
    assert {f"l{number}" for number in range(50, 60)} <= set(found.labels)


def test_worst_rows_come_first():
    found = worst_rows(["a", "b", "c"], np.array([0.1, 3.0, 1.0]), ["x", "y", "z"], ["x", "z", "z"])
    assert [(one.id, one.loss, one.gold, one.prediction) for one in found] == [
        ("b", 3.0, "y", "z"),
        ("c", 1.0, "z", "z"),
        ("a", 0.1, "x", "x"),
    ]
    assert len(worst_rows(list(map(str, range(50))), np.zeros(50))) == 20


def test_planted_wrong_labels_are_suspects():
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 3, 400)
    probabilities = generator.dirichlet(np.ones(3), 400) * 0.4
    probabilities[np.arange(400), truth] += 0.6
    gold = truth.copy()
    gold[:12] = (truth[:12] + 1) % 3
    found = suspects([str(row) for row in range(400)], gold, probabilities, list("abc"))
    assert {int(one.id) for one in found} <= set(range(12))
    assert len(found) >= 4
    first = found[0]
    assert (first.gold, first.likely) == ("abc"[gold[int(first.id)]], "abc"[truth[int(first.id)]])
    assert first.likely_score > first.gold_score


def test_right_labels_are_no_suspects():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    assert suspects(list("abcd"), np.array([0, 1, 0, 1]), probabilities, ["x", "y"]) == []


def test_planted_wrong_labels_among_several_are_suspects():
    generator = np.random.default_rng(2)
    truth = generator.random((600, 4)) < 0.3
    probabilities = np.clip(np.where(truth, 0.9, 0.05) + generator.normal(0, 0.05, truth.shape), 0.01, 0.99)
    gold = truth.copy()
    planted = {row: (row % 4, bool(truth[row, row % 4])) for row in range(12)}
    for row, (label, _) in planted.items():
        gold[row, label] ^= True
    found = label_suspects([str(row) for row in range(600)], gold, probabilities, list("abcd"))
    assert {int(one.id) for one in found} <= set(planted)
    assert len(found) >= 4
    for one in found:
        label, there = planted[int(one.id)]
        sides = ("abcd"[label], f"without {'abcd'[label]}")
        assert (one.likely, one.gold) == (sides if there else sides[::-1])
        assert one.gold_score < 0.5 < one.likely_score


def test_a_row_of_words_is_named_once_with_its_clearest_word():
    row, word = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 1, 0])
    tags = WordTags(
        gold=np.array([0, 0, 1, 1, 0, -100]),
        likely=np.array([1, 1, 1, 1, 0, 1]),
        gold_score=np.array([0.2, 0.1, 0.8, 0.7, 0.9, 1.0]),
        likely_score=np.array([0.8, 0.9, 0.8, 0.7, 0.9, 1.0]),
    )
    found = word_suspects(["x", "y", "z"], row, word, tags, ["O", "B-PER"])
    assert [(one.id, one.word, one.gold, one.likely) for one in found] == [("x", 1, "O", "B-PER")]
    assert (found[0].gold_score, found[0].likely_score) == (0.1, 0.9)
    unsure = WordTags(tags.gold, tags.likely, tags.gold_score, np.minimum(tags.likely_score, 0.74))
    assert word_suspects(["x", "y", "z"], row, word, unsure, ["O", "B-PER"]) == []
    assert word_suspects([], row[:0], word[:0], WordTags(row[:0], row[:0], np.empty(0), np.empty(0)), ["O"]) == []
