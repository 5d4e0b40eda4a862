"""The token head: a tag for every word of a text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from finetune import metrics
from finetune.analysis import tags as tag_analysis
from finetune.analysis.hard_rows import WordTags
from finetune.analysis.slices import RowScores
from finetune.errors import DataError, ModelError
from finetune.features import Features
from finetune.record import Analysis, Interval, SplitResults
from finetune.rows import Rows
from finetune.scoring.tags import EntityCounts, count_entities
from finetune.tasks import grouping, tag_facts, tagger, windows
from finetune.tasks.base import Batch, Case, Predictions, Task
from finetune.tasks.gold import Gold, charted, gold_entities, read_gold
from finetune.tasks.tag_facts import only_texts, sample
from finetune.tasks.tagging import Schema, split_tag

if TYPE_CHECKING:
    import torch

    from finetune.recipe import Recipe

__all__ = ["TokenTask"]

ENCODERS = ("encoding", "gold", "grouping", "tagging", "windows", "words")
FORMAT = 1  # of what `encode` gives; another number leaves cached features aside
BLOCK = 10_000


class TokenTask(Task):
    """Token classification. `problem` is entities (scored in IOB2) or tags (plain, such as parts of speech)."""

    name: ClassVar[str] = "token"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    head: ClassVar[str] = "ForTokenClassification"
    text_role: ClassVar[str] = "text"
    encoders: ClassVar[tuple[str, ...]] = tuple(f"finetune.tasks.{name}" for name in ENCODERS)
    pipeline = "token-classification"

    problem: Literal["entities", "tags"]

    def __init__(self, recipe: Recipe, gold: Gold, labels: Sequence[str] | None) -> None:
        entities = gold.scheme.entities
        self.problem = self.metric_kind = "entities" if entities else "tags"
        self.gold = gold
        self.tags = gold.schema(Schema(labels or [], entities).kinds)  # numbers of the data -> tags that are scored
        self.labels = list(labels) if labels else gold.taught(self.tags)
        self.spoken = Schema(self.labels, entities, self.tags.kinds)  # numbers of the model -> the same tags
        self.targets = self.tags.numbers_of(self.labels)
        self.max_length = recipe.data.max_length
        self.asked_stride = recipe.data.stride
        self.tag_pieces = recipe.data.tag_pieces
        self.smoothing = recipe.train.label_smoothing if recipe.train is not None else 0.0
        self.tokenizer: Any = None  # writes words as the pipeline does
        self.apart = ""  # how many words the pipeline formed otherwise when it was scored last

    @classmethod
    def from_rows(cls, recipe: Recipe, splits: dict[str, Rows], labels: Sequence[str] | None = None) -> Self:
        gold = read_gold(splits)
        if not set(gold.names) - {"O"}:
            sources = ", ".join(rows.source for rows in splits.values())
            raise DataError(f"data: expected words with tags, found none but O in {sources}")
        return cls(recipe, gold, labels)

    def fit_to(self, config: Any, tokenizer: Any) -> None:
        del config
        self.tokenizer = tokenizer
        if not tokenizer.is_fast:
            raise ModelError(
                f"model.checkpoint: its tokenizer ({type(tokenizer).__name__}) is a slow one, which does not say which"
                " piece belongs to which word; use a checkpoint with a fast tokenizer (tokenizer.json)"
            )

    @property
    def stride(self) -> int:
        """Pieces that two windows share; fewer than a window holds beside its special ones."""
        asked = self.max_length // 4 if self.asked_stride is None else self.asked_stride
        return max(0, min(asked, self.max_length - 4))

    @property
    def answer_labels(self) -> list[str]:
        return self.tags.labels

    def labels_for(self, own: Sequence[str]) -> list[str]:
        """For entities the tags of `own` whose type the data has, in any scheme, and B- of the types it lacks."""
        if self.problem == "tags":
            return self.labels
        spelled = {kind.casefold(): kind for kind in self.gold.kinds()}
        split = [(name, split_tag(name)[1]) for name in own]
        found = [(name, kind, spelled.get(kind.casefold())) for name, kind in split if kind]
        wanted = [name.removesuffix(kind) + spelling for name, kind, spelling in found if spelling]
        missing = sorted(set(spelled.values()) - {spelling for _, _, spelling in found if spelling})
        return ["O", *wanted, *(f"B-{kind}" for kind in missing)]

    # ---------------------------------------------------------------- rows to tensors

    def encoding_key(self) -> str:
        keys = {"task": self.name, "format": FORMAT, "labels": self.labels, "gold": self.gold.key}
        pieces = {"max_length": self.max_length, "stride": self.stride, "tag_pieces": self.tag_pieces}
        return json.dumps(keys | pieces, sort_keys=True)

    def encode(self, batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, Any]:
        """Words to pieces with their labels (`windows.align`); rows that are only texts as the pipeline reads them."""
        if "tags" not in batch and "spans" not in batch:
            only_first = self.problem == "tags"  # without aggregation the pipeline knows no windows
            return grouping.encode(tokenizer, batch["text"], self.max_length, self.stride, only_first=only_first)
        tags, per_row = self.gold.numbers(batch)
        scored = self.tags.convert(tags, per_row)
        labels, every = self.targets[scored], self.tag_pieces == "all"
        words = self.gold.words(batch)
        return windows.align(tokenizer, words, labels, self._inner(scored), self.max_length, self.stride, every=every)

    def _inner(self, scored: np.ndarray) -> np.ndarray | None:
        """Labels of the pieces after the first that are taught one, of all words, int64 (w,)."""
        if self.tag_pieces == "first" or (self.problem == "tags" and self.tag_pieces == "begins"):
            return None  # plain tags are published without aggregation: the pipeline begins no words
        return np.asarray(self.targets[self.tags.continued(scored) if self.problem == "entities" else scored])

    def counts(self, features: Features) -> np.ndarray:
        return np.asarray(features.scalars["counted"], dtype=np.float64)

    def collate(self, features: Features, index: np.ndarray, tokenizer: Any) -> Batch:
        import torch

        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        fill["labels"] = windows.IGNORED
        names = [name for name in fill if name in features.sequences]
        padded = {name: torch.from_numpy(features.sequences[name].pad(index, fill[name])) for name in names}
        targets = {"labels": padded.pop("labels")} if "labels" in padded else {}
        lengths = torch.from_numpy(features.lengths[index].astype(np.int64))
        padded["attention_mask"] = (torch.arange(padded["input_ids"].shape[1])[None, :] < lengths[:, None]).long()
        return Batch(padded, targets)

    # ---------------------------------------------------------------- loss and predictions

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return _losses(outputs.logits.float(), batch.targets["labels"], self.smoothing).sum()

    def predict(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """label int32 and score float32 of each piece (B, L), the score of its gold label, and the loss (B,) summed."""
        import torch

        logits = model(**batch.inputs).logits.float()
        best, label = logits.max(dim=-1)
        found = {"label": label.int(), "score": (best - logits.logsumexp(dim=-1)).exp()}
        if "labels" not in batch.targets:
            return found | {"loss": torch.zeros(len(label), device=label.device)}
        losses = _losses(logits, batch.targets["labels"], 0.0)
        return found | {"loss": losses.sum(dim=1), "gold_score": (-losses).exp()}

    def decode(self, outputs: dict[str, list[np.ndarray]], features: Features, rows: Rows) -> Predictions:
        if "words" not in features.sequences:
            return self._decode_texts(outputs, features, rows)
        blocks = [self.gold.numbers(batch) for batch in rows.batches(BLOCK)]
        gold, lengths = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        nothing = self.labels.index("O") if "O" in self.labels else 0  # where the tokenizer leaves nothing of a word
        predicted = windows.of_words(features, lengths, outputs["label"], nothing)
        probabilities = windows.of_words(features, lengths, outputs["score"], 0.0)
        row, owner = np.repeat(np.arange(len(rows)), lengths), features.scalars["row"]
        counted = np.bincount(owner, weights=features.scalars["counted"], minlength=len(rows))
        loss = np.bincount(owner, weights=np.array(outputs["loss"]), minlength=len(rows))
        sides = {"gold": self.tags.convert(gold, lengths), "predicted": self.spoken.convert(predicted, lengths)}
        names, ends = np.array(self.tags.labels, dtype=object), np.cumsum(lengths)[:-1]
        arrays: dict[str, Any] = {
            side: [tags.tolist() for tags in np.split(names[numbers], ends)] for side, numbers in sides.items()
        }
        own = windows.of_words(features, lengths, outputs["gold_score"], 1.0)
        arrays["words"] = WordTags(self.targets[sides["gold"]], predicted.astype(np.int64), own, probabilities)
        arrays["score"] = np.bincount(row, weights=probabilities, minlength=len(rows)) / np.maximum(lengths, 1)
        return Predictions(rows.column("id"), loss / np.maximum(counted, 1), arrays)

    def _decode_texts(self, outputs: dict[str, list[np.ndarray]], features: Features, rows: Rows) -> Predictions:
        """items: what the pipeline answers to each text; pieces: those of the whole texts."""
        read = grouping.read(self.tokenizer, rows.column("text"))
        entities = self.problem == "entities"
        items = grouping.answers(self.tokenizer, read, outputs, features, self.labels, entities=entities)
        return Predictions(rows.column("id"), np.zeros(len(rows)), {"items": items, "pieces": read})

    def records(self, predictions: Predictions) -> list[dict[str, Any]]:
        arrays = predictions.arrays
        columns = (arrays["gold"], arrays["predicted"], arrays["score"].tolist(), predictions.loss.tolist())
        keys = ("id", "gold", "prediction", "score", "loss")
        return [dict(zip(keys, line, strict=True)) for line in zip(predictions.ids, *columns, strict=True)]

    # ---------------------------------------------------------------- scores

    def default_metric(self) -> str:
        return "f1" if self.problem == "entities" else "accuracy"

    def score(self, predictions: Predictions, names: Sequence[str] | None = None) -> dict[str, Interval]:
        """Where the pipeline has read the rows, too: `f1_pipeline`, and without `names` the F1 of each type."""
        gold, predicted = predictions.arrays["gold"], predictions.arrays["predicted"]
        wanted = names or metrics.DEFAULTS[self.problem]
        if self.problem == "tags":
            return metrics.tags(wanted, gold, predicted, self.tags.labels)
        counts = self._counts(predictions)
        found = metrics.entities(wanted, gold, predicted, counts)
        if "published" not in predictions.arrays:
            return found
        read = predictions.arrays["published"]
        through = metrics.entities(["f1"], *read)["f1"]
        part = len(read[0]) if len(read[0]) < len(gold) else None
        found["f1_pipeline"] = through.model_copy(update={"n": part})
        types = {} if names else metrics.entity_types(gold, predicted, counts)
        return found | {f"f1/{kind}": values["f1"] for kind, values in types.items()}

    def examine(self, predictions: Predictions, rows: Rows) -> tuple[Analysis, RowScores]:
        del rows
        gold, predicted, words = (predictions.arrays[name] for name in ("gold", "predicted", "words"))
        said = (predictions.ids, predictions.loss, gold, predicted, words, self.labels)
        if self.problem == "entities":
            return tag_analysis.entities(*said, self._counts(predictions))
        return tag_analysis.tags(*said, self.tags.labels)

    def _counts(self, predictions: Predictions) -> EntityCounts:
        sides = (predictions.arrays["gold"], predictions.arrays["predicted"])
        counts: EntityCounts = predictions.once("entities", lambda: count_entities(*sides))
        return counts

    def constant(self, predictions: Predictions) -> tuple[str, Predictions] | None:
        gold = predictions.arrays["gold"]
        usual = Counter(chain.from_iterable(gold)).most_common(1)
        if not usual:
            return None
        tag = usual[0][0]
        return tag, replace(predictions, arrays={"gold": gold, "predicted": [[tag] * len(tags) for tags in gold]})

    def confusion(self, predictions: Predictions) -> tuple[list[str], np.ndarray] | None:
        """Of tokens, by type of entity (O left out) or by tag."""
        place = {kind: number for number, kind in enumerate(self.tags.kinds)}
        counts = np.zeros((len(place), len(place)), dtype=np.int64)
        sides = (chain.from_iterable(predictions.arrays[side]) for side in ("gold", "predicted"))
        for pair, count in Counter(zip(*sides, strict=True)).items():
            kinds = [split_tag(tag)[1] if self.problem == "entities" else tag for tag in pair]
            if all(kinds):
                counts[place[kinds[0]], place[kinds[1]]] += count
        return self.tags.kinds, counts

    def published(self, rows: Rows) -> Rows | None:
        """Texts of up to 1,000 rows, evenly taken; tokens are joined by spaces."""
        return None if self.problem == "tags" else self._texts(sample(rows))

    def _charts(self, rows: Rows) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        return chain.from_iterable(charted(self.gold, batch) for batch in rows.batches(BLOCK))

    def _texts(self, rows: Rows) -> Rows:
        return only_texts(rows, [text for text, _ in self._charts(rows)])

    def compare_published(self, predictions: Predictions, published: Predictions, rows: Rows) -> None:
        """Gold and found entities of the texts as tags, and how many words the pipeline forms otherwise."""
        sides: tuple[list[list[str]], list[list[str]]] = ([], [])
        chosen = sample(rows)
        gold = chain.from_iterable(gold_entities(self.gold, self.tags, batch) for batch in chosen.batches(BLOCK))
        for own, items in zip(gold, published.arrays["items"], strict=True):
            theirs = {(item["entity_group"], item["start"], item["end"]) for item in items}
            for side, tags in zip(sides, grouping.as_tags(own, theirs), strict=True):
                side.append(tags)
        predictions.arrays["published"] = sides
        self.apart = tagger.apart_words(
            rows.split, *grouping.words_apart(self._charts(chosen), published.arrays["pieces"])
        )

    def baselines(self, splits: dict[str, Rows]) -> dict[str, dict[str, SplitResults]]:
        """The most frequent tag that each word has in train; for other words O, or the most frequent of all."""
        if "train" not in splits:
            return {}
        usual = tag_facts.UsualTags(tag_facts.tagged(self.gold, self.tags, splits["train"]), self.tags)
        found = {}
        for name, rows in splits.items():
            if name != "train":
                gold, guessed = usual.sides(tag_facts.tagged(self.gold, self.tags, rows))
                arrays = {"gold": gold, "predicted": guessed}
                found[name] = SplitResults(n=len(rows), metrics=self.score(Predictions([], np.empty(0), arrays)))
        return {"most_frequent_tag": found}

    def survey(self, splits: dict[str, Rows], features: dict[str, Features], tokenizer: Any) -> list[str]:
        """The scheme; of each split its tags, rows in windows, words without pieces, words the pipeline splits."""
        found = list(self.gold.remarks)
        for name, rows in splits.items():
            found += tag_facts.survey(self.gold, self.tags, rows, features[name], self.max_length)
            chosen = sample(rows)
            read = grouping.read(tokenizer, self._texts(chosen).column("text"))
            found.append(tagger.apart_words(name, *grouping.words_apart(self._charts(chosen), read)))
        return [sentence for sentence in found if sentence]

    # ---------------------------------------------------------------- the published model

    def configure(self, config: Any) -> None:
        config.num_labels = len(self.labels)
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {name: number for number, name in config.id2label.items()}
        config.problem_type = None
        config.token_stride = self.stride

    def probes(self, rows: Rows, index: np.ndarray, texts: Sequence[str]) -> Rows:
        """Rows that are only texts: those at `index`, tokens joined by spaces, and `texts`."""
        chosen = self._texts(rows.take(index))
        return only_texts(rows, [*chosen.column("text"), *texts])

    def cases(self, rows: Rows, predictions: Predictions) -> list[Case]:
        kwargs = tagger.call_arguments(self.problem == "entities", self.stride)
        pairs = zip(rows.column("text"), predictions.arrays["items"], strict=True)
        return [Case(text, kwargs, items) for text, items in pairs]

    def snippet(self, rows: Rows) -> str:
        del rows  # rows of the data set are not published
        return tagger.snippet(self.problem == "entities", self.stride)

    @classmethod
    def make_pipeline(cls, folder: Path, config: Any) -> Any:
        import torch
        from transformers import pipeline

        del config
        return pipeline("token-classification", model=str(folder), dtype=torch.float32, trust_remote_code=False)

    @classmethod
    def input_problem(cls, row: dict[str, Any]) -> str | None:
        return tagger.input_problem(row)

    @classmethod
    def answers(cls, pipe: Any, rows: list[dict[str, Any]], batch_size: int) -> list[Any]:
        return tagger.answers(pipe, rows, batch_size)

    def notes(self) -> list[str]:
        begins = self.spoken.begins if self.problem == "entities" else None
        found = tagger.notes(begins, self.gold.scheme.name, self.max_length, self.stride)
        return [*found, f"{self.apart}; so the two F1 values may differ."] if self.apart else found


def _losses(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy of each piece, (B, L) float32, 0 where it has no label; smoothing as torch defines it."""
    import torch.nn.functional as F  # noqa: N812  (the name torch's own documentation uses)

    flat = F.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=windows.IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    return flat.view_as(labels)
