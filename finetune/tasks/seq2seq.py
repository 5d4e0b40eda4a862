"""The sequence-to-sequence head: a text to another text, by an encoder-decoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from finetune import metrics
from finetune.analysis import texts as text_analysis
from finetune.analysis.slices import RowScores
from finetune.errors import ModelError
from finetune.features import Features, Ragged
from finetune.record import Analysis, Interval, SplitResults
from finetune.rows import Rows
from finetune.scoring.texts import text_scores
from finetune.tasks import decoding, text_facts
from finetune.tasks.base import Batch, Case, Predictions, Task, no_text
from finetune.tasks.encoding import encode_texts

if TYPE_CHECKING:
    import torch

    from finetune.recipe import Recipe

__all__ = ["Seq2SeqTask"]

SAMPLE = 200  # targets passed through the tokenizer to see what it keeps of them
BEGINNING = 3  # tokens: the first one, and those that come with a cache
IGNORED = -100  # the label of padding, as transformers and torch write it
CLASSES = {
    "summarization": "SummarizationPipeline",
    "translation": "TranslationPipeline",
    "text2text-generation": "Text2TextGenerationPipeline",
}


class Seq2SeqTask(Task):
    """Text to text: summarization, translation and everything else of that kind."""

    name: ClassVar[str] = "seq2seq"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    head: ClassVar[tuple[str, ...]] = ("ForConditionalGeneration", "MarianMTModel", "EncoderDecoderModel")
    text_role: ClassVar[str] = "source"
    labels_must_match = False
    renews_head: ClassVar[bool] = False  # what the decoder's head has learned is what fine-tuning builds on

    tokenizer: Any
    start: int | None  # the token that the decoder begins with
    wraps: bool  # it begins with the last token of the target instead
    marks: dict[str, int]  # what `generate` needs for the target language

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.evaluate.generation is not None
        assert recipe.data.max_target_length is not None
        self.labels: list[str] = []
        self.settings = recipe.evaluate.generation
        self.pipeline = self.settings.pipeline
        self.max_length = recipe.data.max_length
        self.max_target_length = recipe.data.max_target_length
        self.prefix = recipe.data.prefix
        self.languages = recipe.data.languages
        self.smoothing = recipe.train.label_smoothing if recipe.train is not None else 0.0
        self.metrics = list(recipe.evaluate.metrics or text_facts.METRICS[self.pipeline])

    @classmethod
    def from_rows(cls, recipe: Recipe, splits: dict[str, Rows], labels: Sequence[str] | None = None) -> Self:
        del splits, labels
        return cls(recipe)

    # ---------------------------------------------------------------- the checkpoint

    @classmethod
    def in_backbone(cls, model: Any, name: str) -> bool:
        if model.config.model_type != "encoder-decoder":  # T5, BART, …: all but the head is one pretrained model
            return "lm_head." not in name and not name.startswith("final_logits_bias")
        new = ("crossattention", "cross_attn", "crossattn", "enc_to_dec_proj")
        own = f"decoder.{model.decoder.base_model_prefix}."
        return name.startswith(("encoder.", own)) and not any(part in name for part in new)

    @classmethod
    def unfit(cls, name: str, config: Any) -> str:
        return text_facts.unfit(name, config)

    def fit_to(self, config: Any, tokenizer: Any) -> None:
        own = getattr(config, "decoder", None) or config
        positions = getattr(own, "max_position_embeddings", None)
        if positions and not hasattr(own, "relative_attention_num_buckets"):
            self.max_target_length = min(self.max_target_length, positions - 2)
        self.tokenizer = tokenizer
        self.marks = decoding.set_languages(tokenizer, self.languages) if self.languages else {}
        self.start, self.wraps = getattr(config, "decoder_start_token_id", None), config.model_type in decoding.WRAPPING
        if self.start is None and not self.wraps:
            raise ModelError("model.checkpoint: its config.json names no decoder_start_token_id; the decoder needs one")

    # ---------------------------------------------------------------- rows to tensors

    def encoding_key(self) -> str:
        keys = {"task": self.name, "prefix": self.prefix, "languages": self.languages, "start": self.start}
        lengths = {"max_length": self.max_length, "max_target_length": self.max_target_length}
        return json.dumps(keys | lengths, sort_keys=True)

    def encode(self, batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, Any]:
        sources = [f"{self.prefix}{text}" for text in batch["source"]] if self.prefix else batch["source"]
        ids, _, truncated = encode_texts(tokenizer, sources, None, self.max_length)
        labels, cut = self._targets(batch["target"], tokenizer)
        return {
            "input_ids": ids,
            "labels": labels,
            "row": range(len(ids)),
            "truncated": truncated,
            "target_truncated": cut,
        }

    def _targets(self, texts: list[str], tokenizer: Any) -> tuple[Ragged, np.ndarray]:
        """Labels, and whether a target was cut at `max_target_length`.

        A BERT-like tokenizer opens every text with the token that the decoder starts with anyway: it is left out.
        """
        if hasattr(tokenizer, "_switch_to_target_mode"):  # targets in another language are another matter than sources
            found, cut = _in_target_mode(tokenizer, texts, self.max_target_length)
        else:
            found, _, cut = encode_texts(tokenizer, texts, None, self.max_target_length)
        starts, lengths = found.offsets[:-1], np.diff(found.offsets)
        opened = np.flatnonzero(lengths > 1)
        opened = opened[found.values[starts[opened]] == self.start]
        kept = np.ones(len(found.values), dtype=bool)
        kept[starts[opened]] = False
        lengths[opened] -= 1
        return Ragged(found.values[kept], np.concatenate([[0], np.cumsum(lengths)])), cut

    def widths(self, features: Features) -> np.ndarray:
        return np.stack([features.lengths, features.sequences["labels"].lengths], axis=1)

    def counts(self, features: Features) -> np.ndarray:
        return features.sequences["labels"].lengths.astype(np.float64)

    def collate(self, features: Features, index: np.ndarray, tokenizer: Any) -> Batch:
        import torch

        source = torch.from_numpy(features.sequences["input_ids"].pad(index, tokenizer.pad_token_id))
        lengths = torch.from_numpy(features.lengths[index].astype(np.int64))
        labels = torch.from_numpy(features.sequences["labels"].pad(index, IGNORED))
        inputs = {
            "input_ids": source,
            "attention_mask": (torch.arange(source.shape[1])[None, :] < lengths[:, None]).long(),
            "decoder_input_ids": decoding.shift_right(labels, self.start, tokenizer.pad_token_id, self.wraps),
        }
        return Batch(inputs, {"labels": labels})

    # ---------------------------------------------------------------- loss and predictions

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Cross-entropy summed over the target tokens, with label smoothing (torch's definition)."""
        import torch.nn.functional as F  # noqa: N812  (the name torch's own documentation uses)

        logits, labels = outputs.logits, batch.targets["labels"]
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.smoothing,
        )

    def predict(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        found = {"loss": self._row_losses(model, batch)}
        if not self.settings.loss_only:
            self._instruct(model)
            found["tokens"] = decoding.generate(model, batch.inputs)
        return found

    def predict_case(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        self._instruct(model)
        tokens = decoding.generate(model, batch.inputs, **self._certain())
        return {"loss": self._row_losses(model, batch), "tokens": tokens}

    def respond(self, model: torch.nn.Module, batch: Batch, on_token: Callable[[], None] | None = None) -> None:
        if self.settings.loss_only:
            self.predict(model, batch)
            return
        self._instruct(model)
        decoding.generate(model, batch.inputs, **(decoding.heard(on_token) if on_token else {}))

    def begin(self, model: torch.nn.Module, batch: Batch) -> None:
        if not self.settings.loss_only:
            self._instruct(model)
            decoding.generate(model, batch.inputs, max_new_tokens=BEGINNING)

    def _certain(self) -> dict[str, Any]:
        """What makes an output repeatable."""
        return {"do_sample": False} if self.settings.do_sample else {}

    def _row_losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over the target tokens of each row, without smoothing: fp32 (B,)."""
        import torch.nn.functional as F  # noqa: N812

        labels = batch.targets["labels"]
        logits = model(**batch.inputs).logits.float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)

    def _instruct(self, model: Any) -> None:
        """Give the model the recipe's generation settings."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # within LoRA's wrapper
        inner.generation_config = self._generation(inner.generation_config)

    def _generation(self, base: Any) -> Any:
        return decoding.generation_config(base, self.settings, self.max_target_length, self.marks, self.tokenizer)

    def decode(self, outputs: dict[str, list[np.ndarray]], features: Features, rows: Rows) -> Predictions:
        del features
        arrays: dict[str, Any] = {"gold": rows.column("target"), "texts": None}
        if "tokens" in outputs:
            arrays["texts"] = self._texts([tokens.tolist() for tokens in outputs["tokens"]])
        return Predictions(rows.column("id"), np.stack(outputs["loss"]).astype(np.float64), arrays)

    def _texts(self, tokens: list[list[int]]) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def records(self, predictions: Predictions) -> list[dict[str, Any]]:
        texts = predictions.arrays["texts"] or [None] * len(predictions.ids)
        lines = zip(predictions.ids, predictions.arrays["gold"], texts, predictions.loss.tolist(), strict=True)
        return [
            {"id": name, "gold": gold, "prediction": text, "score": None, "loss": loss}
            for name, gold, text, loss in lines
        ]

    # ---------------------------------------------------------------- scores

    def default_metric(self) -> str:
        return "loss" if self.settings.loss_only else text_facts.METRICS[self.pipeline][0]

    def score(self, predictions: Predictions, names: Sequence[str] | None = None) -> dict[str, Interval]:
        texts = predictions.arrays["texts"]
        if texts is None:
            return {}
        wanted = names or text_facts.METRICS[self.pipeline]
        known = [name for name in wanted if name in metrics.NAMES["texts"]]
        return metrics.texts(wanted, self._targets_of(predictions), texts, self._statistics(predictions, known))

    def examine(self, predictions: Predictions, rows: Rows) -> tuple[Analysis, RowScores]:
        texts = predictions.arrays["texts"]
        if texts is None:
            return text_analysis.losses(predictions.ids, predictions.loss)
        main = next((name for name in self.metrics if name in metrics.NAMES["texts"]), "chrf")
        targets, stats = self._targets_of(predictions), self._statistics(predictions, [main])[main]
        sources = rows.column("source")
        return text_analysis.generated(predictions.ids, predictions.loss, sources, targets, texts, main, stats)

    def _targets_of(self, predictions: Predictions) -> list[str]:
        targets: list[str] = predictions.once("targets", lambda: self._references(predictions.arrays["gold"]))
        return targets

    def _statistics(self, predictions: Predictions, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The statistics of each row, by metric; each is computed once."""
        known: dict[str, np.ndarray] = predictions.once("statistics", dict)
        missing = [name for name in names if name not in known]
        if missing:
            known |= text_scores(missing, self._targets_of(predictions), predictions.arrays["texts"])
        return {name: known[name] for name in names}

    def _references(self, texts: list[str]) -> list[str]:
        """The texts that outputs are compared with."""
        return self._through_tokenizer(texts) if self.settings.references == "tokenizer" else texts

    def _through_tokenizer(self, texts: list[str]) -> list[str]:
        return self._texts(self.tokenizer(text_target=texts, verbose=False)["input_ids"])

    def baselines(self, splits: dict[str, Rows]) -> dict[str, dict[str, SplitResults]]:
        """The source itself as the output."""
        if self.settings.loss_only:
            return {}
        found = {}
        for name, rows in splits.items():
            if name != "train":
                gold, copies = (self._references(rows.column(role)) for role in ("target", "source"))
                found[name] = SplitResults(n=len(rows), metrics=metrics.texts(self.metrics, gold, copies))
        return {"copy_of_the_source": found}

    def survey(self, splits: dict[str, Rows], features: dict[str, Features], tokenizer: Any) -> list[str]:
        del tokenizer  # the one that fit_to was given
        found = text_facts.cut_targets(features, self.max_target_length)
        name, rows = next(iter(splits.items()))
        sample = rows.column("target")[:SAMPLE]
        back = self._through_tokenizer(sample)
        return found + text_facts.changed_targets(name, sample, back, self.settings.references)

    # ---------------------------------------------------------------- the published model

    def configure(self, config: Any) -> None:
        config.prefix = self.prefix
        if self.languages is not None:
            config.languages = dict(self.languages)
        implementation = f"text_to_text.{CLASSES[self.pipeline]}"
        config.custom_pipelines = {self.pipeline: {"impl": implementation, "pt": [self.auto_class]}}

    def adopt(self, config: Any) -> None:
        if self.prefix is None:
            self.prefix = getattr(config, "prefix", None)
        if self.languages is None:
            self.languages = getattr(config, "languages", None)

    def cases(self, rows: Rows, predictions: Predictions) -> list[Case]:
        key = {"summarization": "summary_text", "translation": "translation_text"}.get(self.pipeline, "generated_text")
        texts = zip(rows.column("source"), predictions.arrays["texts"], strict=True)
        return [Case(source, self._certain(), [{key: text}]) for source, text in texts]

    def snippet(self, rows: Rows) -> str:
        del rows  # rows of the data set are not published
        return text_facts.snippet(self.pipeline)

    @classmethod
    def make_pipeline(cls, folder: Path, config: Any) -> Any:
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        from finetune.inference import text_to_text

        own = getattr(config, "custom_pipelines", None) or {}
        word = next((word for word in CLASSES if word in own), "text2text-generation")
        local = {"trust_remote_code": False, "local_files_only": True}
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **local)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        return getattr(text_to_text, CLASSES[word])(model=model, tokenizer=tokenizer, task=word)

    @classmethod
    def input_problem(cls, row: dict[str, Any]) -> str | None:
        return no_text(row, ["source"])

    @classmethod
    def answers(cls, pipe: Any, rows: list[dict[str, Any]], batch_size: int) -> list[Any]:
        outputs = pipe([row["source"] for row in rows], batch_size=batch_size)
        return [output[f"{pipe.return_name}_text"] for output in outputs]

    def notes(self) -> list[str]:
        return text_facts.notes(
            self.settings,
            self.metrics,
            prefix=self.prefix,
            lengths=(self.max_length, self.settings.max_new_tokens or self.max_target_length),
        )

    def export(self, folder: Path) -> None:
        from transformers import GenerationConfig

        from finetune.inference import text_to_text

        shutil.copyfile(str(text_to_text.__file__), folder / "text_to_text.py")
        self._generation(GenerationConfig.from_pretrained(folder)).save_pretrained(folder)


def _in_target_mode(tokenizer: Any, texts: list[str], max_length: int) -> tuple[Ragged, np.ndarray]:
    """The ids of targets for a tokenizer that writes them in another way than sources, and whether they were cut."""
    found = tokenizer(text_target=texts, truncation=True, max_length=max_length)["input_ids"]
    full = [number for number, ids in enumerate(found) if len(ids) >= max_length]
    cut = np.zeros(len(texts), dtype=bool)
    if full:
        whole = tokenizer(text_target=[texts[number] for number in full], verbose=False)["input_ids"]
        cut[full] = [len(ids) > max_length for ids in whole]
    return Ragged.of(found), cut
