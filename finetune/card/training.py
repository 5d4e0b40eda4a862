"""The part of a model card on training: data, procedure, weights kept and replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from finetune.card.figures import count, duration, share, size
from finetune.card.markdown import HUB, bullets, code, link, table, text
from finetune.card.pictures import CURVES, pictures
from finetune.card.public_names import base_model, data_revision, dataset_id, hub_id, place_name, source_name
from finetune.recipe import Recipe
from finetune.record import ModelFacts, Names, RunRecord, SplitFacts

__all__ = ["checkpoint_link", "hardware", "head_swap", "procedure", "training_data"]

LISTED = 8  # names of weights shown of each kind


def training_data(recipe: Recipe, record: RunRecord) -> str:
    """Rows, where they come from, what was left out, fingerprints; empty when the record has no data."""
    header = ["Split", "Source", "Rows", "Left out", f"Cut at {recipe.data.max_length} tokens"]
    rows = [
        [text(name), code(source_name(recipe, facts.source)), count(facts.rows), _dropped(facts.dropped), _cut(facts)]
        for name, facts in record.data.items()
    ]
    prints = [f"{text(name)}: {code(facts.fingerprint)}" for name, facts in record.data.items()]
    parts = ["## Training data"]
    data = dataset_id(recipe)
    if data and (revision := data_revision(recipe, record)):
        parts.append(f"{code(data)} at revision {code(revision)}.")
    if rows:
        parts += [table(header, rows, right=[2, 4]), "Fingerprints (SHA-256 of the rows and of what selected them):"]
        parts.append(bullets(prints))
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _dropped(dropped: dict[str, int]) -> str:
    return ", ".join(f"{text(reason)}: {count(number)}" for reason, number in dropped.items() if number) or "–"


def _cut(facts: SplitFacts) -> str:
    if facts.windows is None:
        return "–"
    if facts.windows > facts.rows:
        return f"none ({count(facts.windows)} windows)" if not facts.truncated else f"{count(facts.truncated)}"
    return f"{count(facts.truncated)} ({share(facts.truncated / facts.rows)})" if facts.rows else "–"


def procedure(recipe: Recipe, record: RunRecord, present: Collection[str] = ()) -> str:
    """What was asked for and what happened, as a table of two columns."""
    rows = [[name, value] for name, value in [*_asked(recipe, record), *_happened(record)] if value]
    if recipe.train is None and record.training is None:
        return ""
    return "\n\n".join(["## Training procedure", table(["Setting", "Value"], rows), *pictures(present, CURVES)])


def _asked(recipe: Recipe, record: RunRecord) -> Iterator[tuple[str, str]]:
    train = recipe.train
    if train is None:
        return
    rows = f"{train.batch_tokens:,} tokens" if train.batch_tokens else f"{train.batch_size} rows"
    over = "one process" if record.processes == 1 else f"{record.processes} processes"
    warmup = f"{100 * train.warmup:g} %" if train.warmup < 1 else f"{train.warmup:g} steps"
    clipped = f", gradients clipped at {train.max_grad_norm:g}" if train.max_grad_norm else ""
    yield "Optimizer", f"AdamW, weight decay {train.weight_decay:g}{clipped}"
    yield "Learning rate", f"{train.learning_rate:g}, {text(train.schedule)}, warm-up {warmup}"
    grouped = ", grouped by length" if train.group_by_length else ""
    yield "Batch", f"{rows} a step over {over}{grouped}"
    yield "Loss", _loss(train.label_smoothing, train.class_weights)
    master = "" if record.precision == "fp32" else ", with master weights in fp32"
    yield "Precision", f"{text(record.precision)}{master}"
    lora = recipe.model.lora
    yield (
        "LoRA",
        f"rank {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}; merged here, alone in `adapter/`"
        if lora
        else "",
    )
    yield "Seed", f"{train.seed}"


def _loss(smoothing: float, weights: Any) -> str:
    said = [f"label smoothing {smoothing:g}"] if smoothing else []
    if isinstance(weights, dict):
        said.append("class weights " + ", ".join(f"{code(name)} {value:g}" for name, value in weights.items()))
    elif weights != "none":
        said.append(f"class weights {text(weights)}")
    return "; ".join(said)


def _happened(record: RunRecord) -> Iterator[tuple[str, str]]:
    training = record.training
    if training is not None:
        epochs = f"{training.epochs:.3g} epoch{'' if training.epochs == 1 else 's'}"
        yield "Steps", f"{count(training.steps)} ({epochs}, {count(training.examples)} rows seen)"
        yield "Time", _time(training.seconds, training.seconds_to_first_step)
        speed = training.tokens_per_second
        yield "Speed", f"{count(speed)} tokens a second, padding not counted" if speed is not None else ""
        yield "Padding", f"{share(training.padding_share)} of the slots" if training.padding_share is not None else ""
        yield "Peak memory", size(training.peak_memory_bytes) if training.peak_memory_bytes else ""
        yield "Continued from", ", ".join(f"step {count(step)}" for step in training.resumed_from)
        yield "Not exact on resume", text("; ".join(training.inexact))
    yield "Hardware", hardware(record.hardware)


def _time(seconds: float, first: float | None) -> str:
    started = f"; first step {duration(first)} after the start" if first is not None else ""
    return f"{duration(seconds)} of training{started}"


def head_swap(recipe: Recipe, record: RunRecord) -> str:
    """Which weights come from the checkpoint, which are new, which were left out."""
    swap, model = record.head_swap, record.model
    if swap is None or model is None:
        return ""
    items = [
        f"{_tensors(swap.reused)} reused from {checkpoint_link(recipe)}{_revision(model)}",
        f"{_tensors(swap.new)} new{_names(swap.new)}",
        f"{_tensors(swap.dropped)} of the checkpoint left out{_names(swap.dropped)}",
    ]
    size_of = f"{code(model.architecture)} with {count(model.parameters)} parameters"
    number = "all" if model.trainable_parameters == model.parameters else count(model.trainable_parameters)
    trained = f", {number} of them trained" if model.trainable_parameters else ""
    if model.unseen_tokens:
        unseen = count(model.unseen_tokens)
        trained += f"; {unseen} tokens are in no training row, and their embeddings stay as they were"
    return f"### Weights: kept, new, left out\n\n{size_of}{trained}.\n\n{bullets(items)}"


def _revision(model: ModelFacts) -> str:
    return f" at revision {code(model.revision)}" if model.revision and hub_id(model.checkpoint) else ""


def _tensors(names: Names) -> str:
    return f"{count(names.count)} tensor{'' if names.count == 1 else 's'}"


def _names(names: Names) -> str:
    if not names.names:
        return ""
    more = ", …" if len(names.names) > LISTED else ""
    return f": {', '.join(code(name) for name in names.names[:LISTED])}{more}"


def hardware(found: dict[str, Any]) -> str:
    """The machine in one line; no name of it."""
    gpus = [text(gpu) for gpu in found.get("gpus") or []]
    cpu = [text(found["cpu"])] if found.get("cpu") else []
    cores = [f"{found['cores']} cores"] if found.get("cores") else []
    memory = [f"{size(found['memory_bytes'])} of memory"] if found.get("memory_bytes") else []
    return ", ".join([*gpus, *cpu, *cores, *memory])


def checkpoint_link(recipe: Recipe) -> str:
    """Where training started, with a link where it is on the Hub."""
    base = base_model(recipe)
    return link(code(base), f"{HUB}/{base}") if base else code(place_name(recipe.model.checkpoint))
