"""Words to pieces and windows: as the tokenizer says, no word lost, each word once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import token_material

from finetune.features import in_memory
from finetune.tasks.encoding import frame
from finetune.tasks.windows import IGNORED, align, cover, home, pieces_of

WORDS = ("Anna", "U.S.", "steel", "New-York", "abx", "\u200b", "cafe\u0301", "works", "é", "日本", "x" * 30, "…")


@pytest.fixture(scope="module")
def wordpiece():
    return token_material.wordpiece()


def drawn_rows(count, longest, seed=0):
    draw = random.Random(seed)
    return [[draw.choice(WORDS) for _ in range(draw.randint(0, longest))] for _ in range(count)]


@pytest.mark.parametrize("prefix", [None, True])
def test_pieces_are_those_of_a_split_text(prefix):
    """The tokenizer's own word ids say which pieces belong to which word."""
    tokenizer = token_material.wordpiece() if prefix is None else token_material.byte_level(add_prefix_space=prefix)
    rows = drawn_rows(20, 8)
    ids, counts, begins = pieces_of(tokenizer, rows)
    place = number = 0
    for row in rows:
        encoded = tokenizer(row, is_split_into_words=True, add_special_tokens=False)
        assert ids[place : place + len(encoded["input_ids"])].tolist() == encoded["input_ids"]
        owners = encoded.word_ids()
        assert counts[number : number + len(row)].tolist() == [owners.count(word) for word in range(len(row))]
        firsts = [owner != before for owner, before in zip(owners, [None, *owners], strict=False)]
        assert (begins[place : place + len(owners)] >= firsts).all()
        place, number = place + len(owners), number + len(row)
    assert place == len(ids)


def test_pieces_carry_the_space_that_a_text_has():
    """Without a prefix space only words inside a text are written with one: `is_split_into_words` would not do that."""
    tokenizer = token_material.byte_level()
    rows = [["Anna", "is", "in", "Paris"], ["works"], ["is", "é", "…"]]
    ids, _, _ = pieces_of(tokenizer, rows)
    joined = [number for row in rows for number in tokenizer(" ".join(row), add_special_tokens=False)["input_ids"]]
    assert ids.tolist() == joined


def test_where_the_pipeline_would_begin_a_word(wordpiece):
    words = ["U.S.", "abx", "Steel's", "日本", "x"]
    ids, counts, begins = pieces_of(wordpiece, [words])
    tokens = wordpiece.convert_ids_to_tokens(ids)
    assert tokens == ["u", ".", "s", ".", "ab", "##x", "steel", "'", "s", "[UNK]", "[UNK]", "x"]
    assert counts.tolist() == [4, 2, 3, 2, 1]
    assert begins.tolist() == [True] * 4 + [True, False] + [True] * 6


@pytest.mark.parametrize("stride", [0, 1, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 40])
def test_windows_are_those_of_the_tokenizers_library(wordpiece, stride, count):
    text = " ".join(["x", "in", "is"][number % 3] for number in range(count))
    theirs = wordpiece(text, truncation=True, max_length=10, stride=stride, return_overflowing_tokens=True)["input_ids"]
    outer = frame(wordpiece)
    ids = wordpiece(text, add_special_tokens=False)["input_ids"]
    found = cover(np.array([count]), 8, stride)
    assert [outer.around(ids[a:b]) for a, b in zip(found.start, found.stop, strict=True)] == theirs
    assert found.counts.tolist() == [len(theirs)]


@pytest.mark.parametrize(("size", "stride"), [(8, 0), (8, 3), (8, 6), (5, 4)])
def test_home_is_the_window_with_most_context(size, stride):
    for length in range(1, 40):
        windows = cover(np.array([length]), size, stride)
        found = home(np.arange(length), np.full(length, length), size, stride)
        for position in range(length):
            sides = {}
            for number, (start, stop) in enumerate(zip(windows.start, windows.stop, strict=True)):
                if start <= position < stop:
                    left = position - start if start else 10**9
                    sides[number] = min(left, stop - 1 - position if stop < length else 10**9)
            best = max(sides.values())
            assert found[position] == min(number for number, side in sides.items() if side == best)


def aligned(tokenizer, rows, max_length, stride, inner=IGNORED):
    labels = np.arange(sum(map(len, rows)))
    columns = align(tokenizer, rows, labels, np.full(len(labels), inner), max_length, stride)
    return in_memory(columns), labels


@pytest.mark.parametrize("stride", [0, 2, 5])
def test_every_word_stands_once_at_its_first_piece(wordpiece, stride):
    rows = drawn_rows(30, 25, seed=1)
    features, labels = aligned(wordpiece, rows, 12, stride)
    assert max(features.lengths) <= 12
    seen = []
    for number, row in enumerate(features.scalars["row"].tolist()):
        ids, words = features.sequences["input_ids"][number], features.sequences["words"][number]
        gold = features.sequences["labels"][number]
        assert ((words >= 0) == (gold >= 0)).all()
        for piece, word, label in zip(ids, words, gold, strict=True):
            if word >= 0:
                first = wordpiece([rows[row][word]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
                assert piece == first
                seen.append((row, int(word)))
                assert label == sum(map(len, rows[:row])) + word
        assert features.scalars["counted"][number] == (gold >= 0).sum()
    written = [(r, w) for r, row in enumerate(rows) for w, word in enumerate(row) if word != "\u200b"]
    assert sorted(seen) == written
    assert set(features.scalars["row"]) == set(range(len(rows)))
    assert not features.scalars["truncated"].any()
    assert len(labels) > len(written)


def test_a_word_longer_than_a_window_has_one_label(wordpiece):
    features, _ = aligned(wordpiece, [["in", "x." * 20, "is"]], 10, 3)
    assert [words[words >= 0].tolist() for words in (features.sequences["words"][n] for n in range(2))] == [[0, 1], [2]]
    assert len(features) == 2  # windows inside the long word say nothing of any word


def test_labels_inside_a_word_where_the_pipeline_begins_one(wordpiece):
    features, _ = aligned(wordpiece, [["U.S.", "abx"]], 12, 3, inner=7)
    assert features.sequences["labels"][0].tolist() == [IGNORED, 0, 7, 7, 7, 1, IGNORED, IGNORED]
    assert features.sequences["words"][0].tolist() == [-1, 0, -1, -1, -1, 1, -1, -1]
    assert features.scalars["counted"].tolist() == [5]


def test_labels_at_all_pieces_when_asked_for(wordpiece):
    columns = align(wordpiece, [["U.S.", "abx"]], np.array([0, 1]), np.array([7, 8]), 12, 3, every=True)
    features = in_memory(columns)
    assert features.sequences["labels"][0].tolist() == [IGNORED, 0, 7, 7, 7, 1, 8, IGNORED]
    assert features.sequences["words"][0].tolist() == [-1, 0, -1, -1, -1, 1, -1, -1]
    assert features.scalars["counted"].tolist() == [6]


def test_rows_without_words_have_a_window(wordpiece):
    features, _ = aligned(wordpiece, [[], ["in"], ["\u200b"], []], 12, 3)
    assert features.scalars["row"].tolist() == [0, 1, 2, 3]
    assert features.scalars["counted"].tolist() == [0, 1, 0, 0]
    assert features.lengths.tolist() == [2, 3, 2, 2]


def test_type_ids_only_where_the_model_takes_them(wordpiece):
    assert set(aligned(wordpiece, [["in"]], 12, 3)[0].sequences) == {"input_ids", "words", "labels", "token_type_ids"}
    assert "token_type_ids" not in aligned(token_material.byte_level(), [["in"]], 12, 3)[0].sequences
