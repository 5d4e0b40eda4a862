"""`evaluate.calibrate`: the exported head divides its logits by a temperature fitted on validation."""

import json
import math

import pytest
import tiny_run
import torch
import transformers
from safetensors.torch import load_file

import finetune
from finetune import model, run
from finetune.errors import ModelError, RecipeError
from finetune.recipe import load
from finetune.tasks.sequence import SequenceTask

SMALL = {"vocab_size": 20, "num_labels": 3, "pad_token_id": 0}
WIDTHS = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
CONFIGS = [
    transformers.BertConfig(**SMALL, **WIDTHS),
    transformers.RobertaConfig(**SMALL, **WIDTHS),
    transformers.DebertaV2Config(**SMALL, **WIDTHS),
    transformers.DistilBertConfig(**SMALL, dim=8, n_layers=1, n_heads=2, hidden_dim=8),
    transformers.GPT2Config(**SMALL, n_embd=8, n_layer=1, n_head=2),
    transformers.BartConfig(
        **SMALL, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=8, decoder_ffn_dim=8, eos_token_id=2, forced_eos_token_id=2,
    ),
]  # fmt: skip


class Labels(SequenceTask):
    """A task of which only the labels are asked."""

    def __init__(self, labels):
        self.labels = labels


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_logits_are_divided(config):
    torch.manual_seed(0)
    net = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.tensor([[5, 6, 2], [7, 8, 2]])
    with torch.no_grad():
        before = net(input_ids=ids).logits
        model.divide_logits(net, Labels(["a", "b", "c"]), 2.5)
        after = net(input_ids=ids).logits
    torch.testing.assert_close(after, before / 2.5)


def test_a_head_of_another_form_is_refused():
    net = transformers.AutoModelForSequenceClassification.from_config(CONFIGS[0])
    with pytest.raises(ModelError, match="0 linear layers with 4 outputs"):
        model.divide_logits(net, Labels(["a", "b", "c", "d"]), 2.0)


def test_a_run_exports_the_calibrated_head(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    rows = tiny_run.sentences(40, seed=1)
    wrong = {"pos": "neg", "neg": "pos"}
    noisy = [(text, wrong[label] if row < 10 else label) for row, (text, label) in enumerate(rows)]
    tiny_run.write_csv(tmp_path / "validation.csv", ("text", "label"), noisy)
    path = tiny_run.write_recipe(tmp_path, tiny_checkpoint, "evaluate: {calibrate: true}\n")
    record = run.train(finetune.load_recipe(path))
    calibration = record.analysis["validation"].calibration
    temperature = calibration.applied.value
    assert abs(math.log(temperature)) > 0.05
    assert calibration.temperature is None
    assert any(f"divided by {temperature:.3f}" in note for note in record.model.notes)
    config = json.loads((tmp_path / "out" / "export" / "config.json").read_text())
    assert "calibration_temperature" not in config
    last = max((tmp_path / "out" / "checkpoints").iterdir())
    best = last / "best.safetensors"
    trained = load_file(best if best.exists() else last / "weights.safetensors")
    exported = load_file(tmp_path / "out" / "export" / "model.safetensors")
    torch.testing.assert_close(exported["classifier.weight"] * temperature, trained["classifier.weight"])
    assert record.export.verified


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data.problem=regression", "has no effect on regression"),
        ("data.splits={train: train, test: test}", "needs validation rows"),
    ],
)
def test_calibrate_needs_probabilities_and_validation(tmp_path, text, message):
    path = tiny_run.write_recipe(tmp_path, "user/model", "evaluate: {calibrate: true}\n")
    with pytest.raises(RecipeError, match=message):
        load(path, [text])
