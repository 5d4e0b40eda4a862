"""Near-duplicates: what is planted is found, what is named is real, and the time stays in proportion."""

from __future__ import annotations

import random
import string
import time

import numpy as np
import pyarrow as pa
import pytest

from finetune.audit.near_duplicates import THRESHOLD, near_pairs, recall


def words(draw: random.Random, count: int) -> list[str]:
    return ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 9))) for _ in range(count)]


def grams(text: str) -> set[str]:
    text = f" {text} "
    return {text[place : place + 5] for place in range(len(text) - 4)}


def jaccard(one: str, other: str) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def pairs_of(*texts: str) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in near_pairs([pa.array(texts)])[0].tolist()]


def planted(count: int, low: float, high: float) -> list[tuple[str, str]]:
    """Texts, each with a copy in which words were replaced until the similarity is between `low` and `high`."""
    draw = random.Random(0)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        tokens = words(draw, draw.randint(15, 30))
        copy = list(tokens)
        for place in draw.sample(range(len(tokens)), draw.randint(1, 4)):
            copy[place] = words(draw, 1)[0]
        pair = " ".join(tokens), " ".join(copy)
        if low <= jaccard(*pair) < high:
            found.append(pair)
    return found


@pytest.mark.parametrize(("low", "high"), [(0.7, 0.75), (0.75, 0.85)])
def test_planted_pairs_are_found_as_often_as_stated(low, high):
    pairs = planted(250, low, high)
    draw = random.Random(1)
    texts = [text for pair in pairs for text in pair] + [" ".join(words(draw, 20)) for _ in range(2000)]
    found, similarity = near_pairs([pa.array(texts)])
    expected = [(2 * number, 2 * number + 1) for number in range(len(pairs))]
    assert set(map(tuple, found.tolist())) <= set(expected)
    share = len(found) / len(pairs)
    stated = np.mean([recall(jaccard(*pair)) for pair in pairs])
    assert share >= stated - 3 * np.sqrt(stated * (1 - stated) / len(pairs))
    assert np.allclose(similarity, [jaccard(texts[one], texts[other]) for one, other in found])


def test_recall_grows_with_similarity():
    assert recall(THRESHOLD) == pytest.approx(0.9959, abs=1e-4)
    assert recall(0.5) < 0.75 < recall(0.6) < recall(0.8) < recall(1.0) == 1.0


def test_case_and_white_space_do_not_part_texts():
    assert pairs_of("Where is my  parcel?", "where is\tmy parcel? ", "Something else entirely") == [(0, 1)]


def test_short_empty_and_foreign_texts():
    assert pairs_of("", "a", "ab", "A", "", "你好，世界。今天天气很好", "你好，世界。今天天气很好！") == [
        (0, 4),
        (1, 3),
        (5, 6),
    ]
    assert pairs_of("one") == []
    assert len(near_pairs([pa.array([], pa.string())])[0]) == 0


def test_rows_of_two_texts_are_alike_when_both_are():
    long = "the quick brown fox jumps over the lazy dog and runs away"
    first = pa.array([long, long, long])
    second = pa.array(["a question of money", "a question of time and space", "A question of money"])
    pairs, similarity = near_pairs([first, second])
    assert pairs.tolist() == [[0, 2]]
    assert similarity.tolist() == [1.0]
    assert len(near_pairs([pa.array(["a sentence", "another one"]), pa.array(["another one", "a sentence"])])[0]) == 0


def test_a_template_in_every_row_costs_no_square():
    texts = [f"Dear customer, your order number {number:06d} was sent to you this morning." for number in range(2000)]
    begun = time.process_time()
    pairs, similarity = near_pairs([pa.array(texts)])
    assert time.process_time() - begun < 10
    assert set(pairs.ravel().tolist()) == set(range(2000))
    assert similarity.min() >= THRESHOLD
