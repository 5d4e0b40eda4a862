"""Training on another device than the CPU: tensors of both never meet, no step waits, and the same model comes out."""

import json
from functools import partial

import processes
import pytest
import second_device
import seq2seq_material
import span_material
import test_causal
import tiny_run
import token_material

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def sequence(folder):
    net = tiny_run.save_encoder(folder / "net", **STILL)
    return tiny_run.write_recipe(folder, net, class_weights="balanced", label_smoothing=0.1)


def token(folder):
    net = token_material.save(folder / "net", ["O", "B-PER", "B-LOC", "I-LOC", "B-ORG"], **STILL)
    return token_material.write_recipe(folder, net)


def span(folder):
    return span_material.write_recipe(folder, span_material.save_encoder(folder / "net", **STILL))


def seq2seq(folder):
    return seq2seq_material.write_recipe(folder, seq2seq_material.save_family(folder / "net"))


def adapters(folder):
    return seq2seq_material.write_recipe(
        folder, seq2seq_material.save_family(folder / "net"), model="  lora: {r: 4, dropout: 0.0}"
    )


def decoder(folder):
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return tiny_run.write_recipe(folder, test_causal.save_decoder(folder / "net", **still))


def trained(path, faults):
    """Train with each of `faults`, which all but the last stop; the record."""
    for number, fault in enumerate(faults, 1):
        codes, errors = processes.train(path, fault=fault, count=1)
        assert codes == [75 if number < len(faults) else 0], errors[0]
    return json.loads((path.parent / "out" / "run.json").read_text())


def values(results):
    """The metrics of a split, without their intervals."""
    return {name: one["value"] for name, one in results.items() if isinstance(one, dict)}


def there(_, stop_at=None):
    second_device.use(stop_at)


@pytest.mark.parametrize("make", [sequence, token, span, seq2seq, adapters, decoder], ids=lambda make: make.__name__)
def test_steps_do_not_wait_and_results_are_those_of_the_cpu(tmp_path, make):
    for name in ("cpu", "there"):
        (tmp_path / name).mkdir()
    expected = trained(make(tmp_path / "cpu"), [None])
    path = make(tmp_path / "there")
    found = trained(path, [there] if make is not sequence else [partial(there, stop_at=5), there])
    waits = [json.loads(line) for line in path.with_name("recipe.yaml.waits").read_text().splitlines()]
    assert len(waits) == found["training"]["steps"] == expected["training"]["steps"] > 5
    assert not any(waits), "\n".join(next(filter(None, waits)))
    for split, results in expected["results"].items():
        assert values(found["results"][split]) == pytest.approx(values(results), rel=1e-3)
