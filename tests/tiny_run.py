"""A recipe, its data and its checkpoint, small enough to train in a second."""

from __future__ import annotations

import csv
import random

import tiny_export

GOOD, BAD = ("good", "very"), ("bad", "not")
FILLING = ("film", "a", "the", "was", "is", "plot")


def config(**changes):
    """A BERT of two small layers for the words of tiny_export."""
    from transformers import BertConfig

    settings = {
        "vocab_size": len(tiny_export.WORDS) + 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    return BertConfig(**settings | changes)


def save_encoder(folder, **changes):
    """BertModel without a head, safetensors, and its tokenizer; the folder."""
    import torch
    from transformers import BertModel

    torch.manual_seed(1)
    BertModel(config(**changes)).save_pretrained(folder)
    tiny_export.tokenizer().save_pretrained(folder)
    return folder


def sentences(count, seed):
    """(text, label) pairs: what is praised is pos, else neg."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(("pos", "neg"))
        words = [*draw.choices(FILLING, k=draw.randint(1, 12)), draw.choice(GOOD if label == "pos" else BAD)]
        draw.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def write_csv(path, header, rows):
    """A CSV file; the path."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_recipe(folder, checkpoint, text="", *, rows=(60, 20, 20), columns="{text: text, label: label}", **train):
    """data.csv files and recipe.yaml in `folder`; the recipe's path. `train` replaces keys of the train block."""
    for number, (split, count) in enumerate(zip(("train", "validation", "test"), rows, strict=True)):
        path = folder / f"{split}.csv"
        if not path.exists():
            write_csv(path, ("text", "label"), sentences(count, seed=number))
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-3, "precision": "fp32"} | train
    block = "\n".join(f"  {key}: {value}" for key, value in settings.items() if value is not None)
    path = folder / "recipe.yaml"
    path.write_text(
        f"""task: sequence
model:
  checkpoint: {checkpoint}
data:
  path: {{train: ./train.csv, validation: ./validation.csv, test: ./test.csv}}
  columns: {columns}
  max_length: 24
train:
{block}
card: {{license: apache-2.0, language: en, base_model: null}}
output: {folder}/out
{text}""",
        encoding="utf-8",
    )
    return path
