"""The benchmark counts right: operations, tokens, places of answers, medians; and its recipes are recipes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import finetune
from scripts.bench import scale, table, tasks
from scripts.bench.__main__ import ARMS
from scripts.bench.limit import training_flops
from scripts.bench.trainer import _Counter, _Span


def test_operations_of_an_encoder_are_those_of_its_products():
    layers, hidden, inner, length = 2, 8, 16, 5
    config = transformers.BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=inner, num_attention_heads=2
    )
    products = 4 * (length * hidden * hidden) + 2 * (length * hidden * inner) + 2 * (length * length * hidden)
    forward = layers * 2 * products
    assert training_flops(config, np.array([length])) == 3 * forward
    assert training_flops(config, np.array([length, length])) == 6 * forward
    assert training_flops(transformers.T5Config(), np.array([length])) is None


@pytest.mark.parametrize(("apart", "tokens", "slots"), [(False, 3, 8), (True, 6, 14)])
def test_tokens_and_slots_are_counted(apart, tokens, slots):
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    counter = _Counter(lambda features: {"attention_mask": mask, "labels": labels}, apart)
    counter([])
    assert (counter.tokens, counter.slots) == (tokens, slots)


def test_an_answer_is_placed_on_the_tokens_it_touches():
    #          [CLS] what [SEP]  in      may     2020    [SEP]
    offsets = [(0, 0), (0, 4), (0, 0), (0, 2), (3, 6), (7, 11), (0, 0)]
    parts = [None, 0, None, 1, 1, 1, None]
    assert _Span._place(offsets, parts, {"text": ["May 2020"], "answer_start": [3]}) == (4, 5)
    assert _Span._place(offsets, parts, {"text": ["2020"], "answer_start": [7]}) == (5, 5)
    assert _Span._place(offsets, parts, {"text": ["later"], "answer_start": [12]}) == (0, 0)


@pytest.mark.parametrize("task", tasks.RECIPES)
@pytest.mark.parametrize("grouped", [True, False])
def test_a_recipe_of_the_benchmark_loads(task, grouped, tmp_path):
    way = ARMS["ours" if task == "seq2seq" else "ours-lora"]  # no adapters on random weights
    settings = {"seed": 3, "precision": way.precision, "lora": way.lora, "grouped": grouped}
    path = tasks.write_recipe(task, tmp_path, tmp_path, checkpoint="some/model", **settings)
    recipe = finetune.load_recipe(path)
    assert recipe.task == task
    assert recipe.train.seed == 3
    assert recipe.train.precision == "auto"
    assert recipe.train.group_by_length == grouped
    assert (recipe.model.lora is not None) == way.lora


def run(arm, seconds, seed=0):
    return {
        "task": "sequence",
        "arm": arm,
        "seed": seed,
        "precision": "bf16",
        "steps": 10,
        "examples": 320,
        "tokens": 900,
        "slots": 1000,
        "train_seconds": seconds,
        "first_step_seconds": 5.0,
        "peak_memory_bytes": 10**9,
        "evaluation_seconds": 1.0,
        "quality": {"accuracy": {"value": 0.8, "low": 0.75, "high": 0.85}},
        "flops": 4e12,
    }


def test_the_table_shows_medians_ratios_and_shares():
    runs = [run("ours", 40.0), run("ours", 50.0, seed=1), run("ours", 90.0, seed=2), run("trainer", 100.0)]
    text = table.render({"runs": runs, "limits": {"bf16_gemm_flops_per_second": 4e11}})
    ours, trainer = (line for line in text.splitlines() if line.startswith(("| ours", "| trainer")))
    assert "| 50.0 (40.0–90.0) |" in ours
    assert "| 0.50 |" in trainer  # 50 / 100
    assert "| 10.0% |" in ours  # of the slots are padding
    assert ours.count("0.800 ± 0.050") == 3
    assert ours.endswith("| 20% |")  # 4e12 / 50 s of 4e11


def test_the_rows_of_a_measurement_of_scale_are_readable(tmp_path):
    scale._write_rows(tmp_path / "rows.jsonl", 20)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == 20
    assert {row["label"] for row in rows} == {"pos", "neg"}
