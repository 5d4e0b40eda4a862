"""Labels of a checkpoint are matched by name, never by position."""

import pytest

from finetune.errors import ModelError
from finetune.evaluation import match_labels


def test_order_of_the_checkpoint_is_kept():
    assert match_labels(["pos", "neg"], ["neg", "pos"], {}, "x") == ["pos", "neg"]


def test_case_does_not_matter_and_more_labels_are_allowed():
    assert match_labels(["POS", "Neg", "other"], ["neg", "pos"], {}, "x") == ["pos", "neg", "other"]


def test_placeholders_are_refused_with_both_lists_and_the_way_out():
    with pytest.raises(
        ModelError, match=r"its labels are LABEL_0, LABEL_1; the data's are neg, pos;.*--labels old=new"
    ):
        match_labels(["LABEL_0", "LABEL_1"], ["neg", "pos"], {}, "x")


def test_the_users_mapping_wins():
    assert match_labels(["LABEL_0", "LABEL_1"], ["neg", "pos"], {"LABEL_0": "pos", "LABEL_1": "neg"}, "x") == [
        "pos",
        "neg",
    ]


def test_a_mapping_of_a_name_that_is_not_there():
    with pytest.raises(ModelError, match="--labels: x has no label LABEL_7; it has LABEL_0"):
        match_labels(["LABEL_0"], ["neg"], {"LABEL_7": "neg"}, "x")


def test_two_labels_may_not_become_one():
    with pytest.raises(ModelError):
        match_labels(["a", "b"], ["neg"], {"a": "neg", "b": "neg"}, "x")
