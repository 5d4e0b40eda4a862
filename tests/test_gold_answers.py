"""Answers against their offsets: left alone, moved when there is one place near by, else reported or left out."""

import json

import pytest

from finetune import audit, data
from finetune.audit.gold_answers import RADIUS
from finetune.errors import DataError
from finetune.recipe import load

CONTEXT = "Ada lives in Paris. Bob lives in Rome. " + "x" * 3 * RADIUS + " Cleo lives in Rome."
GOOD = {"question": "Where does Ada live?", "context": CONTEXT, "answers": {"text": ["Paris"], "answer_start": [13]}}


def findings(folder, *rows, extra="", columns=""):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(
        f"task: span\nmodel: {{checkpoint: ./none}}\ndata:\n  path: {{train: ./train.jsonl}}\n"
        f"  columns: {{question: question, context: context, answers: answers{columns}}}\n{extra}train: {{epochs: 1}}\n"
        "output: out\n"
    )
    recipe = load(path)
    return audit.rows(recipe, data.load(recipe))


def row(text, start, **changes):
    return GOOD | {"answers": {"text": [text], "answer_start": [start]}} | changes


def starts(found):
    return [answers["answer_start"] for answers in found.splits["train"].column("answers")]


def test_answers_at_their_place_are_left_alone(tmp_path):
    found = findings(tmp_path, GOOD)
    assert starts(found) == [[13]]
    assert not any("moved" in note for note in found.notes)


def test_misplaced_answer_moves_to_the_only_place_near_by(tmp_path):
    plain = findings(tmp_path, GOOD).splits["train"].fingerprint
    found = findings(tmp_path, GOOD, row("Paris", 16), row("Rome", 0), row("Paris", -1))
    assert starts(found) == [[13], [13], [33], [13]]
    [note] = [note for note in found.notes if "moved" in note]
    assert "3 answers were not at their answer_start and were moved by up to 33 characters" in note
    assert "train.jsonl, line 2" in note
    assert found.splits["train"].fingerprint != plain


def test_corrected_rows_have_another_fingerprint_than_the_uncorrected(tmp_path):
    one = findings(tmp_path, row("Paris", 12)).splits["train"]
    assert one.fingerprint != data.load(load(tmp_path / "recipe.yaml"))["train"].fingerprint


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("Berlin", 13), "'Berlin' is not in the context"),
        (row("lives", 17), "'lives' expected at character 17, found 's. Bo'; it stands at 4, 24, "),
        (row("Paris", 13 + RADIUS + 1), "it stands at 13; correct its answer_start"),
        (row("Paris", 13, question=" "), "question: empty"),
        (row("Paris", 13, context="\n"), "context: empty"),
    ],
)
def test_bad_rows_are_errors_or_left_out(tmp_path, bad, message):
    with pytest.raises(DataError) as error:
        findings(tmp_path, GOOD, bad | {"id": "b"})
    assert "train.jsonl, line 2" in str(error.value)
    assert message in str(error.value)
    found = findings(tmp_path, GOOD | {"id": "a"}, bad | {"id": "b"}, extra="  on_bad_row: skip\n", columns=", id: id")
    assert found.splits["train"].column("id") == ["a"]
    assert list(found.splits["train"].dropped.values()) == [["b"]]
    assert any("1 left out" in note for note in found.notes)


@pytest.mark.parametrize("start", [13 + RADIUS, 13 - RADIUS])
def test_a_place_exactly_at_the_radius_is_near(tmp_path, start):
    assert starts(findings(tmp_path, row("Paris", start))) == [[13]]


def test_empty_texts_are_no_answer(tmp_path):
    found = findings(tmp_path, GOOD, GOOD | {"answers": {"text": [""], "answer_start": [-1]}})
    assert found.splits["train"].column("answers")[1] == {"text": [], "answer_start": []}


@pytest.mark.parametrize(
    ("impossible", "answers", "message"),
    [
        (True, {"text": ["Paris"], "answer_start": [13]}, "is_impossible is true: expected no answers, found 1"),
        (False, {"text": [], "answer_start": []}, "is_impossible is false: expected answers, found none"),
    ],
)
def test_is_impossible_must_agree_with_the_answers(tmp_path, impossible, answers, message):
    bad = GOOD | {"is_impossible": impossible, "answers": answers}
    with pytest.raises(DataError, match=message):
        findings(tmp_path, bad, columns=", is_impossible: is_impossible")
    fine = GOOD | {"is_impossible": not impossible, "answers": answers}
    assert len(findings(tmp_path, fine, columns=", is_impossible: is_impossible").splits["train"]) == 1
