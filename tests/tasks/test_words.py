"""Words of a text, and tags from spans of characters."""

from __future__ import annotations

import pytest

from finetune.tasks.words import join, split_words, tag_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna lives in New York.", ["Anna", "lives", "in", "New", "York", "."]),
        ("  don't…  (x)\n", ["don", "'", "t", "…", "(", "x", ")"]),
        ("snake_case 3.5€", ["snake_case", "3", ".", "5", "€"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("שָׁלוֹם cafe\u0301", ["שָׁלוֹם", "cafe\u0301"]),
        ("a\u00a0b", ["a", "b"]),
        ("👍🏽 ok", ["👍", "🏽", "ok"]),
        ("", []),
        (" \t", []),
    ],
)
def test_words(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words


def test_joined_words_stand_where_they_are_said_to():
    text, places = join(["Anna", "", "é 1", "x"])
    assert text == "Anna  é 1 x"
    assert [text[start:end] for start, end in places] == ["Anna", "", "é 1", "x"]
    assert join([]) == ("", [])


TEXT = "Anna Smith left New York-based Acme"


def tagged(*spans):
    tags, uneven = tag_words(split_words(TEXT), spans)
    return " ".join(tags), uneven


def test_spans_become_iob2():
    assert tagged((0, 10, "PER"), (16, 24, "LOC"), (31, 35, "ORG")) == ("B-PER I-PER O B-LOC I-LOC O O B-ORG", 0)


def test_touching_spans_stay_two():
    assert tagged((5, 10, "PER"), (0, 4, "PER")) == ("B-PER B-PER O O O O O O", 0)


def test_spans_that_end_inside_a_word_are_counted():
    assert tagged((0, 3, "PER")) == ("B-PER O O O O O O O", 1)
    assert tagged((0, 7, "PER"), (7, 10, "LOC")) == ("B-PER I-PER O O O O O O", 2)
    assert tagged((0, 11, "PER")) == ("B-PER I-PER O O O O O O", 1)
    assert tagged((4, 5, "PER")) == ("O O O O O O O O", 1)


def test_no_words():
    assert tag_words([], [(0, 1, "X")]) == ([], 1)
