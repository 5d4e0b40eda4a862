"""Rows from files that the tests write: what comes in comes out, byte for byte, once, and in flat memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_recipes import jsonl, make, write

from finetune import data
from finetune.data import parsing as parse
from finetune.errors import DataError, StorageError
from finetune.features import Features
from finetune.rows import Rows

TEXTS = [
    "NA",
    "null",
    "nan",
    "None",
    "",
    "001",
    "1e5",
    "True",
    " blanks ",
    'a "quoted" word',
    "it's",
    "-",
    "#",
    "ünï 😀",
]
TEXTS += ["a\u2028b\x85c\x0bd\u00a0e", "مرحبا", "e\u0301", "a,b;c", "\\n", "{}", "1.0", "=1+1"]

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}  # of processes that a test starts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def train(folder: Path, path: str, role: str = "text", **keys) -> Rows:
    return data.load(make(folder, path, role, **keys))["train"]


# ------------------------------------------------------------------------------------------------------- byte for byte


def as_csv(texts: list[str]) -> str:
    return "text,label\n" + "".join(f"{quoted(text)},x\n" for text in texts)


def as_tsv(texts: list[str]) -> str:
    return "text\tlabel\n" + "".join(f"{text}\tx\n" for text in texts)


def as_jsonl(texts: list[str]) -> str:
    return jsonl([{"text": text, "label": "x"} for text in texts])


def as_json(texts: list[str]) -> str:
    return json.dumps({"version": "1", "data": [{"text": text, "label": "x"} for text in texts]})


@pytest.mark.parametrize(
    ("name", "form", "more"),
    [
        ("rows.csv", as_csv, ["two\nlines", "two\r\nlines", "a\ttab", '"', '""']),
        ("rows.tsv", as_tsv, ['"', '"open', "a\rb"]),
        ("rows.jsonl", as_jsonl, ["two\nlines", "a\ttab", "\u0001"]),
        ("rows.json", as_json, ["two\nlines", "a\ttab"]),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_text_is_kept_byte_for_byte(tmp_path, name, form, more, mark):
    write(tmp_path, name, mark + form(TEXTS + more))
    rows = train(tmp_path, f"./{name}")
    assert rows.column("text") == TEXTS + more
    assert rows.table.schema.field("text").type == pa.string()
    assert set(rows.column("label")) == {"x"}


def test_a_parquet_column_that_is_there_twice_matters_where_it_is_read(tmp_path):
    columns = [pa.array(["good"]), pa.array(["x"]), pa.array([1]), pa.array([2])]
    for last in ("n", "label"):
        pq.write_table(pa.table(columns, names=["text", "label", "n", last]), tmp_path / "a.parquet")
        if last == "n":
            assert train(tmp_path, "./a.parquet").column("text") == ["good"]
    with pytest.raises(DataError, match=r"a\.parquet: column 'label' is there twice"):
        train(tmp_path, "./a.parquet")


def test_parquet_text_is_kept_and_only_used_columns_are_read(tmp_path):
    pq.write_table(
        pa.table({"text": TEXTS, "label": ["x"] * len(TEXTS), "huge": [b"x"] * len(TEXTS)}), tmp_path / "a.parquet"
    )
    rows = train(tmp_path, "./a.parquet")
    assert rows.column("text") == TEXTS
    assert rows.table.column_names == ["text", "label", "id"]
    assert rows.where(3) == "a.parquet, row 3"


def test_lines_may_end_with_carriage_return_and_line_feed(tmp_path):
    for name, form in [("a.csv", as_csv), ("a.tsv", as_tsv), ("a.jsonl", as_jsonl)]:
        write(tmp_path, name, form(["one", "two "]).replace("\n", "\r\n"))
        rows = train(tmp_path, f"./{name}")
        assert rows.column("text") == ["one", "two "], name
        assert rows.column("label") == ["x", "x"], name


def test_a_last_line_without_its_end_is_a_row(tmp_path):
    for name, form in [("a.csv", as_csv), ("a.tsv", as_tsv), ("a.jsonl", as_jsonl)]:
        write(tmp_path, name, form(["one", "two"])[:-1])
        assert train(tmp_path, f"./{name}").column("text") == ["one", "two"], name


def test_labels_of_csv_are_text_and_of_json_as_found(tmp_path):
    write(tmp_path, "a.csv", "text,label\na,1\nb,0\n")
    write(tmp_path, "a.jsonl", jsonl([{"text": "a", "label": 1}, {"text": "b", "label": 0}]))
    write(tmp_path, "b.jsonl", jsonl([{"text": "a", "label": 1}, {"text": "b", "label": 0.5}]))
    write(tmp_path, "c.jsonl", jsonl([{"text": "a", "label": True}, {"text": "b", "label": False}]))
    assert train(tmp_path, "./a.csv").column("label") == ["1", "0"]
    assert train(tmp_path, "./a.jsonl").table.schema.field("label").type == pa.int64()
    assert train(tmp_path, "./b.jsonl").column("label") == [1.0, 0.5]
    flags = train(tmp_path, "./c.jsonl")
    assert flags.column("label") == [1, 0]
    assert flags.class_names == {"label": ["false", "true"]}


def test_a_type_that_shows_late_in_a_large_file_holds_for_all_of_it(tmp_path):
    rows = [{"text": "x" * 1000, "label": 1} for _ in range(3000)] + [{"text": "last", "label": 0.5}]
    write(tmp_path, "a.jsonl", jsonl(rows))  # several blocks
    loaded = train(tmp_path, "./a.jsonl")
    assert loaded.table.schema.field("label").type == pa.float64()
    assert loaded.column("label") == [1.0] * 3000 + [0.5]
    rows = [{"text": "x" * 1000, "labels": []} for _ in range(3000)] + [{"text": "last", "labels": [4, 7]}]
    write(tmp_path, "b.jsonl", jsonl(rows))
    assert train(tmp_path, "./b.jsonl").column("labels")[-1] == [4, 7]


def test_several_labels_in_one_cell(tmp_path):
    write(tmp_path, "a.csv", 'text,labels\na,"joy, fear"\nb,\nc,"[""a, b"", ""c""]"\n')
    assert train(tmp_path, "./a.csv").column("labels") == [["joy", "fear"], [], ["a, b", "c"]]


def test_columns_by_number_need_no_line_of_names(tmp_path):
    write(tmp_path, "a.tsv", "first\t27\tid1\nsecond\t3,4\tid2\n")
    rows = train(tmp_path, "./a.tsv", columns={"text": "0", "labels": "1", "id": "2"})
    assert rows.column("text") == ["first", "second"]
    assert rows.column("labels") == [["27"], ["3", "4"]]
    assert rows.column("id") == ["id1", "id2"]
    assert rows.where(0) == "a.tsv, line 1"


@pytest.mark.parametrize(("name", "cell"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_line_of_just_the_numbers_of_columns_names_them(tmp_path, name, cell):
    write(tmp_path, name, f"0{cell}1\nfirst{cell}x\n")
    assert train(tmp_path, f"./{name}", columns={"text": "0", "label": "1"}).column("text") == ["first"]


def test_a_dot_reaches_inside_a_column(tmp_path):
    write(tmp_path, "a.jsonl", jsonl([{"translation": {"en": "yes", "fr": "oui"}, "a.b": "x"}]))
    rows = train(tmp_path, "./a.jsonl", "source", columns={"source": "translation.en", "target": "a.b"})
    assert (rows.column("source"), rows.column("target")) == (["yes"], ["x"])
    with pytest.raises(
        DataError, match=r"a.jsonl: data.columns.source: no column 'translation.de'; translation has en, fr"
    ):
        train(tmp_path, "./a.jsonl", "source", columns={"source": "translation.de", "target": "a.b"})


def test_squad_questions_become_rows(tmp_path):
    question = {
        "id": "q1",
        "question": "Who?",
        "answers": [{"text": "Ann", "answer_start": 4}, {"text": "A", "answer_start": 4}],
    }
    none = {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": []}
    article = {"title": "T", "paragraphs": [{"context": "I am Ann.", "qas": [question, none]}]}
    write(tmp_path, "dev.json", json.dumps({"version": "v2.0", "data": [article]}))
    rows = train(tmp_path, "./dev.json", "question")
    assert rows.column("context") == ["I am Ann."] * 2
    assert rows.column("answers")[0] == {"text": ["Ann", "A"], "answer_start": [4, 4]}
    assert rows.column("answers")[1] == {"text": [], "answer_start": []}
    assert rows.column("is_impossible") == [False, True]
    assert rows.column("id") == ["q1", "q2"]


def test_answers_may_be_lists_or_objects_in_json_lines(tmp_path):
    both = [{"text": ["b"], "answer_start": [1]}, [{"text": "b", "answer_start": 1}]]
    write(tmp_path, "a.jsonl", jsonl([{"question": "q", "context": "abc", "answers": answers} for answers in both]))
    rows = train(tmp_path, "./a.jsonl", "question")
    assert rows.column("answers") == [both[0], both[0]]
    assert rows.column("id") == ["0", "1"]


def test_json_lines_with_the_suffix_of_json(tmp_path):
    write(tmp_path, "a.json", as_jsonl(["one", "two"]))
    write(tmp_path, "b.json", as_jsonl(["one"]))
    rows = train(tmp_path, "./a.json")
    assert rows.column("text") == ["one", "two"]
    assert rows.where(1) == "a.json, row 1"
    assert train(tmp_path, "./b.json").column("text") == ["one"]


def test_json_may_hold_a_list_for_each_column(tmp_path):
    write(tmp_path, "a.json", json.dumps({"text": ["one", "two"], "label": ["x", "y"]}))
    rows = train(tmp_path, "./a.json")
    assert (rows.column("text"), rows.column("label")) == (["one", "two"], ["x", "y"])


def test_spans_keep_their_offsets(tmp_path):
    spans = [{"start": 0, "end": 3, "label": "PER"}]
    write(tmp_path, "a.jsonl", jsonl([{"text": "Ann sat", "spans": spans}, {"text": "no", "spans": []}]))
    rows = train(tmp_path, "./a.jsonl", "tokens")
    assert rows.column("spans") == [spans, []]


# -------------------------------------------------------------------------------------------------------- conll, conllu


def sentences(tmp_path, name: str, content: str, **keys) -> list[tuple[list[str], list[str]]]:
    write(tmp_path, name, content)
    rows = train(tmp_path, f"./{name}", "tokens", **keys)
    return list(zip(rows.column("tokens"), rows.column("tags"), strict=True))


def test_conll_with_tabs_spaces_comments_and_document_marks(tmp_path):
    expected = [(["EU", "rejects"], ["B-ORG", "O"]), (["#tag", "a\u00a0b"], ["O", "O"])]
    four = "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n\n# a comment of some words here\n"
    four += "#tag X Y O\na\u00a0b X Y O"
    assert sentences(tmp_path, "a.conll", four) == expected
    assert sentences(tmp_path, "b.conll", "EU\tB-ORG\nrejects\tO\n\t\n#tag\tO\na\u00a0b\tO\n\n") == expected
    assert sentences(tmp_path, "c.conll", four.replace("\n", "\r\n")) == expected
    assert sentences(tmp_path, "d.conll", four, columns={"tokens": "0", "tags": "1"})[0][1] == ["NNP", "VBZ"]


def test_conll_in_a_tsv_file_when_columns_are_numbers(tmp_path):
    content = "EU\tB-ORG\nrejects\tO\n\nno\tO\n"
    expected = [(["EU", "rejects"], ["B-ORG", "O"]), (["no"], ["O"])]
    assert sentences(tmp_path, "train.tsv", content, columns={"tokens": "0", "tags": "1"}) == expected


def test_a_sentence_may_go_over_blocks_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.data.readers.BLOCK_BYTES", 16)
    content = "\n".join(f"token{i} T{i}" + ("\n" if i % 5 == 4 else "") for i in range(20)) + "\n"
    found = sentences(tmp_path, "a.conll", content)
    assert [len(tokens) for tokens, _ in found] == [5, 5, 5, 5]
    assert found[3][0] == [f"token{i}" for i in range(15, 20)]


def test_conllu_leaves_out_multiword_tokens_and_empty_nodes(tmp_path):
    lines = ["# sent_id = s1", "# text = vámonos = a", "1-2\tvámonos" + "\t_" * 8, "1\tvamos\tir\tVERB" + "\t_" * 6]
    lines += ["2\tnos\tnosotros\tPRON" + "\t_" * 6, "2.1\tx\tx\tX" + "\t_" * 6, ""]
    assert sentences(tmp_path, "a.conllu", "\n".join(lines)) == [(["vamos", "nos"], ["VERB", "PRON"])]
    assert sentences(tmp_path, "b.conllu", "\n".join(lines), columns={"tokens": "lemma", "tags": "upos"})[0][0] == [
        "ir",
        "nosotros",
    ]
    assert train(tmp_path, "./a.conllu", "tokens").column("id") == ["s1"]


# --------------------------------------------------------------------------------------------------------------- splits


def test_files_of_a_folder_are_told_apart_by_the_words_in_their_names(tmp_path):
    for name in ["en_train-1.csv", "en_train-2.csv", "emerging.dev.csv", "2test.csv", "categories.csv"]:
        write(tmp_path, f"set/{name}", as_csv([name]))
    write(tmp_path, "set/README.md", "not data")
    loaded = data.load(make(tmp_path, "./set/"))
    assert {split: rows.column("text") for split, rows in loaded.items()} == {
        "train": ["en_train-1.csv", "en_train-2.csv"],
        "validation": ["emerging.dev.csv"],
        "test": ["2test.csv"],
    }
    assert [loaded["train"].where(row) for row in (0, 1)] == [
        "set/en_train-1.csv, line 2",
        "set/en_train-2.csv, line 2",
    ]
    assert loaded["train"].column("id") == ["0", "1"]
    assert loaded["test"].source == "set/2test.csv"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["TrainingSet1.csv", "ValidationSet.csv", "TestSet-1-A.csv"], ["train", "validation", "test"]),
        (["myTrain.csv", "TESTSet.csv"], ["train", "test"]),
        (["train.csv", "eval.csv"], ["train", "test"]),
        (["a_train.csv", "a_evaluation.csv"], ["train", "test"]),
        (["SemEval2018-train.csv", "SemEval2018-dev.csv"], ["train", "validation"]),
        (["HumanEval_train.csv", "HumanEval_test.csv"], ["train", "test"]),
    ],
)
def test_split_words_of_file_names(tmp_path, names, splits):
    for name in names:
        write(tmp_path, f"set/{name}", as_csv([name]))
    loaded = data.load(make(tmp_path, "./set/"))
    assert [(split, rows.column("text")) for split, rows in loaded.items()] == [
        (split, [name]) for split, name in zip(splits, names, strict=True)
    ]


def test_files_of_no_split_are_known(tmp_path):
    for name in ["train.csv", "extra.csv", "test.csv", "eval.csv", "SemEval.csv"]:
        write(tmp_path, f"set/{name}", as_csv([name]))
    loaded = data.load(make(tmp_path, "./set/"))
    assert loaded["test"].column("text") == ["test.csv"]
    assert loaded["train"].files_left_out == ("set/SemEval.csv", "set/eval.csv", "set/extra.csv")
    assert train(tmp_path, "./set/train.csv").files_left_out == ()


def test_files_without_such_words_are_train(tmp_path):
    for name in ["b.csv", "a.csv"]:
        write(tmp_path, f"set/{name}", as_csv([name]))
    assert data.load(make(tmp_path, "./set/*.csv"))["train"].column("text") == ["a.csv", "b.csv"]


def test_a_mapping_names_splits_and_splits_rename_them(tmp_path):
    for name in ["a.csv", "b.csv"]:
        write(tmp_path, name, as_csv([name]))
    path = {"first": "a.csv", "second": "*b.csv"}
    loaded = data.load(make(tmp_path, path, splits={"test": "second", "train": "first"}))
    assert [(split, rows.split, rows.column("text")) for split, rows in loaded.items()] == [
        ("test", "test", ["b.csv"]),
        ("train", "train", ["a.csv"]),
    ]


def test_a_split_that_is_asked_for_must_exist(tmp_path):
    write(tmp_path, "a.csv", as_csv(["x"]))
    assert list(data.load(make(tmp_path, "./a.csv"))) == ["train"]
    with pytest.raises(DataError, match=r"data.splits.test: no split 'test'; a.csv has train"):
        data.load(make(tmp_path, "./a.csv", splits={"train": "train", "test": "test"}))


def labelled(count: int) -> str:
    return "text,label\n" + "".join(f"text {i},{'abc'[min(i % 10, 2)]}\n" for i in range(count))  # 10 %, 10 %, 80 %


def test_a_share_of_train_is_stratified_and_always_the_same(tmp_path):
    write(tmp_path, "a.csv", labelled(600) + "single,d\n")
    splits = {"train": "train", "validation": 0.1}
    loaded = data.load(make(tmp_path, "./a.csv", splits=splits))
    rest, cut = loaded["train"], loaded["validation"]
    counts = {label: cut.column("label").count(label) for label in "abcd"}
    assert counts == {"a": 6, "b": 6, "c": 48, "d": 0}
    assert sorted([*rest.column("text"), *cut.column("text")]) == sorted(train(tmp_path, "./a.csv").column("text"))
    assert [int(i) for i in cut.column("id")] == sorted(int(i) for i in cut.column("id"))
    assert cut.where(0) == f"a.csv, line {int(cut.column('id')[0]) + 2}"
    assert cut.source == "a.csv (0.1 of its rows, stratified by label, seed 0)"
    again = data.load(make(tmp_path, "./a.csv", splits=splits))
    assert again["validation"].column("id") == cut.column("id")
    assert again["validation"].fingerprint == cut.fingerprint
    other = data.load(make(tmp_path, "./a.csv", splits=splits | {"validation": 0.2}))
    assert other["train"].fingerprint != rest.fingerprint
    # The order is part of the promise: it may never change with a version of numpy.
    assert cut.column("id")[:5] == ["2", "3", "11", "13", "20"]


def test_a_share_leaves_train_a_row_of_every_label(tmp_path):
    write(tmp_path, "a.csv", "text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate("aaaaaabbcd")))
    loaded = data.load(make(tmp_path, "./a.csv", splits={"train": "train", "validation": 0.6}))
    assert len(loaded["validation"]) == 6
    assert set(loaded["train"].column("label")) == set("abcd")


def test_a_share_of_numbers_is_not_stratified(tmp_path):
    write(tmp_path, "a.csv", "text,label\n" + "".join(f"text {i},{i / 10}\n" for i in range(50)))
    loaded = data.load(make(tmp_path, "./a.csv", splits={"train": "train", "validation": 0.2}))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 40, "validation": 10}
    assert loaded["validation"].source == "a.csv (0.2 of its rows, seed 0)"


def test_limit_draws_a_sample_in_the_order_of_the_file(tmp_path):
    write(tmp_path, "a.csv", labelled(1000))
    rows = train(tmp_path, "./a.csv", limit={"train": 20})
    ids = [int(i) for i in rows.column("id")]
    assert len(ids) == 20
    assert ids == sorted(ids)
    assert max(ids) > 500  # not simply the first ones
    assert rows.column("text") == [f"text {i}" for i in ids]
    assert train(tmp_path, "./a.csv", limit={"train": 5000}).fingerprint == train(tmp_path, "./a.csv").fingerprint
    with pytest.raises(DataError, match=r"data.limit.test: there is no split test; the splits are train"):
        train(tmp_path, "./a.csv", limit={"test": 20})


def test_a_large_selection_goes_to_disk_and_is_equal(tmp_path, monkeypatch, cache):
    write(tmp_path, "a.csv", labelled(1000))
    keys = {"splits": {"train": "train", "validation": 0.3}}
    small = data.load(make(tmp_path, "./a.csv", **keys))
    before = len(list((cache / "rows").glob("*/rows.arrow")))
    monkeypatch.setattr(data, "COPY_BYTES", 0)
    large = data.load(make(tmp_path, "./a.csv", **keys))
    assert len(list((cache / "rows").glob("*/rows.arrow"))) == before + 2
    for split, rows in small.items():
        assert large[split].table.equals(rows.table)
        assert large[split].fingerprint == rows.fingerprint
        assert large[split].where(7) == rows.where(7)


# ---------------------------------------------------------------------------------------------------------------- ids


def test_ids_are_the_column_or_the_number_of_the_row(tmp_path):
    write(
        tmp_path,
        "a.jsonl",
        jsonl([{"text": "a", "label": "x", "id": 7, "key": "k7"}, {"text": "b", "label": "x", "id": 8, "key": "k8"}]),
    )
    assert train(tmp_path, "./a.jsonl").column("id") == ["7", "8"]
    assert train(tmp_path, "./a.jsonl", columns={"text": "text", "label": "label", "id": "key"}).column("id") == [
        "k7",
        "k8",
    ]
    assert train(tmp_path, "./a.jsonl", columns={"text": "text", "label": "label"}).column("id") == ["0", "1"]


# --------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_of_the_content_not_of_the_files(tmp_path):
    write(tmp_path, "a.csv", as_csv(TEXTS))
    write(tmp_path, "b.jsonl", as_jsonl(TEXTS))
    write(tmp_path, "c-1.csv", as_csv(TEXTS[:9]))
    write(tmp_path, "c-2.csv", as_csv(TEXTS[9:]))
    prints = [train(tmp_path, path).fingerprint for path in ("./a.csv", "./b.jsonl", "./c-*.csv")]
    assert len(set(prints)) == 1
    for changed in (
        [*TEXTS[:-1], "x"],
        TEXTS[:-1],
        [TEXTS[1], TEXTS[0], *TEXTS[2:]],
        [*TEXTS[:-2], TEXTS[-2] + TEXTS[-1], ""],
    ):
        write(tmp_path, "d.csv", as_csv(changed))
        assert train(tmp_path, "./d.csv").fingerprint != prints[0]


def test_class_names_are_part_of_the_fingerprint(tmp_path):
    prints = []
    for names in (["a", "b"], ["b", "a"]):
        features = {"label": {"names": names, "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
        table = pa.table({"text": ["x", "y"], "label": [0, 1]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, tmp_path / "a.parquet")
        rows = train(tmp_path, "./a.parquet")
        assert rows.class_names == {"label": names}
        prints.append(rows.fingerprint)
    assert prints[0] != prints[1]


# --------------------------------------------------------------------------------------------------------------- cache


def test_a_file_is_parsed_once_until_it_changes(tmp_path, monkeypatch):
    write(tmp_path, "a.csv", as_csv(["one"]))
    calls = []
    original = parse.parse
    monkeypatch.setattr(data, "parse", lambda *args: calls.append(1) or original(*args))
    assert train(tmp_path, "./a.csv").column("text") == ["one"]
    assert train(tmp_path, "./a.csv").column("text") == ["one"]
    assert len(calls) == 1
    write(tmp_path, "a.csv", as_csv(["two"]))
    assert train(tmp_path, "./a.csv").column("text") == ["two"]
    assert len(calls) == 2
    train(tmp_path, "./a.csv", on_bad_row="skip")
    assert len(calls) == 3


def test_a_refused_file_leaves_nothing_in_the_cache(tmp_path, cache):
    write(tmp_path, "a.csv", as_csv(["one"]) + "too,many,cells\n")
    for _ in range(2):
        with pytest.raises(DataError, match="found 3"):
            train(tmp_path, "./a.csv")
    assert [path.name for path in (cache / "rows").iterdir() if path.is_dir()] == []


def test_a_damaged_entry_is_made_again(tmp_path, cache):
    write(tmp_path, "a.csv", as_csv(["one"]))
    train(tmp_path, "./a.csv")
    (entry,) = (cache / "rows").glob("*/rows.arrow")
    entry.write_bytes(entry.read_bytes()[:-10])
    assert train(tmp_path, "./a.csv").column("text") == ["one"]
    (entry.parent / "manifest.json").write_text("{")
    assert train(tmp_path, "./a.csv").column("text") == ["one"]


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path, monkeypatch):
    write(tmp_path, "a.csv", as_csv(["one"]))
    write(tmp_path, "file", "")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="set FINETUNE_CACHE"):
        train(tmp_path, "./a.csv")


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_folder() == tmp_path / "xdg" / "finetune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.cache_folder() == tmp_path / "home" / ".cache" / "finetune"


FLAT = """
import resource, sys
from pathlib import Path
from finetune import data, recipe
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
data.load(recipe.load("small.yaml"))
before = rss()
rows = data.load(recipe.load("large.yaml"))["train"]
print(len(rows), rss() - before)
"""


def test_memory_is_flat_in_the_number_of_rows(tmp_path, cache):
    with open(tmp_path / "large.jsonl", "w") as file:
        file.writelines(f'{{"text": "{"word " * 40} {i}", "label": "{i % 2}"}}\n' for i in range(200_000))
    write(tmp_path, "small.jsonl", jsonl([{"text": "a", "label": "x"}]))
    for name in ("small", "large"):
        make(tmp_path, f"./{name}.jsonl").source.rename(tmp_path / f"{name}.yaml")
    answer = subprocess.run(
        [sys.executable, "-c", FLAT],
        cwd=tmp_path,
        env=ENVIRONMENT | {"FINETUNE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, megabytes = answer.stdout.split()
    assert int(count) == 200_000
    assert float(megabytes) < 60  # the file has 45 MB, its rows as Python objects 130 MB


# ------------------------------------------------------------------------------------------------------------ encoding


class Letters:
    """Encodes a text as the numbers of its letters; counts how often it is asked."""

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.rows = 0

    def encoding_key(self) -> str:
        return self.key

    def encode(self, batch, tokenizer):
        self.rows += len(batch["id"])
        halves = [(row, text[i : i + 4]) for row, text in enumerate(batch["text"]) for i in range(0, len(text), 4)]
        return {
            "input_ids": [[ord(letter) + tokenizer for letter in half] for _, half in halves],
            "row": [row for row, _ in halves],
            "truncated": [False] * len(halves),
        }


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Rows:
    monkeypatch.setattr(data, "ENCODE_ROWS", 2_000)
    write(tmp_path, "a.csv", as_csv([f"text {i}" for i in range(5000)]))
    return train(tmp_path, "./a.csv")


def encode(rows: Rows, task: Letters, tokenizer: int = 0) -> Features:
    return data.encode(rows, task, tokenizer, str(tokenizer))


def test_features_are_encoded_in_blocks_and_point_to_their_rows(rows):
    features = encode(rows, Letters())
    assert len(features) == sum(-(-len(text) // 4) for text in rows.column("text"))
    last = np.flatnonzero(features.scalars["row"] == 4999)
    assert "".join(chr(n) for i in last for n in features.sequences["input_ids"][i]) == "text 4999"
    assert features.scalars["row"].dtype == np.int64
    assert features.scalars["truncated"].dtype == bool


def test_the_second_start_finds_the_features(rows):
    task = Letters()
    first = encode(rows, task)
    second = encode(rows, task)
    assert (first.cached, second.cached) == (False, True)
    assert task.rows == 5000
    assert second.sequences["input_ids"].values.tolist() == first.sequences["input_ids"].values.tolist()


def test_another_tokenizer_setting_or_row_is_encoded_anew(rows):
    encode(rows, Letters())
    assert not encode(rows, Letters(), tokenizer=1).cached
    assert not encode(rows, Letters("other")).cached
    assert not encode(rows.take(np.arange(10)), Letters()).cached
    assert encode(rows, Letters()).cached


def test_damaged_features_are_encoded_again(rows, cache):
    encode(rows, Letters())
    for name in ("input_ids.values", "row.scalar", "features.json"):
        (path,) = (cache / "features").glob(f"*/{name}")
        path.write_bytes(path.read_bytes()[:-1])
        features = encode(rows, Letters())
        assert not features.cached, name
        assert features.scalars["row"][-1] == 4999


def test_a_task_that_fails_leaves_nothing_behind(rows, cache):
    class Failing(Letters):
        def encode(self, batch, tokenizer):
            if self.rows:
                raise RuntimeError("stop")
            return super().encode(batch, tokenizer)

    with pytest.raises(RuntimeError, match="stop"):
        encode(rows, Failing())
    assert [path for path in (cache / "features").iterdir() if path.is_dir()] == []


TOGETHER = """
import sys, time
from test_data import Letters
from finetune import data, recipe
class Slow(Letters):
    def encode(self, batch, tokenizer):
        with open("calls", "a") as file:
            file.write("x")
        time.sleep(0.2)
        return super().encode(batch, tokenizer)
data.ENCODE_ROWS = 2_000
rows = data.load(recipe.load("recipe.yaml"))["train"]
features = data.encode(rows, Slow(), 0, "0")
print(features.cached, len(features), int(features.scalars["row"][-1]))
"""


def test_processes_that_start_together_encode_once(rows, tmp_path, cache):
    command = [sys.executable, "-c", TOGETHER]
    started = [
        subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRONMENT | {"FINETUNE_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = sorted(process.communicate(timeout=60)[0].split() for process in started)
    assert [process.returncode for process in started] == [0, 0]
    assert [answer[0] for answer in answers] == ["False", "True"]
    assert answers[0][1:] == answers[1][1:]
    assert (tmp_path / "calls").read_text() == "xxx"  # 5,000 rows in blocks of 2,000, by one of them


def test_what_a_killed_process_left_is_cleared_away(rows, cache):
    features = encode(rows, Letters())
    (folder,) = (path for path in (cache / "features").iterdir() if path.is_dir())
    (folder / "manifest.json").unlink()
    left = folder.with_name(folder.name + ".tmp")
    left.mkdir()
    (left / "input_ids.values").write_bytes(b"half")
    assert len(encode(rows, Letters())) == len(features)
    assert not left.exists()
