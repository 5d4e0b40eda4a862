"""The gradient of a word embedding for the rows of a batch: what AdamW makes of it, and which tables it is for."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from finetune import embedding_gradient
from finetune.embedding_gradient import RowGradients, install_row_gradients

ROWS, WIDTH, PAD = 50, 8, 0
PLACES = torch.tensor(
    [[[3, 7, 7, PAD], [9, 3, PAD, PAD]], [[7, 1, 2, 49], [3, 3, 3, 3]], [[11, 12, 13, 14], [1, 1, 2, 2]]]
)


@pytest.fixture(autouse=True)
def _every_table_counts(monkeypatch):
    monkeypatch.setattr(embedding_gradient, "SMALLEST", 0)
    torch.manual_seed(0)


def network():
    return nn.Sequential(nn.Embedding(ROWS, WIDTH, padding_idx=PAD), nn.Linear(WIDTH, 3))


def train(model, gradients, max_norm):
    """Three steps of two micro-batches each; the norms."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    norms = []
    for step in PLACES:
        for micro in step:
            model(micro).square().sum().backward()
        parameters = list(model.parameters())
        norms.append(nn.utils.clip_grad_norm_(gradients.narrow(parameters) if gradients else parameters, max_norm))
        if gradients:
            gradients.widen()
        optimizer.step()
        if gradients:
            gradients.clear()
        optimizer.zero_grad(set_to_none=True)
    return torch.stack(norms)


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clipping_and_adamw_see_the_dense_gradient(max_norm):
    dense = network()
    narrow = copy.deepcopy(dense)
    start = dense[0].weight.detach().clone()
    install_row_gradients(narrow)
    torch.testing.assert_close(train(narrow, RowGradients(), max_norm), train(dense, None, max_norm))
    for found, expected in zip(narrow.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    assert not torch.equal(start[20], dense[0].weight[20]), "weight decay moves rows that no batch holds, too"


def test_the_gradient_of_an_earlier_step_leaves_nothing_behind():
    model, gradients = network(), RowGradients()
    install_row_gradients(model)
    for place in (5, 6):
        model(torch.tensor([[place]])).sum().backward()
        gradients.narrow(model.parameters())
        gradients.widen()
        touched = model[0].weight.grad.abs().sum(1).nonzero().flatten().tolist()
        gradients.clear()
        assert touched == [place]
        assert model[0].weight.grad is None


def test_undo_makes_the_gradients_dense_again():
    model = network()
    undo = install_row_gradients(model)
    assert model[0].sparse
    undo()
    model(PLACES[0]).sum().backward()
    assert not model[0].weight.grad.is_sparse


class Shared(nn.Module):
    """Two embeddings of one table."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.other.weight = self.one.weight

    def forward(self, places):
        return self.one(places) + 2 * self.other(places.flip(0))


def test_a_table_of_two_embeddings_adds_up_the_gradients_of_both():
    dense = Shared()
    narrow = copy.deepcopy(dense)
    install_row_gradients(narrow)
    train(narrow, RowGradients(), 0.5)
    train(dense, None, 0.5)
    torch.testing.assert_close(narrow.one.weight, dense.one.weight)


def sparse_tables(model):
    return [name for name, module in model.named_modules() if getattr(module, "sparse", False)]


def bert(kind):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return kind(BertConfig(vocab_size=ROWS, max_position_embeddings=20, **sizes))


def test_only_large_tables_that_are_trained_by_embeddings_alone_are_chosen(monkeypatch):
    monkeypatch.setattr(embedding_gradient, "SMALLEST", ROWS * WIDTH)
    classifier, tied, frozen = bert(BertForSequenceClassification), bert(BertForMaskedLM), network()
    frozen[0].weight.requires_grad_(False)
    renormed, scaled = nn.Embedding(ROWS, WIDTH, max_norm=1.0), nn.Embedding(ROWS, WIDTH, scale_grad_by_freq=True)
    for model in (classifier, tied, frozen, renormed, scaled):
        install_row_gradients(model)
    assert sparse_tables(classifier) == ["bert.embeddings.word_embeddings"]
    assert not any(map(sparse_tables, (tied, frozen, renormed, scaled)))
