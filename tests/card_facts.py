"""The recipe and the record of one finished run, as model cards need them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from finetune.recipe import Recipe
from finetune.record import (
    Best,
    Emissions,
    HeadSwap,
    Interval,
    ModelFacts,
    Names,
    RunRecord,
    SplitFacts,
    SplitResults,
    Training,
)

SNIPPET = """from transformers import pipeline

classify = pipeline("text-classification", model="{model}")
print(classify("Your text.", truncation=True))"""


def recipe(source: str = "/home/alice/secret/reviews.yaml", **blocks: Any) -> Recipe:
    """A recipe on Hub data; `blocks` are merged into its top-level keys, None removes a block."""
    content: dict[str, Any] = {
        "task": "sequence",
        "model": {"checkpoint": "sentence-transformers/all-MiniLM-L6-v2"},
        "data": {
            "path": "cornell-movie-review-data/rotten_tomatoes",
            "columns": {"text": "text", "label": "label"},
            "max_length": 64,
        },
        "train": {"epochs": 3.0, "batch_size": 32},
        "evaluate": {"select_on": "accuracy"},
        "carbon": {"country": "FRA"},
        "card": {"license": "apache-2.0", "language": "en"},
        "output": "/home/alice/secret/runs/rotten_tomatoes-minilm",
    }
    for name, block in blocks.items():
        content[name] = {**content.get(name, {}), **block} if isinstance(block, dict) else block
    built = Recipe.model_validate({name: block for name, block in content.items() if block is not None})
    built._source = Path(source)
    return built


def record(**fields: Any) -> RunRecord:
    """The record of that run; `fields` replace its own."""
    return RunRecord.model_validate(deepcopy(_FINISHED) | fields)


def model(**fields: Any) -> ModelFacts:
    """The model of that run; `fields` replace its own."""
    return ModelFacts.model_validate(_MODEL | fields)


def results(n: int, **metrics: tuple[float | None, float | None, float | None]) -> SplitResults:
    """Metrics as (value, low, high)."""
    return SplitResults(
        n=n, metrics={name: Interval(value=value, low=low, high=high) for name, (value, low, high) in metrics.items()}
    )


_MODEL: dict[str, Any] = {
    "checkpoint": "sentence-transformers/all-MiniLM-L6-v2",
    "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    "architecture": "BertForSequenceClassification",
    "parameters": 22_713_986,
    "trainable_parameters": 22_713_986,
    "pipeline": "text-classification",
    "problem": "single",
    "labels": ["neg", "pos"],
    "snippet": SNIPPET,
    "notes": ["Scores are those of `softmax` over the labels."],
}

_FINISHED: dict[str, Any] = {
    "status": "finished",
    "exit_code": 0,
    "command": "finetune train /home/alice/secret/reviews.yaml",
    "versions": {"python": "3.11.7", "headswap": "0.1.0", "torch": "2.13.0", "codecarbon": "3.3.2"},
    "hardware": {
        "cpu": "AMD EPYC 9R14",
        "cores": 2,
        "memory_bytes": 24_500_000_000,
        "gpus": [],
        "platform": "Linux host.alice.example",
    },
    "precision": "bf16",
    "seed": 0,
    "model": ModelFacts.model_validate(_MODEL),
    "data": {
        "train": SplitFacts(
            source="cornell-movie-review-data/rotten_tomatoes train",
            rows=8530,
            fingerprint="0a" * 32,
            dropped={"empty text": 2},
            dropped_ids={"empty text": ["row-of-alice-17", "row-of-alice-18"]},
            truncated=51,
            windows=8530,
        ),
        "validation": SplitFacts(
            source="cornell-movie-review-data/rotten_tomatoes validation",
            rows=1066,
            fingerprint="1b" * 32,
            windows=1066,
        ),
        "test": SplitFacts(
            source="cornell-movie-review-data/rotten_tomatoes test",
            rows=1066,
            fingerprint="2c" * 32,
            truncated=4,
            windows=1066,
        ),
    },
    "head_swap": HeadSwap(
        reused=Names(count=101, names=["bert.embeddings.word_embeddings.weight"]),
        new=Names(count=2, names=["classifier.bias", "classifier.weight"]),
        dropped=Names(count=0),
    ),
    "training": Training(
        steps=801,
        epochs=3.0,
        examples=25590,
        tokens=689_000,
        padding_share=0.0214,
        seconds=125.31,
        tokens_per_second=5498.3,
        seconds_to_first_step=4.37,
        peak_memory_bytes=1_930_000_000,
    ),
    "best": Best(step=534, metric="accuracy", value=0.8227),
    "results": {
        "validation": results(1066, accuracy=(0.8227, 0.8, 0.8452), f1=(0.82265, 0.7998, 0.8451)),
        "test": results(1066, accuracy=(0.8171, 0.7936, 0.8396), f1=(0.81698, 0.7933, 0.8395)),
    },
    "baselines": {
        "majority": {
            "validation": results(1066, accuracy=(0.5, None, None), f1=(0.3333, None, None)),
            "test": results(1066, accuracy=(0.5, None, None), f1=(0.3333, None, None)),
        },
        "bag_of_words": {"test": results(1066, accuracy=(0.7702, None, None), f1=(0.7701, None, None))},
    },
    "emissions": Emissions(
        kg=0.0000347,
        kwh=0.000619,
        seconds=141.0,
        country="FRA",
        method="CodeCarbon in machine mode, CPU power from a constant",
        phases={
            "train": {"kg": 0.0000312, "kwh": 0.000557, "seconds": 125.3},
            "evaluate": {"kg": 0.0000035, "kwh": 0.000062, "seconds": 15.7},
        },
    ),
}
