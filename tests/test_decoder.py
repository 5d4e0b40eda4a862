"""An encoder is given a decoder: which weights are whose, which tokens start and end, what LoRA trains and saves."""

import numpy as np
import pytest
import seq2seq_material as material
import tiny_export
import tiny_run
import torch
from safetensors.torch import load_file

from finetune import assessment, lora, model, preparation
from finetune.errors import ModelError
from finetune.events import Events
from finetune.recipe import LoraBlock, load


def prepared(folder, checkpoint, decoder="same", **blocks):
    path = material.write_recipe(folder, checkpoint, model=f"  decoder: {decoder}", **blocks)
    return preparation.prepare(load(path), Events())


def loaded(ready):
    return model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)


def some_batch(ready):
    return ready.task.collate(ready.features["train"], np.arange(8), ready.tokenizer)


def test_both_sides_start_from_the_encoder_and_the_rest_is_new(tmp_path, tiny_checkpoint):
    found = loaded(prepared(tmp_path, tiny_checkpoint))
    swap, own = found.head_swap, load_file(tiny_checkpoint / "model.safetensors")
    parameters = dict(found.model.named_parameters())
    for name, tensor in own.items():
        if not name.startswith("pooler."):
            assert torch.equal(parameters[f"encoder.{name}"], tensor)
            assert torch.equal(parameters[f"decoder.bert.{name}"], tensor)
    assert {name.split(".")[0] for name in swap.new.names} == {"decoder"}
    kinds = {"crossattention" if "crossattention" in name else name.split(".")[1] for name in swap.new.names}
    assert kinds == {"crossattention", "cls"}
    assert swap.reused.count + swap.new.count + 2 == len(parameters)
    assert {"encoder.pooler.dense.weight", "decoder.pooler.dense.weight"} < set(swap.dropped.names)


def test_what_nothing_reads_gets_no_gradient_so_that_ddp_is_content(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint)
    net, batch = loaded(ready).model, some_batch(ready)
    torch.autograd.backward(ready.task.loss(net(**batch.inputs), batch))
    idle = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert idle == []
    assert not net.encoder.pooler.dense.weight.requires_grad


def test_new_weights_depend_on_the_seed_alone(tmp_path, tiny_checkpoint):
    nets = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.rand(number + 1)
        nets.append(loaded(prepared(folder, tiny_checkpoint, seed=seed)).model.decoder)
    keys = [net.bert.encoder.layer[0].crossattention.self.key.weight for net in nets]
    assert torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[0], keys[2])


def test_outputs_start_with_cls_and_end_with_sep(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint)
    net = loaded(ready).model
    marks = (ready.tokenizer.cls_token_id, ready.tokenizer.sep_token_id, ready.tokenizer.pad_token_id)
    for config in (net.config, net.generation_config):
        assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == marks


def test_random_weights_on_request(tmp_path, tiny_checkpoint):
    path = material.write_recipe(tmp_path, tiny_checkpoint, model="  decoder: same\n  init: scratch")
    found = loaded(preparation.prepare(load(path), Events()))
    assert found.head_swap.reused.count == 0
    own = load_file(tiny_checkpoint / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert not torch.equal(found.model.encoder.embeddings.word_embeddings.weight, own)


def test_a_decoder_of_another_width_is_reached_by_a_bridge(tmp_path, tiny_checkpoint):
    wide = tiny_run.save_encoder(tmp_path / "wide", hidden_size=48)
    found = loaded(prepared(tmp_path, tiny_checkpoint, wide))
    assert {"enc_to_dec_proj.weight", "enc_to_dec_proj.bias"} < set(found.head_swap.new.names)


def test_what_fits_no_decoder_is_refused(tmp_path, tiny_checkpoint):
    from transformers import DistilBertConfig, DistilBertModel

    t5 = material.save_family(tmp_path / "t5")
    with pytest.raises(ModelError, match=r"'t5'. has a decoder already; remove the key"):
        prepared(tmp_path, t5)
    with pytest.raises(ModelError, match=r"model.decoder: .*'t5', which cannot read what an encoder says"):
        prepared(tmp_path, tiny_checkpoint, t5)
    other = tmp_path / "distilbert"
    DistilBertModel(DistilBertConfig(vocab_size=14, dim=16, n_layers=1, n_heads=2, hidden_dim=16)).save_pretrained(
        other
    )
    tiny_export.tokenizer().save_pretrained(other)
    with pytest.raises(ModelError, match="'distilbert', which cannot read what an encoder says"):
        prepared(tmp_path, tiny_checkpoint, other)
    words = tiny_run.save_encoder(tmp_path / "words", vocab_size=15)
    backend = tiny_export.tokenizer()
    backend.add_tokens(["new"])
    backend.save_pretrained(words)
    with pytest.raises(ModelError, match="its vocabulary is not that of"):
        prepared(tmp_path, tiny_checkpoint, words)
    with pytest.raises(ModelError, match=r"model.decoder: ./nowhere/ is not a folder"):
        prepared(tmp_path, tiny_checkpoint, "./nowhere/")


# ---------------------------------------------------------------- LoRA


def adapted(ready):
    found = loaded(ready)
    return lora.add_lora(found.model, found.head_swap, LoraBlock(r=2, dropout=0.0), seed=0), found.head_swap


def one_step(ready, net):
    """One step of plain gradient descent on the trainable weights; names -> whether they moved."""
    net.train()
    batch = some_batch(ready)
    for _ in range(2):  # LoRA's B is zero at first, so that its A has no gradient
        net.zero_grad()
        torch.autograd.backward(ready.task.loss(net(**batch.inputs), batch))
        before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
    return {name: not torch.equal(parameter, before[name]) for name, parameter in net.named_parameters()}


def test_lora_trains_cross_attention_and_head_and_nothing_of_the_checkpoint(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint)
    net, swap = adapted(ready)
    moved = one_step(ready, net)
    still = {name for name, moves in moved.items() if not moves}
    trained = {name.replace("modules_to_save.default.", "") for name in moved if name not in still}
    assert {f"base_model.model.{name}" for name in swap.new.names} <= trained
    assert all("lora_" in name or name.removeprefix("base_model.model.") in swap.new.names for name in trained)
    assert any("lora_" in name for name in trained)


def test_words_are_read_and_written_by_one_matrix_with_lora_too(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint)
    net, _ = adapted(ready)
    one_step(ready, net)
    merged = net.merge_and_unload()
    assert merged.decoder.cls.predictions.decoder.weight is merged.decoder.bert.embeddings.word_embeddings.weight


def test_the_adapter_holds_what_was_trained_and_no_word_embeddings(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint)
    net, swap = adapted(ready)
    words = net.get_base_model().config.decoder.vocab_size
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    model.export(net.eval(), ready.tokenizer, ready.task, tmp_path / "export", base=None)
    saved = load_file(tmp_path / "export" / "adapter" / "adapter_model.safetensors")
    assert sum(weight.numel() for weight in saved.values()) == sum(weight.numel() for weight in trained.values())
    assert {f"base_model.model.{name}" for name in swap.new.names} <= set(saved)
    assert [name for name, weight in saved.items() if words in weight.shape] == [
        "base_model.model.decoder.cls.predictions.bias"
    ]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # of transformers, read by PEFT
@pytest.mark.parametrize("kind", ["joined", "t5"])
def test_merged_export_equals_base_with_adapter(tmp_path, tiny_checkpoint, kind):
    """Loaded by PEFT over a base made anew: the new weights come from the adapter's file."""
    import peft
    from transformers import AutoModelForSeq2SeqLM, EncoderDecoderModel

    if kind == "joined":
        ready = prepared(tmp_path, tiny_checkpoint)
    else:
        path = material.write_recipe(tmp_path, material.save_family(tmp_path / "t5"))
        ready = preparation.prepare(load(path), Events())
    net, _ = adapted(ready)
    one_step(ready, net)
    batch = some_batch(ready)
    model.export(net.eval(), ready.tokenizer, ready.task, tmp_path / "export", base=None)
    if kind == "joined":
        base = EncoderDecoderModel.from_encoder_decoder_pretrained(tiny_checkpoint, tiny_checkpoint)
    else:
        base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5")
    both = peft.PeftModel.from_pretrained(base, tmp_path / "export" / "adapter").eval()
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export").eval()
    with torch.no_grad():
        found = [one(**batch.inputs).logits for one in (both, merged)]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


def test_an_adapter_is_evaluated_over_the_encoder_with_the_recipes_decoder(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint)
    net, _ = adapted(ready)
    one_step(ready, net)
    model.export(net.eval(), ready.tokenizer, ready.task, tmp_path / "export", base=str(tiny_checkpoint))
    found = [
        assessment.evaluate(load(tmp_path / "recipe.yaml"), str(tmp_path / "export" / part), split="test").results
        for part in ("", "adapter")
    ]
    assert found[0]["test"].metrics["loss"].value == pytest.approx(found[1]["test"].metrics["loss"].value, abs=1e-5)


def test_the_layer_for_words_gets_no_adapter(tmp_path):
    path = material.write_recipe(tmp_path, material.save_family(tmp_path / "t5"))
    ready = preparation.prepare(load(path), Events())
    net, _ = adapted(ready)
    assert not [name for name, _ in net.named_parameters() if "lm_head" in name and "lora" in name]
