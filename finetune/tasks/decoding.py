"""How a sequence-to-sequence model is made to write: languages, decoder inputs, generation settings."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from finetune.errors import ModelError
from finetune.inference import text_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from finetune.recipe.model import GenerationBlock

__all__ = ["SETTINGS", "WRAPPING", "generate", "generation_config", "heard", "set_languages", "shift_right"]

# Families whose decoder starts with the last token of the target, which names its language.
# Source: shift_tokens_right of their modeling files.
WRAPPING = frozenset({"mbart", "plbart", "fsmt"})
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
SETTINGS = ("temperature", "top_k", "top_p", "length_penalty", "no_repeat_ngram_size")
SEED = 0  # of sampling in evaluation


def set_languages(tokenizer: Any, languages: dict[str, str]) -> dict[str, int]:
    """Make a multilingual tokenizer mark sources and targets with these languages; what `generate` needs for it.

    languages: source and target, as the tokenizer names them. Raises ModelError when it does not know them.
    """
    if not hasattr(tokenizer, "src_lang"):
        raise ModelError(
            "data.languages: this checkpoint's tokenizer marks no languages (those of mBART, NLLB and M2M100 do);"
            " remove it; a Marian model for several languages takes the target language as data.prefix, '>>fra<< '"
        )
    for role, code in languages.items():
        if tokenizer.convert_tokens_to_ids(code) in (None, tokenizer.unk_token_id) and not _listed(tokenizer, code):
            raise ModelError(f"data.languages.{role}: the tokenizer does not know the language {code!r}")
    if "source" in languages:
        tokenizer.src_lang = languages["source"]
    return text_to_text.languages_for(tokenizer, languages["target"]) if "target" in languages else {}


def _listed(tokenizer: Any, code: str) -> bool:
    """Whether the tokenizer maps the code to a token of another spelling, such as __fr__."""
    return code in getattr(tokenizer, "lang_code_to_token", getattr(tokenizer, "lang_code_to_id", ()))


def shift_right(labels: torch.Tensor, start: int | None, pad: int, wraps: bool) -> torch.Tensor:
    """Decoder inputs int64 (B, T) for labels (B, T) with -100 behind their ends: `start`, then all but the last label.

    wraps: each row starts with its own last label instead. Source: shift_tokens_right and _shift_right of transformers.
    """
    shifted = labels.new_full(labels.shape, pad)
    shifted[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] < 0, pad)
    if wraps:
        last = (labels >= 0).sum(dim=1, keepdim=True) - 1
        shifted[:, :1] = labels.gather(1, last)
    else:
        assert start is not None
        shifted[:, 0] = start
    return shifted


def generation_config(base: Any, settings: GenerationBlock, longest: int, marks: dict[str, int], tokenizer: Any) -> Any:
    """The checkpoint's GenerationConfig with the recipe's settings in it.

    longest: tokens of an output where the recipe gives no max_new_tokens. marks: token ids by name, of the target
    language. What belongs to a beam search or to sampling goes when there is none.
    """
    config = copy.deepcopy(base)
    config.num_beams, config.do_sample = settings.num_beams, settings.do_sample
    config.max_new_tokens, config.max_length = settings.max_new_tokens or longest, None
    config.min_length = min(config.min_length or 0, config.max_new_tokens)
    for name in SETTINGS:
        if (value := getattr(settings, name)) is not None:
            setattr(config, name, value)
    if settings.num_beams == 1:
        config.early_stopping = config.length_penalty = None
    for name in () if settings.do_sample else SAMPLING:
        setattr(config, name, None)
    config.pad_token_id = tokenizer.pad_token_id
    for name, value in marks.items():
        setattr(config, name, value)
    config._from_model_config = False
    return config


def generate(model: Any, inputs: dict[str, torch.Tensor], **arguments: Any) -> torch.Tensor:
    """Token ids of the outputs, int64 (B, longest). Sampling draws from a generator of its own, the same each time."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return text_to_text.generate(model, inputs, **arguments)


def heard(on_token: Callable[[], None]) -> dict[str, Any]:
    """Arguments that make `generate` call `on_token` after each token, of all beams together."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Listener(StoppingCriteria):  # type: ignore[misc]
        """Stops nothing."""

        def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            on_token()
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    return {"stopping_criteria": StoppingCriteriaList([Listener()])}
