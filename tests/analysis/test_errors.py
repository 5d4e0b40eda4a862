"""Kinds of errors of entities, answers and generated texts."""

import numpy as np
import pytest

from finetune.analysis import tags, texts
from finetune.analysis.hard_rows import WordTags
from finetune.scoring.tags import count_entities
from finetune.scoring.texts import answer_scores, text_scores


def test_each_kind_of_entity_error():
    gold = [
        {(0, 2, "PER")},  # right
        {(0, 2, "PER")},  # another extent
        {(0, 2, "PER")},  # another type
        {(0, 2, "PER")},  # both
        {(0, 2, "PER")},  # not found
        set(),  # found, and not there
    ]
    guessed = [{(0, 2, "PER")}, {(1, 2, "PER")}, {(0, 2, "ORG")}, {(1, 3, "ORG")}, set(), {(4, 5, "LOC")}]
    assert tags.entity_errors(gold, guessed) == dict.fromkeys(tags.KINDS, 1)


def test_an_entity_has_one_partner_and_the_likeliest():
    cut_in_two = tags.entity_errors([{(0, 4, "PER")}], [{(0, 2, "PER"), (2, 4, "ORG")}])
    assert (cut_in_two["boundary"], cut_in_two["spurious"], cut_in_two["missed"]) == (1, 1, 0)
    joined = tags.entity_errors([{(0, 2, "PER"), (2, 4, "PER")}], [{(0, 4, "PER")}])
    assert (joined["boundary"], joined["missed"]) == (1, 1)


def test_entities_of_tags():
    gold = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    guessed = [["B-PER", "O", "O"], ["O", "B-LOC"]]
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    words = WordTags(
        np.array([1, 2, 0, 0, 3]),
        np.array([1, 0, 0, 1, 3]),
        np.array([0.9, 0.1, 1.0, 0.1, 0.7]),
        np.array([0.9, 0.9, 1.0, 0.9, 0.7]),
    )
    found, rows = tags.entities(
        ["a", "b"], np.array([2.0, 0.1]), gold, guessed, words, names, count_entities(gold, guessed)
    )
    assert found.errors == dict.fromkeys(tags.KINDS, 0) | {"right": 1, "boundary": 1}
    assert found.calibration.n == 5
    assert [(one.value, one.n, one.result.value) for one in found.slices if one.metric == "f1"] == [
        ("LOC", 1, 1.0),
        ("PER", 1, 0.0),
    ]
    assert rows.statistic(rows.stats.sum(axis=0, keepdims=True))[0] == pytest.approx(0.5)
    assert [row.id for row in found.worst] == ["a", "b"]
    assert found.worst[0].gold is None
    assert [(one.id, one.word, one.gold, one.likely) for one in found.suspects] == [("b", 0, "O", "B-PER")]


def test_plain_tags_have_a_confusion_matrix_over_words():
    half = np.full(3, 0.5)
    words = WordTags(np.array([0, 1, 1]), np.array([0, 0, 1]), half, half)
    found, rows = tags.tags(["a"], np.zeros(1), [["X", "Y", "Y"]], [["X", "X", "Y"]], words, ["X", "Y"], ["X", "Y"])
    assert found.confusion.counts == [[1, 0], [1, 1]]
    assert rows.statistic(rows.stats.sum(axis=0, keepdims=True))[0] == pytest.approx(2 / 3)


def test_each_kind_of_answer_error():
    gold = [["Paris"], ["the old town"], ["Paris"], ["Paris"], [], []]
    guessed = ["paris", "old", "Rome", "", "Rome", ""]
    questions = ["Where is it?", "In which part?", "How many?", "Und wer?", "Who?", "Somehow"]
    half, by_row = np.full(6, 0.5), answer_scores(gold, guessed)
    found, scores = texts.answers(list("abcdef"), np.zeros(6), questions, gold, guessed, half, by_row)
    assert found.errors == {"right": 2, "boundary": 1, "elsewhere": 1, "missed": 1, "spurious": 1}
    words = {one.value: one.n for one in found.slices if one.by == "question_word"}
    assert words == {"where": 1, "which": 1, "how many": 1, "who": 1, "other": 2}
    lengths = {one.value: one.n for one in found.slices if one.by == "answer_length"}
    assert lengths == {"no answer": 2, "1 word": 3, "2 or 3 words": 1}
    assert scores.stats[:, 0].tolist() == pytest.approx([1, 2 / 3, 0, 0, 0, 1])


def generated(sources, targets, outputs, metric):
    ids, stats = [str(row) for row in range(len(targets))], text_scores([metric], targets, outputs)[metric]
    return texts.generated(ids, np.zeros(len(ids)), sources, targets, outputs, metric, stats)


def test_each_kind_of_text_error():
    sources = ["a b", "one two", "x", "y", "z", "same"]
    targets = ["good text", "three four", "much longer than that", "no", "again", "same"]
    outputs = ["good text", "one two", "short", "not at all so short", "so so so so", "same"]
    found, scores = generated(sources, targets, outputs, "exact_match")
    kinds = {"equal": 2, "empty": 0, "copy_of_source": 1, "repetition": 1, "under_half": 1, "over_double": 2}
    assert found.errors == kinds
    assert found.measures["length_ratio"].value == pytest.approx(sum(map(len, outputs)) / sum(map(len, targets)))
    assert (scores.metric, scores.stats[:, 0].tolist()) == ("exact_match", [1, 0, 0, 0, 0, 1])


def test_a_repetition_that_the_target_has_is_none():
    found, _ = generated(["x", "x"], ["ha ha ha", "no no"], ["ha ha ha"] * 2, "chrf")
    assert found.errors["repetition"] == 1


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rougeL"])
def test_the_metric_of_slices_is_that_of_all_rows(metric):
    from finetune import metrics

    targets, outputs = ["the film was very good indeed", "a plot"], ["the film was very bad indeed", "a plot"]
    _, scores = generated(targets, targets, outputs, metric)
    whole = float(scores.statistic(scores.stats.sum(axis=0, keepdims=True))[0])
    assert whole == pytest.approx(metrics.texts([metric], targets, outputs)[metric].value)
