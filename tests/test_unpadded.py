"""Micro-batches without padding: the same logits and gradients for every head, and used only where that holds.

On a CPU torch computes its nested tensors without the fast kernel: the same interface, the same mathematics.
"""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
import transformers
from accelerate import PartialState
from test_first_position import ANOTHER_MAKE, KINDS, assert_same, batch, make
from test_loop import Session, ready, settings  # noqa: F401  (ready is a fixture)

from finetune import hardware, loop, session, unpadded
from finetune.first_position import install_first_position
from finetune.model import load_for_training
from finetune.tasks.base import Batch
from finetune.unpadded import can_unpad, install_unpadded, kernel_error, pack

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")

HEADS = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
}


def model_of(kind, head="sequence"):
    return make(kind, HEADS[head], **KINDS[kind])


def inputs():
    return {name: value for name, value in batch().items() if name != "labels"}


def outcome(model, given):
    """Logits where there are tokens, and all gradients of a weighted sum of them."""
    model.zero_grad()
    outputs = model(**given)
    logits = torch.stack(list(outputs.values()), -1) if "start_logits" in outputs else outputs.logits
    if logits.shape[:2] == batch()["input_ids"].shape:
        logits = logits[batch()["attention_mask"].bool()]
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_with_padding(kind, head):
    model = model_of(kind, head)
    expected = outcome(model, inputs())
    undo = [install_first_position(model), install_unpadded(model)]
    assert can_unpad(model)
    assert_same(outcome(model, pack(inputs())), expected)
    assert_same(outcome(model, inputs()), expected)
    for function in reversed(undo):
        function()
    assert not can_unpad(model)
    assert all(torch.equal(value, expected[name]) for name, value in outcome(model, inputs()).items())


def test_only_tokens_are_computed():
    model = model_of("bert", "token")
    install_unpadded(model)
    seen = []
    model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    model(**pack(inputs()))
    assert seen == [(1, int(batch()["attention_mask"].sum()), 32)]


def test_rows_of_one_length_and_of_one_token_go_as_well():
    model = model_of("bert").eval()
    undo = install_first_position(model)
    for width in (9, 1):
        given = {"input_ids": batch()["input_ids"][:, :width]}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        expected = model(**given).logits
        restore = install_unpadded(model)
        torch.testing.assert_close(model(**pack(given)).logits, expected)
        restore()
    undo()


def test_low_rank_adapters_get_the_same_gradients():
    settings = peft.LoraConfig(
        r=2, lora_dropout=0.0, target_modules=["query", "key", "value", "dense"], modules_to_save=["classifier"]
    )
    model = peft.get_peft_model(model_of("bert"), settings).train()
    expected = outcome(model, inputs())
    install_first_position(model)
    install_unpadded(model)
    assert can_unpad(model)
    assert_same(outcome(model, pack(inputs())), expected)


@pytest.mark.parametrize("kind", ANOTHER_MAKE)
def test_a_model_of_another_make_is_left_alone(kind):
    model = make(kind, **ANOTHER_MAKE[kind])
    install_unpadded(model)
    assert not can_unpad(model)


def test_dropout_is_drawn_within_the_attention():
    model = model_of("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    install_unpadded(model)
    one, two = (model(**pack(inputs())).logits for _ in range(2))
    assert not torch.allclose(one, two)


# ------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_the_wrong_tokens_is_told_from_rounding(dtype, monkeypatch):
    model = model_of("bert")
    install_unpadded(model)
    assert kernel_error(model, pack(inputs()), dtype) < session.KERNEL_ERROR / 3
    right = unpadded._jagged
    shifted = torch.tensor([0, 6, 14, 23, 32]), 6, 9  # the first row takes a token of the second
    firsts = torch.arange(5), 1, 1
    monkeypatch.setattr(unpadded, "_jagged", lambda x, *_: right(x, *(firsts if x.shape[2] == 4 else shifted)))
    assert kernel_error(model, pack(inputs()), dtype) > session.KERNEL_ERROR


class Loss:
    """All that the probes ask of a task."""

    def loss(self, outputs, given):
        return outputs.logits.float().square().sum()


def probe(model):
    return session._probe_unpadded(model, Loss(), Batch(inputs(), {}), torch.device("cpu"), "bf16")


def test_a_kernel_that_computes_other_states_is_refused(monkeypatch):
    model = model_of("bert")
    install_unpadded(model)
    assert probe(model).keys() == {"unpadded", "unpadded_probe_seconds"}
    monkeypatch.setattr(unpadded, "kernel_error", lambda *given: 0.4)
    assert probe(model) == {"unpadded": False, "unpadded_refused": "attention differs by 40.0%"}


def test_a_device_without_the_kernel_pads(monkeypatch):
    def no_kernel(*args, **kwargs):
        raise RuntimeError("No available kernel. Aborting execution.\nat: somewhere")

    model = model_of("bert")
    install_unpadded(model)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", no_kernel)
    assert probe(model) == {"unpadded": False, "unpadded_refused": "No available kernel. Aborting execution."}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("seconds", "pays"), [(0.8, True), (0.95, False), (2.0, False)])
def test_padding_is_left_out_where_that_pays(seconds, pays, monkeypatch):
    model = model_of("bert")
    install_unpadded(model)
    monkeypatch.setattr(hardware, "race", lambda steps: {"padded": 1.0, "unpadded": seconds})
    assert probe(model)["unpadded"] is pays


@pytest.mark.parametrize("changes", [{}, {"deterministic": True}, {"gradient_checkpointing": True}])
def test_what_the_kernel_cannot_do_keeps_the_padding(ready, changes):  # noqa: F811
    net = load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe).model
    install_unpadded(net)
    wanted, features = settings(ready, precision="fp32", **changes), ready.features["train"]
    plan = session.make_plan(ready.task, features, wanted)
    chosen = session.choose(wanted, plan, net, ready.task, features, ready.tokenizer, PartialState(cpu=True))
    assert ("unpadded" in chosen) == (not changes)
    assert chosen["precision"] == "fp32"


# ------------------------------------------------------------------------------------------------ in the loop


def trained(ready, unpad):  # noqa: F811
    run = Session(ready, settings(ready, micro_batch_size=3))
    for module in run.fit.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    install_first_position(run.fit.model)
    install_unpadded(run.fit.model)
    run.fit.unpadded = unpad
    loop.fit(run.fit)
    return run


def test_a_run_that_goes_on_where_the_model_cannot_do_without_pads(ready):  # noqa: F811
    run = Session(ready, settings(ready, micro_batch_size=3))
    assert not replace(run.fit, unpadded=True).unpadded
    install_unpadded(run.fit.model)
    assert replace(run.fit, unpadded=True).unpadded


def test_a_run_without_padding_ends_as_one_with_padding(ready):  # noqa: F811
    with_padding, without = trained(ready, unpad=False), trained(ready, unpad=True)
    for name, value in with_padding.weights().items():
        torch.testing.assert_close(without.weights()[name], value, atol=1e-5, rtol=1e-3)
    progress = without.fit.progress
    assert progress.tokens == progress.slots
    assert with_padding.fit.progress.slots > progress.slots
    assert with_padding.fit.progress.sample_log_sha256 == progress.sample_log_sha256
