"""A decoder for an encoder: two checkpoints become one encoder-decoder, with new cross-attention.

Source: Rothe, Narayan, Severyn, arXiv:1907.12461; transformers EncoderDecoderModel.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import transformers

from finetune.errors import ModelError

__all__ = ["freeze_unused", "join", "load_joined", "mark"]


def join(encoder: Any, decoder: Any, names: tuple[str, str]) -> Any:
    """The config of the encoder-decoder made of two configs; names: what the recipe calls the two checkpoints.

    Raises ModelError when one of the two cannot take its part.
    """
    if getattr(encoder, "is_encoder_decoder", False):
        raise ModelError(f"model.decoder: {names[0]} ({encoder.model_type!r}) has a decoder already; remove the key")
    if type(encoder) not in transformers.MODEL_FOR_MASKED_LM_MAPPING or getattr(encoder, "is_decoder", False):
        raise ModelError(
            f"model.checkpoint: {names[0]} is of type {encoder.model_type!r}, which is no encoder; model.decoder takes"
            " one such as BERT or RoBERTa"
        )
    if type(decoder) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or not hasattr(decoder, "add_cross_attention"):
        raise ModelError(_no_decoder(names[1], decoder))
    encoder, decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
    decoder.is_decoder = decoder.add_cross_attention = True
    for config in (encoder, decoder):
        config._name_or_path = ""
    return transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)


def _no_decoder(name: str, config: Any) -> str:
    return (
        f"model.decoder: {name} is of type {config.model_type!r}, which cannot read what an encoder says; choose"
        " a checkpoint of type bert, roberta, electra or another with cross-attention"
    )


def mark(config: Any, tokenizer: Any, decoder_tokenizer: Any) -> None:
    """Say which tokens start and end an output. Raises ModelError when the two do not share one vocabulary."""
    if decoder_tokenizer is not None and decoder_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            "model.decoder: its vocabulary is not that of model.checkpoint; sources and targets go through one"
            " tokenizer, so both need the same; `same` always fits"
        )
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if start is None or end is None:
        raise ModelError("model.decoder: the tokenizer has no token to start (cls, bos) and to end (sep, eos) a text")
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = start, end, tokenizer.pad_token_id
    config.bos_token_id = start


def load_joined(
    folders: tuple[Path, Path], names: tuple[str, str], config: Any, **loading: Any
) -> tuple[Any, dict[str, Any]]:
    """The encoder-decoder with the weights of both folders, and the loading report of both with its own names.

    What neither has (cross-attention, mostly) is new. Raises as from_pretrained; ModelError where the decoder's
    architecture has no cross-attention.
    """
    encoder, of_encoder = transformers.AutoModel.from_pretrained(
        folders[0], config=config.encoder, output_loading_info=True, **loading
    )
    decoder, of_decoder = transformers.AutoModelForCausalLM.from_pretrained(
        folders[1], config=config.decoder, output_loading_info=True, **loading
    )
    try:
        model = transformers.EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
    except ValueError as error:
        raise ModelError(_no_decoder(names[1], config.decoder)) from error
    info: dict[str, Any] = {
        key: {f"encoder.{_name(item)}" for item in of_encoder[key]}
        | {f"decoder.{_name(item)}" for item in of_decoder[key]}
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    bridge = {name for name, _ in model.named_parameters() if name.startswith("enc_to_dec_proj.")}
    info["missing_keys"] |= bridge
    return model, info


def _name(item: Any) -> str:
    """The name of a weight in a loading report, where mismatched ones come with their shapes."""
    return str(item[0] if isinstance(item, tuple) else item)


def freeze_unused(model: Any) -> list[str]:
    """Names of the encoder's pooler, which nothing reads; frozen, since a gradient that never comes stops DDP."""
    pooler = getattr(getattr(model, "encoder", None), "pooler", None)
    if pooler is None:
        return []
    pooler.requires_grad_(False)
    return [f"encoder.pooler.{name}" for name, _ in pooler.named_parameters()]
