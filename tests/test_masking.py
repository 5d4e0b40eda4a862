"""Masks made by what was seen on the CPU: those of transformers, and nothing where nothing is padded."""

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, T5Config, T5Model
from transformers.masking_utils import sdpa_mask

from finetune import masking

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "encoder": lambda: BertModel(BertConfig(**SIZES, intermediate_size=32)),
    "decoder": lambda: GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)),
    "both": lambda: T5Model(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
}
IDS = torch.arange(5, 17).view(2, 6)
FULL, PADDED = torch.ones(2, 6, dtype=torch.long), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


@pytest.mark.parametrize("mask", [FULL, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("kind", MODELS)
def test_states_and_gradients_are_those_of_transformers(kind, mask):
    torch.manual_seed(0)
    net = MODELS[kind]().eval()
    inputs = {"input_ids": IDS, "attention_mask": mask} | ({"decoder_input_ids": IDS} if kind == "both" else {})

    def outcome():
        net.zero_grad()
        states = net(**inputs).last_hidden_state * (1 if kind == "both" else mask[..., None])
        states.square().sum().backward()
        return {"states": states.detach(), **{name: p.grad for name, p in net.named_parameters() if p.grad is not None}}

    expected = outcome()
    undo = masking.install_masks()
    with masking.seen(inputs):
        found = outcome()
    undo()
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("causal", [True, False])
def test_a_mask_is_made_where_there_is_padding_alone(causal):
    given = {"batch_size": 2, "q_length": 6, "kv_length": 6, "device": "cpu"}
    given |= {"allow_is_causal_skip": causal, "allow_is_bidirectional_skip": not causal}
    with masking.seen({"input_ids": IDS, "attention_mask": FULL}):
        assert masking.mask(**given, attention_mask=FULL.bool()) is None
    with masking.seen({"input_ids": IDS, "attention_mask": PADDED}):
        found = masking.mask(**given, attention_mask=PADDED.bool())
    assert torch.equal(found, sdpa_mask(**given, attention_mask=PADDED.bool()))
    assert not found[1, 0, 3, 4:].any()
    assert masking.mask(**given, attention_mask=FULL.bool()) is None  # not seen: transformers looks itself
    assert torch.equal(masking.mask(**given, attention_mask=PADDED.bool()), found)


def test_what_one_mask_lacks_makes_the_batch_padded():
    with masking.seen({"attention_mask": FULL, "decoder_attention_mask": PADDED}):
        found = masking.mask(batch_size=2, q_length=6, kv_length=6, attention_mask=PADDED.bool())
    assert not found[1, 0, 5, 4:].any()
