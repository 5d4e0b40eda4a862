"""The recipes that ship: each loads, points editors at the schema, and names the command that runs it."""

import csv
import json
import os
from pathlib import Path

import pytest

from finetune.recipe import Recipe, is_local, load, schema

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*/*.yaml"))
SEQUENCE = {
    *("rotten_tomatoes-minilm", "rotten_tomatoes-minilm-lora", "rotten_tomatoes-distilbert", "go_emotions-minilm"),
    *("glue_stsb-minilm", "glue_mrpc-minilm", "glue_mrpc-minilm-scratch", "banking77-minilm", "tiny"),
}


@pytest.fixture(params=RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def path(request) -> Path:
    return request.param


def files(recipe: Recipe) -> list[Path]:
    paths = recipe.data.path if isinstance(recipe.data.path, dict) else {"train": recipe.data.path}
    return [recipe.locate(path) for path in paths.values() if isinstance(recipe.data.path, dict) or is_local(path)]


def test_schema_for_editors_is_up_to_date():
    assert json.loads((FOLDER / "recipe.schema.json").read_text(encoding="utf-8")) == schema()


def test_the_recipes_of_the_sequence_head_are_there():
    assert {path.stem for path in RECIPES if path.parent.name == "sequence"} == SEQUENCE
    assert FOLDER / "quickstart/quickstart.yaml" in RECIPES


def test_loads_and_names_what_exists(path):
    recipe = load(path)
    assert path.parent.name in (recipe.task, "quickstart")
    assert recipe.train is not None
    assert all(file.is_file() for file in files(recipe))
    assert recipe.hub is None, "a shipped recipe pushes nowhere"
    assert recipe.track.wandb is None, "a shipped recipe needs no account"
    assert path.name == path.name.lower()


def test_each_recipe_has_its_own_output():
    outputs = [load(path).output for path in RECIPES]
    assert len(set(outputs)) == len(outputs)


def test_first_line_points_an_editor_at_the_schema(path):
    first = path.read_text(encoding="utf-8").split("\n")[0]
    start, pointer = first.split("$schema=")
    assert start == "# yaml-language-server: "
    assert Path(os.path.normpath(path.parent / pointer)) == FOLDER / "recipe.schema.json"


def test_comment_has_the_command_and_what_was_measured(path):
    comment = [line for line in path.read_text(encoding="utf-8").split("\n") if line.startswith("#")]
    assert f"#     finetune train recipes/{path.parent.name}/{path.name}" in comment
    assert any(line.startswith("# measured: ") and len(line) > 14 for line in comment)


def test_columns_of_shipped_data_exist(path):
    recipe = load(path)
    for file in files(recipe):
        if file.suffix == ".csv":
            with open(file, encoding="utf-8", newline="") as lines:
                assert set(recipe.data.columns.values()) <= set(next(csv.reader(lines)))


def test_a_packaged_checkpoint_is_pinned_and_its_base_is_named(path):
    recipe = load(path)
    if recipe.model.checkpoint.startswith("package://"):
        assert len(recipe.model.sha256 or "") == 64
        assert recipe.card.base_model == "sentence-transformers/all-MiniLM-L6-v2"


def test_the_scratch_twin_differs_in_its_start_only():
    twins = [load(FOLDER / f"sequence/glue_mrpc-minilm{end}.yaml") for end in ("", "-scratch")]
    settings = [dict(twin.decisive()) for twin in twins]
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {"model.init"}
