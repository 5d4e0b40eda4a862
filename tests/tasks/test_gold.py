"""Tags of all splits: what they are called, what is wrong with them and where, and which words they stand on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from finetune.errors import DataError
from finetune.rows import Rows
from finetune.tasks.gold import charted, gold_entities, read_gold


def rows(split, *tags, names=None):
    values = [row.split() for row in tags] if names is None else [[int(n) for n in row.split()] for row in tags]
    kind = pa.string() if names is None else pa.int64()
    table = pa.table(
        {
            "tokens": pa.array([[f"w{n}" for n in range(len(row))] for row in values], pa.list_(pa.string())),
            "tags": pa.array(values, pa.list_(kind)),
            "id": [str(number) for number in range(len(values))],
        }
    )
    return Rows(split, table, {"tags": names} if names else {}, f"data/{split}.conll", "x")


def spans(split, *items, names=None):
    table = pa.table(
        {
            "text": [text for text, _ in items],
            "spans": pa.array(
                [[dict(zip(("start", "end", "label"), one, strict=True)) for one in found] for _, found in items],
                pa.list_(
                    pa.struct(
                        {"start": pa.int64(), "end": pa.int64(), "label": pa.string() if not names else pa.int64()}
                    )
                ),
            ),
            "id": [str(number) for number in range(len(items))],
        }
    )
    return Rows(split, table, {"spans": names} if names else {}, f"data/{split}.jsonl", "x")


def splits(*several):
    return {one.split: one for one in several}


def tags_of(gold, one, kinds=()):
    schema = gold.schema(kinds)
    [batch] = one.batches(100)
    numbers, lengths = gold.numbers(batch)
    found = [schema.labels[number] for number in schema.convert(numbers, lengths)]
    return [" ".join(part) for part in np.split(np.array(found, dtype=object), np.cumsum(lengths)[:-1])]


def test_iob1_of_all_splits_together():
    """The test split alone would look like IOB2 with errors; train says what it is."""
    train, test = rows("train", "I-A I-A B-A O", "I-B I-A"), rows("test", "I-A I-A O", "I-A B-A")
    gold = read_gold(splits(train, test))
    assert (gold.scheme.name, gold.scheme.broken) == ("IOB1", 0)
    assert tags_of(gold, train) == ["B-A I-A B-A O", "B-B B-A"]
    assert tags_of(gold, test) == ["B-A I-A O", "B-A B-A"]
    assert gold.remarks == ["tags: entities in the IOB1 scheme, turned into IOB2"]


def test_declared_names_count_although_no_row_has_them():
    train = rows("train", "0 1 2", "", "1", names=["O", "B-A", "I-A", "B-B", "I-B"])
    gold = read_gold(splits(train))
    assert gold.kinds() == ["A", "B"]
    assert tags_of(gold, train) == ["O B-A I-A", "", "B-A"]


def test_numbers_without_names_are_plain_tags():
    table = pa.table({"tokens": [["a", "b"]], "tags": pa.array([[10, 9]], pa.list_(pa.int64())), "id": ["0"]})
    gold = read_gold({"train": Rows("train", table, {}, "x", "x")})
    assert (gold.scheme.name, gold.names) == ("plain", ["9", "10"])


def test_one_tag_without_a_prefix_makes_all_plain_and_is_named():
    train = rows("train", "B-A I-A O", "BA O", "B-B", "B_A O BA")
    gold = read_gold(splits(train))
    assert gold.scheme.name == "plain"
    assert gold.remarks == [
        "tags: plain, one for each word: not entities, since 'BA' (data/train.conll, row 1; data/train.conll, row 3)"
        " has no prefix as 'B-A' has; correct such tags if entities are meant (BA, B_A)"
    ]
    assert read_gold(splits(rows("train", "N V"))).remarks == ["tags: plain, one for each word"]


def test_transitions_that_break_the_scheme_are_counted_and_named():
    train = rows("train", "B-A I-A O", "O I-A", "", "B-A I-B I-B", "B-B", "B-A", "I-A I-A")
    remark = read_gold(splits(train)).remarks[1]
    assert remark.startswith("tags: 3 times a tag follows one that it may not follow in the IOB2 scheme")
    places = "(data/train.conll, row 1: I-A after O; data/train.conll, row 3: I-B after B-A; data/train.conll, row 6:"
    assert places in remark


def test_undeclared_numbers_are_refused_with_their_rows():
    train = rows("train", "0 1", "1 -100 2", names=["O", "B-A"])
    with pytest.raises(DataError) as error:
        read_gold(splits(train, rows("test", "0", "", "2", names=["O", "B-A"])))
    message = str(error.value)
    assert "train: tag -100 is none of the 2 that are declared (data/train.conll, row 1)" in message
    assert "test: tag 2 is none of the 2 that are declared (data/test.conll, row 2)" in message


def test_types_unseen_in_train_are_refused_with_their_rows():
    train = rows("train", "B-A O")
    read_gold(splits(train, rows("test", "B-A I-A")))  # a tag of a known type
    with pytest.raises(DataError, match=r"test: the type of 'B-C' is not in train \(data/test.conll, row 1\)"):
        read_gold(splits(train, rows("test", "B-A", "O B-C")))


def test_plain_tags_unseen_in_train_are_refused():
    with pytest.raises(DataError, match=r"validation: tag 'X' is not in train \(data/validation.conll, row 0\)"):
        read_gold(splits(rows("train", "N V"), rows("validation", "N X")))


def test_without_train_nothing_is_unseen():
    assert read_gold(splits(rows("test", "B-A"), rows("validation", "B-C"))).kinds() == ["A", "C"]


def test_spans():
    train = spans("train", ("Anna left New York.", [(0, 4, "PER"), (10, 18, "LOC")]), ("", []))
    gold = read_gold(splits(train))
    assert tags_of(gold, train) == ["B-PER O B-LOC I-LOC O", ""]
    [batch] = train.batches(10)
    assert gold.words(batch) == [["Anna", "left", "New", "York", "."], []]
    assert gold.remarks == [
        "tags: spans of characters, turned into IOB2 on words, which white space and punctuation part"
    ]


def test_spans_inside_words_are_counted():
    train = spans("train", ("Annas dog", [(0, 4, "PER"), (6, 9, "X")]))
    gold = read_gold(splits(train))
    assert tags_of(gold, train) == ["B-PER B-X"]
    assert "train: 1 of 2 spans do not begin and end with a word" in gold.remarks[1]


def test_numbered_spans():
    train = spans("train", ("Anna", [(0, 4, 1)]), names=["LOC", "PER"])
    gold = read_gold(splits(train))
    assert tags_of(gold, train) == ["B-PER"]
    assert gold.kinds() == ["LOC", "PER"]
    with pytest.raises(DataError, match=r"test: type 2 is none of the 2 that are declared \(data/test.jsonl, row 0\)"):
        read_gold(splits(train, spans("test", ("Anna", [(0, 4, 2)]), names=["LOC", "PER"])))


def test_span_types_unseen_in_train():
    with pytest.raises(DataError, match="test: the type 'LOC' is not in train"):
        read_gold(splits(spans("train", ("A", [(0, 1, "PER")])), spans("test", ("A", [(0, 1, "LOC")]))))


def test_entities_in_characters():
    train = rows("train", "O B-A I-A B-A")
    [batch] = train.batches(10)
    gold = read_gold(splits(train))
    assert charted(gold, batch) == [("w0 w1 w2 w3", [(0, 2), (3, 5), (6, 8), (9, 11)])]
    assert list(gold_entities(gold, gold.schema(()), batch)) == [{("A", 3, 8), ("A", 9, 11)}]


def test_entities_of_spans_lose_the_white_space_at_their_ends():
    train = spans("train", ("a  Anna Smith ", [(2, 14, "PER")]))
    gold = read_gold(splits(train))
    [batch] = train.batches(10)
    assert list(gold_entities(gold, gold.schema(()), batch)) == [{("PER", 3, 13)}]


def test_the_key_changes_with_what_changes_the_numbers():
    one = read_gold(splits(rows("train", "B-A")))
    same = read_gold(splits(rows("train", "B-A", "B-A")))
    other = read_gold(splits(rows("train", "B-B")))
    assert one.key == same.key
    assert one.key != other.key
