"""The span head: the part of a context that answers a question, or that there is none."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from finetune import metrics
from finetune.analysis import texts as text_analysis
from finetune.analysis.slices import RowScores
from finetune.errors import ModelError
from finetune.features import Features
from finetune.record import Analysis, Interval, SplitResults
from finetune.rows import Rows
from finetune.scoring.texts import answer_scores
from finetune.tasks import answers
from finetune.tasks.answers import IGNORED, gold_texts, open_questions
from finetune.tasks.base import Batch, Case, Predictions, Task, no_text

if TYPE_CHECKING:
    import torch

    from finetune.inference.question_answering import Settings
    from finetune.recipe import Recipe

__all__ = ["SpanTask"]


class SpanTask(Task):
    """Extractive question answering. The inference module finetune/inference/question_answering.py says how it decides.

    A window is taught the first answer of its row, or the classification token where that answer does not lie in it
    as a whole; one whose answer has no token of its own is left out of the loss.
    """

    name: ClassVar[str] = "span"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    head: ClassVar[tuple[str, ...]] = ("ForQuestionAnswering", "ForQuestionAnsweringSimple")  # the latter: XLNet, XLM
    text_role: ClassVar[str] = "context"
    pipeline = "question-answering"
    labels_must_match = False

    tokenizer: Any  # from fit_to

    def __init__(self, recipe: Recipe, impossible: bool) -> None:
        self.labels: list[str] = []
        self.max_length = recipe.data.max_length
        self.stride = recipe.data.stride or 0
        self.threshold = 0.0 if impossible else None  # of "no answer"; None: the model always answers
        self.may_be_open = impossible

    @classmethod
    def from_rows(cls, recipe: Recipe, splits: dict[str, Rows], labels: Sequence[str] | None = None) -> Self:
        del labels  # the head has none
        trained = [splits["train"]] if recipe.train is not None and "train" in splits else list(splits.values())
        return cls(recipe, any(open_questions(rows) for rows in trained))

    @property
    def settings(self) -> Settings:
        """How the model reads and answers; stored with it."""
        from finetune.inference.question_answering import Settings

        return Settings(self.max_length, self.stride, no_answer_threshold=self.threshold)

    def fit_to(self, config: Any, tokenizer: Any) -> None:
        del config
        self.tokenizer = tokenizer

    # ---------------------------------------------------------------- rows to tensors

    def encoding_key(self) -> str:
        from finetune.inference import question_answering

        code = [
            hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
            for module in (question_answering, answers)
        ]
        lengths = [self.max_length, self.stride, self.settings.max_question_tokens]
        return json.dumps({"task": self.name, "code": code, "lengths": lengths})

    def encode(self, batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, Any]:
        """Windows as `cut` gives them, and `start`, `end`: target tokens in the window, int64 (n,)."""
        from finetune.inference import question_answering

        if not tokenizer.is_fast:
            raise ModelError(
                f"model.checkpoint: its tokenizer ({type(tokenizer).__name__}) is a slow one, which does not say where"
                " in the text a token stands; use a checkpoint with a fast tokenizer (tokenizer.json)"
            )
        pieces = question_answering.read(tokenizer, batch["question"], batch["context"], self.settings)
        columns = question_answering.cut(tokenizer, pieces, self.settings)
        row = columns["row"]
        truncated = np.array([one.question_cut for one in pieces], dtype=bool)[row]
        bounds = [answers.answer_tokens(*one) for one in zip(pieces, batch["context"], batch["answers"], strict=True)]
        start, end = answers.targets(np.array(bounds, dtype=np.int64)[row], columns)
        kept = {name: values for name, values in columns.items() if name not in ("first", "at", "size")}
        return kept | {"truncated": truncated, "start": start, "end": end}

    def counts(self, features: Features) -> np.ndarray:
        return np.asarray(features.scalars["start"] >= 0, dtype=np.float64)

    def collate(self, features: Features, index: np.ndarray, tokenizer: Any) -> Batch:
        import torch

        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        padded = {name: ragged.pad(index, fill.get(name, 0)) for name, ragged in features.sequences.items()}
        usable = padded.pop("offset_end") > padded.pop("offset_start")
        inputs = {name: torch.from_numpy(values) for name, values in padded.items()}
        lengths = torch.from_numpy(features.lengths[index].astype(np.int64))
        inputs["attention_mask"] = (torch.arange(usable.shape[1])[None, :] < lengths[:, None]).long()
        targets = {
            name: torch.from_numpy(np.ascontiguousarray(features.scalars[name][index]))
            for name in ("start", "end", "null")
        }
        return Batch(inputs, targets | {"usable": torch.from_numpy(usable), "lengths": lengths})

    # ---------------------------------------------------------------- loss and predictions

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return self._losses(outputs, batch).sum()

    def _losses(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Mean of the cross-entropies of start and end, fp32 (B,); 0 for a window without a target.

        Source: transformers `ForQuestionAnsweringLoss`, with the padding left out, so that it does not depend on the
        other windows of a batch.
        """
        import torch
        import torch.nn.functional as F  # noqa: N812  (the name torch's own documentation uses)

        width = outputs.start_logits.shape[1]
        padding = torch.arange(width, device=outputs.start_logits.device)[None, :] >= batch.targets["lengths"][:, None]
        both = [
            F.cross_entropy(
                logits.float().masked_fill(padding, float("-inf")),
                batch.targets[name],
                ignore_index=IGNORED,
                reduction="none",
            )
            for name, logits in (("start", outputs.start_logits), ("end", outputs.end_logits))
        ]
        return (both[0] + both[1]) / 2

    def predict(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from finetune.inference import question_answering

        outputs = model(**batch.inputs)
        start, end = outputs.start_logits.float(), outputs.end_logits.float()
        best = question_answering.spans(start, end, batch.targets["usable"], batch.targets["null"], self.settings)
        return best | {"loss": self._losses(outputs, batch)}

    def decode(self, outputs: dict[str, list[np.ndarray]], features: Features, rows: Rows) -> Predictions:
        """`ranked`: the best parts of each context; `best`: the text of the first; `gold`: texts, none where open."""
        ranked = answers.rank_features(outputs, features, len(rows))
        row = features.scalars["row"]
        counted = np.bincount(row, weights=features.scalars["start"] >= 0, minlength=len(rows))
        losses = np.bincount(row, weights=np.array(outputs["loss"], dtype=np.float64), minlength=len(rows))
        best = answers.best_texts(ranked, rows)
        arrays = {"gold": gold_texts(rows), "ranked": ranked, "best": best}
        return Predictions(rows.column("id"), losses / np.maximum(counted, 1), arrays)

    def _answers(self, predictions: Predictions) -> list[dict[str, Any]]:
        """What the pipeline answers to each row."""
        from finetune.inference.question_answering import probabilities

        ranked, best = predictions.arrays["ranked"], predictions.arrays["best"]
        shares = probabilities(ranked, self.threshold)
        none = shares[:, -1] > shares[:, 0]
        scores = np.where(none, shares[:, -1], shares[:, 0]).tolist()
        nothing = {"start": 0, "end": 0, "answer": ""}
        return [
            {"score": score} | (nothing if empty else part)
            for score, empty, part in zip(scores, none.tolist(), best, strict=True)
        ]

    def records(self, predictions: Predictions) -> list[dict[str, Any]]:
        lines = zip(predictions.ids, predictions.arrays["gold"], self._answers(predictions), strict=True)
        found = [
            {"id": name, "gold": gold, "prediction": answer["answer"]}
            | {key: answer[key] for key in ("score", "start", "end")}
            for name, gold, answer in lines
        ]
        return [line | {"loss": loss} for line, loss in zip(found, predictions.loss.tolist(), strict=True)]

    # ---------------------------------------------------------------- scores

    def default_metric(self) -> str:
        return "f1"

    def score(self, predictions: Predictions, names: Sequence[str] | None = None) -> dict[str, Interval]:
        texts = [answer["answer"] for answer in self._answers(predictions)]
        wanted = names or metrics.DEFAULTS["answers"]
        return metrics.answers(wanted, predictions.arrays["gold"], texts, self._scores(predictions, texts))

    def _scores(self, predictions: Predictions, texts: list[str]) -> np.ndarray:
        """Exact match and F1 of each row, (n, 2); the threshold decides which rows have an empty answer."""
        gold = predictions.arrays["gold"]
        scores: np.ndarray = predictions.once(f"scores at {self.threshold}", lambda: answer_scores(gold, texts))
        return scores

    def examine(self, predictions: Predictions, rows: Rows) -> tuple[Analysis, RowScores]:
        found = self._answers(predictions)
        texts = [answer["answer"] for answer in found]
        return text_analysis.answers(
            predictions.ids,
            predictions.loss,
            rows.column("question"),
            predictions.arrays["gold"],
            texts,
            np.array([answer["score"] for answer in found]),
            self._scores(predictions, texts),
        )

    def tune(self, predictions: Predictions) -> None:
        """Choose the threshold of "no answer", where the model may give none and the rows tell."""
        gold, best = predictions.arrays["gold"], [part["answer"] for part in predictions.arrays["best"]]
        if self.may_be_open and any(gold) and not all(gold):
            self.threshold = answers.best_threshold(gold, best, predictions.arrays["ranked"])

    def baselines(self, splits: dict[str, Rows]) -> dict[str, dict[str, SplitResults]]:
        """Always "no answer", where questions may be open; the sentence that shares most words with the question."""
        found: dict[str, dict[str, SplitResults]] = {"no_answer": {}, "nearest_sentence": {}}
        for name, rows in splits.items():
            if name == "train":
                continue
            gold = gold_texts(rows)
            guesses = {"nearest_sentence": answers.nearest_sentences(rows)}
            if self.may_be_open:
                guesses["no_answer"] = [""] * len(rows)
            for method, texts in guesses.items():
                scores = metrics.answers(metrics.DEFAULTS["answers"], gold, texts)
                found[method][name] = SplitResults(n=len(rows), metrics=scores)
        return {method: results for method, results in found.items() if results}

    # ---------------------------------------------------------------- the published model

    def configure(self, config: Any) -> None:
        from finetune.inference.question_answering import CONFIG_KEY

        config.num_labels = 2
        config.id2label, config.label2id = {0: "start", 1: "end"}, {"start": 0, "end": 1}
        config.problem_type = None
        setattr(config, CONFIG_KEY, asdict(self.settings))
        config.custom_pipelines = {
            self.pipeline: {"impl": "question_answering.QuestionAnsweringPipeline", "pt": [self.auto_class]}
        }

    def export(self, folder: Path) -> None:
        from finetune.inference import question_answering

        shutil.copyfile(question_answering.__file__, folder / "question_answering.py")

    def cases(self, rows: Rows, predictions: Predictions) -> list[Case]:
        inputs = [
            {"question": question, "context": context}
            for question, context in zip(rows.column("question"), rows.column("context"), strict=True)
        ]
        return [Case(one, {}, answer) for one, answer in zip(inputs, self._answers(predictions), strict=True)]

    def adopt(self, config: Any) -> None:
        from finetune.inference.question_answering import CONFIG_KEY

        stored = getattr(config, CONFIG_KEY, None)
        if stored is not None:
            self.threshold = stored.get("no_answer_threshold")

    @classmethod
    def make_pipeline(cls, folder: Path, config: Any) -> Any:
        import torch
        import transformers

        from finetune.inference.question_answering import QuestionAnsweringPipeline

        del config
        here = {"trust_remote_code": False, "local_files_only": True}
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **here
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **here)
        return QuestionAnsweringPipeline(model=model, tokenizer=tokenizer, task=cls.pipeline)

    @classmethod
    def input_problem(cls, row: dict[str, Any]) -> str | None:
        problem = no_text(row, ["question", "context"])
        return problem or (None if row["question"].strip() else "the question is empty")

    @classmethod
    def answers(cls, pipe: Any, rows: list[dict[str, Any]], batch_size: int) -> list[Any]:
        inputs = [{role: row[role] for role in ("question", "context")} for row in rows]
        found: list[Any] = pipe(inputs, batch_size=batch_size)
        return found

    def snippet(self, rows: Rows) -> str:
        del rows  # rows of the data set are not published
        call = 'print(answer(question="Where do I work?", context="I work at a bakery in Brooklyn."))'
        return (
            "from transformers import pipeline\n\n"
            'answer = pipeline("question-answering", model="{model}", trust_remote_code=True)\n'
            f"{call}\n\n"
            "# or, where headswap is installed, without running code of this repository:\n"
            "import finetune\n\n"
            'answer = finetune.pipeline("{model}")\n'
            f"{call}"
        )

    def notes(self) -> list[str]:
        from finetune.inference.question_answering import longest_question

        settings = self.settings
        decision = (
            "The answer is the empty text where the score of no answer is above that of the best part by more than"
            f" {self.threshold:.4g}, a threshold chosen on validation where it has open questions and stored in"
            " config.json; `handle_impossible_answer=False` always names a part."
            if self.threshold is not None
            else "It was trained on questions that have an answer and names a part of any context, right or wrong."
        )
        return [
            "`trust_remote_code=True` is asked for because transformers 5 has no pipeline for question answering: the"
            " one used here is the file `question_answering.py` of this repository, which imports numpy, torch and"
            " transformers only. Read it first, and pin what you have read with `revision`.",
            f"Contexts of any length are read in windows of {self.max_length} tokens, the question and special tokens"
            f" among them, that share {settings.stride} tokens, or half of what the question leaves where that is less;"
            f" questions are cut at {longest_question(self.tokenizer, settings)} tokens, and an answer has at most"
            f" {settings.max_answer_tokens}.",
            decision,
            f"`score` is a softmax over the {settings.n_best} best parts of the context"
            f"{' and no answer' if self.threshold is not None else ''}; `start` and `end` count characters of the"
            " context. A blank question is a ValueError; a context without text has the empty answer.",
        ]

    def survey(self, splits: dict[str, Rows], features: dict[str, Features], tokenizer: Any) -> list[str]:
        del tokenizer
        said = []
        for name, rows in splits.items():
            found = features[name].scalars
            windowed = int((np.bincount(found["row"], minlength=len(rows)) > 1).sum())
            cut = len(np.unique(found["row"][found["truncated"]]))
            lost = len(np.unique(found["row"][found["start"] < 0]))
            parts = [f"{open_questions(rows):,} without an answer", f"{windowed:,} longer than a window"]
            parts += [f"{cut:,} with a question that is cut"] if cut else []
            parts += [f"{lost:,} whose answer has no token, left out of the loss"] if lost else []
            said.append(f"{name}: of {len(rows):,} questions, {', '.join(parts)}")
        return said
