"""Training the embeddings of the tokens that the training data holds: all else is computed as with the whole table."""

import copy
import json

import numpy as np
import pytest
import tiny_run
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import finetune
from finetune import checkpoint, run, seen_vocabulary
from finetune.embedding_gradient import install_row_gradients
from finetune.features import in_memory
from finetune.optim import trained_parameters
from finetune.seen_vocabulary import SeenEmbedding, cuttable, install_seen_vocabulary, left_out, unseen_tokens

VOCABULARY, WIDTH, PAD = 60, 8, 1
TRAINED = [[5, 9, 7, 7], [2, 30, 5]]
EVALUATED = [[5, 41, 9], [41, 59]]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
    "pad_token_id": PAD,
}


@pytest.fixture(autouse=True)
def _every_saving_counts(monkeypatch):
    monkeypatch.setattr(seen_vocabulary, "SMALLEST", 1)
    torch.manual_seed(0)


def features(sequences):
    return in_memory({"input_ids": sequences, "row": list(range(len(sequences)))})


def install(model):
    return install_seen_vocabulary(model, features(TRAINED), [features(EVALUATED)], PAD)


def make(kind, auto=transformers.AutoModelForSequenceClassification, **more):
    return auto.from_config(transformers.AutoConfig.for_model(kind, **SIZES, **more))


def batch(rows):
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def train(model, weight_decay):
    """Three steps; the logits of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=weight_decay, fused=True)
    found = []
    for _ in range(3):
        torch.manual_seed(1)
        tokens = batch(TRAINED)
        logits = model(tokens, attention_mask=(tokens != PAD).long()).logits
        logits.square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(logits.detach())
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "mpnet", "gpt2"])
def test_training_is_that_of_the_whole_table_and_other_rows_keep_their_values(kind):
    whole = make(kind, **({"embedding_size": WIDTH} if kind in ("electra", "albert") else {})).train()
    cut = copy.deepcopy(whole)
    start = whole.get_input_embeddings().weight.detach().clone()
    names, undo = list(cut.state_dict()), install(cut)
    seen = sorted({PAD, cut.config.pad_token_id, *(token for row in TRAINED for token in row)})
    table = cut.get_input_embeddings()
    assert isinstance(table, SeenEmbedding)
    assert table.weight.shape[0] == len(seen)
    assert unseen_tokens(cut) == len(start) - len(seen)
    assert list(cut.state_dict()) == names
    torch.testing.assert_close(train(cut, 0.1), train(whole, 0.1))
    undo()
    assert unseen_tokens(cut) == 0
    for (name, found), (_, expected) in zip(cut.named_parameters(), whole.named_parameters(), strict=True):
        if found.shape == start.shape and name.endswith(("word_embeddings.weight", "wte.weight")):
            torch.testing.assert_close(found[seen], expected[seen])
            others = np.setdiff1d(np.arange(len(start)), seen)
            assert torch.equal(found[others], start[others])
            assert not torch.equal(expected[others], start[others]), "weight decay shrinks them otherwise"
        else:
            torch.testing.assert_close(found, expected)


def test_evaluation_looks_up_tokens_that_are_not_trained():
    whole = make("bert").eval()
    cut = copy.deepcopy(whole)
    install(cut)
    tokens = batch(EVALUATED)
    assert torch.equal(cut(tokens).logits, whole(tokens).logits)
    with pytest.raises(IndexError):
        cut(torch.tensor([[5, 6]]))
    with pytest.raises(IndexError):
        cut.train()(tokens)


def test_its_gradient_covers_the_rows_of_a_batch_too(monkeypatch):
    monkeypatch.setattr("finetune.embedding_gradient.SMALLEST", 0)
    model = make("bert")
    install(model)
    install_row_gradients(model)
    model(batch([[5, 9, PAD]])).logits.sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.is_sparse
    assert gradient.coalesce().indices().tolist() == [[2, 4]], "of 5 and 9 among 1, 2, 5, 7, 9, 30; padding has none"


def test_tables_that_are_more_than_a_look_up_are_left_alone(monkeypatch):
    tied = make("bert", transformers.AutoModelForMaskedLM)
    frozen, scaled, small = make("bert"), make("bert"), make("bert")
    frozen.get_input_embeddings().weight.requires_grad_(False)
    scaled.get_input_embeddings().scale_grad_by_freq = True
    t5 = transformers.T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with_decoder = transformers.T5ForConditionalGeneration(t5)
    for model in (tied, frozen, scaled, with_decoder):
        install(model)()
        install(model)
        assert type(model.get_input_embeddings()) is nn.Embedding
    monkeypatch.setattr(seen_vocabulary, "SMALLEST", (VOCABULARY - 6) * WIDTH + 1)
    install(small)
    assert unseen_tokens(small) == 0


class KilledError(Exception):
    """What stands for a kill right after a checkpoint."""


def test_a_run_with_it_exports_the_whole_table_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    model = tiny_run.save_encoder(tmp_path / "model", vocab_size=40)
    start = load_file(model / "model.safetensors")["embeddings.word_embeddings.weight"]
    rows = [(text.replace("plot", "film"), label) for text, label in tiny_run.sentences(60, seed=0)]

    def prepare(name):
        folder = tmp_path / name
        folder.mkdir()
        tiny_run.write_csv(folder / "train.csv", ("text", "label"), rows)
        return finetune.load_recipe(tiny_run.write_recipe(folder, model, epochs=3, save_every=5))

    def exported(name):
        found = load_file(tmp_path / name / "out" / "export" / "model.safetensors")
        predictions = (tmp_path / name / "out" / "predictions" / "test.jsonl").read_text().splitlines()
        return found, [json.loads(line)["prediction"] for line in predictions]

    record = run.train(prepare("cut"))
    assert record.model.unseen_tokens >= 26, "the checkpoint has 40 rows, the tokenizer 14 tokens"
    card = (tmp_path / "cut" / "out" / "export" / "README.md").read_text()
    assert f"{record.model.unseen_tokens} tokens are in no training row" in card
    saved = load_file(next((tmp_path / "cut" / "out" / "checkpoints").glob("step-*")) / "weights.safetensors")
    assert len(saved["bert.embeddings.word_embeddings.weight"]) == 40 - record.model.unseen_tokens

    killed, save = prepare("killed"), checkpoint.save

    def save_and_die(*arguments):
        save(*arguments)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(KilledError):
            run.train(killed)
    assert run.train(killed).training.resumed_from == [5]

    with monkeypatch.context() as patch:
        patch.setattr(seen_vocabulary, "SMALLEST", 1 << 20)
        assert run.train(prepare("whole")).model.unseen_tokens == 0

    weights, answers = exported("cut")
    again, answers_again = exported("killed")
    assert answers_again == answers
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    whole, answers_of_whole = exported("whole")
    assert answers_of_whole == answers
    for name, value in whole.items():
        if name != "bert.embeddings.word_embeddings.weight":
            torch.testing.assert_close(weights[name], value)
    table = weights["bert.embeddings.word_embeddings.weight"]
    untouched = (table == start).all(1) & start.any(1)  # the padding's row is zero, and stays so
    assert int(untouched.sum()) == record.model.unseen_tokens
    torch.testing.assert_close(table[~untouched], whole["bert.embeddings.word_embeddings.weight"][~untouched])


@pytest.mark.parametrize(("kind", "tied"), [("bert", False), ("t5", True)])
def test_what_will_be_left_out_is_known_before(kind, tied):
    auto = transformers.AutoModelForSeq2SeqLM if tied else transformers.AutoModelForSequenceClassification
    model = make(kind, auto)
    before = trained_parameters(model)
    expected = left_out(cuttable(model), features(TRAINED))
    install(model)
    padding = 0 if tied else WIDTH
    assert before - trained_parameters(model) == expected - padding
    assert (expected == 0) == tied
