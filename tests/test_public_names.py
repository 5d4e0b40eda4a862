"""What a page calls models, data sets, splits and metrics."""

from __future__ import annotations

from typing import Any

import pytest
from card_facts import recipe

from finetune.card.public_names import (
    base_model,
    dataset_id,
    dataset_name,
    hub_id,
    metric_name,
    metric_on_hub,
    model_name,
    place_name,
    public_recipe,
    source_name,
)


@pytest.mark.parametrize("value", ["bert-base-uncased", "a/b", "sentence-transformers/all-MiniLM-L6-v2", "A_1/b.c-d"])
def test_ids_of_the_hub(value: str):
    assert hub_id(value) == value


@pytest.mark.parametrize(
    "value",
    ["./a", "/a/b", "a/b/c", "a/b.csv", "a/", "../x", "a--b/c", "a..b", "package://a/b", "~/a", "a b", "", None, {}],
)
def test_places_are_not_ids(value: Any):
    assert hub_id(value) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/alice/reviews.csv", "reviews"),
        ("data/reviews/", "reviews"),
        ("./", "recipe-name"),
        ("..", "recipe-name"),
        ("data/*.csv", "recipe-name"),
        ("/home/alice/train.csv", "recipe-name"),
        ({"train": "a/tickets.csv", "test": "b/tickets.csv"}, "tickets"),
        ({"train": "a/train.csv", "test": "a/test.csv"}, "recipe-name"),
        ({"train": "one.csv", "test": "two.csv"}, "recipe-name"),
        ("user/set", "user/set"),
    ],
)
def test_data_set_name(path: Any, name: str):
    given = recipe(source="/home/alice/recipe-name.yaml", data={"path": path})
    assert dataset_name(given) == name
    assert dataset_id(given) == (name if "/" in name else None)


def test_data_set_name_with_its_configuration():
    assert dataset_name(recipe(data={"path": "nyu-mll/glue", "name": "stsb"})) == "nyu-mll/glue (stsb)"


def test_base_model_prefers_what_the_card_says():
    assert base_model(recipe()) == "sentence-transformers/all-MiniLM-L6-v2"
    assert base_model(recipe(card={"base_model": "a/b"})) == "a/b"
    assert base_model(recipe(card={"base_model": "/home/alice/b"})) == "sentence-transformers/all-MiniLM-L6-v2"
    assert base_model(recipe(model={"checkpoint": "./base"})) is None
    assert base_model(recipe(model={"init": "scratch"}, card={"base_model": "a/b"})) is None


def test_model_name():
    assert model_name(recipe(), "me/mine") == "mine"
    assert model_name(recipe(), None) == "rotten_tomatoes-minilm"
    assert model_name(recipe(output="runs/x/"), None) == "x"


def test_place_name():
    assert place_name("/home/alice/base") == "base"
    assert place_name("C:\\Users\\alice\\base") == "base"
    assert place_name("me/base") == "me/base"
    assert place_name("package://a/b") == "package://a/b"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("../alice/a.csv, /home/alice/b.csv", "a.csv, b.csv"),
        (
            "data/train.csv (0.1 of its rows, stratified by label, seed 0)",
            "train.csv (0.1 of its rows, stratified by label, seed 0)",
        ),
        ("my folder/a.csv and 3 more files", "a.csv and 3 more files"),
        ("data/train.csv without validation", "train.csv without validation"),
    ],
)
def test_local_sources_lose_their_folders(source: str, name: str):
    assert source_name(recipe(data={"path": "data/"}), source) == name


def test_sources_on_the_hub_stay():
    assert source_name(recipe(), "user/set (config) train") == "user/set (config) train"


def test_metric_names():
    assert [metric_name("f1", problem) for problem in ("single", "multi", "tags")] == ["macro F1"] * 3
    assert [metric_name("f1", problem) for problem in ("entities", None)] == ["F1"] * 2
    assert metric_name("some_metric", None) == "some metric"
    assert [metric_on_hub(name) for name in ("matthews", "rouge2", "bleu", "own")] == [
        "matthews_correlation",
        "rouge",
        "sacrebleu",
        "own",
    ]


def test_public_recipe_has_no_places_no_tracker_no_repository():
    given = recipe(
        model={"checkpoint": "~/alice/base"},
        data={"path": "/home/alice/x.csv"},
        track={"wandb": {"entity": "alice"}},
        hub={"repo_id": "alice/x"},
        output="/home/alice/runs/x",
    )
    shown = public_recipe(given)
    assert "alice" not in shown
    assert "checkpoint: base\n" in shown
    assert "path: x.csv\n" in shown
    assert shown.endswith("output: x\n")
    assert "null" not in shown
