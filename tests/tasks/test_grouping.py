"""Our grouping against transformers' own pipeline, on texts, labels and windows drawn at random."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tiny_export
import token_material

from finetune.features import in_memory
from finetune.tasks.grouping import answers, as_tags, encode, merge_windows, read, word_spans, words_apart

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
MAX_LENGTH = 16
BITS = (
    "Anna",
    "U.S.",
    "steel",
    "New-York",
    "abx",
    "e\u0301",
    "İs",
    "日本",
    "works,",
    "(x)",
    "👍🏽",
    "\u200b",
    " ",
    "\t",
)


def texts(count, seed=0):
    draw = random.Random(seed)
    drawn = [" ".join(draw.choice(BITS) for _ in range(draw.randint(1, 30))) for _ in range(count)]
    return ["", "Anna", "Привет, мир! 你好，世界。 שלום עולם", "word " * 300, "[UNK] [SEP] Anna", *drawn]


@pytest.fixture(scope="module", params=["wordpiece", "byte_level", "byte_level_prefix", "word_level"])
def published(request, tmp_path_factory):
    """The stock pipeline over a model of random weights."""
    from transformers import pipeline

    tokenizers = {
        "wordpiece": token_material.wordpiece,
        "byte_level": token_material.byte_level,
        "byte_level_prefix": lambda: token_material.byte_level(add_prefix_space=True),
        "word_level": tiny_export.tokenizer,  # no mark of continued words, and unknown ones
    }
    tokenizer = tokenizers[request.param]()
    tokenizer.model_max_length = MAX_LENGTH
    folder = token_material.save(tmp_path_factory.mktemp("model"), LABELS, tokenizer)
    return pipeline("token-classification", model=str(folder))


def ours(pipe, given, stride, *, entities):
    import torch

    columns = encode(pipe.tokenizer, given, MAX_LENGTH, stride, only_first=not entities)
    features = in_memory(columns)
    outputs = {"label": [], "score": []}
    for ids in columns["input_ids"]:
        with torch.no_grad():
            best, label = pipe.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1).max(-1)
        outputs["label"].append(label.numpy())
        outputs["score"].append(best.numpy())
    found = answers(pipe.tokenizer, read(pipe.tokenizer, given), outputs, features, LABELS, entities=entities)
    return found, columns


def check_equal(found, theirs):
    assert [len(items) for items in found] == [len(items) for items in theirs]
    for mine, other in zip(found, theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert one.keys() == two.keys()
            assert {key: one[key] for key in one if key != "score"} == {key: two[key] for key in two if key != "score"}
            assert one["score"] == pytest.approx(float(two["score"]), abs=1e-5)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("stride", [0, 4, 11])
def test_entities_are_those_of_the_pipeline(published, stride):
    given = texts(40, seed=stride)
    found, columns = ours(published, given, stride, entities=True)
    check_equal(found, [published(text, aggregation_strategy="first", stride=stride) for text in given])
    assert sum(map(len, found)) > 100
    assert len(columns["row"]) > len(given) + 40
    assert not columns["truncated"].any()


def test_plain_items_are_those_of_the_pipeline(published):
    given = texts(15)
    found, columns = ours(published, given, 4, entities=False)
    check_equal(found, [published(text) for text in given])
    assert columns["row"].tolist() == list(range(len(given)))
    assert columns["truncated"].any()
    assert not columns["truncated"][1]


def item(start, end, score=0.5):
    return {"entity_group": "A", "start": start, "end": end, "score": score}


def test_overlapping_entities_of_windows():
    longer, short, later = item(5, 12), item(6, 9, 0.9), item(20, 22)
    assert merge_windows([[short, longer], [later]]) == [longer, later]
    assert merge_windows([[item(5, 9, 0.4)], [item(5, 9, 0.6)]]) == [item(5, 9, 0.6)]
    assert merge_windows([[short, longer]]) == [short, longer]  # one window: nothing to merge
    assert merge_windows([[], []]) == []


def test_words_of_the_pipeline():
    tokenizer = token_material.wordpiece()
    [pieces] = read(tokenizer, ["abx U.S. works"])
    assert word_spans(pieces) == [(0, 3), (4, 5), (5, 6), (6, 7), (7, 8), (9, 14)]
    chart = ("abx U.S. works", [(0, 3), (4, 8), (9, 14)])
    assert words_apart([chart], [pieces]) == (1, 3, "U.S.")


def test_entities_as_tags_count_like_spans():
    gold, found = {("A", 0, 3), ("B", 5, 9)}, {("A", 0, 3), ("A", 5, 9), ("B", 5, 8)}
    sides = as_tags(gold, found)
    assert sides == (["B-A", "O", "O", "B-B"], ["B-A", "B-B", "B-A", "O"])
    assert as_tags(set(), set()) == ([], [])
    assert np.shape(sides) == (2, 4)
