"""`finetune check` a second time: what it remembers, and what makes it look again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import seq2seq_material
import tiny_export
import tiny_run
import torch
import transformers
from safetensors.torch import load_file, save_file

from finetune import checking, data, model, run
from finetune.errors import FinetuneError, ModelError, RecipeError
from finetune.events import Events
from finetune.recipe import load

ROOT = Path(__file__).parents[1]
UNUSED = ("accelerate", "datasets", "evaluate", "pandas", "peft", "scipy", "sklearn", "transformers.modeling_utils")


@pytest.fixture
def recipe(tmp_path):
    return tiny_run.write_recipe(tmp_path, tiny_run.save_encoder(tmp_path / "encoder"))


@pytest.fixture
def loads(monkeypatch):
    """Grows by one with each model that is loaded."""
    seen, inner = [], model.load_for_training
    monkeypatch.setattr(model, "load_for_training", lambda *given: seen.append(1) or inner(*given))
    return seen


def check(path, *overrides):
    return checking.check(load(path, overrides), Events())


def parts(report):
    """What does not depend on the time it took."""
    return [section for section in report.split("\n\n") if "seconds" not in section]


def test_check_on_a_warm_cache_says_the_same_without_a_model_and_its_packages(recipe):
    first = check(recipe)
    program = (
        "import sys\nfrom finetune.cli import main\n"
        "sys.argv = ['finetune', 'check', sys.argv[1]]\n"
        f"try:\n    main()\nfinally:\n    print(*(set({UNUSED!r}) & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(recipe)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parts(ended.stdout.rstrip("\n")) == parts(first.report)
    assert ended.stderr.splitlines()[-1].strip() == ""


def test_the_problem_that_labels_say_is_told(recipe):
    said = []
    checking.check(load(recipe), Events(message=said.append))
    assert "data.problem: single, since each row has one label" in said
    said.clear()
    checking.check(load(recipe, ["data.problem=single"]), Events(message=said.append))
    assert not any("data.problem" in line for line in said)


def test_weights_in_order_are_looked_at_once(recipe, loads):
    first = check(recipe)
    assert parts(check(recipe, "train.epochs=1", "train.seed=3").report)[1:] == parts(first.report)[1:]
    assert len(loads) == 1


@pytest.mark.parametrize("change", ["config", "labels", "model.init=scratch", "code"])
def test_what_decides_about_the_weights_makes_check_look_again(recipe, loads, monkeypatch, change):
    check(recipe)
    folder = recipe.parent / "encoder"
    overrides = [change] if "=" in change else []
    if change == "config":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    if change == "labels":
        rows = (recipe.parent / "train.csv").read_text() + "a plot,neutral\na film,neutral\n"
        (recipe.parent / "train.csv").write_text(rows)
    if change == "code":
        monkeypatch.setattr(data, "task_code", lambda task: f"another version of {task}")
    check(recipe, *overrides)
    assert len(loads) == 2


def test_weights_that_were_in_order_are_refused_once_they_are_not(recipe):
    check(recipe)
    path = recipe.parent / "encoder" / "model.safetensors"
    weights = load_file(path)
    weights["pooler.dense.bias"][0] = torch.nan
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"NaN or infinite numbers in bert\.pooler\.dense\.bias"):
        check(recipe)


def test_weights_that_cannot_be_used_are_refused_each_time(recipe):
    (recipe.parent / "encoder" / "model.safetensors").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(ModelError, match="damaged"):
            check(recipe)


def test_settings_that_the_model_cannot_be_trained_with_are_found(recipe, monkeypatch):
    check(recipe)
    monkeypatch.setattr(transformers.BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError) as caught:
        check(recipe, "model.lora.targets=[query, nope]", "train.gradient_checkpointing=true")
    assert str(caught.value).splitlines() == [
        "model.lora.targets: no linear layer is named nope; there are dense, key, query, value",
        "train.gradient_checkpointing: transformers cannot recompute the layers of BertForSequenceClassification;"
        " remove the key",
    ]


def train(path, *overrides):
    run.train(load(path, overrides))


def save_net(folder, net):
    """Any model with the tokenizer of tiny_export."""
    net.save_pretrained(folder)
    tiny_export.tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("command", [check, train])
def test_a_model_whose_own_code_fails_is_refused_before_training(recipe, command):
    sizes = {name: getattr(tiny_run.config(), name) for name in ("vocab_size", "hidden_size", "num_attention_heads")}
    config = transformers.NystromformerConfig(num_landmarks=8, num_hidden_layers=1, **sizes)
    save_net(recipe.parent / "encoder", transformers.NystromformerModel(config))
    reason = r"NystromformerForSequenceClassification of \S+ cannot take a text of 2 tokens: RuntimeError: shape"
    with pytest.raises(ModelError, match=reason):
        command(recipe)


@pytest.mark.parametrize("command", [check, train])
def test_a_head_that_cannot_be_calibrated_is_refused_before_training(recipe, command):
    config = transformers.ElectraConfig(
        **tiny_run.config(hidden_size=2, num_attention_heads=1).to_dict() | {"embedding_size": 2}
    )
    save_net(recipe.parent / "encoder", transformers.ElectraModel(config))
    check(recipe)
    with pytest.raises(ModelError, match=r"calibrate: the head of Electra\w+ has 2 linear layers with 2 outputs"):
        command(recipe, "evaluate.calibrate=true")


@pytest.mark.parametrize("command", [check, train])
def test_a_model_that_attends_to_padding_is_refused_before_training(recipe, command):
    config = transformers.FNetConfig(vocab_size=tiny_run.config().vocab_size, hidden_size=32, num_hidden_layers=1)
    save_net(recipe.parent / "encoder", transformers.FNetModel(config))
    with pytest.raises(
        ModelError, match=r"what FNet\w+ of \S+ says of a text depends on the padding beside it: a logit of"
    ):
        command(recipe)


@pytest.mark.parametrize("command", [check, train])
def test_mistakes_of_all_parts_are_told_together(recipe, command):
    folder = recipe.parent
    (folder / "train.csv").write_text("text,label\nfilm,pos\nthe plot,neg\n")
    (folder / "validation.csv").write_text("text,label\nfilm,negg\n")
    (folder / "test.csv").write_text("text,label\nfilm,pos\nthe plot\n")
    settings = ["carbon.country=FRX", "model.checkpoint=./nowhere", "evaluate.metrics=[accuracy, Acuracy]"]
    with pytest.raises(FinetuneError) as caught:
        command(recipe, *settings)
    found = str(caught.value)
    assert "carbon.country: CodeCarbon knows no grid of 'FRX'" in found
    assert "nowhere is not a folder with a config.json" in found
    assert "test.csv, line 3: expected 2 cells, found 1" in found
    assert "did you mean 'neg'?" in found

    for split in ("validation", "test"):
        (folder / f"{split}.csv").write_text("text,label\nfilm,pos\n")
    with pytest.raises(FinetuneError) as caught:
        command(recipe, *settings)
    found = str(caught.value)
    assert "nowhere is not a folder with a config.json" in found
    assert "evaluate.metrics: 'Acuracy' is no metric of ours" in found


def test_what_no_text_can_be_generated_with_is_refused(tmp_path):
    folder = seq2seq_material.save_family(tmp_path / "t5")
    path = seq2seq_material.write_recipe(tmp_path, folder)
    check(path)
    settings = json.loads((folder / "generation_config.json").read_text()) | {"penalty_alpha": 0.6, "top_k": 4}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ModelError, match=r"T5.* cannot answer: ValueError: Contrastive .* look at evaluate\.generation"
    ):
        check(path)


def test_half_precision_that_a_cpu_has_not_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"train\.precision: fp16 needs a GPU"):
        check(recipe, "train.precision=fp16")
