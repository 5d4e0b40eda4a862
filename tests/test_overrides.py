"""`key=value` after a recipe: typed by its keys, and wrong ones named as they were typed."""

from pathlib import Path

import pytest
from test_recipe import CONTRACT, SEQ2SEQ, SHORT, WEIGHTS, refused, write

from finetune.recipe import load

__all__ = ["write"]  # the fixture


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=1", 1.0),
        ("train.learning_rate=1e-5", 1e-5),
        ("train.learning_rate=3", 3.0),
        ("train.seed=7", 7),
        ("train.deterministic=true", True),
        ("train.micro_batch_size=4", 4),
        ("train.micro_batch_size=auto", "auto"),
        ("train.class_weights=balanced", "balanced"),
        ("train.class_weights={neg: 1, pos: 2.5}", {"neg": 1.0, "pos": 2.5}),
        ("evaluate.metrics=[accuracy, f1]", ["accuracy", "f1"]),
        ("evaluate.every=50", 50),
        ("model.lora.targets=[query, value]", ["query", "value"]),
        ("data.name=001", "001"),
        ("data.name=1e5", "1e5"),
        ("data.name=no", "no"),
        ("data.name= a = b ", " a = b "),
        ("data.name='x'", "'x'"),
        ("data.name=[x", "[x"),
        ("data.name=*x", "*x"),
        ("card.language=no", "no"),
        ("card.language=[en, fr]", ["en", "fr"]),
        ("data.columns.text=review", "review"),
        ("data.splits.validation=0.1", 0.1),
        ("data.splits.validation=dev", "dev"),
        ("data.splits.validation=2020", "2020"),
        ("data.limit.test=10", 10),
        ("carbon.country=DEU", "DEU"),
        ("train.max_grad_norm=0x10", 16.0),
    ],
)
def test_values_are_typed_by_their_key(write, override, value):
    recipe = load(write(CONTRACT), [override])
    found = recipe
    for part in override.split("=")[0].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_a_block_that_is_not_there_is_made_with_its_defaults(write):
    recipe = load(write(SHORT), ["model.lora.r=16", "track.wandb.mode=offline", "carbon.country=FRA"])
    assert (recipe.model.lora.r, recipe.model.lora.alpha) == (16, 16.0)
    assert recipe.track.wandb.mode == "offline"
    assert recipe.carbon.country == "FRA"
    assert load(write(SHORT), ["model.lora={}"]).model.lora.r == 8
    assert load(write(SHORT), ["model.lora={r: 4}"]).model.lora.r == 4
    assert load(write(SHORT.replace("train: {}\n", "")), ["train.seed=3"]).train.seed == 3


def test_a_block_that_is_null_in_the_file_is_made(write):
    assert load(write(SHORT.replace("a/b}", "a/b, lora: null}")), ["model.lora.r=2"]).model.lora.r == 2


def test_null_removes(write):
    recipe = load(write(CONTRACT), ["model.lora=null", "hub=null", "data.limit.train=null", "train.seed=null"])
    assert (recipe.model.lora, recipe.hub, recipe.data.limit, recipe.train.seed) == (None, None, {}, 0)
    assert load(write(SHORT), ["train=null", "model.lora.r=null"]).train is None


def test_names_of_labels_may_hold_dots(write):
    assert load(write(WEIGHTS), ["train.class_weights.a.b=7"]).train.class_weights == {"no": 1.0, "a.b": 7.0}


@pytest.mark.parametrize(
    ("overrides", "splits"),
    [
        (["data.splits.validation=0.2", "data.path=a.csv"], {"train", "validation"}),
        (["data.path={train: a.csv, test: b.csv}", "data.splits.validation=0.2"], {"train", "validation", "test"}),
        (["data.path={train: a.csv}", "data.splits.validation=0.2"], {"train", "validation"}),
        (["data.path=./a/", "data.splits.validation=0.2"], {"train", "validation", "test"}),
    ],
)
def test_default_splits_beside_an_overridden_one_are_those_that_the_path_can_have(write, overrides, splits):
    recipe = load(write(SHORT), overrides)
    assert set(recipe.data.splits) == splits
    assert recipe.data.splits["validation"] == 0.2


def test_the_last_override_of_a_key_holds(write):
    assert load(write(SHORT), ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_an_override_takes_the_place_of_what_excludes_it(write):
    train = load(write(CONTRACT), ["train.max_steps=20", "train.batch_tokens=4096"]).train
    assert (train.epochs, train.max_steps, train.batch_size, train.batch_tokens) == (None, 20, None, 4096)
    train = load(write(SEQ2SEQ), ["train.epochs=2"]).train
    assert (train.epochs, train.max_steps) == (2.0, None)
    lines = refused(write(CONTRACT), "train.max_steps=20", "train.epochs=2")
    assert lines[1:] == ["  override train.max_steps=20: given beside train.epochs; keep one"]


def test_local_paths_count_from_the_working_directory(write, tmp_path, monkeypatch):
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    overrides = ["data.path=../x/*.csv", "model.checkpoint=./model", "output=runs/y"]
    recipe = load(write(SHORT), overrides)
    assert recipe.data.path == f"{tmp_path}/x/*.csv"
    assert recipe.model.checkpoint == f"{there}/model"
    assert recipe.output == "runs/y"
    assert recipe.locate(recipe.data.path) == Path(f"{tmp_path}/x/*.csv")
    assert load(write(SHORT), ["data.path={train: a.csv}"]).data.path == {"train": f"{there}/a.csv"}
    assert load(write(SHORT.replace("x.csv", "{train: b.csv}")), ["data.path.test=c.txt"]).data.path == {
        "train": "b.csv", "test": f"{there}/c.txt",
    }  # fmt: skip


def test_hub_ids_and_packages_stay_as_they_are(write):
    recipe = load(write(SHORT), ["model.checkpoint=package://a_b/model", "data.path=a/b"])
    assert (recipe.model.checkpoint, recipe.data.path) == ("package://a_b/model", "a/b")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epoch=1", "override train.epoch=1: unknown key; did you mean train.epochs?"),
        ("epochs=1", "override epochs=1: unknown key; it belongs to train.epochs"),
        ("model.lora.rank=1", "override model.lora.rank=1: unknown key; here it is model.lora.r"),
        ("tarin.seed=null", "override tarin.seed=null: tarin: unknown key; did you mean train?"),
        ("model.lorra.r=1", "override model.lorra.r=1: model.lorra: unknown key; did you mean model.lora?"),
        ("train.learning_rate=fast", "override train.learning_rate=fast: expected a number above 0, found 'fast'"),
        ("train.seed=1.5", "override train.seed=1.5: expected a whole number from 0 to 4294967295, found 1.5"),
        ("train.learning_rate=.inf", "override train.learning_rate=.inf: .inf is not a finite number"),
        ("train.deterministic=no", "expected true or false, found 'no'; write false"),
        ("data.name=", "override data.name=: expected a text, found ''"),
        ("train.seed=", "override train.seed=: expected a whole number from 0 to 4294967295, found nothing"),
        ("track.wandb.mode=offlin", "expected online, offline or disabled, found 'offlin'; did you mean offline?"),
        ("model.lora={r: x}", "override model.lora={r: x}: model.lora.r: expected a whole number of at least 1, found"),
        ("evaluate.metrics=[f1", "override evaluate.metrics=[f1: not valid YAML:"),
        ("model.lora={r: &a 1}", "override model.lora={r: &a 1}: anchors (&a) are not read"),
        ("seed", "override seed: expected key=value with a dotted key, such as train.epochs=1"),
        ("train..seed=1", "override train..seed=1: expected key=value with a dotted key"),
        ("=1", "override =1: expected key=value with a dotted key"),
        ("data.path.train=x.csv", "data.path is 'cornell-movie-review-data/rotten_tomatoes' here, not a mapping"),
        ("data.columns.lable=x", "override data.columns.lable=x: no role of task sequence; did you mean label?"),
        ("evaluate.select_on=acc", "override evaluate.select_on=acc: expected a metric of task sequence"),
        ("data.name=\udcff", "override data.name=?: holds a control character, or bytes that are not UTF-8"),
        ("data.name=a\x1b[31m", "override data.name=a?[31m: holds a control character"),
        ("hub.repo_id=null", "override hub.repo_id=null: missing; repository on the Hub: namespace/name"),
        ("output=../x", "override output=../x: folder names have 1 to 96 letters"),
    ],
)
def test_wrong_ones(write, override, line):
    lines = refused(write(CONTRACT), override)
    assert lines[0].endswith(": 1 problem")
    assert line in lines[1]


def test_wrong_ones_stand_after_the_lines_of_the_file(write):
    path = write(CONTRACT.replace("seed: 0", "sed: 0"))
    assert [line[:20] for line in refused(path, "x=1", "y")[1:]] == [
        "  line 34, train.sed", "  override x=1: unkn", "  override y: expect",
    ]  # fmt: skip
