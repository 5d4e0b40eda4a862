"""Texts to token ids: whatever the way, what the tokenizer's own call gives."""

from __future__ import annotations

import random
import sys

import pytest
import tiny_export
import token_material
from tokenizers import AddedToken, normalizers

from finetune import data
from finetune.features import Ragged, in_memory
from finetune.tasks import encoding
from finetune.tasks.encoding import encode_texts
from finetune.tasks.token import TokenTask

# Every kind of white space, control and zero-width characters, marks that wait for a letter, letters that change their
# length in lower case, characters that are words of their own, special tokens, what is no word at all.
PARTS = (
    *("the", "works", "Steel's", "abx", "U.S.", "x" * 120, "New-York", "cafe\u0301", "\u0301e", "e\u0301\u0323"),
    *("\t", "\n", "\r", "\x0b", "\x1c", "\x1d", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u200b", "\u3000"),
    *("\0", "\ufffd", "\x7f", "\u200d", "\ufeff", "日本", "x日x", "İ", "ΑΣ", "ﬁ", "ß", "각", "각", "🙂", "👩\u200d🔬"),
    *("[SEP]", "[CLS]x", "[MASK]", "[mask]", "[", "SEP]", "…", "''", "##s", ""),
)


def drawn_texts(count, seed=0):
    draw = random.Random(seed)
    return ["".join(draw.choice((part, f"{part} ", f" {part}")) for part in draw.choices(PARTS, k=draw.randint(0, 9)))
            for _ in range(count)]  # fmt: skip


def whole(monkeypatch):
    """Switch the way by parts off."""
    monkeypatch.setattr(encoding, "_frame_of_parts", lambda tokenizer: None)


@pytest.mark.parametrize("max_length", [3, 8, 500])
@pytest.mark.parametrize("strip_accents", [None, False])
def test_parts_of_a_text_give_what_the_whole_does(max_length, strip_accents):
    tokenizer = token_material.wordpiece()
    lower = strip_accents is None
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=strip_accents)
    assert encoding._frame_of_parts(tokenizer) is not None
    texts = [*drawn_texts(2000), "", " ", "the\u0301 \u0301 e"]
    ids, types, truncated = encode_texts(tokenizer, texts, None, max_length)
    expected = tokenizer(texts, truncation=True, max_length=max_length)
    assert [one.tolist() for one in ids] == expected["input_ids"]
    assert types is not None
    assert [one.tolist() for one in types] == expected["token_type_ids"]
    assert truncated.tolist() == [len(one) > max_length for one in tokenizer(texts)["input_ids"]]


def test_both_ways_give_the_same_features(monkeypatch):
    tokenizer, texts = token_material.wordpiece(), drawn_texts(300)
    parts = encode_texts(tokenizer, texts, None, 16)
    whole(monkeypatch)
    other = encode_texts(tokenizer, texts, None, 16)
    for one, two in zip(parts[:2], other[:2], strict=True):
        assert isinstance(one, Ragged)
        assert isinstance(two, Ragged)
        assert (one.values.dtype, one.offsets.dtype) == (two.values.dtype, two.offsets.dtype)
        assert one.values.tolist() == two.values.tolist()
        assert one.offsets.tolist() == two.offsets.tolist()
    assert parts[2].tolist() == other[2].tolist()


def other_normalizer():
    tokenizer = token_material.wordpiece()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace("the works", "steel"), backend.normalizer])
    return tokenizer


def token_with_a_blank():
    tokenizer = token_material.wordpiece()
    tokenizer.add_tokens([AddedToken("New York", normalized=False)])
    return tokenizer


def token_that_is_normalized():
    tokenizer = token_material.wordpiece()
    tokenizer.add_tokens([AddedToken("日", normalized=True)])
    return tokenizer


@pytest.mark.parametrize(
    "make", [other_normalizer, token_with_a_blank, token_that_is_normalized, token_material.byte_level,
             lambda: token_material.byte_level(add_prefix_space=True), tiny_export.tokenizer],
)  # fmt: skip
def test_other_tokenizers_read_whole_texts(make):
    tokenizer = make()
    assert encoding._frame_of_parts(tokenizer) is None
    texts = ["the works", "New York", "is in the works", "x日x", *drawn_texts(100)]
    ids, _, truncated = encode_texts(tokenizer, texts, None, 6)
    assert [one.tolist() for one in ids] == tokenizer(texts, truncation=True, max_length=6)["input_ids"]
    assert truncated.tolist() == [len(one) > 6 for one in tokenizer(texts)["input_ids"]]


def test_a_token_that_is_added_later_counts():
    tokenizer = token_material.wordpiece()
    encode_texts(tokenizer, ["abx york"], None, 16)
    tokenizer.add_special_tokens({"additional_special_tokens": ["abx"]})
    ids, _, _ = encode_texts(tokenizer, ["abx york"], None, 16)
    assert [one.tolist() for one in ids] == tokenizer(["abx york"])["input_ids"]


def test_ragged_columns_are_sequences():
    ragged = Ragged.of([[1, 2], [], [3]])
    features = in_memory({"input_ids": ragged, "token_type_ids": ragged, "row": range(3), "truncated": [False] * 3})
    assert features.sequences == {"input_ids": ragged, "token_type_ids": ragged}


@pytest.mark.parametrize("name", TokenTask.encoders)
def test_the_code_that_encodes_for_a_task_is_part_of_the_key(tmp_path, monkeypatch, name):
    before = data.task_code(TokenTask)
    module = sys.modules[name]
    other = tmp_path / "other.py"
    other.write_text("# another version of it")
    monkeypatch.setattr(module, "__file__", str(other))
    assert data.task_code(TokenTask) != before
