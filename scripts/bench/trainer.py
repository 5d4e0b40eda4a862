"""A run of transformers' Trainer as its examples use it, on the rows of a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from finetune import data, hardware, pretrained
from finetune.recipe import Recipe, TrainBlock, load
from scripts.bench.limit import training_flops
from scripts.bench.tasks import padded_length

__all__ = ["train"]

IGNORED = -100


def train(path: Path, *, padded: bool) -> dict[str, Any]:
    """Train, predict the test split, then let finetune score the saved model."""
    recipe = load(path)
    assert recipe.train is not None
    rows = data.load(recipe)
    peer = _PEERS[recipe.task](recipe, padded)
    peer.read_labels(list(rows.values()))
    model = peer.model()
    sets = {name: peer.encode(rows[name]) for name in ("train", "test")}
    first, counter = _FirstStep(), _Counter(peer.collator(), peer.targets_padded_apart)
    trainer = peer.trainer(
        model=model,
        args=_arguments(peer, recipe.train, recipe.output),
        train_dataset=sets["train"],
        data_collator=counter,
        processing_class=peer.tokenizer,
        callbacks=[first],
    )
    output = trainer.train()
    facts = {"tokens": counter.tokens, "slots": counter.slots, "peak_memory_bytes": hardware.peak_memory_bytes()}
    started = time.perf_counter()
    trainer.predict(sets["test"])
    evaluation_seconds = time.perf_counter() - started
    folder = Path(recipe.output).parent / "trained"
    trainer.save_model(str(folder))
    scored = Path(recipe.output).parent / "scored.json"
    command = ["evaluate", str(path), "--checkpoint", str(folder), "--split", "test", "--json", str(scored)]
    subprocess.run([sys.executable, "-m", "finetune", *command], check=True)
    results = json.loads(scored.read_text(encoding="utf-8"))["results"]["test"]
    lengths = np.array([len(ids) for ids in sets["train"]["input_ids"]])
    return facts | {
        "precision": recipe.train.precision,
        "steps": output.global_step,
        "examples": len(sets["train"]),
        "train_seconds": output.metrics["train_runtime"],
        "first_step_seconds": hardware.seconds_since_start(first.time),
        "evaluation_seconds": evaluation_seconds,
        "quality": {name: value for name, value in results.items() if name != "n"},
        "flops": training_flops(model.config, lengths),
    }


def _arguments(peer: Any, settings: TrainBlock, output: str) -> Any:
    """The settings of finetune's recipe; everything else as the Trainer comes."""
    return peer.arguments(
        output_dir=output,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **peer.extra_arguments,
    )


class _FirstStep(TrainerCallback):  # type: ignore[misc]
    time = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        self.time = self.time or time.time()


class _Counter:
    """A collator that counts the tokens and the slots of what it makes while it is used for training."""

    def __init__(self, collate: Any, targets_padded_apart: bool) -> None:
        self.collate, self.apart, self.tokens, self.slots = collate, targets_padded_apart, 0, 0

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        batch = self.collate(features)
        self.tokens += int(batch["attention_mask"].sum())
        self.slots += batch["attention_mask"].numel()
        if self.apart:
            self.tokens += int((batch["labels"] != IGNORED).sum())
            self.slots += batch["labels"].numel()
        return batch


# -------------------------------------------------------------------------------------------- the heads


class _Peer(ABC):
    """What the four examples of transformers do differently."""

    auto: Any
    trainer: Any = transformers.Trainer
    arguments: Any = TrainingArguments
    extra_arguments: ClassVar[dict[str, Any]] = {}
    targets_padded_apart = False

    def __init__(self, recipe: Recipe, padded: bool) -> None:
        self.recipe, self.length = recipe, recipe.data.max_length
        self.checkpoint = pretrained.find_checkpoint(recipe).folder
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.checkpoint)
        self.padding: bool | str = "max_length" if padded else True
        self.labels: list[str] = []

    def read_labels(self, splits: list[Any]) -> None:  # noqa: B027  (two of the four heads have none)
        """The names of the classes, where the head has any."""

    def model(self) -> Any:
        assert self.recipe.train is not None
        transformers.set_seed(self.recipe.train.seed)
        names = dict(enumerate(self.labels))
        labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}} if names else {}
        return self.auto.from_pretrained(self.checkpoint, dtype="float32", **labels)

    def encode(self, rows: Any) -> Any:
        table = Dataset.from_dict({name: rows.column(name) for name in rows.table.column_names})
        return table.map(self.features, batched=True, remove_columns=table.column_names)

    @abstractmethod
    def features(self, batch: dict[str, list[Any]]) -> Any:
        """What the model reads, of a batch of rows by role."""

    def collator(self) -> Any:
        length = padded_length(self.recipe.task) if self.padding == "max_length" else None
        return transformers.DataCollatorWithPadding(self.tokenizer, padding=self.padding, max_length=length)


class _Sequence(_Peer):
    auto = transformers.AutoModelForSequenceClassification

    def read_labels(self, splits: list[Any]) -> None:
        self.labels = sorted({label for rows in splits for label in rows.column("label")})

    def features(self, batch: dict[str, list[Any]]) -> Any:
        labels = [self.labels.index(label) for label in batch["label"]]
        return self.tokenizer(batch["text"], truncation=True, max_length=self.length) | {"labels": labels}


class _Token(_Peer):
    auto = transformers.AutoModelForTokenClassification

    def read_labels(self, splits: list[Any]) -> None:
        self.labels = sorted({tag for rows in splits for tags in rows.column("tags") for tag in tags})

    def features(self, batch: dict[str, list[Any]]) -> Any:
        encoded = self.tokenizer(batch["tokens"], truncation=True, max_length=self.length, is_split_into_words=True)
        encoded["labels"] = [self._first_pieces(encoded.word_ids(i), tags) for i, tags in enumerate(batch["tags"])]
        return encoded

    def _first_pieces(self, words: list[int | None], tags: list[str]) -> list[int]:
        firsts = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
        pairs = zip(firsts, words, strict=True)
        return [self.labels.index(tags[word]) if first and word is not None else IGNORED for first, word in pairs]

    def collator(self) -> Any:
        length = padded_length("token") if self.padding == "max_length" else None
        kind = transformers.DataCollatorForTokenClassification
        return kind(self.tokenizer, padding=self.padding, max_length=length)


class _Span(_Peer):
    auto = transformers.AutoModelForQuestionAnswering

    def features(self, batch: dict[str, list[Any]]) -> Any:
        encoded = self.tokenizer(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=self.length,
            stride=self.recipe.data.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        places = [self._place(offsets[i], encoded.sequence_ids(i), batch["answers"][row]) for i, row in enumerate(rows)]
        encoded["start_positions"], encoded["end_positions"] = (list(side) for side in zip(*places, strict=True))
        return encoded

    @staticmethod
    def _place(offsets: list[tuple[int, int]], parts: list[int | None], answers: dict[str, Any]) -> tuple[int, int]:
        """First and last token of the first answer; 0 and 0, the first special token, where the window lacks it."""
        start = answers["answer_start"][0]
        end = start + len(answers["text"][0])
        inside = [i for i, part in enumerate(parts) if part == 1]
        if offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
            return 0, 0
        touched = [i for i in inside if offsets[i][1] > start and offsets[i][0] < end]
        return touched[0], touched[-1]


class _Seq2Seq(_Peer):
    auto = transformers.AutoModelForSeq2SeqLM
    trainer = transformers.Seq2SeqTrainer
    arguments = transformers.Seq2SeqTrainingArguments
    extra_arguments: ClassVar[dict[str, Any]] = {"predict_with_generate": True, "generation_max_length": 40}
    targets_padded_apart = True

    def model(self) -> Any:
        assert self.recipe.train is not None
        transformers.set_seed(self.recipe.train.seed)
        return self.auto.from_config(transformers.AutoConfig.from_pretrained(self.checkpoint), dtype="float32")

    def features(self, batch: dict[str, list[Any]]) -> Any:
        targets = self.tokenizer(
            text_target=batch["target"], truncation=True, max_length=self.recipe.data.max_target_length
        )
        sources = self.tokenizer(batch["source"], truncation=True, max_length=self.length)
        return sources | {"labels": targets["input_ids"]}

    def collator(self) -> Any:
        length = padded_length("seq2seq") if self.padding == "max_length" else None
        return transformers.DataCollatorForSeq2Seq(self.tokenizer, padding=self.padding, max_length=length)


_PEERS: dict[str, Callable[[Recipe, bool], _Peer]] = {
    "sequence": _Sequence,
    "token": _Token,
    "span": _Span,
    "seq2seq": _Seq2Seq,
}
