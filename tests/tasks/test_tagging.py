"""Tag schemes: recognised from what follows what, and turned into IOB2."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from finetune.tasks.tagging import Schema, entities_of, is_entities, recognise


def pairs(*rows):
    found = Counter()
    for row in rows:
        found.update(pairwise(["O", *row.split(), "O"]))
    return found


def scheme(*rows):
    return recognise(pairs(*rows), sorted({tag for row in rows for tag in row.split()}))


def iob2(*rows):
    names = sorted({tag for row in rows for tag in row.split()})
    schema = Schema(names, is_entities(names))
    numbers = np.array([names.index(tag) for row in rows for tag in row.split()], dtype=np.int64)
    lengths = np.array([len(row.split()) for row in rows])
    found = [schema.labels[number] for number in schema.convert(numbers, lengths)]
    ends = np.cumsum(lengths)
    return [" ".join(found[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


@pytest.mark.parametrize(
    ("rows", "name", "turned"),
    [
        (["B-A I-A O", "O B-B B-B I-B"], "IOB2", ["B-A I-A O", "O B-B B-B I-B"]),
        (["I-A I-A O I-A", "I-A B-A I-A I-B"], "IOB1", ["B-A I-A O B-A", "B-A B-A I-A B-B"]),
        (["I-A I-A O I-B", "I-A I-B"], "IO", ["B-A I-A O B-B", "B-A B-B"]),
        (["A A O B", "A B B"], "IO", ["B-A I-A O B-B", "B-A B-B I-B"]),
        (["B-A E-A S-A O S-B", "B-A I-A E-A B-A E-A"], "IOBES", ["B-A I-A B-A O B-B", "B-A I-A I-A B-A I-A"]),
        (["B-A L-A U-A O U-B"], "IOBES", ["B-A I-A B-A O B-B"]),
        (["B-A M-A E-A S-A O"], "IOBES", ["B-A I-A I-A B-A O"]),
        (["DET NOUN VERB", "NOUN"], "plain", ["DET NOUN VERB", "NOUN"]),
    ],
)
def test_schemes_and_their_iob2(rows, name, turned):
    found = scheme(*rows)
    assert (found.name, found.broken) == (name, 0)
    assert found.entities is (name != "plain")
    assert iob2(*rows) == turned


@pytest.mark.parametrize(
    ("rows", "name", "broken"),
    [
        (["B-A I-A", "O B-A O B-B", "O I-A I-A", "B-A I-B"], "IOB2", 2),
        (["I-A I-A", "O I-A O I-B", "I-A B-A", "O B-A"], "IOB1", 1),
        (["S-A O", "B-A O", "I-A E-A", "B-A E-B"], "IOBES", 3),
    ],
)
def test_transitions_that_a_scheme_does_not_know_are_counted(rows, name, broken):
    found = scheme(*rows)
    assert (found.name, found.broken) == (name, broken)


def test_broken_tags_begin_an_entity_as_the_pipeline_groups_them():
    assert iob2("O I-A I-A", "B-A I-B I-B", "I-A O I-A B-A") == ["O B-A I-A", "B-A B-B I-B", "B-A O B-A B-A"]
    assert iob2("S-A I-A E-A", "E-A I-A") == ["B-A B-A I-A", "B-A B-A"]


def test_rows_do_not_run_into_each_other():
    assert iob2("I-A", "", "I-A I-A", "B-A I-A") == ["B-A", "", "B-A I-A", "B-A I-A"]


@pytest.mark.parametrize(
    ("names", "entities"),
    [
        (["O", "B-A", "I-A"], True),
        (["O", "person", "place"], True),
        (["NOUN", "VERB"], False),
        (["O", "B-A", "X"], False),
        (["B-A"], True),
        (["O", "B-", "NOUN"], True),
        (["O", "B-creative-work"], True),
    ],
)
def test_entities_or_plain(names, entities):
    assert is_entities(names) is entities


def test_types_may_hold_dashes():
    assert Schema(["O", "I-creative-work", "B-creative-work"], True).labels == [
        "O",
        "B-creative-work",
        "I-creative-work",
    ]


def test_labels_are_sorted_by_type_and_may_be_more_than_the_data_has():
    assert Schema(["I-B", "O", "B-A"], True, ["C"]).labels == ["O", "B-A", "I-A", "B-B", "I-B", "B-C", "I-C"]
    assert Schema(["VERB", "NOUN"], False, ["X"]).labels == ["NOUN", "VERB", "X"]


def test_numbers_of_a_model_with_another_order_or_scheme():
    schema = Schema(["O", "B-A", "I-A", "B-B", "I-B"], True)
    assert schema.numbers_of(["I-A", "B-A", "O"]).tolist() == [2, 1, 0, -100, -100]
    assert schema.numbers_of(["O", "I-A", "I-B"]).tolist() == [0, 1, 1, 2, 2]
    assert schema.numbers_of(["B", "A", "O"]).tolist() == [2, 1, 1, 0, 0]
    assert Schema(["N", "V"], False).numbers_of(["V", "X", "N"]).tolist() == [2, 0]


def test_continued():
    schema = Schema(["O", "B-A", "I-A"], True)
    assert schema.continued(np.array([0, 1, 2])).tolist() == [0, 2, 2]
    assert Schema(["N", "V"], False).continued(np.array([0, 1])).tolist() == [0, 1]


def test_entities_of():
    assert entities_of(["B-A", "I-A", "O", "B-A", "B-B", "I-B"]) == [(0, 2, "A"), (3, 4, "A"), (4, 6, "B")]
