"""The blocks of a recipe that decide what is trained: model, data, train."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune.recipe.types import (
    Block,
    Count,
    Expect,
    NotNegative,
    Positive,
    Share,
    SplitName,
    Switch,
    Text,
    or_null,
)

__all__ = ["DEFAULT_SPLITS", "AuditBlock", "DataBlock", "LoraBlock", "ModelBlock", "TrainBlock"]

DEFAULT_SPLITS: dict[str, str | float] = {"train": "train", "validation": "validation", "test": "test"}
ROLE_NAMES = (
    *("text", "text_pair", "label", "labels", "tokens", "tags", "spans", "question", "context", "answers"),
    *("is_impossible", "source", "target", "id"),
)


class LoraBlock(Block):
    """Train low-rank adapters and the new head only; the checkpoint's own weights stay as they are."""

    r: Count = 8
    """Rank of the adapters."""
    alpha: Positive = 16.0
    """Scale of the adapters: they are multiplied by alpha / r."""
    dropout: Share = 0.05
    """Dropout before the adapters."""
    targets: Annotated[
        Literal["auto"] | Annotated[list[Text], Field(min_length=1)], Expect("auto or a list of module names")
    ] = "auto"
    """Names of the linear layers that get adapters; auto: all of the checkpoint but poolers and heads."""


class ModelBlock(Block):
    """The pretrained checkpoint and what is done to it."""

    checkpoint: Text
    """Hub id, folder, or package://<top-level Python package>/<folder in it>."""
    revision: Text | None = None
    """Commit, tag or branch of the checkpoint on the Hub; null: its main branch."""
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$"), Expect("64 hexadecimal digits in lower case")] = (
        None
    )
    """SHA-256 of model.safetensors; checked when given."""
    init: Annotated[Literal["pretrained", "scratch"], Expect("pretrained or scratch")] = "pretrained"
    """scratch: the same architecture with random weights, the baseline of transfer learning."""
    keep_head: Switch = False
    """Continue with the checkpoint's own head and labels instead of a new head."""
    decoder: Text | None = None
    """seq2seq on an encoder checkpoint: `same`, or the checkpoint that the decoder starts from."""
    lora: Annotated[LoraBlock | None, Expect("a block of keys, such as {r: 8}")] = None
    """Low-rank adapters; leave out for full fine-tuning."""


class DataBlock(Block):
    """The rows: where they are, what their columns mean, how they are cut to length."""

    path: Annotated[
        Text | Annotated[dict[Text, Text], Field(min_length=1)],
        Expect("a Hub id, a folder, a file, a glob, or {split: file or glob}"),
    ]
    """Hub id, folder, file or glob (csv, tsv, json, jsonl, parquet, conll), or {split: file or glob}."""
    name: Text | None = None
    """Configuration of the data set on the Hub."""
    revision: Text | None = None
    """Commit, tag or branch of the data set on the Hub; null: its main branch."""
    splits: Annotated[
        dict[
            SplitName,
            Annotated[
                Text | Annotated[float, Field(gt=0, lt=1)],
                Expect("the name of a split, or a share of train between 0 and 1"),
            ],
        ],
        Field(min_length=1, json_schema_extra=or_null),
        Expect("a mapping such as {train: train, validation: 0.1}"),
    ] = Field(default_factory=lambda: dict(DEFAULT_SPLITS))
    """Our split names and theirs; `validation: 0.1` cuts a stratified share off train. Null: train, validation and
    test as far as they exist."""
    columns: Annotated[
        dict[str, Annotated[Text, Expect("the name of a column")]],
        Field(json_schema_extra={"propertyNames": {"enum": list(ROLE_NAMES)}}),
        Expect("a mapping of role to column, such as {text: review, label: stars}"),
    ] = Field(default_factory=dict)
    """Role and the column that holds it; a dot reaches inside a column. Empty: columns are named like the roles."""
    problem: Annotated[Literal["single", "multi", "regression"] | None, Expect("single, multi or regression")] = None
    """Kind of sequence labels; null: inferred from the rows, and stated."""
    max_length: Annotated[int, Field(ge=8), Expect("a whole number of at least 8")] = 128
    """Longest input in tokens, special ones included."""
    stride: Annotated[int | None, Field(ge=0), Expect("a whole number of at least 0")] = None
    """token and span: tokens that neighbouring windows of a long input share; null there: a quarter of max_length."""
    tag_pieces: Annotated[Literal["first", "begins", "all"], Expect("first, begins or all")] = "first"
    """token: pieces of a word that are taught its tag: first; begins: where the pipeline begins a word as well; all."""
    max_target_length: Annotated[int | None, Field(ge=2), Expect("a whole number of at least 2")] = None
    """seq2seq: longest target in tokens, special ones included; null there: 64."""
    prefix: Annotated[str | None, Expect("a text")] = None
    """seq2seq: text put before each source, such as 'summarize: '."""
    languages: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^(source|target)$"), Expect("source or target")],
            Annotated[Text, Expect("a language code")],
        ]
        | None,
        Expect("a mapping such as {source: en, target: fr}"),
    ] = None
    """seq2seq: language codes of source and target as the tokenizer knows them."""
    limit: Annotated[
        dict[SplitName, Count],
        Expect("a mapping of split to rows, such as {train: 2000}"),
    ] = Field(default_factory=dict)
    """Use a random sample of so many rows of a split (seed 0), for trials."""
    on_bad_row: Annotated[Literal["error", "skip"], Expect("error or skip")] = "error"
    """skip: rows that cannot be used are counted and listed in run.json; error: they stop the run before training."""

    @model_validator(mode="before")
    @classmethod
    def _default_splits(cls, value: Any) -> Any:
        """null is the same as left out: `splits` then is not among the fields that were set."""
        if isinstance(value, dict) and "splits" in value and value["splits"] is None:
            return {key: item for key, item in value.items() if key != "splits"}
        return value


class AuditBlock(Block):
    """Rules for the rows, as shares of a split: where one is broken, the run stops before training and names the rows.

    Null: reported, never an error.
    """

    max_leakage: Share | None = None
    """Rows of validation or test whose text is in train, word for word."""
    max_near_leakage: Share | None = None
    """Rows of validation or test, beyond those of max_leakage, whose text is nearly that of a row of train."""
    max_duplicates: Share | None = None
    """Rows of a split that have the text of an earlier row of it."""
    max_conflicts: Share | None = None
    """Rows of a split that have the text of another row, in any split, but another answer."""
    max_truncated: Share | None = None
    """Rows of a split that lose tokens at data.max_length."""


class TrainBlock(Block):
    """How the weights are fitted; leave the block out for evaluation only."""

    epochs: Positive | None = None
    """Passes over the training rows; 3 when neither this nor max_steps is given."""
    max_steps: Count | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: Count | None = None
    """Examples per optimizer step over all processes; 32 when neither this nor batch_tokens is given."""
    batch_tokens: Count | None = None
    """Tokens per optimizer step over all processes, instead of batch_size."""
    group_by_length: Switch = True
    """Rows of a step are of similar length, so that little is padded; false: any rows, which can learn more per
    epoch, above all where a model starts from random weights."""
    micro_batch_size: Annotated[Literal["auto"] | Count, Expect("auto or a whole number of at least 1")] = "auto"
    """Examples per forward pass; never changes results beyond float tolerance. auto: as many as fit."""
    learning_rate: Positive = 5e-5
    """Highest learning rate, reached after the warm-up."""
    warmup: NotNegative = 0.06
    """Warm-up of the learning rate: below 1 a share of all steps, else a number of steps."""
    weight_decay: NotNegative = 0.01
    """AdamW weight decay; not on biases and norms."""
    schedule: Annotated[Literal["linear", "cosine", "constant"], Expect("linear, cosine or constant")] = "linear"
    """Learning rate after the warm-up: down to 0 in a line or a half cosine, or constant."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; null: no clipping."""
    label_smoothing: Share = 0.0
    """Share of the target probability that is spread over all labels."""
    class_weights: Annotated[
        Literal["none", "balanced"]
        | Annotated[dict[Text, Annotated[float, Field(gt=0), Expect("a number above 0")]], Field(min_length=1)],
        Expect("none, balanced, or a mapping of label to weight"),
    ] = "none"
    """Weight of each class in the loss; balanced: inversely proportional to its count in train."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Expect("auto, fp32, bf16 or fp16")] = "auto"
    """Arithmetic of the forward pass; master weights are fp32. auto: bf16 where a probe finds it faster."""
    gradient_checkpointing: Switch = False
    """Recompute activations in the backward pass: less memory, more time."""
    deterministic: Switch = False
    """Use only kernels that give the same bits each time."""
    seed: Annotated[int, Field(ge=0, lt=2**32), Expect("a whole number from 0 to 4294967295")] = 0
    """Decides the new head's weights, the order of rows and dropout."""
    save_every: Annotated[Literal["auto"] | Count, Expect("auto or a whole number of steps")] = "auto"
    """Steps between checkpoints; auto: saving stays under 1 % of the time, and at least one every 10 minutes."""
    keep_last: Annotated[int, Field(ge=2), Expect("a whole number of at least 2")] = 2
    """Checkpoints kept beside the best one."""

    @model_validator(mode="after")
    def _length_of_training(self) -> TrainBlock:
        if self.epochs is None and self.max_steps is None:
            self.epochs = 3.0
        if self.batch_size is None and self.batch_tokens is None:
            self.batch_size = 32
        return self
