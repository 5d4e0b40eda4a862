"""Text to text: rows to tensors, the loss per target token, what is generated, scored and told to the pipeline."""

import numpy as np
import pytest
import seq2seq_material as material
import tiny_export
import torch
from safetensors.torch import load_file

from finetune import model, preparation, run
from finetune.assessment import evaluate
from finetune.errors import DataError, ModelError, RecipeError
from finetune.events import Events
from finetune.loop import predict_here
from finetune.prediction import predict_lines
from finetune.recipe import load
from finetune.tasks import decoding


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return material.save_family(tmp_path_factory.mktemp("t5"), initializer_factor=4.0)


def prepared(folder, checkpoint, rows=None, **blocks):
    for split in ("train", "validation", "test") if rows else ():
        material.write_rows(folder / f"{split}.jsonl", rows)
    return preparation.prepare(load(material.write_recipe(folder, checkpoint, **blocks)), Events())


def trained(ready):
    return model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe).model.eval()


def batch_of(ready, index):
    return ready.task.collate(ready.features["train"], np.array(index), ready.tokenizer)


# ---------------------------------------------------------------- rows to tensors


def test_prefix_and_ends_are_in_the_ids(tmp_path, t5):
    ready = prepared(tmp_path, t5, [("good film", "plot")], data='  prefix: "very: "')
    ids = ready.features["train"].sequences
    words = ready.tokenizer.convert_ids_to_tokens(ids["input_ids"][0])
    assert words == ["[CLS]", "very", "[UNK]", "good", "film", "[SEP]"]
    assert ready.tokenizer.convert_ids_to_tokens(ids["labels"][0]) == ["[CLS]", "plot", "[SEP]"]


def test_a_decoder_that_starts_with_cls_is_not_taught_to_write_it(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint, [("good film", "plot")], model="  decoder: same")
    batch = batch_of(ready, [0])
    words = ready.tokenizer.convert_ids_to_tokens
    assert words(batch.targets["labels"][0]) == ["plot", "[SEP]"]
    assert words(batch.inputs["decoder_input_ids"][0]) == ["[CLS]", "plot"]


def test_padding_is_ignored_and_masked(tmp_path, t5):
    ready = prepared(tmp_path, t5, [("good film", "plot"), ("a", "the plot was bad")])
    batch = batch_of(ready, [0, 1])
    assert batch.targets["labels"].tolist()[0][3:] == [-100] * 3
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.inputs["decoder_input_ids"].tolist()[0][4:] == [0, 0]


def test_what_is_cut_is_counted_and_said(tmp_path, t5):
    ready = prepared(tmp_path, t5, [("good " * 40, "bad"), ("a", "bad " * 10), ("a", "bad " * 11)])
    found = ready.features["train"].scalars
    assert found["truncated"].tolist() == [True, False, False]
    assert found["target_truncated"].tolist() == [False, False, True]
    assert ready.features["train"].sequences["labels"][2].tolist()[-1] == ready.tokenizer.sep_token_id
    assert any("of 3 targets, 1 are longer than 12 tokens" in note for note in ready.audit.notes)


def test_targets_that_the_tokenizer_changes_are_counted(tmp_path, t5):
    ready = prepared(tmp_path, t5, [("a", "good film"), ("a", "Good film")])
    assert any("1 of the first 2 targets are not what they were" in note for note in ready.audit.notes)


@pytest.mark.parametrize("name", [*material.FAMILIES, "encoder-decoder"])
def test_labels_are_what_the_tokenizer_makes_of_targets(tmp_path, tiny_checkpoint, name):
    checkpoint = tiny_checkpoint if name == "encoder-decoder" else material.save_family(tmp_path / name, name)
    extra = {"model": "  decoder: same"} if name == "encoder-decoder" else {}
    targets = ["good film", "bad", "the plot was " * 7]
    ready = prepared(tmp_path, checkpoint, [("good", target) for target in targets], **extra)
    tokenizer, task = ready.tokenizer, ready.task
    expected = tokenizer(text_target=targets, truncation=True, max_length=task.max_target_length)["input_ids"]
    opened = [ids[1:] if ids[0] == task.start else ids for ids in expected]
    labels = ready.features["train"].sequences["labels"]
    assert [labels[row].tolist() for row in range(3)] == opened
    assert ready.features["train"].scalars["target_truncated"].tolist() == [False, False, True]


def test_an_empty_target_is_refused_with_its_row(tmp_path, t5):
    with pytest.raises(DataError, match=r"(?s)train.jsonl.*line 2.*target: empty"):
        prepared(tmp_path, t5, [("good", "bad"), ("a", "  ")])


@pytest.mark.parametrize("name", [*material.FAMILIES, "encoder-decoder"])
def test_loss_is_the_models_own_per_target_token(tmp_path, tiny_checkpoint, name):
    """Decoder inputs are made here, so that the model computes no second loss: they must be the model's own."""
    if name == "encoder-decoder":
        ready = prepared(tmp_path, tiny_checkpoint, model="  decoder: same")
    else:
        ready = prepared(tmp_path, material.save_family(tmp_path / name, name))
    net, features = trained(ready), ready.features["train"]
    index = np.arange(8)
    batch = ready.task.collate(features, index, ready.tokenizer)
    with torch.no_grad():
        loss = ready.task.loss(net(**batch.inputs), batch) / ready.task.counts(features)[index].sum()
        inputs = {key: batch.inputs[key] for key in ("input_ids", "attention_mask")}
        with pytest.warns() if name == "encoder-decoder" else pytest.MonkeyPatch.context():
            own = net(**inputs, labels=batch.targets["labels"]).loss
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)


def test_smoothing_belongs_to_training_alone(tmp_path, t5):
    ready = prepared(tmp_path, t5, label_smoothing=0.2)
    net, batch = trained(ready), batch_of(ready, range(4))
    with torch.no_grad():
        logits = net(**batch.inputs).logits
        smoothed = ready.task.loss(net(**batch.inputs), batch)
        rows = ready.task.predict(net, batch)["loss"]
    log, labels = logits.log_softmax(-1), batch.targets["labels"]
    real = labels >= 0
    gold = -log.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = (0.8 * gold - 0.2 * log.mean(-1))[real].sum()
    assert smoothed.item() == pytest.approx(expected.item(), rel=1e-5)
    means = [gold[row][real[row]].mean().item() for row in range(4)]
    assert rows.tolist() == pytest.approx(means, rel=1e-5)


def test_micro_batches_add_up_to_the_global_batch(tmp_path, t5):
    ready = prepared(tmp_path, t5)
    net = trained(ready)
    with torch.no_grad():
        whole, *parts = (
            ready.task.loss(net(**batch.inputs), batch)
            for batch in (batch_of(ready, i) for i in (range(8), range(3), range(3, 8)))
        )
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)


# ---------------------------------------------------------------- what is generated


def test_outputs_do_not_depend_on_the_batch_they_are_in(tmp_path, t5):
    ready = prepared(tmp_path, t5)
    net, features = trained(ready), ready.features["train"]
    alone = predict_here(net, ready.task, features, ready.tokenizer, torch.device("cpu"))
    found = ready.task.decode(alone, features, ready.splits["train"])
    with torch.no_grad():
        together = ready.task.predict(net, batch_of(ready, range(40)))["tokens"]
    texts = ready.tokenizer.batch_decode(together, skip_special_tokens=True)
    assert texts == found.arrays["texts"]
    assert len(set(texts)) > 1


def test_sampling_repeats_and_leaves_the_generator_alone(tmp_path, t5):
    ready = prepared(tmp_path, t5, evaluate="  generation: {num_beams: 1, do_sample: true, temperature: 2.0}")
    net, batch = trained(ready), batch_of(ready, range(8))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():
        first, second = (ready.task.predict(net, batch)["tokens"].tolist() for _ in range(2))
        certain = ready.task.predict_case(net, batch)["tokens"].tolist()
    assert first == second != certain
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_of_the_recipe_replace_those_of_the_checkpoint():
    from transformers import GenerationConfig

    from finetune.recipe.model import GenerationBlock

    base = GenerationConfig(max_length=512, num_beams=6, early_stopping=True, length_penalty=2.0, bad_words_ids=[[7]])
    tokenizer = tiny_export.tokenizer()
    beams = decoding.generation_config(base, GenerationBlock(num_beams=2), 12, {}, tokenizer)
    assert (beams.num_beams, beams.max_new_tokens, beams.max_length, beams.length_penalty) == (2, 12, None, 2.0)
    assert beams.bad_words_ids == [[7]], "what is not in the recipe stays as the checkpoint has it"
    assert base.num_beams == 6
    block = GenerationBlock(num_beams=1, max_new_tokens=5, do_sample=True, top_p=0.5)
    sampled = decoding.generation_config(base, block, 12, {"forced_bos_token_id": 9}, tokenizer)
    assert (sampled.max_new_tokens, sampled.top_p, sampled.forced_bos_token_id) == (5, 0.5, 9)
    for config in (beams, sampled):
        config.validate(strict=True)


def test_loss_only_generates_nothing(tmp_path, t5):
    ready = prepared(tmp_path, t5, evaluate="  generation: {loss_only: true}")
    net, features = trained(ready), ready.features["test"]
    with torch.no_grad():
        outputs = ready.task.predict(net, ready.task.collate(features, np.arange(12), ready.tokenizer))
    assert set(outputs) == {"loss"}
    rows = {"loss": list(outputs["loss"].numpy())}
    found = ready.task.decode(rows, features, ready.splits["test"])
    assert ready.task.score(found) == {}
    assert ready.task.default_metric() == "loss"
    assert ready.task.records(found)[0]["prediction"] is None
    assert ready.task.baselines(ready.splits) == {}


@pytest.mark.parametrize(
    ("pipeline", "key", "names"),
    [
        ("summarization", "summary_text", ["rougeL", "rouge1", "rouge2"]),
        ("translation", "translation_text", ["bleu", "chrf"]),
        ("text2text-generation", "generated_text", ["chrf", "exact_match", "bleu"]),
    ],
)
def test_the_pipeline_word_decides_metrics_and_shape(tmp_path, t5, pipeline, key, names):
    ready = prepared(tmp_path, t5, evaluate=f"  generation: {{pipeline: {pipeline}, num_beams: 1}}")
    task, rows = ready.task, ready.splits["test"]
    outputs = {
        "loss": [np.float32(1)] * 12,
        "tokens": list(ready.features["test"].sequences["labels"].pad(range(12), 0)),
    }
    found = task.decode(outputs, ready.features["test"], rows)
    assert found.arrays["texts"] == rows.column("target")
    scores = task.score(found)
    assert list(scores) == names
    assert scores[names[0]].value == pytest.approx(100)
    assert task.default_metric() == names[0]
    case = task.cases(rows, found)[0]
    assert (case.inputs, case.expected) == (rows.column("source")[0], [{key: rows.column("target")[0]}])
    assert f'pipeline("{pipeline}", model="{{model}}", trust_remote_code=True)' in task.snippet(rows)


def test_copying_the_source_is_the_baseline(tmp_path, t5):
    ready = prepared(tmp_path, t5, [("good film", "good film"), ("a plot", "plot")])
    copies = ready.task.baselines(ready.splits)["copy_of_the_source"]
    assert set(copies) == {"validation", "test"}
    assert copies["test"].metrics["exact_match"].value == 0.5


def test_references_may_go_through_the_tokenizer(tmp_path, t5):
    rows = [("a", "good \t film"), ("a", "film plot")]
    raw = prepared(tmp_path, t5, rows)
    blocks = "  generation: {num_beams: 1, references: tokenizer}"
    kept = prepared(tmp_path, t5, evaluate=blocks)
    for ready, expected in ((raw, 0.5), (kept, 1.0)):
        labels = ready.features["test"].sequences["labels"].pad([0, 1], 0)
        outputs = {"loss": [np.float32(1)] * 2, "tokens": list(labels)}
        found = ready.task.decode(outputs, ready.features["test"], ready.splits["test"])
        assert ready.task.score(found, ["exact_match"])["exact_match"].value == expected
        assert [line["gold"] for line in ready.task.records(found)] == [target for _, target in rows]
    assert any("passed through the tokenizer" in note for note in kept.task.notes())
    assert not any("passed through the tokenizer" in note for note in raw.task.notes())


# ---------------------------------------------------------------- checkpoints that fit, and that do not


def test_an_encoder_alone_is_refused_with_what_to_add(tmp_path, tiny_checkpoint):
    with pytest.raises(ModelError, match=r"'bert'.*add model.decoder: same"):
        prepared(tmp_path, tiny_checkpoint)


def test_a_decoder_alone_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=14, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    tiny_export.tokenizer().save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'gpt2', which has no encoder"):
        prepared(tmp_path, folder)


def test_half_a_model_is_no_checkpoint(tmp_path, t5):
    from transformers import AutoConfig, T5EncoderModel

    folder = tmp_path / "half"
    T5EncoderModel(AutoConfig.from_pretrained(t5)).save_pretrained(folder)
    tiny_export.tokenizer().save_pretrained(folder)
    ready = prepared(tmp_path, folder)
    with pytest.raises(ModelError, match=r"lacks \d+ weights of the backbone .decoder"):
        trained(ready)


def test_the_head_of_the_checkpoint_is_kept(tmp_path):
    folder = material.save_family(tmp_path / "untied", "bart", tie_word_embeddings=False)
    ready = prepared(tmp_path, folder)
    found = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
    assert (found.head_swap.new.count, found.head_swap.dropped.count) == (0, 0)
    own = load_file(folder / "model.safetensors")
    assert "lm_head.weight" in own
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.model.named_parameters())


def multilingual(kind):
    import transformers

    words = ("<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in tiny_export.WORDS))
    if kind == "NllbTokenizer":
        return transformers.NllbTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    return getattr(transformers, kind)(vocab=[(word, -1.0) for word in words])


@pytest.mark.parametrize(
    ("kind", "codes"),
    [("MBart50Tokenizer", ("en_XX", "fr_XX")), ("NllbTokenizer", ("eng_Latn", "fra_Latn"))],
)
def test_languages_mark_both_sides_and_the_output(kind, codes):
    tokenizer = multilingual(kind)
    marks = decoding.set_languages(tokenizer, {"source": codes[0], "target": codes[1]})
    assert marks == {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(codes[1])}
    ids = [tokenizer("good film").input_ids, tokenizer(text_target="good film").input_ids]
    assert [tokenizer.convert_ids_to_tokens(one[0]) for one in ids] == list(codes)


def test_languages_that_do_not_exist_are_refused():
    with pytest.raises(ModelError, match=r"data.languages.target: .* 'klingon'"):
        decoding.set_languages(multilingual("MBart50Tokenizer"), {"source": "en_XX", "target": "klingon"})
    with pytest.raises(ModelError, match="marks no languages"):
        decoding.set_languages(tiny_export.tokenizer(), {"source": "en", "target": "fr"})


def test_labels_of_a_language_at_the_end_wrap_around():
    labels = torch.tensor([[5, 6, 3, 9], [7, 3, 9, -100]])
    assert decoding.shift_right(labels, None, 1, wraps=True).tolist() == [[9, 5, 6, 3], [9, 7, 3, 9]]
    assert decoding.shift_right(labels, 0, 1, wraps=False).tolist() == [[0, 5, 6, 3], [0, 7, 3, 9]]


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("evaluate_block", "message"),
    [
        ("  generation: {top_p: 0.9}", "evaluate.generation.top_p: has no effect without do_sample"),
        ("  generation: {num_beams: 1, length_penalty: 2.0}", "length_penalty: has no effect with num_beams: 1"),
        ("  select_on: bleu\n  generation: {loss_only: true}", "evaluate.select_on: has no effect with"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, t5, evaluate_block, message):
    with pytest.raises(RecipeError, match=message):
        load(material.write_recipe(tmp_path, t5, evaluate=evaluate_block))


def test_a_local_decoder_moves_with_the_recipe(tmp_path, t5):
    recipe = load(material.write_recipe(tmp_path, "./a/", model="  decoder: ./b/"))
    moved = recipe.moved_to(tmp_path / "runs" / "one")
    assert moved.locate(str(moved.model.decoder)).resolve() == tmp_path / "b"


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_checkpoint):
    """A run with all that a seq2seq recipe may ask for at once: its folder and its record."""
    folder = tmp_path_factory.mktemp("finished")
    path = material.write_recipe(
        folder,
        tiny_checkpoint,
        model="  decoder: same\n  lora: {r: 2}",
        data='  prefix: "very "',
        evaluate="  generation: {pipeline: summarization, num_beams: 2, do_sample: true}",
    )
    return folder / "out", run.train(load(path))


def test_a_run_verifies_and_predicts_as_published(finished):
    """`train` ends with a fresh process that calls the pipeline without this package, and compares."""
    folder, record = finished
    assert record.status == "finished"
    assert record.export.verified
    assert set(record.export.files) > {"text_to_text.py", "generation_config.json", "adapter/adapter_config.json"}
    assert list(record.results["test"].metrics) == ["rougeL", "rouge1", "rouge2", "loss"]
    found = list(predict_lines(str(folder / "export"), ['{"source": "a film", "id": 7}', '{"source": ""}']))
    assert [set(line) for line in found] == [{"source", "id", "prediction"}, {"source", "prediction"}]
    assert all(isinstance(line["prediction"], str) for line in found)
    with pytest.raises(DataError, match="line 1: expected a text under source"):
        list(predict_lines(str(folder / "export"), ['{"text": "a film"}']))


def test_the_card_tells_how_to_call_the_model(finished):
    folder, _ = finished
    card = (folder / "export" / "README.md").read_text(encoding="utf-8")
    assert 'pipeline("summarization", model="path/to/export", trust_remote_code=True)' in card
    assert 'finetune.pipeline("path/to/export")' in card
    assert "is asked for because transformers 5 has no pipeline for summarization" in card
    assert "puts the prefix 'very ' before it" in card
    assert "- rougeL, rouge1, rouge2: " in card
    assert "Porter stemmer" in card
    assert 'pipeline("text-generation"' not in card


def test_padding_counts_source_and_target(finished):
    _, record = finished
    assert 0 <= record.training.padding_share < 1
    assert record.training.tokens > 0


def test_an_existing_checkpoint_is_evaluated(tmp_path, t5):
    recipe = load(material.write_recipe(tmp_path, t5, evaluate="  metrics: [bleu]\n  generation: {num_beams: 1}"))
    record = evaluate(recipe, str(t5), split="test")
    assert list(record.results["test"].metrics) == ["bleu", "loss"]
    assert record.results["test"].n == 12
