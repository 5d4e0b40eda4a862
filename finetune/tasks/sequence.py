"""The sequence head: one text or a pair of texts to one label, several labels, or a number."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from finetune import metrics
from finetune.analysis import labels as label_analysis
from finetune.analysis.calibration import fit_temperature
from finetune.analysis.slices import RowScores
from finetune.analysis.thresholds import ENOUGH, fit_thresholds
from finetune.errors import DataError, RecipeError
from finetune.features import Features
from finetune.record import Analysis, Interval, SplitResults
from finetune.rows import Rows, infer_problem
from finetune.tasks.base import Batch, Case, Predictions, Task, no_text
from finetune.tasks.encoding import encode_texts

if TYPE_CHECKING:
    import torch

    from finetune.recipe import Recipe

__all__ = ["SequenceTask"]

BAG_OF_WORDS_ROWS = 20_000  # the baseline is left out for larger sets: it would take longer than a few seconds
BAG_OF_WORDS_LABELS = 100


class SequenceTask(Task):
    """Sequence classification and regression. `problem` is single, multi or regression."""

    name: ClassVar[str] = "sequence"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    head: ClassVar[str] = "ForSequenceClassification"
    text_role: ClassVar[str] = "text"
    pipeline = "text-classification"

    problem: Literal["single", "multi", "regression"]

    def __init__(
        self,
        recipe: Recipe,
        problem: Literal["single", "multi", "regression"],
        labels: list[str],
        weights: np.ndarray | None,
        pair: bool,
    ) -> None:
        self.problem = problem
        self.metric_kind = problem
        self.labels = labels
        self.pair = pair
        self.weights = weights  # float32 (K,): of classes for single, of positive rows for multi
        self.labels_must_match = problem != "regression"
        self.thresholds = np.full(len(labels), 0.5)  # multi: a label is predicted where its probability reaches its own
        self.max_length = recipe.data.max_length
        self.smoothing = recipe.train.label_smoothing if recipe.train is not None else 0.0
        self.names = {name: number for number, name in enumerate(labels)}
        self.gold_names: list[str] | None = None  # names by number, where the data gives numbers

    @classmethod
    def from_rows(cls, recipe: Recipe, splits: dict[str, Rows], labels: Sequence[str] | None = None) -> Self:
        first = next(iter(splits.values()))
        problem = recipe.data.problem or infer_problem(first)
        role = "labels" if problem == "multi" else "label"
        if role not in first.table.column_names:
            raise DataError(
                f"data.columns: problem {problem} needs the role {role}; the rows have {first.table.column_names}"
            )
        pair = "text_pair" in first.table.column_names
        if problem == "regression":
            column = (recipe.data.columns or {}).get("label", "label")
            return cls(
                recipe, problem, [labels[0] if labels else ("score" if column == "label" else column)], None, pair
            )
        gold_names = first.class_names.get(role)
        found = gold_names or _names_in(splits.get("train", first), role)
        task = cls(recipe, problem, list(labels) if labels else found, None, pair)
        task.gold_names = gold_names
        if recipe.train is not None and "train" in splits:
            task.weights = _weights(recipe.train.class_weights, task, splits["train"])
        return task

    # ---------------------------------------------------------------- rows to tensors

    def encoding_key(self) -> str:
        keys = {"task": self.name, "problem": self.problem, "labels": self.labels, "gold": self.gold_names}
        return json.dumps(keys | {"pair": self.pair, "max_length": self.max_length}, sort_keys=True)

    def encode(self, batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, Any]:
        pairs = batch["text_pair"] if self.pair else None
        ids, types, truncated = encode_texts(tokenizer, batch["text"], pairs, self.max_length)
        columns = {"input_ids": ids, "row": range(len(ids)), "truncated": truncated, "gold": self._gold(batch)}
        return columns | ({"token_type_ids": types} if types is not None else {})

    def _gold(self, batch: dict[str, list[Any]]) -> np.ndarray:
        """int64 (k,) for single, uint8 (k, K) for multi, float64 (k,) for regression."""
        if self.problem == "regression":
            return np.array([_number(value) for value in batch["label"]], dtype=np.float64)
        if self.problem == "single":
            numbers = {value: self._number_of(value) for value in set(batch["label"])}
            return np.array([numbers[value] for value in batch["label"]], dtype=np.int64)
        gold = np.zeros((len(batch["labels"]), len(self.labels)), dtype=np.uint8)
        for row, values in enumerate(batch["labels"]):
            gold[row, [self._number_of(value) for value in values]] = 1
        return gold

    def _number_of(self, value: Any) -> int:
        name = self.gold_names[value] if self.gold_names is not None else str(value)
        return self.names[name]

    def counts(self, features: Features) -> np.ndarray:
        if self.problem == "single" and self.weights is not None:
            return np.asarray(self.weights[features.scalars["gold"]], dtype=np.float64)
        return np.ones(len(features), dtype=np.float64)

    def collate(self, features: Features, index: np.ndarray, tokenizer: Any) -> Batch:
        import torch

        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        inputs = {name: torch.from_numpy(ragged.pad(index, fill[name])) for name, ragged in features.sequences.items()}
        lengths = torch.from_numpy(features.lengths[index].astype(np.int64))
        width = inputs["input_ids"].shape[1]
        inputs["attention_mask"] = (torch.arange(width)[None, :] < lengths[:, None]).long()
        gold = torch.from_numpy(np.ascontiguousarray(features.scalars["gold"][index]))
        return Batch(inputs, {"gold": gold if self.problem == "single" else gold.float()})

    # ---------------------------------------------------------------- loss and predictions

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return self._losses(outputs.logits.float(), batch.targets["gold"], training=True).sum()

    def _losses(self, logits: torch.Tensor, gold: torch.Tensor, training: bool) -> torch.Tensor:
        """Loss per row, fp32 (B,). Class weights and smoothing belong to training; evaluation reports the plain loss.

        single: weighted cross-entropy with label smoothing (torch's definition); multi: mean over the labels of binary
        cross-entropy, weights on the positive rows; regression: squared error.
        """
        import torch
        import torch.nn.functional as F  # noqa: N812  (the name torch's own documentation uses)

        weights = None
        if self.weights is not None and training:
            weights = torch.from_numpy(self.weights).to(logits.device, non_blocking=True)
        if self.problem == "single":
            smoothing = self.smoothing if training else 0.0
            return F.cross_entropy(logits, gold, weights, reduction="none", label_smoothing=smoothing)
        if self.problem == "multi":
            losses = F.binary_cross_entropy_with_logits(logits, gold, pos_weight=weights, reduction="none")
            return losses.mean(dim=1)
        return (logits.squeeze(-1) - gold) ** 2

    def predict(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        logits = model(**batch.inputs).logits.float()
        return {"logits": logits, "loss": self._losses(logits, batch.targets["gold"], training=False)}

    def decode(self, outputs: dict[str, list[np.ndarray]], features: Features, rows: Rows) -> Predictions:
        logits = np.stack(outputs["logits"]).astype(np.float64)
        arrays = {"gold": np.asarray(features.scalars["gold"]), "logits": logits, "scores": self._scores(logits)}
        return Predictions(rows.column("id"), np.stack(outputs["loss"]).astype(np.float64), arrays)

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (n, K), or the numbers themselves (n,) for regression; float64."""
        from scipy.special import expit, softmax

        if self.problem == "regression":
            return logits[:, 0]
        return np.asarray(softmax(logits, axis=1) if self.problem == "single" else expit(logits))

    def records(self, predictions: Predictions) -> list[dict[str, Any]]:
        gold, scores = predictions.arrays["gold"], predictions.arrays["scores"]
        columns: list[list[Any]]
        if self.problem == "regression":
            columns = [gold.tolist(), scores.tolist(), [None] * len(gold)]
        elif self.problem == "single":
            names = [[self.labels[number] for number in numbers] for numbers in (gold, scores.argmax(axis=1))]
            columns = [*names, scores.max(axis=1).tolist()]
        else:
            chosen = [[self._chosen(row) for row in matrix] for matrix in (gold, scores >= self.thresholds)]
            columns = [*chosen, [dict(zip(self.labels, row, strict=True)) for row in scores.round(6).tolist()]]
        keys = ("id", "gold", "prediction", "score", "loss")
        lines = zip(predictions.ids, *columns, predictions.loss.tolist(), strict=True)
        return [dict(zip(keys, line, strict=True)) for line in lines]

    def _chosen(self, flags: np.ndarray) -> list[str]:
        return [self.labels[number] for number in np.flatnonzero(flags)]

    # ---------------------------------------------------------------- scores

    def default_metric(self) -> str:
        return {"single": "accuracy", "multi": "f1", "regression": "pearson"}[self.problem]

    def score(self, predictions: Predictions, names: Sequence[str] | None = None) -> dict[str, Interval]:
        gold, scores = predictions.arrays["gold"], predictions.arrays["scores"]
        names = names or metrics.DEFAULTS[self.problem]
        if self.problem == "regression":
            return metrics.regression(names, gold, scores)
        if self.problem == "multi":
            return metrics.sequence_multi(names, gold, scores >= self.thresholds, scores)
        return metrics.sequence_single(names, gold, scores.argmax(axis=1), scores)

    def examine(self, predictions: Predictions, rows: Rows) -> tuple[Analysis, RowScores]:
        del rows
        ids, loss, arrays = predictions.ids, predictions.loss, predictions.arrays
        gold, logits, scores = arrays["gold"], arrays["logits"], arrays["scores"]
        if self.problem == "regression":
            return label_analysis.numbers(ids, loss, gold, scores)
        temperature = self.temperature if self.applied_temperature is None else None
        if self.problem == "single":
            found = label_analysis.single(ids, loss, gold, logits, self.labels, temperature)
        else:
            chosen = scores >= self.thresholds
            found = label_analysis.multi(ids, loss, gold, logits, chosen, self.labels, temperature)
        if found[0].calibration is not None:
            found[0].calibration.applied = self.applied_temperature
        return found

    def tune(self, predictions: Predictions) -> None:
        """Fit the temperature, and for several labels their thresholds."""
        if self.problem == "regression":
            return
        arrays = predictions.arrays
        self.temperature = fit_temperature(arrays["logits"], arrays["gold"])
        if self.problem == "multi":
            self.thresholds = fit_thresholds(arrays["gold"], arrays["scores"])

    def constant(self, predictions: Predictions) -> tuple[str, Predictions] | None:
        gold = predictions.arrays["gold"]
        if self.problem == "regression":
            mean = float(gold.mean())
            return f"{mean:.3g}", replace(predictions, arrays={"gold": gold, "scores": np.full(len(gold), mean)})
        counts = np.bincount(gold, minlength=len(self.labels)) if self.problem == "single" else gold.sum(axis=0)
        scores = np.zeros((len(gold), len(self.labels)))
        scores[:, counts.argmax()] = 1.0
        return self.labels[counts.argmax()], replace(predictions, arrays={"gold": gold, "scores": scores})

    def confusion(self, predictions: Predictions) -> tuple[list[str], np.ndarray] | None:
        if self.problem != "single":
            return None
        counts = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        np.add.at(counts, (predictions.arrays["gold"], predictions.arrays["scores"].argmax(axis=1)), 1)
        return self.labels, counts

    def baselines(self, splits: dict[str, Rows]) -> dict[str, dict[str, SplitResults]]:
        """The most frequent class of train, and TF-IDF of words and word pairs with logistic regression."""
        if self.problem != "single" or "train" not in splits:
            return {}
        train = splits["train"]
        gold = self._gold({"label": train.column("label")})
        others = {name: rows for name, rows in splits.items() if name != "train"}
        truth = {name: self._gold({"label": rows.column("label")}) for name, rows in others.items()}
        majority = np.bincount(gold, minlength=len(self.labels)).argmax()
        found = {"majority": {name: np.full(len(rows), majority) for name, rows in others.items()}}
        if len(train) <= BAG_OF_WORDS_ROWS and len(self.labels) <= BAG_OF_WORDS_LABELS:
            found["bag_of_words"] = _bag_of_words(
                self._joined(train), gold, {n: self._joined(r) for n, r in others.items()}
            )
        names = ["accuracy", "f1"]
        return {
            method: {
                name: SplitResults(
                    n=len(guess),
                    metrics=metrics.sequence_single(names, truth[name], guess, num_labels=len(self.labels)),
                )
                for name, guess in guesses.items()
            }
            for method, guesses in found.items()
            if guesses
        }

    def _joined(self, rows: Rows) -> list[str]:
        texts: list[str] = rows.column("text")
        return [f"{a}\n{b}" for a, b in zip(texts, rows.column("text_pair"), strict=True)] if self.pair else texts

    # ---------------------------------------------------------------- the published model

    def configure(self, config: Any) -> None:
        config.num_labels = len(self.labels)
        config.id2label = dict(enumerate(self.labels))
        config.label2id = dict(self.names)
        words = {"single": "single_label_classification", "multi": "multi_label_classification"}
        config.problem_type = words.get(self.problem, "regression")
        if self.problem == "multi":
            config.thresholds = self.thresholds.tolist()  # in the order of id2label
        if self.temperature is not None and self.temperature.value is not None and self.applied_temperature is None:
            config.calibration_temperature = round(self.temperature.value, 4)

    def cases(self, rows: Rows, predictions: Predictions) -> list[Case]:
        texts = rows.column("text")
        inputs = (
            [{"text": a, "text_pair": b} for a, b in zip(texts, rows.column("text_pair"), strict=True)]
            if self.pair
            else texts
        )
        scores = predictions.arrays["scores"].reshape(len(texts), -1)
        kwargs = {"truncation": True, "top_k": None}
        return [Case(one, kwargs, self._ranked(row)) for one, row in zip(inputs, scores, strict=True)]

    def _ranked(self, scores: np.ndarray) -> list[dict[str, Any]]:
        order = np.argsort(-scores, kind="stable")
        return [{"label": self.labels[number], "score": float(scores[number])} for number in order]

    def snippet(self, rows: Rows) -> str:
        del rows  # rows of the data set are not published
        call = '{"text": "First text.", "text_pair": "Second text."}' if self.pair else '"Your text."'
        extra = ", top_k=None" if self.problem == "multi" else ""
        return (
            "from transformers import pipeline\n\n"
            'classify = pipeline("text-classification", model="{model}")\n'
            f"print(classify({call}, truncation=True{extra}))"
        )

    def adopt(self, config: Any) -> None:
        self.thresholds = np.array(getattr(config, "thresholds", None) or self.thresholds)
        stored = getattr(config, "calibration_temperature", None)
        self.temperature = None if stored is None else Interval(value=float(stored))

    @classmethod
    def make_pipeline(cls, folder: Path, config: Any) -> Any:
        import torch
        from transformers import pipeline

        del config
        return pipeline("text-classification", model=str(folder), dtype=torch.float32, trust_remote_code=False)

    @classmethod
    def input_problem(cls, row: dict[str, Any]) -> str | None:
        return no_text(row, ["text", "text_pair"] if "text_pair" in row else ["text"])

    @classmethod
    def answers(cls, pipe: Any, rows: list[dict[str, Any]], batch_size: int) -> list[Any]:
        inputs = [{k: row[k] for k in ("text", "text_pair") if k in row} for row in rows]
        config = pipe.model.config
        outputs = pipe(inputs, truncation=True, top_k=None, batch_size=batch_size)
        if config.problem_type != "multi_label_classification":
            return [ranked[0] for ranked in outputs]
        thresholds = getattr(config, "thresholds", None) or [0.5] * config.num_labels
        least = {config.id2label[number]: threshold for number, threshold in enumerate(thresholds)}
        return [[item for item in ranked if item["score"] >= least[item["label"]]] for ranked in outputs]

    def notes(self) -> list[str]:
        if self.problem == "regression":
            return ["The score is the predicted number itself, on the scale of the training data."]
        said = []
        if self.problem == "multi":
            said.append(
                f"A label applies where its score reaches its own threshold ({self.thresholds.min():.2f} to"
                f" {self.thresholds.max():.2f}); these were chosen on the validation split, one for all labels of fewer"
                f" than {ENOUGH} rows there, and are stored as `thresholds` in config.json, in the order of the labels."
                " The pipeline returns all scores with `top_k=None` and applies no threshold; `finetune predict` does."
            )
        if self.applied_temperature is not None:
            said.append(
                f"After training the logits were divided by {self.applied_temperature.value:.3f}, a temperature fitted"
                " on the validation split, by scaling the head's last layer (not that of an adapter beside it)."
            )
        return said


def _names_in(rows: Rows, role: str) -> list[str]:
    """The distinct label names: numbers in numeric order, else sorted by code point."""
    values = rows.column(role)
    distinct = set(values) if role == "label" else {value for row in values for value in row}
    names = sorted(str(value) for value in distinct)
    return sorted(names, key=int) if all(re.fullmatch(r"-?[0-9]+", name) for name in names) else names


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise DataError(f"data: regression needs finite numbers as labels, found {value!r}")
    return number


def _weights(setting: Any, task: SequenceTask, rows: Rows) -> np.ndarray | None:
    """float32 (K,). balanced: n / (K * n_k) for single (scikit-learn's rule), negatives / positives for multi."""
    if setting == "none":
        return None
    if isinstance(setting, dict):
        unknown = sorted(set(setting) - set(task.labels))
        if unknown:
            raise RecipeError(f"train.class_weights: no label is named {unknown}; the labels are {task.labels}")
        return np.array([setting.get(name, 1.0) for name in task.labels], dtype=np.float32)
    if task.problem == "single":
        counts = np.bincount(task._gold({"label": rows.column("label")}), minlength=len(task.labels))
        return (len(rows) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
    counts = task._gold({"labels": rows.column("labels")}).sum(axis=0, dtype=np.int64)
    return np.asarray((len(rows) - counts) / np.maximum(counts, 1), dtype=np.float32)


def _bag_of_words(texts: list[str], gold: np.ndarray, others: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Labels for the texts of each split; nothing where `texts` have one label, or no word of two letters.

    Source: scikit-learn TfidfVectorizer (1-2 words) and LogisticRegression.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    if len(Counter(gold.tolist())) < 2 or not any(map(vectorizer.build_analyzer(), texts)):
        return {}
    model = make_pipeline(vectorizer, LogisticRegression(C=10, max_iter=1000))
    model.fit(texts, gold)
    return {name: model.predict(split) for name, split in others.items()}
