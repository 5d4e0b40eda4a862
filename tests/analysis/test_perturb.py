"""Changes of texts: what they do, that they repeat, that offsets follow."""

import string

import pytest

from finetune.analysis.perturb import KINDS, LIMITS, NAMES, PAIRS, change


def changed(kind, *texts):
    found = change(kind, texts)
    return None if found is None else found.texts(texts)


def test_typos_swap_two_inner_letters_of_some_words():
    text = "the delivery of my parcel took three weeks and nobody answered any letter"
    [new] = changed("typos", text)
    pairs = [(old, word) for old, word in zip(text.split(), new.split(), strict=True) if old != word]
    assert len(pairs) == 1
    for old, word in pairs:
        assert sorted(old) == sorted(word)
        assert (old[0], old[-1], len(old)) == (word[0], word[-1], len(word))
    assert changed("typos", "a bad day") is None


def test_casing_goes_down_and_up_where_there_is_nothing_to_lower():
    assert changed("casing", "Good Film", "no") == ["good film", "no"]
    assert changed("casing", "good") == ["GOOD"]
    assert changed("casing", "straße") is None, "its upper case is longer"
    assert changed("casing", "123") is None


@pytest.mark.parametrize(("old", "new"), [("Good.", "Good"), ("Why?! ", "Why "), ("Good", "Good."), ("Gut。", "Gut")])
def test_the_last_mark_goes_or_a_full_stop_comes(old, new):
    assert changed("punctuation", old) == [new]


def test_nothing_is_left_alone():
    assert all(changed(kind, "") is None for kind in KINDS)
    assert changed("punctuation", "...") is None


def test_names_are_replaced_by_others_the_same_in_all_texts():
    first, second = changed("names", "Anna met Omar.", "Did Omar see Anna, or Annabel?")
    anna, omar = first.split()[0], first.split()[2].strip(".")
    assert {anna, omar} <= set(NAMES) - {"Anna", "Omar"}
    assert anna != omar
    assert second == f"Did {omar} see {anna}, or Annabel?"
    assert changed("names", "The annals of Rome") is None


def test_words_of_gender_are_swapped_in_their_case():
    assert changed("gender", "He lost HIS hat, said Mrs Hill to him.") == ["She lost HER hat, said Mr Hill to her."]
    assert changed("gender", "The chef smiled") is None
    twice = changed("gender", *changed("gender", "the king and his brothers"))
    assert twice == ["the king and his brothers"]


def test_offsets_follow_the_text():
    text = "So he met his wife Anna there"
    found = change("gender", [text])
    [new] = found.texts([text])
    assert new == "So she met her husband Anna there"
    start = text.index("Anna")
    assert new[found.moved(0, start) : found.moved(0, start + 4)] == "Anna"
    assert new[found.moved(0, text.index("wife")) : found.moved(0, text.index("wife") + 4)] == "husband"
    assert found.translated("his wife") == "her husband"


def test_the_same_text_gets_the_same_change():
    text = "Anna and Peter wrote several letters about their wonderful summer holidays"
    for kind in KINDS:
        assert changed(kind, text) == changed(kind, text)
    assert changed("names", text) != changed("names", text + " again")


def test_lists_are_as_long_as_they_say():
    assert (len(set(NAMES)), len(set(PAIRS))) == (48, 22)
    assert set(LIMITS) == set(KINDS)
    assert all(name[0] in string.ascii_uppercase for name in NAMES)
