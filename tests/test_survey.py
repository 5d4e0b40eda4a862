"""The audit of whole splits: overlaps, labels, lengths, scripts, and the rules of a recipe."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from row_recipes import jsonl, make, write
from scipy import special

from finetune import audit, data
from finetune.audit import distribution, wording
from finetune.errors import DataError
from finetune.features import in_memory
from finetune.recipe import AuditBlock
from finetune.record import Audit, AuditFinding

LONG = "the parcel that I ordered on Monday has still not come, and nobody answers the telephone"
DIFFERENT = ("about the weather", "shoes, hats and a coat", "12 reasons", "who knows", "music for a rainy day")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def survey(folder: Path, role: str = "text", rules: dict[str, float] | None = None, **splits: list[dict]) -> Audit:
    """The audit of rows written as JSON lines; every word is a token, rows of more than 20 are cut."""
    regression = any(isinstance(row.get("label"), float) for row in splits["train"])
    for split, rows in splits.items():
        write(folder, f"{split}.jsonl", jsonl(rows))
    recipe = make(folder, {split: f"{split}.jsonl" for split in splits}, role)
    found = audit.rows(recipe, data.load(recipe))
    features = {split: encoded(len(one), one.column(audit_role(role))) for split, one in found.splits.items()}
    limits = AuditBlock(**(rules or {}))
    return audit.survey(limits, found.splits, features, found.notes, regression=regression, max_length=20)


def audit_role(role: str) -> str:
    return {"question": "context"}.get(role, role)


def encoded(count: int, texts: list[Any]) -> Any:
    words = [len(text.split() if isinstance(text, str) else text) for text in texts]
    ids = [[1] * max(1, min(number, 20)) for number in words]
    return in_memory({"input_ids": ids, "row": list(range(count)), "truncated": [number > 20 for number in words]})


def rows(*pairs: tuple[str, Any]) -> list[dict]:
    return [{"text": text, "label": label} for text, label in pairs]


def kinds(found: Audit) -> list[tuple[str, str]]:
    return [(finding.kind, finding.split) for finding in found.findings]


def only(found: Audit, kind: str, split: str = "train") -> AuditFinding:
    [finding] = [one for one in found.findings if (one.kind, one.split) == (kind, split)]
    return finding


# ----------------------------------------------------------------------------------------------------------- overlaps


def test_rows_of_train_in_other_splits_are_named_with_their_partner(tmp_path):
    train = rows((LONG, "a"), *((text, "a") for text in DIFFERENT))
    near = LONG.replace("telephone", "phone")
    test = rows((near, "a"), ("nothing alike here", "a"), (LONG, "a"), (DIFFERENT[2], "a"))
    found = survey(tmp_path, train=train, test=test, validation=rows((near, "a")))
    leak, almost = only(found, "leakage", "test"), only(found, "near_leakage", "test")
    assert leak.text == "test: 2 of 4 rows (50 %) have the text of a row of train"
    assert leak.places == ["test.jsonl, line 3 = train.jsonl, line 1", "test.jsonl, line 4 = train.jsonl, line 4"]
    assert (leak.ids, leak.partner_ids, leak.other) == (["2", "3"], ["0", "3"], "train")
    assert (almost.count, almost.places) == (1, ["test.jsonl, line 1 = train.jsonl, line 1"])
    assert only(found, "overlap", "test").places == ["test.jsonl, line 1 = validation.jsonl, line 1"]
    assert only(found, "near_overlap", "test").ids == ["2"]
    assert LONG not in found.model_dump_json()


def test_a_row_that_is_leaked_is_not_nearly_leaked_too(tmp_path):
    found = survey(tmp_path, train=rows((LONG, "a"), (f"{LONG}!", "a")), test=rows((LONG, "a")))
    assert [kind for kind, split in kinds(found) if split == "test"] == ["leakage"]


def test_among_very_many_rows_near_duplicates_are_found_only_when_a_rule_asks(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.audit.overlaps.NEAR_ROWS", 3)
    splits = {"train": rows((LONG, "a"), ("two", "b"), ("three", "a")), "test": rows((f"{LONG}!", "a"), ("four", "b"))}
    found = survey(tmp_path, **splits)
    assert not [one for one in found.findings if one.kind == "near_leakage"]
    assert "near-duplicates were not looked for: 5 rows are more than 3" in found.notes[-1]
    asked = survey(tmp_path, rules={"max_near_leakage": 0.9}, **splits)
    assert only(asked, "near_leakage", "test").count == 1


def test_duplicates_within_each_split(tmp_path):
    texts = [*DIFFERENT, DIFFERENT[1], LONG, DIFFERENT[1], LONG.upper() + "!"]
    found = survey(tmp_path, train=rows(*((text, "a") for text in texts)), test=rows(("x y", "a"), ("x y", "a")))
    twice = only(found, "duplicates")
    assert twice.places == ["train.jsonl, line 6 = train.jsonl, line 2", "train.jsonl, line 8 = train.jsonl, line 2"]
    assert only(found, "near_duplicates").places == ["train.jsonl, line 9 = train.jsonl, line 7"]
    assert only(found, "duplicates", "test").count == 1


def test_equal_texts_with_other_answers_conflict_across_splits(tmp_path):
    train = rows(("one", "a"), ("two", "a"), ("one", "b"), ("three", "a"))
    found = survey(tmp_path, train=train, test=rows(("two", "a"), ("three", "b")))
    assert only(found, "conflicts").places == [
        "train.jsonl, line 1 = train.jsonl, line 3",
        "train.jsonl, line 3 = train.jsonl, line 1",
        "train.jsonl, line 4 = test.jsonl, line 2",
    ]
    assert only(found, "conflicts", "test").ids == ["1"]


def test_order_of_several_labels_is_no_conflict(tmp_path):
    train = [{"text": "one", "labels": ["a", "b"]}, {"text": "one", "labels": ["b", "a"]}, {"text": "2", "labels": []}]
    assert ("conflicts", "train") not in kinds(survey(tmp_path, train=train))
    train[1]["labels"] = ["b"]
    assert only(survey(tmp_path, train=train), "conflicts").ids == ["0", "1"]


def test_questions_with_a_right_answer_in_common_do_not_conflict(tmp_path):
    def ask(name: str, *texts: str) -> dict:
        answers = {"text": list(texts), "answer_start": ["Ann and Bob came".index(text) for text in texts]}
        return {"id": name, "question": "Who came?", "context": "Ann and Bob came", "answers": answers}

    found = survey(tmp_path, "question", train=[ask("1", "Ann", "Bob"), ask("2", "Bob"), ask("3", "Ann and Bob")])
    assert only(found, "conflicts").places[:2] == [
        "train.jsonl, line 1 = train.jsonl, line 3",
        "train.jsonl, line 2 = train.jsonl, line 3",
    ]
    assert ("conflicts", "train") not in kinds(
        survey(tmp_path, "question", train=[ask("1", "Ann", "Bob"), ask("2", "Bob")])
    )


def test_pairs_and_tokens_are_equal_as_a_whole(tmp_path):
    pair = {"text": "a man", "text_pair": "a dog", "label": "x"}
    found = survey(tmp_path, train=[pair], test=[pair | {"text_pair": "a cat"}, {**pair, "text": "a dog"}])
    assert not [kind for kind, _ in kinds(found) if "leak" in kind]
    tokens = [{"tokens": ["New", "York"], "tags": ["B-X", "I-X"]}, {"tokens": ["Rome"], "tags": ["B-X"]}]
    found = survey(tmp_path, "tokens", train=tokens, test=tokens[:1])
    assert only(found, "leakage", "test").count == 1


def test_questions_about_a_context_of_train(tmp_path):
    def ask(name: str, question: str, context: str) -> dict:
        return {"id": name, "question": question, "context": context, "answers": {"text": [], "answer_start": []}}

    train = [ask("a", "Who?", "Ann came."), ask("b", "When?", "Bob left.")]
    test = [ask("c", "What did Ann do?", "Ann came."), ask("d", "Who?", "Carl stayed."), ask("e", "Who?", "Ann came.")]
    found = survey(tmp_path, "question", train=train, test=test)
    assert only(found, "shared_contexts", "test").ids == ["c", "e"]
    assert only(found, "leakage", "test").ids == ["e"]


# -------------------------------------------------------------------------------------------------- labels and lengths


def numbered(count: int, label: Any, first: int = 0) -> list[dict]:
    """Rows of random words, none like another."""
    draw = random.Random(first)
    return [
        {"text": " ".join("".join(draw.choices("abcdefghijkl", k=6)) for _ in range(3)), "label": label}
        for _ in range(count)
    ]


def test_rare_and_missing_labels(tmp_path):
    train = numbered(50, "often") + numbered(3, "rare", 50) + numbered(12, "some", 60)
    found = survey(tmp_path, train=train, test=numbered(20, "often", 100))
    assert found.splits["train"].labels == {"often": 50, "some": 12, "rare": 3}
    rare = only(found, "rare_labels")
    assert rare.text == "train: 3 of 65 rows (4.6 %) have a label that train gives less than 10 times: rare (3)"
    assert rare.places[0] == "train.jsonl, line 51"
    assert only(found, "unscored_labels", "test").text.endswith("2 of the 3 labels of train never come (some, rare)")


def test_rare_types_of_entities(tmp_path):
    train = [{"tokens": ["Ann", "Lee", "ran"], "tags": ["B-PER", "I-PER", "O"]}] * 20
    found = survey(tmp_path, "tokens", train=[*train, {"tokens": ["Rome"], "tags": ["B-LOC"]}])
    assert found.splits["train"].labels == {"PER": 20, "LOC": 1}
    assert only(found, "rare_labels").ids == ["20"]


def test_label_shares_that_differ_more_than_by_chance(tmp_path):
    train = numbered(300, "a") + numbered(300, "b", 300)
    same = numbered(100, "a", 600) + numbered(100, "b", 700)
    other = numbered(170, "a", 800) + numbered(30, "b", 970)
    found = survey(tmp_path, train=train, validation=same, test=other)
    assert [finding.split for finding in found.findings if finding.kind == "label_shift"] == ["test"]
    assert "a 50.0% -> 85.0%" in only(found, "label_shift", "test").text
    shift = next(one for one in found.shifts if (one.split, one.of) == ("test", "labels"))
    assert shift.distance == pytest.approx(0.35)
    assert shift.p == pytest.approx(0.001)
    assert 0.05 < shift.by_chance < 0.15


def test_equal_sources_rarely_look_shifted():
    draw = np.random.default_rng(0)
    beyond = 0
    for _ in range(60):
        counts = {
            split: dict(zip("abcde", draw.multinomial(size, [0.4, 0.3, 0.2, 0.05, 0.05]).tolist(), strict=True))
            for split, size in (("train", 800), ("test", 200))
        }
        lengths = {split: draw.poisson(40, size) for split, size in (("train", 800), ("test", 200))}
        beyond += sum(shift.p < 0.05 for shift in distribution.shifts(counts, {}, lengths))
    assert beyond <= 14  # 120 draws; 6 are expected, more than 14 come once in 1,000 times


def test_numbers_and_lengths_of_another_distribution(tmp_path):
    train = [{"text": f"{DIFFERENT[n % 5]} {n}", "label": n % 50 / 10} for n in range(300)]
    test = [{"text": f"{LONG} {n}", "label": n % 10 / 10} for n in range(300, 400)]
    found = survey(tmp_path, train=train, test=test)
    assert {"value_shift", "length_shift"} <= {kind for kind, _ in kinds(found)}
    assert found.splits["train"].labels == {}


def test_lengths_truncation_and_single_characters(tmp_path):
    train = rows(*((text, "a") for text in DIFFERENT), ("? ", "a"), (LONG + " " + LONG, "a"))
    found = survey(tmp_path, train=train)
    assert found.splits["train"].truncated == 1
    assert only(found, "truncated").level == "warning"
    assert only(found, "truncated").places == ["train.jsonl, line 7"]
    assert only(found, "one_character").places == ["train.jsonl, line 6"]
    lengths = found.splits["train"].characters
    assert lengths is not None
    assert (lengths.p50, lengths.max) == (17.0, 2 * len(LONG) + 1)


def test_the_script_of_each_row(tmp_path):
    train = [*numbered(20, "a"), *rows(("Где 1 000 000 000?", "a"), ("12 !?", "a"))]
    test = rows(("私の荷物はどこですか", "a"), ("カタカナ", "a"))
    found = survey(tmp_path, train=train, test=test)
    assert found.splits["train"].scripts == {"Latin": 20, "": 1, "Cyrillic": 1}
    assert found.splits["test"].scripts == {"Han": 2}
    assert only(found, "other_script").places == ["train.jsonl, line 21"]
    assert "most rows are written in Han, those of train in Latin" in only(found, "script_shift", "test").text


def test_a_mix_of_scripts_is_no_oddity(tmp_path):
    mixed = numbered(10, "a") + rows(*((f"Посылка {text}", "a") for text in "абвгд"))
    assert "other_script" not in dict(kinds(survey(tmp_path, train=mixed)))


def test_labels_that_are_written_in_several_ways(tmp_path):
    train = [row for n, label in enumerate(["pos", "pos ", "neg", "Neg", "other"]) for row in numbered(12, label, n)]
    found = only(survey(tmp_path, train=train), "label_spellings")
    assert "'pos' (12) and 'pos ' (12)" in found.text
    assert "'neg' (12) and 'Neg' (12)" in found.text or "'Neg' (12) and 'neg' (12)" in found.text
    assert "other" not in found.text


def test_notes_are_counted_as_things_to_know(tmp_path):
    found = survey(tmp_path, train=[row | {"source": "x"} for row in numbered(12, "a")])
    assert "findings (1 to know)" in wording.report(found)


def test_files_of_no_split_are_told(tmp_path):
    for name in ["train.jsonl", "extra.jsonl"]:
        write(tmp_path, f"set/{name}", jsonl(numbered(2, "a") + numbered(2, "b", 2)))
    recipe = make(tmp_path, "./set/")
    found = audit.rows(recipe, data.load(recipe))
    features = {"train": encoded(4, found.splits["train"].column("text"))}
    assert "files of no split, by their names: set/extra.jsonl" in audit.survey(None, found.splits, features).notes[0]


def test_columns_that_no_role_reads(tmp_path):
    train = [row | {"source": "x", "number": 1} for row in numbered(12, "a")]
    assert survey(tmp_path, train=train).notes == ["train: columns that no role reads: source, number"]
    write(tmp_path, "tokens.conll", "Rome B-LOC\n\nAnn B-PER\n")
    recipe = make(tmp_path, {"train": "tokens.conll"}, "tokens")
    assert data.load(recipe)["train"].unused == ()


# -------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("kind", ["leakage", "near_leakage", "duplicates", "conflicts", "truncated"])
def test_a_broken_rule_names_the_rows(tmp_path, kind):
    train = rows((LONG, "a"), ("one", "a"), ("one", "b"), ("two " * 30, "a"))
    test = rows((LONG, "a"), (LONG.replace("Monday", "Tuesday"), "a"), ("far from it", "b"), ("much else", "b"))
    fine = survey(tmp_path, rules={f"max_{kind}": 0.5}, train=train, test=test)
    finding = next(one for one in fine.findings if one.kind == kind)
    with pytest.raises(DataError) as caught:
        survey(tmp_path, rules={f"max_{kind}": 0.24}, train=train, test=test)
    assert caught.value.exit_code == 2
    assert f"audit.max_{kind} allows 0.24 of them: {'; '.join(finding.places)}" in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- wording


def test_the_report_of_clean_rows_is_short(tmp_path):
    train, test = numbered(40, "a") + numbered(40, "b", 40), numbered(20, "a", 90) + numbered(20, "b", 110)
    report = wording.report(survey(tmp_path, train=train, test=test))
    assert report.endswith("findings (nothing odd)")
    assert "train: a (40), b (40)" in report


def test_the_report_puts_what_misleads_first_and_fits_the_terminal(tmp_path):
    train = [*rows((LONG, "a"), (LONG, "b"), ("?", "a")), *numbered(30, "a")]
    report = wording.report(survey(tmp_path, train=train, test=rows((LONG, "a"), ("else", "b"))))
    assert max(map(len, report.splitlines())) <= 100
    places = [report.index(part) for part in ("row of train", "not its answer", "earlier row", "one character only")]
    assert places == sorted(places)
    assert "-> leave them out of one of the two splits" in report


def test_columns_of_too_many_values_are_named_for_the_splits_that_are_scored(tmp_path):
    texts = [f"{LONG} {number}" for number in range(40)]
    lines = [
        {"text": text, "label": "ab"[number % 2], "title": f"no. {number}", "shop": "xy"[number % 2]}
        for number, text in enumerate(texts)
    ]
    for split, rows in (("train", lines), ("test", lines[:30])):
        write(tmp_path, f"{split}.jsonl", jsonl(rows))
    recipe = make(tmp_path, {split: f"{split}.jsonl" for split in ("train", "test")})
    recipe.evaluate.slices.extend(["title", "shop"])
    splits = data.load(recipe)
    features = {split: encoded(len(one), one.column("text")) for split, one in splits.items()}
    found = audit.survey(None, splits, features)
    poor = [one for one in found.findings if one.kind == "poor_slices"]
    assert [(one.split, one.level) for one in poor] == [("test", "warning")]
    says = "evaluate.slices: title: 30 different values in 30 rows, none with 10 rows: nothing is scored apart"
    assert poor[0].text == f"test: {says}"
    assert "choose a column with fewer values" in wording.report(found)


def test_kolmogorov_is_that_of_scipy():
    points = np.concatenate([[0.0, 1e-9, 1e-3], np.linspace(0.02, 6, 400), [1.0, 30.0]])
    ours = [distribution._kolmogorov(point) for point in points.tolist()]
    np.testing.assert_allclose(ours, special.kolmogorov(points), rtol=1e-12, atol=1e-300)
