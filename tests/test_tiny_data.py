"""The tiny data of the token, span and seq2seq recipes: valid tags, offsets at the answers, splits apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"
SPLITS = ("train", "validation", "test")
TYPES = {"PRODUCT", "ORDER", "DATE", "PLACE"}


def text_of(path: Path) -> str:
    data = path.read_bytes()
    assert b"\r" not in data
    assert data.endswith(b"\n")
    assert not data.endswith(b"\n\n")
    return data.decode("utf-8")


def sentences(split: str) -> list[list[list[str]]]:
    blocks = text_of(RECIPES / "token" / f"tiny.{split}.conll").removesuffix("\n").split("\n\n")
    return [[line.split("\t") for line in block.split("\n")] for block in blocks]


def records(task: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(RECIPES / task / f"tiny.{split}.jsonl").splitlines()]


def shared(keys: dict[str, set[str]]) -> set[str]:
    return set().union(*(keys[a] & keys[b] for a, b in itertools.combinations(SPLITS, 2)))


@pytest.mark.parametrize("split", SPLITS)
def test_tags_are_iob2_over_the_four_types(split: str) -> None:
    kinds = set()
    for sentence in sentences(split):
        previous = "O"
        for row in sentence:
            assert len(row) == 2, row
            word, tag = row
            assert word
            assert word == word.strip()
            assert tag[:2] != "I-" or previous[2:] == tag[2:], sentence
            assert tag == "O" or tag[:2] in {"B-", "I-"}
            previous = tag
            kinds.add(tag[2:])
    assert kinds - {""} == TYPES


def test_no_sentence_is_in_two_splits() -> None:
    keys = {split: {" ".join(row[0] for row in sentence).lower() for sentence in sentences(split)} for split in SPLITS}
    assert shared(keys) == set()
    assert [len(keys[split]) >= least for split, least in zip(SPLITS, (90, 25, 25), strict=True)] == [True] * 3


@pytest.mark.parametrize("split", SPLITS)
def test_answers_stand_at_their_offsets_as_whole_words(split: str) -> None:
    rows = records("span", split)
    for row in rows:
        assert row.keys() == {"id", "question", "context", "answers", "is_impossible"}
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["is_impossible"] == (not texts)
        for text, start in zip(texts, starts, strict=True):
            end = start + len(text)
            assert row["context"][start:end] == text
            assert not row["context"][max(start - 1, 0) : start].isalnum()
            assert not row["context"][end : end + 1].isalnum()
    share = sum(row["is_impossible"] for row in rows) / len(rows)
    assert 0.1 < share < 0.3


def test_no_context_is_in_two_splits() -> None:
    keys = {split: {row["context"] for row in records("span", split)} for split in SPLITS}
    assert shared(keys) == set()


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_are_trimmed_and_lower_case(split: str) -> None:
    for row in records("seq2seq", split):
        assert row.keys() == {"id", "source", "target"}
        for text in (row["source"], row["target"]):
            assert text
            assert text == text.strip().lower()


def test_no_source_is_in_two_splits() -> None:
    rows = {split: [row["source"] for row in records("seq2seq", split)] for split in SPLITS}
    assert shared({split: set(sources) for split, sources in rows.items()}) == set()
    assert all(len(set(sources)) == len(sources) for sources in rows.values())


@pytest.mark.parametrize("task", ["span", "seq2seq"])
def test_ids_are_unique(task: str) -> None:
    ids = [row["id"] for split in SPLITS for row in records(task, split)]
    assert len(set(ids)) == len(ids)
