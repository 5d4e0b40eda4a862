"""The last layer at position 0 only: the same logits, loss and gradients for every head that reads no other."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

from finetune import attention
from finetune.first_position import install_first_position
from finetune.hardware import keep_heap

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
KINDS = {
    "bert": SMALL,
    "camembert": SMALL,
    "data2vec-text": SMALL,
    "electra": {"embedding_size": 8, **SMALL},
    "ernie": SMALL,
    "roberta": SMALL,
    "xlm-roberta": SMALL,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
}
ANOTHER_MAKE = {"albert": SMALL, "deberta-v2": SMALL, "mpnet": SMALL}


def make(kind, auto=transformers.AutoModelForSequenceClassification, **settings):
    torch.manual_seed(0)
    labels = 2 if auto is transformers.AutoModelForQuestionAnswering else 3
    config = transformers.AutoConfig.for_model(kind, pad_token_id=1, num_labels=labels, **settings)
    model = auto.from_config(config)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model.train()


def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 50, (4, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0])}


def outcome(model):
    """Logits, loss and all gradients."""
    model.zero_grad()
    outputs = model(**batch())
    outputs.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": outputs.logits.detach(), "loss": outputs.loss.detach(), **gradients}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def last_states(model):
    """The shape of what the last layer gives to the head."""
    with torch.no_grad():
        return model.base_model(**{k: v for k, v in batch().items() if k != "labels"}).last_hidden_state.shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_cpu_attention", [False, True])
def test_logits_loss_and_gradients_are_the_same(kind, with_cpu_attention):
    model = make(kind, **KINDS[kind])
    expected = outcome(model)
    undo = [attention.install(model)] if with_cpu_attention else []
    undo.append(install_first_position(model))
    assert last_states(model) == (4, 1, 16)
    assert_same(outcome(model), expected)
    for function in reversed(undo):
        function()
    assert last_states(model) == (4, 9, 16)
    assert all(torch.equal(value, expected[name]) for name, value in outcome(model).items())


def test_dropped_probabilities_weigh_the_values_and_their_bias():
    kept = torch.tensor([0.0, 2.0, 2.0, 0.0, 2.0, 0.0, 0.0, 2.0, 2.0])

    class Dropped(nn.Dropout):
        def forward(self, input):  # noqa: A002 - the name of the parent's parameter
            return input * kept

    model = make("bert", **SMALL)
    layer = model.base_model.encoder.layer[-1]
    inner = layer.attention.self
    nn.init.normal_(inner.value.bias)
    inner.dropout = Dropped(0.5)
    seen = []
    layer.attention.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    install_first_position(model)
    states = torch.randn(4, 9, 16)
    layer(states)
    q, k, v = (p(states).view(4, 9, 2, 8).transpose(1, 2) for p in (inner.query, inner.key, inner.value))
    expected = (torch.softmax(q[:, :, :1] @ k.transpose(2, 3) * inner.scaling, -1) * kept) @ v
    torch.testing.assert_close(seen[0][0], expected.transpose(1, 2).reshape(4, 1, 16))


def test_logits_are_the_same_without_gradient_and_without_padding():
    model = make("bert", **SMALL).eval()
    ids = batch()["input_ids"]
    with torch.inference_mode():
        expected = model(ids).logits
        install_first_position(model)
        torch.testing.assert_close(model(ids).logits, expected)


def test_low_rank_adapters_get_the_same_gradients():
    settings = peft.LoraConfig(
        r=2, lora_dropout=0.0, target_modules=["query", "key", "value", "dense"], modules_to_save=["classifier"]
    )
    model = peft.get_peft_model(make("bert", **SMALL), settings).train()
    expected = outcome(model)
    undo = install_first_position(model)
    assert last_states(model.get_base_model()) == (4, 1, 16)
    assert_same(outcome(model), expected)
    undo()
    assert last_states(model.get_base_model()) == (4, 9, 16)


def test_gradient_checkpointing_gets_the_same_gradients():
    model = make("bert", **SMALL)
    expected = outcome(model)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    install_first_position(model)
    assert_same(outcome(model), expected)


@pytest.mark.parametrize("kind", ANOTHER_MAKE)
def test_a_model_of_another_make_is_left_alone(kind):
    model = make(kind, **ANOTHER_MAKE[kind])
    install_first_position(model)
    assert last_states(model)[1] == 9


def test_a_head_that_reads_all_positions_is_left_alone():
    model = make("bert", transformers.AutoModelForTokenClassification, **SMALL)
    install_first_position(model)
    assert last_states(model)[1] == 9


def test_an_attention_with_other_masks_is_left_alone():
    model = make("bert", **SMALL)
    model.set_attn_implementation("eager")
    install_first_position(model)
    assert last_states(model)[1] == 9


def test_the_one_who_installed_it_removes_it():
    model = make("bert", **SMALL)
    undo = install_first_position(model)
    install_first_position(model)()  # inside: an evaluation during training
    assert last_states(model)[1] == 1
    undo()
    assert last_states(model)[1] == 9


def test_a_copy_works_alone_and_nothing_is_saved():
    model = make("bert", **SMALL)
    names = set(model.state_dict())
    install_first_position(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.base_model.encoder.layer[-1].attention.self.value.weight.zero_()
    assert set(model.state_dict()) == names
    assert not torch.equal(twin(**batch()).logits, model(**batch()).logits)


def test_keeping_the_heap_is_possible_here_or_declined():
    assert keep_heap() in (True, False)
