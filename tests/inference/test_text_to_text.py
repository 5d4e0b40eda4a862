"""The pipelines that are shipped beside the weights: the shapes of transformers 4, whole texts in, whole texts out."""

import pytest
import seq2seq_material as material
import tiny_export

from finetune.inference import text_to_text

TEXTS = ["a good film", "the plot", "very " * 200, "", "фильм 你好"]


@pytest.fixture(scope="module")
def parts():
    tokenizer = tiny_export.tokenizer()
    net = material.family("t5", initializer_factor=4.0).eval()
    net.generation_config.max_new_tokens, net.generation_config.max_length = 6, None
    return {"model": net, "tokenizer": tokenizer, "device": "cpu"}


@pytest.fixture
def pipe(parts):
    return text_to_text.Text2TextGenerationPipeline(**parts, task="text2text-generation")


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (text_to_text.SummarizationPipeline, "summary_text"),
        (text_to_text.TranslationPipeline, "translation_text"),
        (text_to_text.Text2TextGenerationPipeline, "generated_text"),
    ],
)
def test_one_text_gives_a_list_and_a_list_gives_a_list(parts, kind, key):
    pipe = kind(**parts)
    one = pipe("a good film")
    assert [set(item) for item in one] == [{key}]
    assert isinstance(one[0][key], str)
    assert pipe(["a good film", "the plot"]) == [one[0], pipe("the plot")[0]]
    assert pipe(["a good film"]) == one
    assert pipe([]) == pipe(inputs=[]) == []
    assert pipe(inputs="a good film") == pipe(inputs=["a good film"]) == one
    with pytest.raises(TypeError, match="inputs"):
        pipe()


def test_answers_differ_with_the_text_and_are_those_of_generate(pipe, parts):
    outputs = [item["generated_text"] for item in pipe(TEXTS)]
    assert len(set(outputs)) > 1
    for text, output in zip(TEXTS, outputs, strict=True):
        inputs = parts["tokenizer"](text, truncation=True, return_tensors="pt")
        tokens = parts["model"].generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        assert parts["tokenizer"].decode(tokens[0], skip_special_tokens=True) == output


def test_a_batch_gives_what_each_text_gives_alone(pipe):
    assert pipe(TEXTS, batch_size=3) == [pipe(text)[0] for text in TEXTS]


def test_long_texts_are_cut_and_not_refused(pipe):
    assert pipe.preprocess("very " * 200)["input_ids"].shape[1] == 32
    assert pipe.preprocess("very " * 200, truncation=False)["input_ids"].shape[1] > 200


def test_the_prefix_is_put_before_each_text(pipe, parts, monkeypatch):
    plain = pipe.preprocess("very good film")["input_ids"].tolist()
    monkeypatch.setattr(parts["model"].config, "prefix", "very ", raising=False)
    assert pipe.preprocess("good film")["input_ids"].tolist() == plain


def test_arguments_of_generate_reach_it(pipe):
    several = pipe("a good film", num_beams=3, num_return_sequences=3, max_new_tokens=4)
    assert len(several) == 3
    lists = pipe(["a good film", "the plot"], num_beams=2, num_return_sequences=2, max_new_tokens=4)
    assert [len(one) for one in lists] == [2, 2]
    tokens = pipe("a good film", return_tensors=True, max_new_tokens=2)[0]["generated_token_ids"]
    assert 1 <= len(tokens) <= 3


def test_other_things_than_texts_are_refused(pipe):
    with pytest.raises(ValueError, match="expected a text or a list of texts, found dict"):
        pipe({"text": "a good film"})


def test_a_translation_goes_from_and_to_the_languages_asked_for():
    from transformers import MBart50Tokenizer

    words = ("<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in tiny_export.WORDS))
    tokenizer = MBart50Tokenizer(vocab=[(word, -1.0) for word in words], src_lang="en_XX", tgt_lang="fr_XX")
    net = material.family("mbart", init_std=1.0)
    net.resize_token_embeddings(len(tokenizer))
    net.generation_config.decoder_start_token_id = 2
    net.config.languages = {"source": "de_DE", "target": "fr_XX"}
    pipe = text_to_text.TranslationPipeline(model=net.eval(), tokenizer=tokenizer, device="cpu")

    def mark(ids):
        return tokenizer.convert_ids_to_tokens(int(ids))

    assert mark(pipe.preprocess("good film")["input_ids"][0, 0]) == "de_DE"
    assert mark(pipe.preprocess("good film", src_lang="en_XX")["input_ids"][0, 0]) == "en_XX"
    found = pipe("good film", tgt_lang="es_XX", max_new_tokens=3, return_tensors=True)[0]["translation_token_ids"]
    assert mark(found[1]) == "es_XX"


def test_the_file_needs_nothing_of_this_package():
    """It is copied beside the weights, where `finetune` does not exist."""
    with open(text_to_text.__file__, encoding="utf-8") as file:
        imports = [line for line in file if line.startswith(("import ", "from "))]
    assert imports == [
        "from __future__ import annotations\n",
        "from collections.abc import Sequence\n",
        "from typing import Any\n",
        "import torch\n",
        "from transformers import Pipeline\n",
    ]
