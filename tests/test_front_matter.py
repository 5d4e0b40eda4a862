"""The metadata of a card: written so that YAML 1.1 and 1.2 agree, and checked as the Hub would."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from card_facts import recipe, record
from ruamel.yaml import YAML

from finetune.card.metadata import dump, front_matter
from finetune.card.rules import LICENSES, check_front_matter

WORDS = [
    "no", "No", "NO", "yes", "on", "Off", "y", "n", "null", "~", "true", "False", "1e5", "1E-5", "0x1F", "0o17", "017",
    "1_000", "12:30:45", "2024-01-01", ".inf", ".nan", "1.", "+1", "", " ", "a: b", "a #b", "- a", "? a", "[a]", "{a}",
    "!a", "&a", "*a", "|", ">", "%a", "@a", "`a", "'", '"', "a\nb", "\n---\n", "---", "...", "a\\nb", "\t", "\x00",
    "\x1b", "\x85", "\u2028", "\ufeff", "dé", "日本", "😀", "=", "<<", "x" * 500 + " y" * 200,
]  # fmt: skip
NUMBERS = [0, 1, -1, 0.0, 0.1, 1e-05, 1e-9, 123456.789, 0.8171, 1e15]


def fields_of(card: str) -> str:
    return card.removeprefix("---\n").removesuffix("---\n")


@pytest.mark.parametrize("value", [*WORDS, *NUMBERS])
def test_every_reader_reads_the_same(value: Any):
    written = dump({"a": value, "b": [value], "c": {"d": value}, "e": 1})
    expected = {"a": value, "b": [value], "c": {"d": value}, "e": 1}
    assert yaml.safe_load(fields_of(written)) == expected
    assert YAML(typ="safe", pure=True).load(fields_of(written)) == expected
    assert written.count("\n---") == 1


@pytest.mark.parametrize("key", [word for word in WORDS if len(word) < 100])
def test_keys_stay_text_too(key: str):
    written = fields_of(dump({key: 1}))
    assert yaml.safe_load(written) == {key: 1}


def test_lone_surrogates_are_replaced():
    assert yaml.safe_load(fields_of(dump({"a": "x\ud800y"}))) == {"a": "x?y"}


def test_order_is_kept_and_lines_are_not_folded():
    assert dump({"z": "a " * 300, "a": ["b"]}) == '---\nz: "' + "a " * 300 + '"\na:\n- b\n---\n'


def test_values_that_are_not_finite_are_left_out():
    facts = record()
    facts.results["test"].metrics["f1"].value = math.nan
    facts.results["test"].metrics["accuracy"].value = None
    [index] = front_matter(recipe(), facts, None)["model-index"]
    assert [result["dataset"]["split"] for result in index["results"]] == ["validation"]


# ----------------------------------------------------------------------------------------- the check


VALID = front_matter(recipe(), record(), "me/mine")


def test_a_valid_card_has_no_problems():
    assert check_front_matter(dump(VALID) + "\n# Title\n") == []
    assert {"apache-2.0", "mit", "other", "cc-by-4.0"} <= LICENSES


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(fields: dict[str, Any]) -> None:
        *above, last = path.split(".")
        place: Any = fields
        for name in above:
            place = place[int(name)] if name.isdigit() else place[name]
        if value is None:
            del place[last]
        else:
            place[int(last) if last.isdigit() else last] = value

    return apply


RESULT = "model-index.0.results.0"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("license", "gpl-2.0-or-later", "license: expected a licence id"),
        ("license", {"a": 1}, "license: expected a licence id"),
        ("language", "english", "language: expected a code of 2 or 3 letters, found 'english'"),
        ("language", ["en", "EN"], "language: expected a code of 2 or 3 letters, found 'EN'"),
        ("base_model", "/home/alice/base", "base_model: expected the id of a model on the Hub"),
        ("base_model", "./base", "base_model: expected"),
        (
            "datasets",
            ["user/set", "data/train/x.csv"],
            "datasets: expected the id of a data set on the Hub, found 'data/tr",
        ),
        ("tags", "one", "tags: expected a list"),
        ("tags", [1], "tags: expected text, found 1"),
        ("metrics", "f1", "metrics: expected a list"),
        ("pipeline_tag", ["a"], "pipeline_tag: expected text"),
        ("co2_eq_emissions.emissions", "much", "co2_eq_emissions.emissions: expected grams, found 'much'"),
        ("co2_eq_emissions.emissions", -1, "co2_eq_emissions.emissions: expected grams, found -1"),
        ("model-index", {}, "model-index: expected a list"),
        ("model-index.0.name", None, "model-index[0].name: missing"),
        ("model-index.0.results", [], "model-index[0].results: missing"),
        (f"{RESULT}.task", None, "model-index[0].results[0].task: missing"),
        (f"{RESULT}.task.type", None, "model-index[0].results[0].task.type: missing"),
        (f"{RESULT}.dataset.name", None, "model-index[0].results[0].dataset.name: missing"),
        (f"{RESULT}.metrics", [], "model-index[0].results[0].metrics: missing"),
        (f"{RESULT}.metrics.0.type", None, "model-index[0].results[0].metrics[0].type: missing"),
        (f"{RESULT}.metrics.0.value", None, "model-index[0].results[0].metrics[0].value: missing"),
        (
            f"{RESULT}.metrics.0.value",
            "high",
            "model-index[0].results[0].metrics[0].value: expected a number, found 'high'",
        ),
        (f"{RESULT}.metrics.0", "x", "model-index[0].results[0].metrics[0]: expected a mapping, found 'x'"),
    ],
)
def test_planted_problems_are_found(path: str, value: Any, problem: str):
    fields = copy.deepcopy(VALID)
    change(path, value)(fields)
    found = check_front_matter(dump(fields))
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("# Title\n", "front matter: missing"),
        ("---\na: b\n", "front matter: missing"),
        ("---\na: [b\n---\n", "front matter: not YAML"),
        ("---\na: 1\na: 2\n---\n", "front matter: not YAML"),
        ("---\n- a\n---\n", "front matter: expected a mapping, found list"),
    ],
)
def test_cards_without_readable_metadata(card: str, problem: str):
    [found] = check_front_matter(card)
    assert found.startswith(problem)
