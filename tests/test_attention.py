"""The attention for training on a CPU computes what transformers' own does, on many models, and can be undone."""

from __future__ import annotations

import copy
import types
from functools import partial

import pytest
import torch
import torch.utils.checkpoint
import transformers
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from finetune.attention import NAME, attention, install
from finetune.dropout import FastDropout, quantise

B, H, T, S, D = 3, 4, 5, 7, 8
SCALE = quantise(0.5)[1]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def module(is_causal=False):
    return types.SimpleNamespace(is_causal=is_causal, training=True)


def inputs(t=T, s=S, dtype=torch.float64):
    shapes = (B, t, H, D), (B, s, H, D), (B, s, H, D)
    return [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def padding(t=T, s=S):
    mask = torch.ones(B, 1, t, s, dtype=torch.bool)
    mask[0, ..., -3:] = False
    mask[2, ..., -1:] = False
    return mask


def without_keys():
    mask = padding()
    mask[1, :, 2] = False
    return mask


def outcome(function, tensors, *args, **kwargs):
    output, _ = function(*args, **kwargs)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weight).sum(), tensors)]


# ------------------------------------------------------------------------------------------------ one attention

CASES = {
    "plain": (T, S, None, {}),
    "padding": (T, S, padding(), {}),
    "float mask": (T, S, torch.randn(B, H, T, S, dtype=torch.float64), {}),
    "causal": (T, T, None, {"is_causal": True}),
    "causal by module": (T, T, None, {}),
    "causal with mask": (T, T, padding(T, T).tril(), {"is_causal": True}),
    "one query": (1, S, None, {"is_causal": True}),
    "scaling": (T, S, padding(), {"scaling": 0.9}),
    "a query without keys": (T, S, without_keys(), {}),
    "a query at -inf": (T, S, torch.zeros(B, 1, T, S).masked_fill(~without_keys(), -torch.inf).double(), {}),
}


@pytest.mark.parametrize("piece", [1, 2 * T * S, 2 * H * T * S, 1 << 20])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_sdpa(case, piece, monkeypatch):
    monkeypatch.setattr("finetune.attention.PIECE", piece)
    t, s, mask, kwargs = CASES[case]
    tensors = inputs(t, s)
    args = (module("module" in case), *tensors, mask)
    for ours, theirs in zip(
        outcome(attention, tensors, *args, **kwargs),
        outcome(sdpa_attention_forward, tensors, *args, **kwargs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mask", [None, padding()], ids=["no mask", "padding"])
@pytest.mark.parametrize("size", [1, B])
@pytest.mark.parametrize("piece", [1, 2 * T * S, 2 * H * T * S, 1 << 20])
def test_a_learned_position_bias_gets_its_gradient(mask, size, piece, monkeypatch):
    monkeypatch.setattr("finetune.attention.PIECE", piece)
    tensors = [*inputs(), torch.randn(size, H, T, S, dtype=torch.float64, requires_grad=True)]
    args = (module(), *tensors[:3], mask)
    for ours, theirs in zip(
        outcome(attention, tensors, *args, position_bias=tensors[3], scaling=1.0),
        outcome(sdpa_attention_forward, tensors, *args, position_bias=tensors[3], scaling=1.0),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("piece", [12, 1 << 20])
def test_the_gradient_through_dropout_is_right(piece, monkeypatch):
    monkeypatch.setattr("finetune.attention.PIECE", piece)

    def function(*tensors):
        torch.manual_seed(4)
        return attention(module(), *tensors, padding(3, 4)[2:], dropout=0.5)[0]

    tensors = [torch.randn(1, 2, length, 4, dtype=torch.float64, requires_grad=True) for length in (3, 4, 4)]
    assert torch.autograd.gradcheck(function, tensors)


def test_dropout_acts_on_the_probabilities():
    query, key, _ = inputs(64, 256, torch.float32)
    value = torch.eye(256).expand(B, H, 256, 256)
    plain = attention(module(), query, key, value, None)[0]
    dropped = attention(module(), query, key, value, None, dropout=0.5)[0]
    gone = dropped == 0
    assert float(gone.float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / gone.numel() ** 0.5)
    torch.testing.assert_close(dropped[~gone], plain[~gone] * SCALE)


def test_the_mean_over_masks_is_the_attention_without_dropout():
    tensors = inputs(dtype=torch.float32)
    draws = torch.stack([attention(module(), *tensors, padding(), dropout=0.3)[0].detach() for _ in range(4000)])
    plain = attention(module(), *tensors, padding())[0]
    assert float(((draws.mean(0) - plain.detach()) / draws.std(0)).abs().max()) * 4000**0.5 < 4.5


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_bfloat16_near_the_exact_result(given, dropout):
    def run(dtype, autocast):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output, _ = attention(module(), *(x.to(dtype) for x in tensors), padding(), dropout=dropout)
        return [output, *torch.autograd.grad(output.float().square().sum(), tensors)]

    tensors = inputs(dtype=torch.float32)
    exact, rounded = run(torch.float32, False), run(given, True)
    assert rounded[0].dtype == torch.bfloat16
    for ours, true in zip(rounded, exact, strict=True):
        torch.testing.assert_close(ours.float(), true, rtol=0, atol=0.03 * float(true.detach().abs().max()))


def test_without_gradient_sdpa_answers():
    tensors = inputs(dtype=torch.float32)
    with torch.no_grad():
        args = (module(), *(x.detach() for x in tensors), padding())
        assert torch.equal(attention(*args)[0], sdpa_attention_forward(*args)[0])


def test_fewer_key_heads_than_query_heads_are_left_to_sdpa():
    query, key, value = inputs()
    groups = types.SimpleNamespace(is_causal=False, training=True, num_key_value_groups=2)
    args = (groups, query, key[:, :2], value[:, :2], padding())
    torch.testing.assert_close(attention(*args)[0], sdpa_attention_forward(*args)[0], rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ whole models

pytestmark = pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")  # of EncoderDecoderModel, on labels

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
DECODER = {**SMALL, "is_decoder": True, "add_cross_attention": True}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
DEBERTA = {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}


def sequence(kind, **settings):
    return transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.for_model(kind, pad_token_id=1, num_labels=3, **settings)
    )


def seq2seq(kind, **settings):
    config = transformers.AutoConfig.for_model(
        kind, pad_token_id=1, decoder_start_token_id=1, bos_token_id=2, eos_token_id=3, **settings
    )
    return transformers.AutoModelForSeq2SeqLM.from_config(config)


def encoder_decoder():
    parts = transformers.BertConfig(**SMALL), transformers.BertConfig(**DECODER)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    config.pad_token_id, config.decoder_start_token_id = 1, 1
    return transformers.EncoderDecoderModel(config=config)


MODELS = {
    "bert": lambda: sequence("bert", **SMALL),
    "roberta": lambda: sequence("roberta", **SMALL),
    "distilbert": lambda: sequence("distilbert", **DISTIL),
    "electra": lambda: sequence("electra", embedding_size=16, **SMALL),
    "deberta-v2": lambda: sequence("deberta-v2", **DEBERTA),
    "t5": lambda: seq2seq("t5", **T5),
    "bart": lambda: seq2seq("bart", **BART),
    "bert encoder-decoder": encoder_decoder,
}
OWN_ATTENTION = {"deberta-v2"}


def batch(name):
    ids = torch.randint(4, 50, (4, 9))
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    single = name in MODELS and MODELS[name].__code__.co_names[0] == "sequence"
    labels = torch.tensor([0, 1, 2, 0]) if single else torch.randint(4, 50, (4, 6))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def without_dropout(model):
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_rate"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return model.train()


def loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


def implementations(model):
    return {m.config._attn_implementation for m in model.modules() if isinstance(m, transformers.PreTrainedModel)}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_and_is_restored(name):
    model, data = without_dropout(MODELS[name]()), batch(name)
    before, used = loss_and_gradients(model, data), implementations(model)
    configs = [m.config.to_dict() for m in model.modules() if isinstance(m, transformers.PreTrainedModel)]
    undo = install(model)
    assert implementations(model) == ({NAME} if name not in OWN_ATTENTION else used)
    after = loss_and_gradients(model, data)
    assert after.keys() == before.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert [m.config.to_dict() for m in model.modules() if isinstance(m, transformers.PreTrainedModel)] == configs
    undo()
    assert implementations(model) == used
    assert not any(isinstance(part, FastDropout) for part in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_dropout_depends_on_the_seed_alone(name):
    model, data = MODELS[name]().train(), batch(name)
    install(model)

    def run(seed):
        torch.manual_seed(seed)
        return loss_and_gradients(model, data)

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(bool(torch.isfinite(value).all()) for value in first.values())
    assert not torch.equal(first["loss"], other["loss"])


def test_the_attention_is_in_use_while_a_model_trains(monkeypatch):
    calls = []
    original = attention.__globals__["_Attention"].apply
    monkeypatch.setattr(attention.__globals__["_Attention"], "apply", lambda *a: calls.append(1) or original(*a))
    model, data = MODELS["bert"]().train(), batch("bert")
    install(model)
    model(**data)
    assert len(calls) == 2  # layers
    with torch.no_grad():
        model.eval()(**data)
    assert len(calls) == 2


def test_evaluation_is_bitwise_what_it_was():
    model, data = MODELS["bert"]().eval(), batch("bert")
    with torch.no_grad():
        before = model(**data).logits
        install(model)
        assert torch.equal(model(**data).logits, before)


def test_gradient_checkpointing_changes_no_gradient():
    model, data = MODELS["bert"]().train(), batch("bert")
    install(model)
    torch.manual_seed(3)
    plain = loss_and_gradients(model, data)
    model._set_gradient_checkpointing(True, partial(torch.utils.checkpoint.checkpoint, use_reentrant=False))
    torch.manual_seed(3)
    recomputed = loss_and_gradients(model, data)
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)


def test_a_saved_model_does_not_know_the_name(tmp_path):
    model = MODELS["bert"]()
    install(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"


def test_a_model_elsewhere_or_with_another_attention_is_left_alone():
    with torch.device("meta"):
        model = MODELS["bert"]()
    install(model)
    assert implementations(model) == {"sdpa"}
    assert not any(isinstance(part, FastDropout) for part in model.modules())
    eager = MODELS["bert"]()
    eager.set_attn_implementation("eager")
    install(eager)
    assert implementations(eager) == {"eager"}


class OwnAttention(nn.Module):
    """Its presence in this file tells transformers that the models here do not use the attention interface."""


class OwnModel(transformers.PreTrainedModel):
    config_class = transformers.BertConfig
    _supports_sdpa = True


def test_a_model_outside_the_attention_interface_is_left_alone():
    model = OwnModel(transformers.BertConfig(**SMALL))
    assert implementations(model) == {"sdpa"}
    install(model)
    assert implementations(model) == {"sdpa"}


def test_a_copy_of_an_installed_model_works_alone():
    model = MODELS["bert"]()
    undo = install(model)
    twin = copy.deepcopy(model)
    undo()
    torch.manual_seed(1)
    assert torch.isfinite(twin.train()(**batch("bert")).loss)
