"""What the audit finds in rows that a test writes, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_run
from row_recipes import jsonl, make, write

from finetune import audit, data
from finetune.audit import Findings
from finetune.errors import DataError
from finetune.recipe import load


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def look(folder: Path, role: str = "text", keys: dict[str, Any] | None = None, **splits: list[dict]) -> Findings:
    """The audit of splits given as rows, written as JSON lines or (with `classes` in keys) as Parquet with names."""
    keys = dict(keys or {})
    classes = keys.pop("classes", None)
    for split, rows in splits.items():
        if classes is None:
            write(folder, f"{split}.jsonl", jsonl(rows))
        else:
            write_classes(folder / f"{split}.parquet", rows, classes.get(split, classes["train"]))
    suffix = "jsonl" if classes is None else "parquet"
    recipe = make(folder, {split: f"{split}.{suffix}" for split in splits}, role, **keys)
    return audit.rows(recipe, data.load(recipe))


def write_classes(path: Path, rows: list[dict], names: list[str]) -> None:
    role = "labels" if "labels" in rows[0] else "label"
    feature: Any = {"names": names, "_type": "ClassLabel"}
    feature = {"feature": feature, "_type": "List"} if role == "labels" else feature
    table = pa.Table.from_pylist(rows)
    info = json.dumps({"info": {"features": {role: feature}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), path)


def refusal(*args, **splits) -> str:
    with pytest.raises(DataError) as caught:
        look(*args, **splits)
    return str(caught.value)


def rows(*labels: Any, first: int = 0) -> list[dict]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels, first)]


def test_good_rows_pass_as_they_are(tmp_path):
    findings = look(tmp_path, train=rows("a", "b", "b"), validation=rows("a", first=10))
    assert findings.notes == []
    assert findings.errors == []
    assert [len(one) for one in findings.splits.values()] == [3, 1]


@pytest.mark.parametrize("order", [("train", "validation", "test"), ("test", "validation", "train")])
def test_a_label_that_train_does_not_have_is_an_error_with_its_rows(tmp_path, order):
    splits = {
        "train": rows("joy", "fear"),
        "validation": rows("joy", "Joy", "Joy", first=10),
        "test": rows("grief", *["new"] * 5, first=20),
    }
    keys = {"splits": {split: split for split in order}}
    lines = refusal(tmp_path, keys=keys, **splits).split("\n")
    assert lines[0] == "data: 3 problems"
    assert set(lines[1:]) == {
        "  validation: label 'Joy' is not in train (validation.jsonl, line 2; validation.jsonl, line 3);"
        " did you mean 'joy'?",
        "  test: label 'grief' is not in train (test.jsonl, line 1); add rows with it to train, or leave it out",
        "  test: label 'new' is not in train (test.jsonl, line 2; test.jsonl, line 3; test.jsonl, line 4, … 5 rows);"
        " add rows with it to train, or leave it out",
    }


@pytest.mark.parametrize("more", [[], ["data.problem=regression"], ["model.keep_head=true"], ["train=null"]])
def test_one_label_in_all_of_train_is_an_error(tmp_path, more):
    path = tiny_run.write_recipe(tmp_path, "a/b")
    for split in ("train", "validation", "test"):
        tiny_run.write_csv(tmp_path / f"{split}.csv", ("text", "label"), [("a film", "1"), ("a plot", "1")])
    recipe = load(path, more)
    found = audit.examine(recipe, data.load(recipe)).problems.lines()
    text = (
        "train: all 2 rows of train.csv have the label '1'; expected two different ones at least: add rows of another"
    )
    assert found == ([] if more else [text])


def test_labels_of_several_are_compared_one_by_one(tmp_path):
    train = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}]
    message = refusal(tmp_path, train=train, test=[{"text": "c", "labels": ["x", "z"]}])
    assert message == (
        "data: test: label 'z' is not in train (test.jsonl, line 1); add rows with it to train, or leave it out"
    )


def test_numbers_that_come_as_texts_may_be_a_regression(tmp_path):
    write(tmp_path, "train.csv", "text,label\na,1.5\nb,2.0\n")
    write(tmp_path, "validation.csv", "text,label\nc,1.7\n")
    paths = {"train": "train.csv", "validation": "validation.csv"}
    recipe = make(tmp_path, paths)
    (error,) = audit.examine(recipe, data.load(recipe)).errors
    assert error.startswith("validation: label '1.7' is not in train (validation.csv, line 2); ")
    assert error.endswith("are they numbers? then say data.problem: regression")
    recipe = make(tmp_path, paths, problem="regression")
    assert audit.examine(recipe, data.load(recipe)).errors == []


@pytest.mark.parametrize("labels", [[[0, 1, 1], [1, 0, 0]], [[0, 1], [1, 0]], [["0", "1", "0"], ["1", "0", "0"]]])
def test_a_zero_or_one_for_each_label_is_refused(tmp_path, labels):
    write(tmp_path, "train.jsonl", jsonl([{"text": "a", "labels": row} for row in labels]))
    recipe = make(tmp_path, {"train": "train.jsonl"})
    (error,) = audit.examine(recipe, data.load(recipe)).errors
    assert error.startswith(f"train: labels: {labels[0]} (train.jsonl, line 1) has a 0 or 1 for each label; expected a")


def test_a_split_without_any_label_has_the_type_of_the_others(tmp_path):
    train = [{"text": "a", "labels": [4, 5]}, {"text": "b", "labels": [5]}]
    found = look(tmp_path, train=train, test=[{"text": "c", "labels": []}]).splits["test"]
    assert (found.table.schema.field("labels").type, found.column("labels")) == (pa.list_(pa.int64()), [[]])


def test_two_labels_may_have_the_names_0_and_1(tmp_path):
    write(tmp_path, "train.jsonl", jsonl([{"text": "a", "labels": row} for row in ([0, 1], [1], [], [0])]))
    recipe = make(tmp_path, {"train": "train.jsonl"})
    assert audit.examine(recipe, data.load(recipe)).errors == []


def test_without_train_no_label_is_missing(tmp_path):
    findings = look(tmp_path, keys={"splits": {"test": "test"}}, test=rows("a", "b"))
    assert findings.errors == []


def test_declared_classes_need_not_all_be_in_train(tmp_path):
    findings = look(tmp_path, keys={"classes": {"train": ["neg", "pos"]}}, train=rows(0, 0), test=rows(1, first=5))
    assert findings.errors == []


def test_labels_beyond_the_declared_classes_are_errors_or_left_out(tmp_path):
    keys = {"classes": {"train": ["neg", "pos"]}}
    splits = {"train": rows(0, 5, 1, -1), "test": rows(1, first=5)}
    lines = refusal(tmp_path, keys=keys, **splits).split("\n")
    assert lines[1:] == [
        "  train: label 5 is none of the 2 classes (train.parquet, row 1)",
        "  train: label -1 is hidden or missing (train.parquet, row 3)",
    ]
    findings = look(tmp_path, keys=keys | {"on_bad_row": "skip"}, **splits)
    assert findings.splits["train"].column("text") == ["text 0", "text 2"]
    assert findings.splits["train"].dropped == {"label out of range": ["1", "3"]}
    assert "train: 2 left out: label out of range (id 1, 3)" in findings.notes
    several = [{"text": "a", "labels": [0, 2]}, {"text": "b", "labels": [1]}]
    findings = look(tmp_path, keys=keys | {"on_bad_row": "skip"}, train=several)
    assert findings.splits["train"].column("text") == ["b"]


def test_a_split_with_hidden_labels_is_left_out_unless_asked_for(tmp_path):
    keys: dict[str, Any] = {"classes": {"train": ["neg", "pos"]}}
    splits = {"train": rows(0, 1), "validation": rows(0, first=5), "test": rows(-1, -1, first=10)}
    findings = look(tmp_path, keys=keys, **splits)
    assert list(findings.splits) == ["train", "validation"]
    assert (
        findings.notes[0] == "test: all 2 labels in test.parquet are -1, which stands for hidden; the split is left out"
    )
    keys["splits"] = {split: split for split in splits}
    assert "test: all 2 labels in test.parquet are -1, which stands for hidden; leave" in refusal(
        tmp_path, keys=keys, **splits
    )


def test_minus_one_is_a_number_like_any_other_where_train_has_it(tmp_path):
    hidden = look(tmp_path, train=rows(0.5, 1.5), test=rows(-1.0, first=5))
    assert list(hidden.splits) == ["train"]
    usual = look(tmp_path, train=rows(0.5, -1.0), test=rows(-1.0, first=5))
    assert list(usual.splits) == ["train", "test"]


def test_labels_of_two_types_across_splits(tmp_path):
    message = refusal(tmp_path, train=rows("1", "2"), test=rows(1, first=5))
    assert message == (
        "data: label: expected one type in all splits, found train.jsonl has text ('1');"
        " test.jsonl has whole numbers (1)"
    )


def test_whole_numbers_beside_fractions_become_fractions(tmp_path):
    findings = look(tmp_path, train=rows(0.5, 1.0), test=rows(1, 2, first=5))
    assert findings.splits["test"].table.schema.field("label").type == pa.float64()
    assert findings.splits["test"].column("label") == [1.0, 2.0]


def test_splits_that_name_classes_differently(tmp_path):
    keys = {"classes": {"train": ["neg", "pos"], "test": ["pos", "neg"]}}
    message = refusal(tmp_path, keys=keys, train=rows(0, 1), test=rows(1, first=5))
    assert "label: the splits name their classes differently (train: neg, pos; test: pos, neg)" in message


def test_a_regression_needs_finite_numbers(tmp_path):
    keys = {"problem": "regression", "columns": {"text": "text", "label": "label"}}
    message = refusal(tmp_path, keys=keys, train=rows("1.5", "two", "inf"))
    assert "train: a regression needs finite numbers as labels, found 'two' (train.jsonl, line 2)" in message
    assert "found 'inf' (train.jsonl, line 3)" in message
    assert look(tmp_path, keys=keys, train=rows("1.5", "2"), test=rows("7", first=5)).errors == []


def test_empty_texts_are_left_out_of_train_and_scored_elsewhere(tmp_path):
    train = [*rows("a", "b"), {"text": "", "label": "a"}, {"text": " \t\u00a0\n", "label": "b"}]
    test = [{"text": "", "label": "a"}, *rows("b", first=9)]
    findings = look(tmp_path, train=train, test=test)
    assert findings.splits["train"].column("text") == ["text 0", "text 1"]
    assert findings.splits["train"].dropped == {"empty text": ["2", "3"]}
    assert findings.splits["test"].column("text") == ["", "text 9"]
    assert "train: 2 rows have an empty text (train.jsonl, line 3; train.jsonl, line 4); left out" in findings.notes
    assert "test: 1 row has an empty text (test.jsonl, line 1); scored like any other" in findings.notes
    assert "split train: 0 rows with a text" in refusal(tmp_path, train=[{"text": "", "label": "a"}])


def test_a_pair_is_empty_when_both_texts_are(tmp_path):
    train = [{"text": a, "text_pair": b, "label": "x"} for a, b in [("a", ""), ("", "b"), ("", " ")]]
    assert look(tmp_path, train=train).splits["train"].column("id") == ["0", "1"]


def test_a_sentence_without_tokens_is_empty(tmp_path):
    train = [{"tokens": ["a"], "tags": ["O"]}, {"tokens": [], "tags": []}]
    assert look(tmp_path, "tokens", train=train).splits["train"].column("id") == ["0"]


def test_ids_that_come_twice(tmp_path):
    train = [{"id": name, **row} for name, row in zip("aba", rows("x", "x", "x"), strict=True)]
    note = "train: of 3 rows, 1 have the id of an earlier row ('a': train.jsonl, line 3)"
    assert note in look(tmp_path, train=train).notes
    keys = {"columns": {"id": "id", "text": "text", "label": "label"}}
    test = [{"id": "c", "text": "x", "label": "x"}, {"id": "b", "text": "y", "label": "x"}]
    notes = look(tmp_path, keys=keys, train=train, test=test).notes
    assert "test: of 2 rows, 1 have the id of a row of train (test.jsonl, line 2); are they the same row?" in notes
    answers = {"text": [], "answer_start": []}
    train = [{"id": "q", "question": f"q{i}", "context": "c", "answers": answers} for i in range(2)]
    message = refusal(tmp_path, "question", train=train)
    assert message == (
        "data: train: of 2 rows, 1 have the id of an earlier row ('q': train.jsonl, line 2);"
        " answers are told apart by their id: make it unique, or name data.columns without it"
    )


def test_rows_left_out_while_reading_are_noted(tmp_path):
    train = [*rows("a", "b"), *[{"text": "no label"}] * 4]
    notes = look(tmp_path, keys={"on_bad_row": "skip"}, train=train).notes
    assert "train: 4 left out: missing label (id 2, 3, 4, …)" in notes
