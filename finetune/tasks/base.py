"""The questions a head must answer. One subclass per task; the loop knows only this interface."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from finetune.analysis.slices import RowScores
from finetune.errors import ModelError
from finetune.features import Features
from finetune.record import Analysis, Interval, SplitResults
from finetune.rows import Rows
from finetune.scoring.names import Kind

if TYPE_CHECKING:
    import torch

    from finetune.recipe import Recipe

__all__ = ["Batch", "Case", "Predictions", "Task", "no_text", "refuse_placeholder_names"]


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `inputs` go to the model; `targets` only to the loss. Tensors have the batch axis first.

    Without padding, `inputs` hold a `finetune.unpadded.Packing` in place of the mask.
    """

    inputs: dict[str, Any]
    targets: dict[str, torch.Tensor]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; to a GPU it goes through pinned memory, and nobody waits for it."""

        def send(tensors: dict[str, Any]) -> dict[str, Any]:
            pinned = {name: x.pin_memory() for name, x in tensors.items()} if device.type == "cuda" else tensors
            return {name: x.to(device, non_blocking=True) for name, x in pinned.items()}

        return Batch(send(self.inputs), send(self.targets))


@dataclass(frozen=True)
class Predictions:
    """What the model says of the rows of one split, in the order of the rows.

    ids: of the rows. loss: plain loss of each row, (n,). arrays: what the task's other methods need, by name; the first
    axis is the row.
    """

    ids: list[str]
    loss: np.ndarray
    arrays: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, kept in `arrays` under `name`: metrics and analysis share the statistics of rows."""
        if name not in self.arrays:
            self.arrays[name] = compute()
        return self.arrays[name]


@dataclass(frozen=True)
class Case:
    """One call of the published pipeline and the answer our own code gives to it."""

    inputs: Any
    kwargs: dict[str, Any]
    expected: Any


class Task(ABC):
    """A head: how rows become features, what is optimised, what is predicted and how that is scored.

    An instance is built from the recipe and the rows, and holds the labels and whatever is tuned on validation.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]  # the transformers Auto class that carries the head
    head: ClassVar[str | tuple[str, ...]]  # how the names of architectures with this head end
    text_role: ClassVar[str]  # the role that holds the text the model reads
    encoders: ClassVar[tuple[str, ...]] = ("finetune.tasks.encoding",)  # modules that `encode` leaves its work to
    pipeline: str  # the word for transformers.pipeline and for the card
    labels: list[str]
    max_length: int
    problem: str | None = None
    temperature: Interval | None = None  # by which logits are best divided, fitted on validation
    applied_temperature: Interval | None = None  # by which those of the exported head are divided
    metric_kind: Kind | None = None  # which table of `finetune.scoring.names` holds the task's metrics
    labels_must_match: bool = True  # a checkpoint's label names against those of the data, when only evaluating
    renews_head: ClassVar[bool] = True  # the head that a checkpoint comes with was trained for something else

    @classmethod
    @abstractmethod
    def from_rows(cls, recipe: Recipe, splits: dict[str, Rows], labels: Sequence[str] | None = None) -> Self:
        """Build the task. `labels` are those of a checkpoint whose head is used as it is, else they come from the rows.

        Raises DataError with every problem of the labels in all splits.
        """

    @classmethod
    def in_backbone(cls, model: Any, name: str) -> bool:
        """Whether a weight of the model must come from the checkpoint; all others belong to the head."""
        if model.base_model is model:  # T5ForQuestionAnswering holds the halves of its backbone itself
            return name.startswith(("shared.", "encoder.", "decoder."))
        return name.startswith(f"{model.base_model_prefix}.")

    @classmethod
    def unfit(cls, name: str, config: Any) -> str:
        """What to say of checkpoint `name`, whose architecture cannot carry this head."""
        return (
            f"model.checkpoint: {name} is of type {config.model_type!r}, and transformers has no"
            f" {cls.auto_class.removeprefix('AutoModelFor')} head for it; choose an architecture that has one"
        )

    def fit_to(self, config: Any, tokenizer: Any) -> None:  # noqa: B027  (most heads need nothing of them)
        """Take what only the checkpoint knows; called once, before rows are encoded. Raises ModelError."""

    @abstractmethod
    def encoding_key(self) -> str:
        """JSON of all settings that change what `encode` returns."""

    @abstractmethod
    def encode(self, batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, Any]:
        """k rows to n >= k features; `row` and `truncated` always.

        Sequences come as a Ragged or as lists of ints, scalars as numbers.
        """

    def widths(self, features: Features) -> np.ndarray:
        """Tokens of each feature, int (n, k): one column for each tensor that a batch pads on its own."""
        return features.lengths[:, None]

    @abstractmethod
    def counts(self, features: Features) -> np.ndarray:
        """What each feature adds to the denominator of the loss, float64 (n,)."""

    @abstractmethod
    def collate(self, features: Features, index: np.ndarray, tokenizer: Any) -> Batch:
        """The features at `index`, padded to the longest of them."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """The sum of the loss over the batch, fp32 (); the loop divides by the counts of the global batch."""

    @abstractmethod
    def predict(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Run the model; what `decode` needs of it, reduced on the device. Each tensor has the batch axis first."""

    def respond(self, model: torch.nn.Module, batch: Batch, on_token: Callable[[], None] | None = None) -> None:
        """Answer one batch as a caller waits for it; `on_token` is called after each token that is generated."""
        del on_token
        self.predict(model, batch)

    def begin(self, model: torch.nn.Module, batch: Batch) -> None:  # noqa: B027  (most answers are one forward pass)
        """Generate the first tokens of the answers to a batch, where answers are generated."""

    def predict_case(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """As `predict`, for the cases of `verify`: the same each time it is called."""
        return self.predict(model, batch)

    @abstractmethod
    def decode(self, outputs: dict[str, list[np.ndarray]], features: Features, rows: Rows) -> Predictions:
        """outputs: name -> one array per feature, in the order of the features."""

    @abstractmethod
    def score(self, predictions: Predictions, names: Sequence[str] | None = None) -> dict[str, Interval]:
        """Metrics with their intervals; `names` None means the defaults of the task."""

    @abstractmethod
    def records(self, predictions: Predictions) -> list[dict[str, Any]]:
        """One line of `predictions/<split>.jsonl` per row: id, gold, prediction, score, loss, as plain Python."""

    @abstractmethod
    def examine(self, predictions: Predictions, rows: Rows) -> tuple[Analysis, RowScores]:
        """Where the model fails, and the metric by which groups of rows are compared."""

    @abstractmethod
    def default_metric(self) -> str:
        """The metric that selects the best checkpoint when the recipe names none."""

    def tune(self, predictions: Predictions) -> None:  # noqa: B027  (most heads have nothing to tune)
        """Fit thresholds and the like to the predictions on validation; kept in the task, saved by `configure`."""

    def constant(self, predictions: Predictions) -> tuple[str, Predictions] | None:
        """The most frequent gold answer, and the predictions of a model that always gives it; None where none fits."""
        del predictions
        return None

    def confusion(self, predictions: Predictions) -> tuple[list[str], np.ndarray] | None:
        """Names and how often each (axis 0) was taken for each (axis 1), int64 (K, K): of rows, or of tokens."""
        del predictions
        return None

    def baselines(self, splits: dict[str, Rows]) -> dict[str, dict[str, SplitResults]]:
        """Results of trivial methods on the evaluation splits: name -> split -> results."""
        del splits
        return {}

    @abstractmethod
    def configure(self, config: Any) -> None:
        """Write label names and decoding rules into the model's config, as the pipeline reads them."""

    @property
    def answer_labels(self) -> list[str]:
        """The names that predictions are written in."""
        return self.labels

    def labels_for(self, own: Sequence[str]) -> list[str]:
        """The names that a checkpoint with the labels `own` must have to be scored on this data."""
        del own
        return self.labels

    def survey(self, splits: dict[str, Rows], features: dict[str, Features], tokenizer: Any) -> list[str]:
        """What a reader of `finetune check` should know of the rows and their tokens, one sentence each."""
        del splits, features, tokenizer
        return []

    def published(self, rows: Rows) -> Rows | None:
        """The rows as callers of the published pipeline give them, where that differs from `rows`; else None."""
        del rows
        return None

    def compare_published(self, predictions: Predictions, published: Predictions, rows: Rows) -> None:  # noqa: B027
        """Put into `predictions` what `score` needs of the predictions for `published(rows)`."""

    def probes(self, rows: Rows, index: np.ndarray, texts: Sequence[str]) -> Rows:
        """Rows for `verify`: those at `index`, and the first of them once for each of `texts`, put in its place."""
        import pyarrow as pa

        chosen = rows.take(index)
        extra = chosen.table.slice(0, 1)
        column = chosen.table.schema.get_field_index(self.text_role)
        tables = [extra.set_column(column, self.text_role, pa.array([text], pa.string())) for text in texts]
        return replace(chosen, table=pa.concat_tables([chosen.table, *tables]))

    @abstractmethod
    def cases(self, rows: Rows, predictions: Predictions) -> list[Case]:
        """What the published pipeline is given for each of `rows`, and what it must return by our own predictions."""

    @abstractmethod
    def snippet(self, rows: Rows) -> str:
        """Python that calls the published model; `{model}` stands for its id or folder."""

    def adopt(self, config: Any) -> None:  # noqa: B027  (most heads keep nothing else in the config)
        """Take over decoding rules that `configure` stored in a checkpoint's config."""

    @classmethod
    @abstractmethod
    def make_pipeline(cls, folder: Path, config: Any) -> Any:
        """The transformers pipeline for a model on disk, without code that comes with it."""

    @classmethod
    @abstractmethod
    def input_problem(cls, row: dict[str, Any]) -> str | None:
        """What is wrong with one input of `finetune predict`, or None."""

    @classmethod
    @abstractmethod
    def answers(cls, pipe: Any, rows: list[dict[str, Any]], batch_size: int) -> list[Any]:
        """What the pipeline says of each row, with the decoding rules that the card states."""

    def notes(self) -> list[str]:
        """Sentences for the card about decoding: thresholds, windows, rules."""
        return []

    def export(self, folder: Path) -> None:  # noqa: B027  (most heads add no file)
        """Write what this head adds to the exported folder."""


def no_text(row: dict[str, Any], roles: Sequence[str]) -> str | None:
    """What to say of an input of `finetune predict` that lacks a text under one of `roles`, or None."""
    wrong = [role for role in roles if not isinstance(row.get(role), str)]
    if not wrong:
        return None
    given = [json.dumps(row[role], ensure_ascii=False)[:60] for role in wrong if role in row]
    found = " and ".join(given) if len(given) == len(wrong) else f"the keys {', '.join(row)}" if row else "no keys"
    return f"expected a text under {' and '.join(wrong)}, found {found}"


def refuse_placeholder_names(labels: Sequence[str]) -> None:
    """Raises ModelError when a name is of the form LABEL_0: such a model tells its reader nothing."""
    bad = [name for name in labels if name.upper().startswith("LABEL_") and name[6:].isdigit()]
    if bad:
        raise ModelError(
            f"labels {', '.join(bad[:5])}: expected real names, found placeholders; name the classes in the data"
            " (a label column with names) before training"
        )
