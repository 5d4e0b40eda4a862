"""Files with something wrong in them: each is refused with file, line and what to do, or left out and counted."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_recipes import jsonl, make, write

from finetune import data
from finetune.data.values import FILL_IN
from finetune.errors import DataError

GOOD = {"text": "good", "label": "x"}
HUGE = "x" * 5_000_000


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def refusal(folder, name: str, role: str = "text", **keys) -> str:
    with pytest.raises(DataError) as caught:
        data.load(make(folder, f"./{name}", role, **keys))
    return str(caught.value)


def line(value: object) -> bytes:
    return (json.dumps(value) + "\n").encode()


FILES = {
    "latin-1 in csv": ("a.csv", b"text,label\ngood,x\ncaf\xe9,x\n", "a.csv, line 3: not UTF-8 (byte 0xe9)"),
    "latin-1 in jsonl": ("a.jsonl", line(GOOD) + b'{"text": "caf\xe9"}\n', "a.jsonl, line 2: not UTF-8 (byte 0xe9)"),
    "encoded surrogate": ("a.tsv", b"text\tlabel\na\xed\xa0\x80\tx\n", "a.tsv, line 2: not UTF-8 (byte 0xed)"),
    "utf-16": ("a.csv", "text,label\na,x\n".encode("utf-16"), "a.csv, line 1: expected UTF-8, found UTF-16"),
    "NUL": ("a.tsv", b"text\tlabel\ngood\tx\na\0b\tx\n", "a.tsv, line 3: a NUL byte"),
    "NUL in conll": ("a.conll", b"EU O\n\nno\0 O\n", "a.conll, line 3: a NUL byte"),
    "empty csv": ("a.csv", b"", "a.csv: the file is empty"),
    "header only": ("a.csv", b"text,label\n", "split train: 0 rows in a.csv"),
    "empty jsonl": ("a.jsonl", b"\n\n", "split train: 0 rows in a.jsonl"),
    "empty list": ("a.json", b"[]", "split train: 0 rows in a.json"),
    "two names alike": ("a.csv", b"text,label,text\na,x,b\n", "a.csv, line 1: column 'text' is named twice"),
    "wrong separator": (
        "a.csv",
        b"text;label\na;x\n",
        "expected columns text and label, or text and labels; found 'text;label' (separated by ';'? a .csv",
    ),
    "a blank in a name": (
        "a.csv",
        b"text, label\na,x\n",
        "text and labels; found 'text', ' label'; say in data.columns",
    ),
    "broken json": (
        "a.json",
        b'[{"text": "a",\n "label": }]',
        "a.json, line 2: not JSON: Expecting value at column 11",
    ),
    "open text in json": (
        "a.json",
        b'[{"text": "a}]',
        "a.json, line 1: not JSON: Unterminated string starting at column 11",
    ),
    "json by column": ("a.json", b'{"data": ["a"], "label": ["x"]}', "text and labels; found 'data', 'label'; say in"),
    "no rows in json": ("a.json", b'{"a": {"text": "b"}}', 'a.json: expected a list of objects, or one under "data"'),
    "not parquet": ("a.parquet", b"text,label\n", "a.parquet: cannot be read as Parquet"),
    "one column of tokens": ("a.conll", b"EU\nrejects\n", "a.conll, line 1: expected a token and a tag"),
}


@pytest.mark.parametrize(("name", "content", "expected"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_file_that_cannot_be_read_is_refused_in_any_case(tmp_path, name, content, expected, on_bad_row):
    write(tmp_path, name, content)
    role = "tokens" if name.endswith(".conll") else "text"
    assert expected in refusal(tmp_path, name, role, on_bad_row=on_bad_row)


ROWS = {
    "broken json": (
        b'{"text": "a", "label": "x"\n',
        "unreadable row",
        "not JSON: Expecting ',' delimiter at column 27",
    ),
    "no json": (b"hello\n", "unreadable row", "not JSON: expected a value at column 1"),
    "two values": (b'{"text": "a"} {"text": "b"}\n', "unreadable row", "not JSON: Extra data at column 15"),
    "no object": (b'["a", "x"]\n', "unreadable row", "expected an object with a key for each column, found list"),
    "key twice": (b'{"text": "a", "text": "b", "label": "x"}\n', "unreadable row", "duplicate key 'text'"),
    "NaN": (b'{"text": "a", "label": NaN}\n', "unreadable row", "NaN is no JSON number"),
    "deep nesting": (b"[" * 100_000 + b"\n", "unreadable row", "not JSON: "),
    "no text": (line({"label": "x"}), "missing text", "text: missing"),
    "text null": (line({"text": None, "label": "x"}), "missing text", "text: missing"),
    "text a number": (line({"text": 5, "label": "x"}), "wrong type", "text: expected text, found a whole number (5)"),
    "text a list": (line({"text": ["a"], "label": "x"}), "wrong type", "text: expected text, found a list (['a'])"),
    "no label": (line({"text": "a"}), "missing label", "label: missing"),
    "label null": (line({"text": "a", "label": None}), "missing label", "label: missing"),
    "label blank": (line({"text": "a", "label": " "}), "missing label", "label: missing"),
    "label a list": (
        line({"text": "a", "label": ["x"]}),
        "wrong type",
        "label: expected text or a number, found a list",
    ),
    "label infinite": (b'{"text": "a", "label": 1e999}\n', "wrong type", "label: expected a finite number, found inf"),
    "huge label": (line({"text": "a", "label": 2**70}), "wrong type", "does not fit into 64 bits"),
    "5 MB": (
        line({"text": HUGE, "label": "x"}),
        "too long",
        "text: a text of 5,000,000 characters, more than 1,000,000",
    ),
    "half a pair": (b'{"text": "a\\ud800", "label": "x"}\n', "bad character", "text: half of a surrogate pair"),
    "escaped NUL": (b'{"text": "a\\u0000", "label": "x"}\n', "bad character", "text: a NUL character"),
}


@pytest.mark.parametrize(("bad", "kind", "expected"), ROWS.values(), ids=ROWS)
def test_a_bad_row_of_json_lines_is_refused_with_its_line_or_left_out(tmp_path, bad, kind, expected):
    write(tmp_path, "a.jsonl", line(GOOD) + b"\n" + bad + line(GOOD))
    message = refusal(tmp_path, "a.jsonl")
    assert message.startswith("data: a.jsonl, line 3: ")
    assert expected in message
    rows = data.load(make(tmp_path, "./a.jsonl", on_bad_row="skip"))["train"]
    assert rows.dropped == {kind: ["1"]}
    assert rows.column("text") == ["good", "good"]
    assert rows.column("id") == ["0", "2"]
    assert [rows.where(0), rows.where(1)] == ["a.jsonl, line 1", "a.jsonl, line 4"]


def test_half_a_pair_among_other_bad_rows_hides_none_of_them(tmp_path):
    write(tmp_path, "a.jsonl", b'{"label": "x"}\n{"text": "a\\ud800", "label": "x"}\n{"text": 5, "label": "x"}\n')
    said = refusal(tmp_path, "a.jsonl")
    assert ["line 1: text: missing" in said, "line 2: text: half of a" in said, "line 3: text: expected" in said] == [
        True
    ] * 3
    write(tmp_path, "a.jsonl", b'{"label": "x"}\n{"text": "a\\ud800", "label": "x"}\n' + line(GOOD))
    rows = data.load(make(tmp_path, "./a.jsonl", on_bad_row="skip"))["train"]
    assert rows.dropped == {"missing text": ["0"], "bad character": ["1"]}
    assert rows.column("text") == ["good"]


def test_labels_of_two_types_hide_no_other_problem(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": None, "label": 1}, {"text": "c", "label": "1"}]
    write(tmp_path, "a.jsonl", jsonl(rows))
    said = refusal(tmp_path, "a.jsonl")
    assert "a.jsonl, line 2: text: missing" in said
    assert "a.jsonl, line 3: text ('1')" in said


LISTS = {
    "target": ("source", "a row has one target: keep one of them, or make a row of each"),
    "text": ("label", "join its parts before, or name another column"),
}


@pytest.mark.parametrize(("role", "other", "remedy"), [(role, *facts) for role, facts in LISTS.items()], ids=LISTS)
def test_a_column_of_lists_where_texts_belong_is_one_problem(tmp_path, role, other, remedy):
    write(tmp_path, "a.jsonl", line({role: ["a", "b"], other: "x"}) * 30)
    expected = f"data: a.jsonl: data.columns.{role}: expected texts, found a list in each row of '{role}' (['a', 'b']);"
    assert refusal(tmp_path, "a.jsonl", "source" if role == "target" else role) == f"{expected} {remedy}"


CELLS = {
    "a cell is absent": ("a.csv", "text,label\ngood,x\nbad\ngood,x\n", "expected 2 cells, found 1"),
    "a cell too many": ("a.csv", "text,label\ngood,x\nbad, indeed,x\ngood,x\n", "expected 2 cells, found 3"),
    "text after a quote": ("a.csv", 'text,label\ngood,x\n"bad" one,x\ngood,x\n', "not CSV: ',' expected after '\"'"),
    "a tab too many": ("a.tsv", "text\tlabel\ngood\tx\nba\td\tx\ngood\tx\n", "expected 2 cells, found 3"),
    "an empty label": ("a.csv", "text,label\ngood,x\nbad,\ngood,x\n", f"label: missing; {FILL_IN}"),
}


@pytest.mark.parametrize(("name", "content", "expected"), CELLS.values(), ids=CELLS)
def test_a_bad_row_of_cells(tmp_path, name, content, expected):
    write(tmp_path, name, content)
    assert refusal(tmp_path, name) == f"data: {name}, line 3: {expected}"
    rows = data.load(make(tmp_path, f"./{name}", on_bad_row="skip"))["train"]
    assert rows.column("text") == ["good", "good"]
    assert list(rows.dropped.values()) == [["1"]]


def test_a_quote_that_is_never_closed(tmp_path):
    write(tmp_path, "a.csv", 'text,label\ngood,x\n"bad,x\ngood,x\ngood,x\n')
    assert refusal(tmp_path, "a.csv") == "data: a.csv, line 3: a quote that is never closed"


def test_lines_are_counted_through_quoted_newlines(tmp_path):
    write(tmp_path, "a.csv", 'text,label\n"one\ntwo\nthree",x\nbad\n')
    assert refusal(tmp_path, "a.csv").startswith("data: a.csv, line 5: ")


def test_lines_are_counted_through_the_blocks_of_a_file(tmp_path):
    good = jsonl([{"text": "x" * 1000, "label": "x"}] * 2500)
    write(tmp_path, "a.jsonl", good + "{\n" + good)
    assert refusal(tmp_path, "a.jsonl").startswith("data: a.jsonl, line 2501: ")
    write(tmp_path, "b.jsonl", good.encode() + b"\xff\n")
    assert refusal(tmp_path, "b.jsonl").startswith("data: b.jsonl, line 2501: not UTF-8")


def test_an_optional_column_that_shows_late_is_missing_before(tmp_path):
    rows = [{"text": "x" * 2000, "label": "a"}] * 1000 + [{"text": "c", "label": "b", "text_pair": "d", "id": 7}]
    write(tmp_path, "a.jsonl", jsonl(rows))
    assert "a.jsonl, line 1: text_pair: missing" in refusal(tmp_path, "a.jsonl")
    columns = {"text": "text", "label": "label"}
    assert len(data.load(make(tmp_path, "./a.jsonl", columns=columns))["train"]) == 1001
    loaded = data.load(make(tmp_path, "./a.jsonl", on_bad_row="skip"))["train"]
    assert (loaded.column("id"), loaded.column("text_pair")) == (["7"], ["d"])


def test_an_optional_column_that_only_a_further_file_has(tmp_path):
    write(tmp_path, "set/a.csv", "text,label\na,x\n")
    write(tmp_path, "set/b.csv", "text,text_pair,label\na,b,x\n")
    assert "set/b.csv: has text_pair, which a file before it lacks" in refusal(tmp_path, "set/*.csv")


def test_labels_of_two_types_are_refused_with_both(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}, {"text": "c", "label": "1"}]
    write(tmp_path, "a.jsonl", jsonl(rows))
    message = refusal(tmp_path, "a.jsonl")
    assert "a.jsonl, line 1: a whole number (0)" in message
    assert "a.jsonl, line 3: text ('1')" in message
    rows = [{"text": "x" * 2000, "label": 0}] * 1000 + [{"text": "c", "label": True}]
    write(tmp_path, "b.jsonl", jsonl(rows))
    assert "b.jsonl, line 1001: true or false (True)" in refusal(tmp_path, "b.jsonl")


def test_all_problems_of_all_splits_come_in_one_message(tmp_path):
    write(tmp_path, "train.csv", "text,label\n" + "bad\n" * 57)
    write(tmp_path, "test.csv", b"text,label\n\xff,x\n")
    write(tmp_path, "dev.csv", "txt,label\na,x\n")
    path = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
    with pytest.raises(DataError) as caught:
        data.load(make(tmp_path, path, columns={"text": "text", "label": "label"}))
    lines = str(caught.value).split("\n")
    assert lines[0] == "data: 59 problems"
    assert lines[1] == "  train.csv, line 2: expected 2 cells, found 1"
    assert lines[20] == "  train.csv, line 21: expected 2 cells, found 1"
    assert lines[21] == "  … and 37 more: unreadable row"
    assert (
        "dev.csv: data.columns.text: no column 'text' (did you mean txt?); the columns are 'txt', 'label'" in lines[22]
    )
    assert "test.csv, line 2: not UTF-8" in lines[23]
    assert len(lines) == 24


def test_rows_that_are_all_left_out_leave_no_split(tmp_path):
    write(tmp_path, "a.csv", "text,label\nbad\nbad\n")
    message = refusal(tmp_path, "a.csv", on_bad_row="skip")
    assert message == "data: split train: 0 rows in a.csv (2 dropped: unreadable row)"


def test_a_missing_file_is_named_with_its_neighbours(tmp_path):
    for name in ("train.csv", "test.csv"):
        write(tmp_path, f"set/{name}", "text,label\na,x\n")
    assert refusal(tmp_path, "set/trian.csv") == (
        "data.path: ./set/trian.csv: no such file; its folder has test.csv, train.csv; did you mean train.csv?"
    )
    assert "there is no folder sets" in refusal(tmp_path, "sets/train.csv")
    assert "no file matches" in refusal(tmp_path, "set/*.tsv")
    write(tmp_path, "empty/readme.md", "")
    assert "no file in it has one of the suffixes" in refusal(tmp_path, "empty/")


def test_an_unknown_suffix_is_refused_with_those_known(tmp_path):
    write(tmp_path, "a.txt", "a")
    assert "a.txt: unknown suffix; expected one of .csv, .tsv" in refusal(tmp_path, "a.txt")
    write(tmp_path, "a.csv.gz", "a")
    assert "a.csv.gz: packed files are not read; unpack it first" in refusal(tmp_path, "a.csv.gz")
    assert "a.csv.gz: packed files are not read; unpack it first" in refusal(tmp_path, "a.csv.gz", "tokens")


def test_files_of_several_kinds_need_a_mapping(tmp_path):
    write(tmp_path, "set/train.csv", "text,label\na,x\n")
    write(tmp_path, "set/test.jsonl", jsonl([GOOD]))
    assert "files of several kinds (test.jsonl, train.csv)" in refusal(tmp_path, "set/")
    write(tmp_path, "two/train-test.csv", "text,label\na,x\n")
    assert "the words of two splits (train-test.csv)" in refusal(tmp_path, "two/")


def test_a_wrong_column_is_answered_with_those_that_exist(tmp_path):
    write(tmp_path, "a.jsonl", jsonl([{"sentence": "a", "stars": 1}]))
    message = refusal(tmp_path, "a.jsonl", columns={"text": "sentense", "label": "stars"})
    assert (
        "data.columns.text: no column 'sentense' (did you mean sentence?); the columns are 'sentence', 'stars'"
        in message
    )
    message = refusal(tmp_path, "a.jsonl")
    assert "expected columns text and label, or text and labels; found 'sentence', 'stars'" in message


def test_parquet_rows_are_named_by_number(tmp_path):
    table = pa.table(
        {"text": pa.array(["a", None, "c"]), "label": pa.array([1, 2, None], pa.int64()), "more": [1, 2, 3]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    message = refusal(tmp_path, "a.parquet")
    assert "a.parquet, row 1: text: missing" in message
    assert "a.parquet, row 2: label: missing" in message
    message = refusal(tmp_path, "a.parquet", columns={"text": "text", "label": "gold"})
    assert "the columns are 'text', 'label', 'more'" in message


def test_two_columns_of_one_name_in_parquet(tmp_path):
    columns = [pa.array(["a"]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.Table.from_arrays(columns, ["text", "label", "label"]), tmp_path / "a.parquet")
    assert "a.parquet: column 'label' is there twice; rename one of them" in refusal(tmp_path, "a.parquet")


def test_broken_utf8_in_parquet(tmp_path):
    offsets = pa.py_buffer(np.array([0, 1, 2], np.int32).tobytes())
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"text": broken, "label": ["x", "y"]}), tmp_path / "a.parquet")
    assert "a.parquet" in refusal(tmp_path, "a.parquet")
    assert "UTF-8" in refusal(tmp_path, "a.parquet") or "UTF8" in refusal(tmp_path, "a.parquet")


TOKENS = {
    "unequal": ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags; expected as many of one as the other"),
    "a text": ({"tokens": "a b", "tags": ["O"]}, "tokens: expected a list of texts, found text ('a b')"),
    "a number": (
        {"tokens": ["a", 1], "tags": ["O", "O"]},
        "tokens: expected a list of texts, found a whole number in it",
    ),
    "mixed": (
        {"tokens": ["a", "b"], "tags": ["O", 1]},
        "tags: expected a list of names or whole numbers, found both in one",
    ),
    "missing": ({"tokens": ["a"], "tags": None}, "tags: missing; expected a list of names or whole numbers"),
}


@pytest.mark.parametrize(("row", "expected"), TOKENS.values(), ids=TOKENS)
def test_bad_tokens_and_tags(tmp_path, row, expected):
    write(tmp_path, "a.jsonl", jsonl([{"tokens": ["a"], "tags": ["O"]}, row]))
    assert f"a.jsonl, line 2: {expected}" in refusal(tmp_path, "a.jsonl", "tokens")


def test_a_sentence_with_a_short_line(tmp_path):
    write(tmp_path, "a.conll", "a\tX\tO\nb\tO\n\nc\tX\tO\n")
    expected = "data: a.conll, line 2: expected 3 columns, found 2 (in the sentence that begins on line 1)"
    assert refusal(tmp_path, "a.conll", "tokens") == expected
    rows = data.load(make(tmp_path, "./a.conll", "tokens", on_bad_row="skip"))["train"]
    assert rows.column("tokens") == [["c"]]


SPANS = {
    "a text": ("PER", "expected a list of {start, end, label}, found text ('PER')"),
    "end a text": ([{"start": 0, "end": "4", "label": "A"}], "end: expected a whole number, found text ('4')"),
    "no end": ([{"start": 0, "label": "A"}], "end: missing; expected a whole number"),
    "no label": ([{"start": 0, "end": 4}], "label: missing; expected the name of a type"),
    "a blank label": ([{"start": 0, "end": 4, "label": " "}], "label: expected the name of a type, found text (' ')"),
    "true": ([{"start": 0, "end": True, "label": "A"}], "end: expected a whole number, found true or false (True)"),
}


@pytest.mark.parametrize(("spans", "expected"), SPANS.values(), ids=SPANS)
def test_bad_spans(tmp_path, spans, expected):
    write(tmp_path, "a.jsonl", jsonl([{"text": "anna", "spans": spans}]))
    assert refusal(tmp_path, "a.jsonl", "tokens") == f"data: a.jsonl, line 1: spans: {expected}"


ANSWERS = {
    "missing": (None, "answers: missing"),
    "unequal": ({"text": ["a"], "answer_start": []}, "as lists of one length"),
    "a text": ({"text": "a", "answer_start": 0}, "as lists of one length"),
    "start a text": ([{"text": "a", "answer_start": "0"}], "whole numbers as answer_start"),
}


@pytest.mark.parametrize(("answers", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_bad_answers(tmp_path, answers, expected):
    write(tmp_path, "a.jsonl", jsonl([{"question": "q", "context": "c", "answers": answers}]))
    message = refusal(tmp_path, "a.jsonl", "question")
    assert message.startswith("data: a.jsonl, line 1: answers: ")
    assert expected in message


def test_squad_without_its_parts(tmp_path):
    write(tmp_path, "a.json", json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}))
    assert "a.json, article 0: expected SQuAD's paragraphs, context and qas" in refusal(tmp_path, "a.json", "question")


def test_files_that_name_classes_differently(tmp_path):
    for name, classes in (("a.parquet", ["x", "y"]), ("b.parquet", ["y", "x"])):
        features = {"label": {"names": classes, "_type": "ClassLabel"}}
        table = pa.table({"text": ["t"], "label": [0]})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
            tmp_path / name,
        )
    assert "the files name the classes of label differently" in refusal(tmp_path, "*.parquet")
