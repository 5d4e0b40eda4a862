"""A recipe file: what is read from it, and what a user is told about one that is wrong."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe import METRICS, ROLES, Recipe, difference, is_local, load, schema
from finetune.recipe.tables import PROBLEM_METRICS
from finetune.scoring.names import NAMES

CONTRACT = """\
task: sequence
model:
  checkpoint: sentence-transformers/all-MiniLM-L6-v2
  revision: main
  sha256: null
  init: pretrained
  keep_head: false
  decoder: null
  lora: {r: 8, alpha: 16, dropout: 0.05, targets: auto}
data:
  path: cornell-movie-review-data/rotten_tomatoes
  name: null
  revision: null
  splits: {train: train, validation: validation, test: test}
  columns: {text: text, label: label}
  problem: null
  max_length: 128
  limit: {train: 2000}
  on_bad_row: error
train:
  epochs: 3
  batch_size: 32
  micro_batch_size: auto
  learning_rate: 5.0e-5
  warmup: 0.06
  weight_decay: 0.01
  schedule: linear
  max_grad_norm: 1.0
  label_smoothing: 0.0
  class_weights: none
  precision: auto
  gradient_checkpointing: false
  deterministic: false
  seed: 0
  save_every: auto
  keep_last: 2
evaluate:
  metrics: [accuracy, f1]
  select_on: accuracy
  every: epoch
  patience: 3
track: {wandb: {project: demo, mode: offline}, tensorboard: false}
carbon: {country: FRA}
card: {license: apache-2.0, language: en, base_model: null}
hub: {repo_id: me/my-model, private: true}
output: runs/rotten_tomatoes-minilm
"""
SHORT = "task: sequence\nmodel: {checkpoint: a/b}\ndata: {path: x.csv}\ntrain: {}\noutput: runs/x\n"
SEQ2SEQ = """\
task: seq2seq
model: {checkpoint: a/b, decoder: same}
data:
  path: x/y
  columns: {source: translation.en, target: translation.fr}
  splits: {train: train, validation: 0.1}
  max_target_length: 32
  prefix: "translate: "
  languages: {source: en, target: no}
train: {max_steps: 10, batch_tokens: 1000, label_smoothing: 0.1}
evaluate: {generation: {num_beams: 2, max_new_tokens: 64, pipeline: translation, loss_only: false}}
output: runs/x
"""
SPAN = "task: span\nmodel: {checkpoint: a/b}\ndata: {path: x.json, max_length: 384, stride: 128}\noutput: runs/x\n"
WEIGHTS = SHORT.replace("train: {}", "train: {class_weights: {no: 1, 'a.b': 2.5}}")


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes, name: str = "bad.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(path: Path, *overrides: str) -> list[str]:
    """The lines of the message; the first one names the file and the number of problems."""
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return str(caught.value).split("\n")


# ---------------------------------------------------------------------------------------------------------- right ones


def test_every_key_of_the_contract_is_read(write):
    recipe = load(write(CONTRACT))
    assert recipe.model.lora.r == 8
    assert recipe.train.learning_rate == 5e-5
    assert recipe.data.limit == {"train": 2000}
    assert recipe.track.wandb.mode == "offline"
    assert recipe.hub.private is True
    assert recipe.evaluate.metrics == ["accuracy", "f1"]


def test_defaults_of_a_short_recipe(write):
    recipe = load(write(SHORT))
    assert (recipe.train.epochs, recipe.train.max_steps) == (3.0, None)
    assert (recipe.train.batch_size, recipe.train.batch_tokens) == (32, None)
    assert recipe.data.splits == {"train": "train", "validation": "validation", "test": "test"}
    assert "splits" not in recipe.data.model_fields_set
    assert (recipe.data.stride, recipe.data.max_target_length, recipe.evaluate.generation) == (None, None, None)
    assert recipe.evaluate.select_on is None
    assert (recipe.carbon, recipe.hub, recipe.track.wandb) == (None, None, None)


def test_defaults_that_depend_on_the_task(write):
    assert load(write(SPAN.replace(", stride: 128", ""))).data.stride == 96
    generated = load(write(SEQ2SEQ.replace("  max_target_length: 32\n", "").split("evaluate")[0] + "output: runs/x\n"))
    assert generated.data.max_target_length == 64
    assert generated.evaluate.generation.num_beams == 4


def test_max_steps_or_tokens_take_the_place_of_the_defaults(write):
    train = load(write(SEQ2SEQ)).train
    assert (train.epochs, train.max_steps, train.batch_size, train.batch_tokens) == (None, 10, None, 1000)


def test_without_a_train_block_there_is_none(write):
    assert load(write(SHORT.replace("train: {}\n", ""))).train is None


def test_numbers_words_and_text(write):
    recipe = load(write(SHORT.replace("train: {}", "train: {learning_rate: 1e-5, epochs: 2, warmup: 100}")))
    assert recipe.train.learning_rate == 1e-5
    assert (recipe.train.epochs, type(recipe.train.epochs)) == (2.0, float)
    assert recipe.train.warmup == 100
    assert load(write(WEIGHTS)).train.class_weights == {"no": 1.0, "a.b": 2.5}
    assert load(write(SEQ2SEQ)).data.languages == {"source": "en", "target": "no"}


def test_source_and_paths_count_from_the_file(write, tmp_path, monkeypatch):
    path = write(SHORT)
    monkeypatch.chdir(tmp_path)
    recipe = load("bad.yaml")
    assert recipe.source == path
    assert recipe.folder == tmp_path
    assert recipe.locate("data/*.csv") == tmp_path / "data/*.csv"
    assert recipe.locate("/x/y.csv") == Path("/x/y.csv")


def test_byte_order_mark_and_windows_lines(write):
    assert load(write(b"\xef\xbb\xbf" + SHORT.replace("\n", "\r\n").encode())) == load(write(SHORT, "good.yaml"))


@pytest.mark.parametrize("text", [CONTRACT, SHORT, SEQ2SEQ, SPAN, WEIGHTS])
def test_resolved_recipe_loads_again(write, text):
    recipe = load(write(text))
    again = load(write(recipe.to_yaml(), "again.yaml"))
    assert again == recipe
    assert again.sha256() == recipe.sha256()
    assert again.to_yaml() == recipe.to_yaml()
    assert ("splits" in again.data.model_fields_set) == ("splits" in recipe.data.model_fields_set)


def test_resolved_recipe_names_every_key(write):
    text = load(write(SHORT)).to_yaml()
    for name, block in schema()["$defs"].items():
        if name in ("ModelBlock", "DataBlock", "TrainBlock", "EvaluateBlock", "TrackBlock", "CardBlock"):
            assert all(f"\n  {key}:" in text for key in block["properties"]), name


def test_recipes_differ_when_a_setting_does(write):
    assert load(write(SHORT)) != load(write(CONTRACT, "other.yaml"))


HARMLESS = [
    ("output: runs/rotten", "output: runs/other"),
    ("mode: offline", "mode: disabled"),
    ("country: FRA", "country: DEU"),
    ("license: apache-2.0", "license: mit"),
    ("private: true", "private: false"),
    ("metrics: [accuracy, f1]", "metrics: [f1]"),
    ("save_every: auto", "save_every: 10"),
    ("keep_last: 2", "keep_last: 3"),
]
DECISIVE = [
    ("seed: 0", "seed: 1", "train.seed"),
    ("{r: 8,", "{r: 4,", "model.lora.r"),
    ("label: label", "label: stars", "data.columns.label"),
    ("select_on: accuracy", "select_on: f1", "evaluate.select_on"),
    ("patience: 3", "patience: 4", "evaluate.patience"),
    ("every: epoch", "every: 7", "evaluate.every"),
    ("train: 2000", "train: 2001", "data.limit.train"),
]


@pytest.mark.parametrize(("old", "new"), HARMLESS)
def test_where_results_go_decides_nothing(write, old, new):
    before, after = load(write(CONTRACT)), load(write(CONTRACT.replace(old, new), "new.yaml"))
    assert before != after
    assert difference(before.to_yaml(), after) == []
    assert before.sha256() == after.sha256()


@pytest.mark.parametrize(("old", "new", "key"), DECISIVE)
def test_what_decides_the_numbers_is_told(write, old, new, key):
    before, after = load(write(CONTRACT)), load(write(CONTRACT.replace(old, new), "new.yaml"))
    assert [entry[0] for entry in difference(before.to_yaml(), after)] == [key]
    assert before.sha256() != after.sha256()


def test_a_default_and_the_same_value_written_down_are_one(write):
    short = load(write(SHORT.replace("a/b}", "a/b, lora: {}}")))
    long = load(
        write(SHORT.replace("a/b}", "a/b, lora: {alpha: 16}}").replace("train: {}", "train: {epochs: 3}"), "b.yaml")
    )
    assert short.sha256() == long.sha256()
    assert difference(short.to_yaml(), long) == []


def test_difference_names_both_values(write):
    before, after = load(write(CONTRACT)), load(write(CONTRACT.replace("seed: 0", "seed: 5"), "new.yaml"))
    assert difference(f"# versions\n{before.to_yaml()}", after) == [("train.seed", 0, 5)]


def test_difference_when_a_block_is_gone(write):
    before = load(write(CONTRACT))
    after = load(write(CONTRACT.replace("  lora: {r: 8, alpha: 16, dropout: 0.05, targets: auto}\n", ""), "new.yaml"))
    assert {entry[0] for entry in difference(before.to_yaml(), after)} == {
        *("model.lora.r", "model.lora.alpha", "model.lora.dropout", "model.lora.targets")
    }


def test_one_place_in_two_spellings_is_no_difference(write, tmp_path):
    before = load(write(SHORT)).to_yaml()
    spellings = ["./x.csv", f"../{tmp_path.name}/x.csv", str(tmp_path / "x.csv"), "a/x.csv"]
    found = [difference(before, load(write(SHORT.replace("x.csv", path)))) for path in spellings]
    assert [len(one) for one in found] == [0, 0, 0, 1]


def test_difference_refuses_what_is_no_recipe(write):
    with pytest.raises(RecipeError, match=r"recipe\.yaml of the run: .*problem"):
        difference("task: nothing\n", load(write(SHORT)))


@pytest.mark.parametrize(
    ("path", "local"),
    [
        *[(path, True) for path in ("./x", "../x", "/x", "x/", "data/*", "x.csv", "a/b.jsonl", "a/b/c.conll", ".")],
        *[(path, True) for path in ("a/b.txt", "a/b.CSV", "x.csv.gz", "x.zip", "x.xlsx")],
        *[(path, False) for path in ("a/b", "bert-base-uncased", "package://a/b.csv", "csv")],
    ],
)
def test_local_paths_and_hub_ids(path, local):
    assert is_local(path) is local


def test_tables_of_tasks_agree_with_the_metrics():
    assert {name: set(names) for name, names in PROBLEM_METRICS.items()} == {
        kind: set(NAMES[kind]) for kind in ("single", "multi", "regression")
    }
    assert set(METRICS["sequence"]) == {*NAMES["single"], *NAMES["multi"], *NAMES["regression"]}
    assert set(METRICS["token"]) == {*NAMES["entities"], *NAMES["tags"]}
    assert (set(METRICS["span"]), set(METRICS["seq2seq"])) == (set(NAMES["answers"]), set(NAMES["texts"]))


def test_roles_of_the_tasks():
    assert ROLES["sequence"] == (("text",), ("label", "labels", "text_pair", "id"))
    assert ROLES["span"][0] == ("question", "context", "answers")


# ---------------------------------------------------------------------------------------------------------- wrong ones

BAD = """\
task: sequence
model:
  checkpoint: a/b
  sha256: 12
  lora: {r: "8", targets: []}
  learning_rate: 3
data:
  path: x/y
  max_lenght: 12
  columns: {text: a, lable: b}
train:
  learning_rate: fast
  epochs: .nan
  deterministic: no
  save_every: 2.5
  seed: true
  max_length: 12
  class_weights: {a: x}
  batch_size: 8
  batch_size: 16
hubb: {}
carbon:
track: {wandb: {mode: ofline}}
"""


def test_all_problems_of_a_file_in_one_message_in_the_order_of_its_lines(write, tmp_path):
    assert refused(write(BAD)) == [
        f"{tmp_path}/bad.yaml: 19 problems",
        "  line 4, model.sha256: expected 64 hexadecimal digits in lower case, found 12; put it in quotes: '12'",
        "  line 5, model.lora.r: expected a whole number of at least 1, found '8'; write 8 without quotes",
        "  line 5, model.lora.targets: expected auto or a list of module names, found an empty list",
        "  line 6, model.learning_rate: unknown key; it belongs to train.learning_rate",
        "  line 9, data.max_lenght: unknown key; did you mean max_length?",
        "  line 10, data.columns.lable: no role of task sequence; did you mean label?",
        "  line 10, data.columns: task sequence needs text and label, or text and labels; found text, lable",
        "  line 12, train.learning_rate: expected a number above 0, found 'fast'",
        "  line 13, train.epochs: .nan is not a finite number; write a finite number",
        "  line 14, train.deterministic: expected true or false, found 'no'; write false",
        "  line 15, train.save_every: expected auto or a whole number of steps, found 2.5",
        "  line 16, train.seed: expected a whole number from 0 to 4294967295, found true",
        "  line 17, train.max_length: unknown key; it belongs to data.max_length",
        "  line 18, train.class_weights.a: expected a number above 0, found 'x'",
        "  line 20, train.batch_size: given twice, first on line 19; keep one",
        "  line 21, hubb: unknown key; did you mean hub?",
        "  line 22, carbon: empty; write {} for the defaults, or null to leave it out",
        "  line 23, track.wandb.mode: expected online, offline or disabled, found 'ofline'; did you mean offline?",
        "  output: missing; folder of the run, counted from the working directory",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("task: sequence", "task: masked", "line 1, task: masked is not available yet; expected sequence, token, span"),
        ("task: sequence", "task: sequense", "found 'sequense'; did you mean sequence?"),
        ("task: sequence", "tasks: sequence", "line 1, tasks: unknown key; did you mean task?"),
        ("seed: 0", "seed: -1", "train.seed: expected a whole number from 0 to 4294967295, found -1"),
        ("seed: 0", "seed:", "train.seed: expected a whole number from 0 to 4294967295, found nothing; remove it"),
        ("seed: 0", "seed: 010x", "found '010x'"),
        ("seed: 0", "lr: 1", "train.lr: unknown key; here it is train.learning_rate"),
        ("seed: 0", "xyzzy: 1", "train.xyzzy: unknown key; train has epochs, max_steps,"),
        ("max_grad_norm: 1.0", "max_grad_norm: yes", "train.max_grad_norm: expected a number above 0, found 'yes'"),
        ("keep_head: false", "keep_head: off", "expected true or false, found 'off'; write false"),
        ("keep_head: false", "keep_head: 0", "expected true or false, found 0"),
        ("path: cornell", "path: 5 #", "found 5; put it in quotes: '5'"),
        ("name: null", "name: 001", "data.name: expected a text, found 001; put it in quotes: '001'"),
        ("test: test", "test: 1", "data.splits.test: expected the name of a split, or a share of train"),
        ("label: label", "label: 5", "data.columns.label: expected the name of a column, found 5"),
        ("test: test", "dev: 1", "data.splits.dev: expected train, validation or test"),
        ("test: test", "dev: test", "data.splits.dev: expected train, validation or test"),
        ("train: 2000", "train: 0", "data.limit.train: expected a whole number of at least 1, found 0"),
        ("[accuracy, f1]", "accuracy", "evaluate.metrics: expected a list of metrics, such as [accuracy, f1]"),
        ("[accuracy, f1]", "[accuracy, 3]", "evaluate.metrics.1: expected a text, found 3"),
        ("country: FRA", "country: France", "expected three capital letters (ISO 3166), such as FRA, found 'France'"),
        ("country: FRA", "contry: FRA", "carbon.contry: unknown key; did you mean country?"),
        ("me/my-model", "my-model", "hub.repo_id: expected namespace/name of letters"),
        ("me/my-model", "me/my--model", "hub.repo_id: a Hub id holds no '--'"),
        ("license: apache-2.0", "license: Apache 2", "card.license: expected a licence id in lower case"),
        ("wandb: {project: demo, mode: offline}", "wandb: true", "track.wandb: expected a block of keys, such as"),
        ("alpha: 16", "alpha: .inf", "model.lora.alpha: .inf is not a finite number"),
        ("project: demo", "api_key: x", "track.wandb.api_key: unknown key; track.wandb has project, mode"),
        ("private: true}", "private: true, token: hf_x}", "hub.token: unknown key"),
    ],
)
def test_one_problem_in_plain_words(write, old, new, message):
    assert old in CONTRACT
    lines = refused(write(CONTRACT.replace(old, new, 1)))
    assert lines[0].endswith("bad.yaml: 1 problem")
    assert message in lines[1]
    assert "nput should be" not in lines[1]


def test_an_unknown_key_that_is_given_twice_is_both(write):
    lines = refused(write(SHORT + "lr: 1\nlr: 2\n"))
    assert [line.split(";")[0] for line in lines[1:]] == [
        "  line 6, lr: unknown key", "  line 7, lr: given twice, first on line 6",
    ]  # fmt: skip


def test_missing_keys_say_what_they_are_for(write):
    lines = refused(write("train: {}\n"))
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["task", "model", "data", "output"]
    assert "missing; the rows: where they are" in lines[3]


def test_a_wrong_value_hides_no_other_problem(write):
    lines = refused(
        write(SPAN.replace("stride: 128", "stride: 400, lenght: 1").replace("task: span", "task: span\nx: 1"))
    )
    assert any("data.stride: must be below data.max_length (384), found 400" in line for line in lines)
    assert any("data.lenght: unknown key" in line for line in lines)


def test_what_depends_on_a_wrong_value_is_not_judged(write):
    lines = refused(write(SPAN.replace("384", "long").replace("128", "300")))
    assert len(lines) == 2
    assert "data.max_length" in lines[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"- a\n", "expected a mapping of keys such as `task: sequence`; found a list"),
        (b"hello\n", "found a single value"),
        (b"a: \xff\n", "line 1: byte 0xff is not UTF-8"),
        (b"a: [1\nb: 2", "not valid YAML"),
        (b"a: &x 1\n", "anchors"),
        (b"#" * 300_000, "larger than 256 KB"),
    ],
)
def test_a_file_that_is_no_recipe(write, content, message):
    assert message in "\n".join(refused(write(content)))


def test_no_file_and_a_folder(tmp_path):
    assert refused(tmp_path / "none.yaml") == [f"{tmp_path}/none.yaml: no such file; expected a recipe, one YAML file"]
    assert refused(tmp_path) == [f"{tmp_path}: is a folder; expected a recipe, one YAML file"]


def test_long_messages_are_cut(write):
    lines = refused(write("".join(f"key{number}: 1\n" for number in range(200)) + f"{'k' * 900}: 1\n"))
    assert len(lines) == 52
    assert lines[-1] == "  … and 155 more"
    assert max(map(len, lines)) < 400


def test_thousands_of_problems_take_no_time(write):
    text = "train:\n" + "".join(f"  key{number}: 1\n" for number in range(2400))
    start = time.process_time()
    refused(write(text))
    assert time.process_time() - start < 1


# ------------------------------------------------------------------------------------------------------------- schema


def test_schema_describes_every_key():
    found = schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    blocks = [found, *found["$defs"].values()]
    assert {"task", "model", "data", "train", "evaluate", "output"} <= set(found["properties"])
    for block in blocks:
        assert block["additionalProperties"] is False
        for key, entry in block["properties"].items():
            described = found["$defs"][entry["$ref"].rsplit("/", 1)[1]] if "$ref" in entry else entry
            assert len(described.get("description", "")) > 8, (block["title"], key)


def test_schema_has_choices_and_ranges():
    blocks = schema()["$defs"]
    assert blocks["TrainBlock"]["properties"]["precision"]["enum"] == ["auto", "fp32", "bf16", "fp16"]
    assert blocks["TrainBlock"]["properties"]["label_smoothing"] | {"description": ""} == {
        "default": 0.0, "description": "", "exclusiveMaximum": 1, "minimum": 0, "title": "Label Smoothing",
        "type": "number",
    }  # fmt: skip
    assert set(ROLES["token"][1]) <= set(blocks["DataBlock"]["properties"]["columns"]["propertyNames"]["enum"])


def test_schema_is_json():
    assert json.loads(json.dumps(schema())) == schema()


# --------------------------------------------------------------------------------------------------------------- cost


def test_a_bad_recipe_is_answered_at_once_and_without_torch(write):
    code = (
        "import sys, time; start = time.process_time()\n"
        "from finetune.recipe import load\n"
        "from finetune.errors import RecipeError\n"
        "try: load(sys.argv[1])\n"
        "except RecipeError: print(time.process_time() - start)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'accelerate', 'pyarrow', 'huggingface_hub', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, write(BAD)], capture_output=True, text=True, check=True)
    seconds, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert float(seconds) < 0.6  # about 0.2 on an idle core; the test must hold on a busy one


def test_recipe_is_a_type_users_can_name(write):
    assert isinstance(load(write(SHORT)), Recipe)
