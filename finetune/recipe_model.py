"""The keys of a recipe, their types, ranges, defaults and descriptions."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from finetune.yaml_lines import dump

__all__ = [
    "CarbonBlock",
    "CardBlock",
    "DataBlock",
    "EvaluateBlock",
    "Expect",
    "GenerationBlock",
    "HubBlock",
    "LoraBlock",
    "ModelBlock",
    "Recipe",
    "TrackBlock",
    "TrainBlock",
    "WandbBlock",
    "is_local",
]

DEFAULT_SPLITS: dict[str, str | float] = {"train": "train", "validation": "validation", "test": "test"}
ROLE_NAMES = (
    *("text", "text_pair", "label", "labels", "tokens", "tags", "spans", "question", "context", "answers"),
    *("is_impossible", "source", "target", "id"),
)
LOCAL_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".conll", ".conllu", ".iob", ".bio")
WINDOWED = ("token", "span")
GENERATIVE = ("seq2seq",)
HARMLESS = ("output", "track", "carbon", "card", "hub", "evaluate.metrics", "train.save_every", "train.keep_last")


@dataclass(frozen=True)
class Expect:
    """What a key expects, in the words of an error message."""

    words: str


Text = Annotated[str, Field(min_length=1), Expect("a text")]
Count = Annotated[int, Field(ge=1), Expect("a whole number of at least 1")]
Positive = Annotated[float, Field(gt=0), Expect("a number above 0")]
NotNegative = Annotated[float, Field(ge=0), Expect("a number of at least 0")]
Share = Annotated[float, Field(ge=0, lt=1), Expect("a number from 0 to below 1")]
Switch = Annotated[bool, Expect("true or false")]
SplitName = Annotated[str, Field(pattern=r"^(train|validation|test)$"), Expect("train, validation or test")]


def _or_null(schema: dict[str, Any]) -> None:
    """Lets an editor accept null where the loader reads it as left out."""
    kept = {key: schema.pop(key) for key in list(schema) if key not in ("default", "description", "title")}
    schema["anyOf"] = [kept, {"type": "null"}]


class _Block(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class LoraBlock(_Block):
    """Train low-rank adapters and the new head only; the checkpoint's own weights stay as they are."""

    r: Count = 8
    """Rank of the adapters."""
    alpha: Positive = 16
    """Scale of the adapters: they are multiplied by alpha / r."""
    dropout: Share = 0.05
    """Dropout before the adapters."""
    targets: Annotated[
        Literal["auto"] | Annotated[list[Text], Field(min_length=1)], Expect("auto or a list of module names")
    ] = "auto"
    """Names of the linear layers that get adapters; auto: those PEFT knows for the architecture."""


class ModelBlock(_Block):
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


class DataBlock(_Block):
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
        Field(min_length=1, json_schema_extra=_or_null),
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


class TrainBlock(_Block):
    """How the weights are fitted; leave the block out for evaluation only."""

    epochs: Positive | None = None
    """Passes over the training rows; 3 when neither this nor max_steps is given."""
    max_steps: Count | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: Count | None = None
    """Examples per optimizer step over all processes; 32 when neither this nor batch_tokens is given."""
    batch_tokens: Count | None = None
    """Tokens per optimizer step over all processes, instead of batch_size."""
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


class GenerationBlock(_Block):
    """seq2seq: how outputs are generated, in evaluation and by the published pipeline."""

    num_beams: Count = 4
    """Beams of the beam search; 1: greedy."""
    max_new_tokens: Count | None = None
    """Longest output in tokens; null: data.max_target_length."""
    pipeline: Annotated[
        Literal["summarization", "translation", "text2text-generation"],
        Expect("summarization, translation or text2text-generation"),
    ] = "text2text-generation"
    """The pipeline under which the model is published."""
    loss_only: Switch = False
    """Evaluate by the loss alone, without generating."""


class EvaluateBlock(_Block):
    """What is measured, and how often."""

    metrics: Annotated[
        Annotated[list[Text], Field(min_length=1)] | None, Expect("a list of metrics, such as [accuracy, f1]")
    ] = None
    """Metrics to report; null: the defaults of the task. A Hub metric by name works online."""
    select_on: Text | None = None
    """Metric on validation that picks the best checkpoint; null: the task's main metric."""
    every: Annotated[Literal["epoch"] | Count, Expect("epoch or a whole number of steps")] = "epoch"
    """When to evaluate on validation during training: after each epoch, or every so many steps."""
    patience: Count | None = None
    """Stop after so many evaluations without a better select_on; null: never."""
    generation: Annotated[GenerationBlock | None, Expect("a block of keys, such as {num_beams: 4}")] = None
    """seq2seq: how outputs are generated."""


class WandbBlock(_Block):
    """Weights & Biases."""

    project: Text = "finetune"
    """Project that the run belongs to."""
    mode: Annotated[Literal["online", "offline", "disabled"], Expect("online, offline or disabled")] = "online"
    """online needs a login; offline writes into the run folder, to be synced later."""
    entity: Text | None = None
    """User or team; null: the default of the login."""
    name: Text | None = None
    """Name of the run; null: the name of the output folder."""
    tags: Annotated[list[Text], Expect("a list of texts")] = Field(default_factory=list)
    """Tags of the run."""
    notes: Text | None = None
    """A remark on the run."""


class TrackBlock(_Block):
    """Where metrics go besides the run folder."""

    wandb: Annotated[WandbBlock | None, Expect("a block of keys, such as {mode: offline}")] = None
    """Weights & Biases; leave out for none."""
    tensorboard: Switch = False
    """Write TensorBoard event files into the run folder."""


class CarbonBlock(_Block):
    """Measuring of energy and emissions."""

    country: Annotated[str, Field(pattern=r"^[A-Z]{3}$"), Expect("three capital letters (ISO 3166), such as FRA")]
    """ISO 3166 alpha-3 code of the country whose grid powers the machine."""


class CardBlock(_Block):
    """What the model card states beside the facts of the run."""

    license: Annotated[
        str | None, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$"), Expect("a licence id in lower case, such as apache-2.0")
    ] = None
    """Licence id of the model, as the Hub writes it; null: the card states none."""
    language: Annotated[
        Text | Annotated[list[Text], Field(min_length=1)] | None, Expect("a language code, or a list of them")
    ] = None
    """Language code, or a list of them."""
    base_model: Text | None = None
    """Hub id of the base checkpoint; null: model.checkpoint."""


class HubBlock(_Block):
    """The repository that the model is pushed to after training."""

    repo_id: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"),
        Expect("namespace/name of letters, digits, '.', '_' and '-'"),
    ]
    """Repository on the Hub: namespace/name."""
    private: Switch = True
    """Only you and your organisation can see it."""


class Recipe(_Block):
    """One run of finetune: fine-tune, evaluate, export and publish, or evaluate only."""

    task: Annotated[Literal["sequence", "token", "span", "seq2seq"], Expect("sequence, token, span or seq2seq")]
    """The head: sequence (classify or score a text), token (tag its words), span (answer from a context), seq2seq."""
    model: Annotated[ModelBlock, Expect("a block of keys")]
    """The pretrained checkpoint and what is done to it."""
    data: Annotated[DataBlock, Expect("a block of keys")]
    """The rows: where they are, what their columns mean, how they are cut to length."""
    train: Annotated[TrainBlock | None, Expect("a block of keys")] = None
    """How the weights are fitted; leave out for evaluation only."""
    evaluate: Annotated[EvaluateBlock, Expect("a block of keys")] = Field(default_factory=EvaluateBlock)
    """What is measured, and how often."""
    track: Annotated[TrackBlock, Expect("a block of keys")] = Field(default_factory=TrackBlock)
    """Where metrics go besides the run folder."""
    carbon: Annotated[CarbonBlock | None, Expect("a block of keys, such as {country: FRA}")] = None
    """Measuring of energy and emissions; leave out and only the energy is reported."""
    card: Annotated[CardBlock, Expect("a block of keys")] = Field(default_factory=CardBlock)
    """What the model card states beside the facts of the run."""
    hub: Annotated[HubBlock | None, Expect("a block of keys, such as {repo_id: me/my-model}")] = None
    """Push to the Hub after training; leave out to keep the model on disk."""
    output: Annotated[str, Expect("the folder of the run, such as runs/my-run")]
    """Folder of the run, counted from the working directory."""

    @model_validator(mode="after")
    def _defaults_of_task(self) -> Recipe:
        if self.task in WINDOWED and self.data.stride is None:
            self.data.stride = self.data.max_length // 4
        if self.task in GENERATIVE:
            self.data.max_target_length = self.data.max_target_length or 64
            self.evaluate.generation = self.evaluate.generation or GenerationBlock()
        return self

    _source: Path = PrivateAttr(default=Path("recipe.yaml"))

    @property
    def source(self) -> Path:
        """The file that the recipe was read from, absolute."""
        return self._source

    @property
    def folder(self) -> Path:
        """The folder that local paths of the recipe count from."""
        return self._source.parent

    def locate(self, path: str) -> Path:
        """A local path of the recipe, counted from its folder; a glob stays a glob."""
        return self.folder / path

    def __eq__(self, other: object) -> bool:
        """Equal settings, wherever they were read from."""
        return isinstance(other, Recipe) and self._settings() == other._settings()

    __hash__ = None  # type: ignore[assignment]

    def to_yaml(self) -> str:
        """Every key with its value, defaults written out; loading it gives an equal recipe."""
        return dump(self._settings())

    def _settings(self) -> dict[str, Any]:
        """Every key with its value; splits that were not asked for are null."""
        settings = self.model_dump()
        if "splits" not in self.data.model_fields_set:
            settings["data"]["splits"] = None
        return settings

    def sha256(self) -> str:
        """Hash of the keys that decide what is trained and measured; where results go is left out."""
        decisive = dict(self.decisive())
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    def decisive(self) -> list[tuple[str, Any]]:
        """Dotted key and value of every setting that decides the numbers of a run."""
        return [pair for pair in _leaves(self._settings()) if not _harmless(pair[0])]


def _leaves(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        found += _leaves(item, f"{prefix}{key}.") if isinstance(item, dict) and item else [(prefix + key, item)]
    return found


def _harmless(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in HARMLESS)


def is_local(path: str) -> bool:
    """Whether a path names files here; else it is a Hub id. A package:// path is neither, and not local."""
    if re.match(r"[a-z]+://", path):
        return False
    return path.startswith((".", "/")) or "*" in path or path.endswith(("/", *LOCAL_SUFFIXES))
