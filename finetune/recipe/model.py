"""A recipe as a whole: all blocks, and what can be asked of them together."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from finetune.recipe.blocks import AuditBlock, DataBlock, ModelBlock, TrainBlock
from finetune.recipe.types import Block, Count, Expect, Positive, Switch, Text, is_local
from finetune.recipe.yaml_lines import dump

__all__ = [
    "CarbonBlock",
    "CardBlock",
    "EvaluateBlock",
    "GenerationBlock",
    "HubBlock",
    "Recipe",
    "TrackBlock",
    "WandbBlock",
]

WINDOWED = ("token", "span")
GENERATIVE = ("seq2seq",)
HARMLESS = (
    *("output", "audit", "track", "carbon", "card", "hub", "evaluate.metrics", "evaluate.slices", "evaluate.checks"),
    *("evaluate.directional", "train.save_every", "train.keep_last"),
)


class GenerationBlock(Block):
    """seq2seq: how outputs are generated, in evaluation and by the published pipeline."""

    num_beams: Count = 4
    """Beams of the beam search; 1: greedy."""
    max_new_tokens: Count | None = None
    """Longest output in tokens; null: data.max_target_length."""
    do_sample: Switch = False
    """Draw outputs at random instead of searching for the most probable one."""
    temperature: Positive | None = None
    """Of sampling: below 1 sharper, above 1 flatter; null: 1."""
    top_k: Count | None = None
    """Of sampling: draw from so many most probable tokens; null: from all that top_p leaves."""
    top_p: Annotated[float | None, Field(gt=0, le=1), Expect("a number above 0 and at most 1")] = None
    """Of sampling: draw from the most probable tokens that together reach this probability; null: from all."""
    length_penalty: Annotated[float | None, Expect("a number")] = None
    """Of the beam search: above 0 favours long outputs, below 0 short ones; null: as in the checkpoint."""
    no_repeat_ngram_size: Count | None = None
    """No sequence of so many tokens comes twice in an output; null: as in the checkpoint."""
    references: Annotated[Literal["raw", "tokenizer"], Expect("raw or tokenizer")] = "raw"
    """Compare outputs with the targets as they are, or with what the tokenizer keeps of them (no upper case, …)."""
    pipeline: Annotated[
        Literal["summarization", "translation", "text2text-generation"],
        Expect("summarization, translation or text2text-generation"),
    ] = "text2text-generation"
    """The pipeline under which the model is published."""
    loss_only: Switch = False
    """Evaluate by the loss alone, without generating."""


class EvaluateBlock(Block):
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
    slices: Annotated[list[Text], Expect("a list of columns of the data, such as [source, length]")] = Field(
        default_factory=list
    )
    """Columns of the data whose values are scored apart: up to 12, of 10 rows or more, the rest together. Labels, types
    and length (in tokens) always are."""
    calibrate: Switch = False
    """Fit a temperature on validation and divide the exported head's last weights by it: scores become better
    probabilities, and the order of the labels stays. Off: the temperature is only reported."""
    checks: Annotated[
        Literal["all"]
        | Annotated[
            list[
                Annotated[
                    Literal["typos", "casing", "punctuation", "names", "gender"],
                    Expect("typos, casing, punctuation, names or gender"),
                ]
            ],
            Field(min_length=1),
        ]
        | None,
        Expect("all, or a list of typos, casing, punctuation, names and gender"),
    ] = None
    """Changes of up to 500 rows each that should not change the prediction, tried after training; null: none."""
    directional: Text | None = None
    """A file of your own checks (.jsonl), one pair a line: before, after (role: text), expect (higher, lower, same or
    different), label (whose score), name. Counted from the recipe's folder."""
    generation: Annotated[GenerationBlock | None, Expect("a block of keys, such as {num_beams: 4}")] = None
    """seq2seq: how outputs are generated."""


class WandbBlock(Block):
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


class TrackBlock(Block):
    """Where metrics go besides the run folder."""

    wandb: Annotated[WandbBlock | None, Expect("a block of keys, such as {mode: offline}")] = None
    """Weights & Biases; leave out for none."""
    tensorboard: Switch = False
    """Write TensorBoard event files into the run folder."""


class CarbonBlock(Block):
    """Measuring of energy and emissions."""

    country: Annotated[str, Field(pattern=r"^[A-Z]{3}$"), Expect("three capital letters (ISO 3166), such as FRA")]
    """ISO 3166 alpha-3 code of the country whose grid powers the machine."""


class CardBlock(Block):
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


class HubBlock(Block):
    """The repository that the model is pushed to after training."""

    repo_id: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"),
        Expect("namespace/name of letters, digits, '.', '_' and '-'"),
    ]
    """Repository on the Hub: namespace/name."""
    private: Switch = True
    """Only you and your organisation can see it."""


class Recipe(Block):
    """One run of finetune: fine-tune, evaluate, export and publish, or evaluate only."""

    model_config = ConfigDict(defer_build=False)

    task: Annotated[Literal["sequence", "token", "span", "seq2seq"], Expect("sequence, token, span or seq2seq")]
    """The head: sequence (classify or score a text), token (tag its words), span (answer from a context), seq2seq."""
    model: Annotated[ModelBlock, Expect("a block of keys")]
    """The pretrained checkpoint and what is done to it."""
    data: Annotated[DataBlock, Expect("a block of keys")]
    """The rows: where they are, what their columns mean, how they are cut to length."""
    audit: Annotated[AuditBlock | None, Expect("a block of keys, such as {max_leakage: 0}")] = None
    """Rules for the rows, as shares of a split: where one is broken, the run stops before training."""
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

    _source: Path = PrivateAttr(default=Path("recipe.yaml"))

    @model_validator(mode="after")
    def _defaults_of_task(self) -> Recipe:
        if self.task in WINDOWED and self.data.stride is None:
            self.data.stride = self.data.max_length // 4
        if self.task in GENERATIVE:
            self.data.max_target_length = self.data.max_target_length or 64
            self.evaluate.generation = self.evaluate.generation or GenerationBlock()
        return self

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

    def moved_to(self, folder: Path) -> Recipe:
        """The same recipe as if its file were in `folder`: local paths that count from the file are written anew."""
        data = self.data.path
        paths = (
            self._rebased(data, folder)
            if isinstance(data, str)
            else {k: self._rebased(v, folder) for k, v in data.items()}
        )
        places = {"checkpoint": self._rebased(self.model.checkpoint, folder)}
        if self.model.decoder not in (None, "same"):
            places["decoder"] = self._rebased(str(self.model.decoder), folder)
        model = self.model.model_copy(update=places)
        own = self.evaluate.directional
        evaluate = self.evaluate.model_copy(update={"directional": own and self._rebased(own, folder)})
        data_block = self.data.model_copy(update={"path": paths})
        moved = self.model_copy(update={"data": data_block, "model": model, "evaluate": evaluate})
        moved._source = folder / "recipe.yaml"
        return moved

    def _rebased(self, path: str, folder: Path) -> str:
        if not is_local(path) or path.startswith("package://") or Path(path).is_absolute():
            return path
        moved = os.path.relpath(self.locate(path), folder.resolve())
        return f"{moved if moved.startswith('.') else f'./{moved}'}{'/' if path.endswith('/') else ''}"

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

    def harmless(self) -> list[tuple[str, Any]]:
        """Dotted key and value of all other settings."""
        return [pair for pair in _leaves(self._settings()) if _harmless(pair[0])]


def _leaves(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        found += _leaves(item, f"{prefix}{key}.") if isinstance(item, dict) and item else [(prefix + key, item)]
    return found


def _harmless(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in HARMLESS)
