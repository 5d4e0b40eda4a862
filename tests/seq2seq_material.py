"""Encoder-decoders, multilingual tokenizers and rows for text to text, small enough to make in a moment."""

from __future__ import annotations

import json

import tiny_export
import tiny_run

SIZES = {
    "vocab_size": len(tiny_export.WORDS) + 4,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "dropout": 0.0,
}
FAMILIES = ("t5", "bart", "marian", "mbart", "m2m_100", "pegasus")


def family(name, **changes):
    """A model of random weights of one of FAMILIES, for the words of tiny_export."""
    import torch
    import transformers

    torch.manual_seed(0)
    if name == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
        marks = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
        config = transformers.T5Config(vocab_size=SIZES["vocab_size"], **sizes, **marks, **changes)
    else:
        start = {} if name == "mbart" else {"decoder_start_token_id": 0 if name == "marian" else 3}
        config = transformers.AutoConfig.for_model(name, **SIZES, **start, **changes)
    return transformers.AutoModelForSeq2SeqLM.from_config(config)


def save_family(folder, name="t5", **changes):
    """Such a model and its tokenizer on disk; the folder."""
    family(name, **changes).save_pretrained(folder)
    tiny_export.tokenizer().save_pretrained(folder)
    return folder


def write_rows(path, rows):
    """(source, target) pairs as jsonl; the path."""
    lines = [json.dumps({"source": source, "target": target}) for source, target in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pairs(count, seed):
    """What a text says, without its filling: `the film was very good` -> `film very good`."""
    return [
        (text, " ".join(word for word in text.split() if word not in ("a", "the", "was", "is")) or "film")
        for text, _ in tiny_run.sentences(count, seed)
    ]


def write_recipe(folder, checkpoint, *, model="", data="", evaluate="", rows=(40, 12, 12), text="", **train):
    """jsonl files and recipe.yaml in `folder`; the recipe's path. The strings are lines of their blocks."""
    for number, (split, count) in enumerate(zip(("train", "validation", "test"), rows, strict=True)):
        if not (folder / f"{split}.jsonl").exists():
            write_rows(folder / f"{split}.jsonl", pairs(count, seed=number))
    settings = {"max_steps": 6, "batch_size": 8, "learning_rate": 1.0e-3, "precision": "fp32"} | train
    block = "\n".join(f"  {key}: {value}" for key, value in settings.items() if value is not None)
    path = folder / "recipe.yaml"
    path.write_text(
        f"""task: seq2seq
model:
  checkpoint: {checkpoint}
{model}
data:
  path: {{train: ./train.jsonl, validation: ./validation.jsonl, test: ./test.jsonl}}
  columns: {{source: source, target: target}}
  max_length: 24
  max_target_length: 12
{data}
train:
{block}
evaluate:
{evaluate or "  generation: {num_beams: 1}"}
card: {{license: apache-2.0, language: en}}
output: {folder}/out
{text}""",
        encoding="utf-8",
    )
    return path
