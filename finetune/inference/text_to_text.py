"""Text to text with a sequence-to-sequence model: the pipelines `summarization`, `translation`, `text2text-generation`.

This file is complete in itself: it needs torch and transformers, nothing else. It lies beside the weights because
transformers 5 removed these three pipelines; `config.json` names its classes under `custom_pipelines`, so that

    pipeline("summarization", model=..., trust_remote_code=True)

finds them. Inputs and outputs have the shape of transformers 4: a text gives a list with one dictionary, a list of
texts gives a list of dictionaries. The model's `prefix` (config.json) is put before each text, so callers give the bare
text; longer texts are cut at the tokenizer's `model_max_length`. Generation follows `generation_config.json`; every
argument of `generate` can be given to the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Pipeline

__all__ = [
    "SummarizationPipeline",
    "Text2TextGenerationPipeline",
    "TranslationPipeline",
    "generate",
    "languages_for",
    "with_prefix",
]


def with_prefix(text: str, prefix: str | None) -> str:
    """The text as the model reads it."""
    return f"{prefix}{text}" if prefix else text


def generate(model: Any, inputs: dict[str, torch.Tensor], **arguments: Any) -> torch.Tensor:
    """Token ids of the generated texts, int64 (batch times sequences per text, longest); padded on the right.

    inputs: `input_ids` and `attention_mask` (batch, length). Encoder-decoders take no token types.
    """
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    tokens: torch.Tensor = model.generate(**given, **arguments)
    return tokens


def languages_for(tokenizer: Any, target: str) -> dict[str, int]:
    """What `generate` needs to write in language `target`: the token that the target texts of this tokenizer carry.

    mBART-50, NLLB and M2M100 put it first (`forced_bos_token_id`), mBART last, from where the decoder starts with it
    (`decoder_start_token_id`). Raises ValueError when the tokenizer marks no language.
    """
    tokenizer.tgt_lang = target
    ids = tokenizer(text_target="a").input_ids
    first, last = (tokenizer.convert_ids_to_tokens(ids[place]) in (target, f"__{target}__") for place in (0, -1))
    if not first and not last:
        raise ValueError(f"the tokenizer does not know the target language {target!r}")
    return {"forced_bos_token_id": ids[0]} if first else {"decoder_start_token_id": ids[-1]}


class Text2TextGenerationPipeline(Pipeline):  # type: ignore[misc]
    """A text from a text: `[{"generated_text": ...}]`."""

    return_name = "generated"
    _load_tokenizer = True
    _load_processor = False
    _load_feature_extractor = False
    _load_image_processor = False

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """inputs: one text or a list of texts. Any argument of `generate` may follow, and `truncation`, `batch_size`.

        `return_tensors=True` returns token ids instead of text, under `generated_token_ids`.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        result = super().__call__(inputs, *args, **kwargs)
        several = isinstance(inputs, list) and all(isinstance(one, str) for one in inputs)
        if several and all(len(one) == 1 for one in result):
            return [one[0] for one in result]
        return result

    def _sanitize_parameters(
        self,
        truncation: Any = None,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        **generate_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before: dict[str, Any] = {} if truncation is None else {"truncation": truncation}
        after: dict[str, Any] = {}
        if return_tensors is not None or return_text is not None:
            after["as_tokens"] = bool(return_tensors) and not return_text
        if clean_up_tokenization_spaces is not None:
            after["clean_up_tokenization_spaces"] = clean_up_tokenization_spaces
        return before, generate_kwargs, after

    def preprocess(self, text: str, truncation: Any = True) -> Any:
        if not isinstance(text, str):
            raise ValueError(f"expected a text or a list of texts, found {type(text).__name__}")
        text = with_prefix(text, getattr(self.model.config, "prefix", None))
        return self.tokenizer(text, truncation=truncation, return_tensors="pt")

    def _forward(self, inputs: Any, **generate_kwargs: Any) -> dict[str, torch.Tensor]:
        rows = inputs["input_ids"].shape[0]
        tokens = generate(self.model, inputs, **generate_kwargs)
        return {"output_ids": tokens.reshape(rows, tokens.shape[0] // rows, -1)}

    def postprocess(
        self, outputs: Any, as_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[dict[str, Any]]:
        sequences: Sequence[Any] = outputs["output_ids"][0]
        if as_tokens:
            return [{f"{self.return_name}_token_ids": tokens} for tokens in sequences]
        texts = self.tokenizer.batch_decode(
            sequences, skip_special_tokens=True, clean_up_tokenization_spaces=clean_up_tokenization_spaces
        )
        return [{f"{self.return_name}_text": text} for text in texts]


class SummarizationPipeline(Text2TextGenerationPipeline):
    """A summary of a text: `[{"summary_text": ...}]`."""

    return_name = "summary"


class TranslationPipeline(Text2TextGenerationPipeline):
    """A translation of a text: `[{"translation_text": ...}]`.

    `src_lang` and `tgt_lang` in the call replace the languages that a multilingual model was fine-tuned for.
    """

    return_name = "translation"

    def _sanitize_parameters(  # type: ignore[override]
        self, src_lang: str | None = None, tgt_lang: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before, generate_kwargs, after = super()._sanitize_parameters(**kwargs)
        if src_lang is not None:
            before["src_lang"] = src_lang
        if tgt_lang is not None:
            generate_kwargs |= languages_for(self.tokenizer, tgt_lang)
        return before, generate_kwargs, after

    def preprocess(self, text: str, truncation: Any = True, src_lang: str | None = None) -> Any:
        own = (getattr(self.model.config, "languages", None) or {}).get("source")
        if src_lang or own:
            self.tokenizer.src_lang = src_lang or own
        return super().preprocess(text, truncation)
