"""What a reader should know of a model that writes texts, and of the texts it was given: for the card and for check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune import metrics
from finetune.features import Features
from finetune.tasks.decoding import SETTINGS

if TYPE_CHECKING:
    from finetune.recipe.model import GenerationBlock

__all__ = ["METRICS", "changed_targets", "cut_targets", "notes", "snippet", "unfit"]

METRICS = {
    "summarization": ("rougeL", "rouge1", "rouge2"),
    "translation": ("bleu", "chrf"),
    "text2text-generation": ("chrf", "exact_match", "bleu"),
}
"""The metrics of a recipe that names none; the first of them selects the best checkpoint."""
VERBS = {"summarization": "summarize", "translation": "translate", "text2text-generation": "rewrite"}


def unfit(name: str, config: Any) -> str:
    """Why a checkpoint that is no encoder-decoder cannot be used, and what to do."""
    import transformers

    if type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return (
            f"model.checkpoint: {name} is an encoder ({config.model_type!r}), it writes no text; give it a decoder: add"
            " model.decoder: same (or a checkpoint with the same vocabulary), or start from an encoder-decoder such as"
            " T5, BART or Marian"
        )
    return (
        f"model.checkpoint: {name} is of type {config.model_type!r}, which has no encoder; text to text is trained on"
        " encoder-decoders (T5, BART, Marian, mBART, …), or on an encoder with model.decoder: same"
    )


def cut_targets(features: dict[str, Features], longest: int) -> list[str]:
    """How many targets of each split are longer than `longest` tokens."""
    counts = {split: (int(one.scalars["target_truncated"].sum()), len(one)) for split, one in features.items()}
    return [
        f"{split}: of {total:,} targets, {cut:,} are longer than {longest} tokens and cut there; scores compare with"
        " the whole text"
        for split, (cut, total) in counts.items()
        if cut
    ]


def changed_targets(split: str, texts: Sequence[str], back: Sequence[str], references: str) -> list[str]:
    """How many texts are not the same after encoding and decoding (`back`)."""
    hint = "; with evaluate.generation.references: tokenizer, scores compare with what it can write"
    changed = sum(one != other for one, other in zip(texts, back, strict=True))
    if not changed:
        return []
    return [
        f"{split}: {changed} of the first {len(texts)} targets are not what they were after the tokenizer (upper case,"
        f" spaces or characters that it does not keep): the model can never write them{hint * (references == 'raw')}"
    ]


def snippet(pipeline: str) -> str:
    """Python that calls the published model, with and without this package."""
    verb = VERBS[pipeline]
    call = f'print({verb}("Your text."))'
    return (
        "from transformers import pipeline\n\n"
        f'{verb} = pipeline("{pipeline}", model="{{model}}", trust_remote_code=True)\n'
        f"{call}\n\n"
        "# or, where headswap is installed, without running code of this repository:\n"
        "import finetune\n\n"
        f'{verb} = finetune.pipeline("{{model}}")\n'
        f"{call}"
    )


def notes(
    settings: GenerationBlock, names: Sequence[str], *, prefix: str | None, lengths: tuple[int, int]
) -> list[str]:
    """Sentences on how texts are read, written and scored; lengths: most tokens of an input and of an output."""
    said = [
        f"`trust_remote_code=True` is asked for because transformers 5 has no pipeline for {settings.pipeline}: the one"
        " used here is the file `text_to_text.py` of this repository, which imports torch and transformers only. Read"
        " it first, and pin what you have read with `revision`. The pipeline for open-ended generation is no"
        " replacement: it would run, and silently cut what this model writes.",
        f"Texts are cut at {lengths[0]} tokens, as in training.",
        _written(settings, lengths[1]),
        "What the model writes can be wrong or made up, however fluent it is: check it against the source.",
    ]
    if prefix:
        said.insert(1, f"Give the bare text: the pipeline itself puts the prefix {prefix!r} before it.")
    if settings.loss_only:
        return said
    if settings.references == "tokenizer":
        said.append(
            "Before they were compared, the targets were passed through the tokenizer: what it does not keep, such as"
            " upper case, does not count."
        )
    signatures = metrics.signatures(names)
    alike = {how: [name for name, other in signatures.items() if other == how] for how in signatures.values()}
    return said + [f"{', '.join(same)}: {how}." for how, same in alike.items()]


def _written(settings: GenerationBlock, longest: int) -> str:
    how = "greedy search" if settings.num_beams == 1 else f"a beam search with {settings.num_beams} beams"
    if settings.do_sample:
        how = "sampling" if settings.num_beams == 1 else f"sampling with {settings.num_beams} beams"
    given = {name: getattr(settings, name) for name in SETTINGS if getattr(settings, name) is not None}
    extra = f", {json.dumps(given)}" if given else ""
    return (
        f"Outputs are written by {how}, at most {longest} tokens{extra}; the settings stand in"
        " `generation_config.json`, and each can be given to the call instead."
    )
