"""A checkpoint is evaluated with slices, behaviour checks and pairs of the user's own; what the record then holds."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
import tiny_export
import tiny_run

from finetune import assessment, behaviour
from finetune.analysis.directional import read_pairs
from finetune.analysis.perturb import change
from finetune.errors import DataError, RecipeError
from finetune.recipe import load
from finetune.rows import Rows

ROWS = [
    ("the film was very good", "positive", "web", "3"),
    ("a very bad film", "negative", "web", "3"),
    ("not good the plot", "negative", "paper", "8"),
    ("the plot is the plot", "neutral", "paper", "5"),
    ("good good film", "positive", "paper", "2"),
    ("Anna was very bad", "negative", "web", "1"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model whose logits are centred between the rows as they are and in upper case, so that case decides."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny_export.build(tmp_path_factory.mktemp("export"))
    model, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [text for row in ROWS for text in (row[0], row[0].upper())]
    with torch.no_grad():
        logits = model(**words(texts, padding=True, return_tensors="pt")).logits
        model.classifier.bias -= logits.mean(dim=0)
    model.save_pretrained(folder)
    return folder


def recipe(folder, evaluate="", pairs=None, rows=ROWS):
    tiny_run.write_csv(folder / "test.csv", ("text", "label", "source", "stars"), rows)
    if pairs is not None:
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(
        f"""task: sequence
model: {{checkpoint: user/none}}
data: {{path: {{test: ./test.csv}}, splits: {{test: test}}, columns: {{text: text, label: label}}, max_length: 24}}
evaluate: {{{evaluate}}}
output: {folder}/out
""",
        encoding="utf-8",
    )
    return load(path)


PAIRS = [
    {"before": {"text": "good film"}, "after": {"text": "good film"}, "expect": "same", "name": "equal"},
    {"before": {"text": "good film"}, "after": {"text": "good film"}, "expect": "different", "name": "equal"},
    {"before": {"text": "film"}, "after": {"text": "bad film"}, "expect": "higher", "label": "positive"},
    {"before": {"text": "film"}, "after": {"text": "bad film"}, "expect": "lower", "label": "positive"},
]


def analysis(folder, checkpoint, *args):
    return assessment.evaluate(recipe(folder, *args), str(checkpoint)).analysis["test"]


@pytest.fixture(scope="module")
def found(tmp_path_factory, checkpoint):
    """One evaluation with everything that can be asked but columns."""
    asked = "slices: [length], checks: all, directional: ./pairs.jsonl"
    return analysis(tmp_path_factory.mktemp("asked"), checkpoint, asked, PAIRS)


def test_lengths_are_scored_apart(found):
    assert sum(one.n for one in found.slices if one.by == "length") == len(ROWS)
    assert found.calibration.n == np.sum(found.confusion.counts) == len(ROWS)


def test_columns_are_scored_apart_unless_each_row_has_a_value_of_its_own(tmp_path, checkpoint):
    rows = [(*row[:3], f"{row[3]} of {number}") for number, row in enumerate(ROWS * 4)]
    asked = recipe(tmp_path, "slices: [source, stars]", rows=rows)
    record = assessment.evaluate(asked, str(checkpoint))
    groups = {(one.by, one.value): one.n for one in record.analysis["test"].slices if one.by in ("source", "stars")}
    assert groups == {("source", "web"): 12, ("source", "paper"): 12}
    told = "evaluate.slices: stars: 24 different values in 24 rows, none with 10 rows: nothing is scored apart"
    assert told in record.warnings


def test_a_column_that_does_not_exist_is_named_with_those_that_do(tmp_path, checkpoint):
    with pytest.raises(
        DataError, match=r"evaluate.slices: no column 'sorce' \(did you mean source\?\).*'label', 'source'"
    ) as e:
        analysis(tmp_path, checkpoint, "slices: [sorce]")
    assert e.value.exit_code == 2


def test_slices_do_not_change_the_fingerprint(tmp_path, checkpoint):
    from finetune import data

    plain, kept = (data.load(recipe(tmp_path, text))["test"] for text in ("", "slices: [source]"))
    assert plain.fingerprint == kept.fingerprint
    assert kept.kept() == {"source": [row[2] for row in ROWS]}


def test_checks_change_rows_and_count_other_predictions(found, checkpoint):
    checks = {one.name: one for one in found.behaviour if one.measure == "share"}
    assert list(checks) == ["typos", "casing", "punctuation", "names", "gender"]
    assert checks["names"].n == 1
    assert (checks["gender"].n, checks["gender"].changed.value) == (0, None)
    assert checks["casing"].n == checks["typos"].n == len(ROWS)
    pipe_changes = _by_the_pipeline(checkpoint, "casing")
    assert checks["casing"].changed.value == pytest.approx(len(pipe_changes) / len(ROWS))
    assert [one.id for one in checks["casing"].examples] == pipe_changes[:5]
    example = checks["casing"].examples[0]
    assert example.before in tiny_export.LABELS
    assert example.before != example.after


def _by_the_pipeline(checkpoint, kind):
    """Ids of rows to which the pipeline itself gives another label after a change."""
    from finetune import prediction

    classify = prediction.pipeline(str(checkpoint))
    ids = []
    for row, (text, *_) in enumerate(ROWS):
        before, after = (classify(one)[0]["label"] for one in (text, *change(kind, [text]).texts([text])))
        ids += [str(row)] if before != after else []
    assert ids
    return ids


def test_the_record_holds_no_text(found):
    assert not re.search(r"film|plot|very", found.model_dump_json())


def test_pairs_of_the_user_are_judged(found):
    judged = [one for one in found.behaviour if one.measure == "failed"]
    assert [(one.name, one.n, one.changed.value) for one in judged] == [("equal", 2, 0.5), ("pairs", 2, 0.5)]
    assert [one.id for one in judged[0].examples] == ["line 2"]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"before": {"text": "a"}, "after": {"text": "b"}, "expect": "up"}, "line 1: expect: expected higher, lower"),
        (
            {"before": {"text": "a"}, "after": {"text": "b"}, "expect": "lower", "label": "x"},
            "label: expected one of neg",
        ),
        ({"before": {"txt": "a"}, "after": {"text": "b"}, "expect": "same"}, "before: expected an object with a text"),
        ({"first": 1}, "expected an object with the keys before"),
    ],
)
def test_a_bad_pair_is_found_before_the_model_runs(tmp_path, checkpoint, pair, message, monkeypatch):
    monkeypatch.setattr("finetune.evaluation.predict_split", None)
    with pytest.raises(DataError, match=message):
        analysis(tmp_path, checkpoint, "directional: ./pairs.jsonl", [pair])


def test_pairs_may_hold_other_line_ends_and_begin_with_a_mark(tmp_path):
    pair = {"before": {"text": "a\u2028b\x85"}, "after": {"text": "c"}, "expect": "same"}
    path = tmp_path / "pairs.jsonl"
    path.write_text("\ufeff" + (json.dumps(pair, ensure_ascii=False) + "\r\n") * 2, encoding="utf-8")
    assert [(one.line, one.before) for one in read_pairs(path, ["text"], [])] == [(n, pair["before"]) for n in (1, 2)]


def test_an_unknown_check_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="expected typos, casing, punctuation, names or gender, found 'typo'"):
        recipe(tmp_path, "checks: [typo]")


def test_marked_spans_and_answers_move_with_the_text():
    text = "He met Anna"
    spans = [{"start": 7, "end": 11, "label": "PER"}]
    kind = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("label", pa.string())]))
    table = pa.table({"text": [text], "spans": pa.array([spans], kind), "id": ["0"]})
    rows = Rows("test", table, {}, "x", "f")
    new = behaviour._with_changes(rows, ["text"], [change("gender", [text])])
    [[span]], [said] = new.column("spans"), new.column("text")
    assert said == "She met Anna"
    assert said[span["start"] : span["end"]] == "Anna"


@pytest.mark.parametrize(("columns", "found"), [({}, 1), ({"spans": [[{"start": 7, "end": 11, "label": "PER"}]]}, 0)])
def test_words_with_tags_keep_their_marks(columns, found):
    rows = Rows("test", pa.table({"text": ["He met Anna."], **columns}), {}, "x", "f")
    assert len(behaviour._changed("punctuation", rows)[1]) == found


def test_an_answer_changes_with_its_context():
    context, question = "He said that he saw Anna there.", "Whom did he see?"
    answers = {"text": ["Anna"], "answer_start": [context.index("Anna")]}
    kind = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int64()))])
    columns = {"question": [question], "context": [context], "answers": pa.array([answers], kind), "id": ["0"]}
    rows = Rows("test", pa.table(columns), {}, "x", "f")
    one = change("names", [question, context])
    new = behaviour._with_changes(rows, ["question", "context"], [one])
    [found] = new.column("answers")
    assert found["text"] == [one.words["Anna"]]
    assert new.column("context")[0][found["answer_start"][0] :].startswith(one.words["Anna"])
