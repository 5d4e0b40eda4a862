"""A decoder such as GPT-2 under a head: no special tokens, no padding token, linear layers stored transposed."""

import json

import pytest
import tiny_export
import tiny_run
import torch
import transformers

from finetune import assessment, prediction, run
from finetune.errors import DataError
from finetune.recipe import load


def save_decoder(folder, **changes):
    """A GPT-2 of random weights and its tokenizer, without a padding token; the folder."""
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=without_frame(), eos_token="[SEP]", unk_token="[UNK]", model_max_length=32
    )
    sizes = {"vocab_size": len(words), "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**sizes, bos_token_id=3, eos_token_id=3, **changes)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path):
    return tiny_run.write_recipe(tmp_path, save_decoder(tmp_path / "gpt2"), epochs=6, learning_rate="1.0e-2")


def without_frame():
    """The words of tiny_export, with nothing before and after a text."""
    from tokenizers import Tokenizer

    content = json.loads(tiny_export.tokenizer().backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(content | {"post_processor": None}))


@pytest.mark.parametrize("lora", [[], ["model.lora.r=4"]], ids=["full", "lora"])
def test_it_is_trained_published_and_evaluated(recipe, lora):
    before = json.loads((recipe.parent / "gpt2" / "config.json").read_text())
    assert before.get("pad_token_id") is None
    record = run.train(load(recipe, lora))
    assert record.export.verified
    assert record.results["test"].metrics["accuracy"].value > 0.8
    export = recipe.parent / "out" / "export"
    assert json.loads((export / "config.json").read_text())["pad_token_id"] == 3
    again = assessment.evaluate(load(recipe), str(export))
    assert again.results["test"].metrics["accuracy"].value == record.results["test"].metrics["accuracy"].value
    [found] = prediction.predict_lines(str(export), ['{"text": "good film"}\n'])
    assert found["prediction"]["label"] in ("pos", "neg")
    for text in ("", "  "):
        lines = [json.dumps({"text": "good"}), json.dumps({"text": text})]
        with pytest.raises(DataError, match="input, line 2: the text is empty: the tokenizer of this model makes no"):
            list(prediction.predict_lines(str(export), lines))
