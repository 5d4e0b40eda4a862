"""The last layer of an encoder for its first position alone, where the head reads no other.

A head that reads position 0 needs one query of the last layer. Then all products of its weights are made at one
position, those of keys and values, too: q (W x) = (q W) x, and sum(p (W x)) = W sum(p x). Logits and gradients are the
same up to rounding.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune.attention import NAME, mask_bias
from finetune.unpadded import BERT_LIKE, base_of

__all__ = ["install_first_position"]

IN_BERT_STYLE = frozenset(f"{name}ForSequenceClassification" for name in BERT_LIKE)
IN_DISTILBERT_STYLE = frozenset({"DistilBertForSequenceClassification"})
KNOWN_ATTENTION = ("sdpa", NAME)  # those that take a mask (b, 1, t, s)


def install_first_position(model: nn.Module) -> Callable[[], None]:
    """Compute the last layer at position 0 only, in place; return the function that undoes it.

    `model.base_model` then ends in states of shape (b, 1, c). A model whose head may read other positions, or whose
    layers are of another make, is left alone. For full fine-tuning and under LoRA, in training and in evaluation.
    """
    net = base_of(model)
    kind = type(net).__name__
    if kind not in IN_BERT_STYLE | IN_DISTILBERT_STYLE or net.config._attn_implementation not in KNOWN_ATTENTION:
        return lambda: None
    part: Any
    forward: Callable[..., Any]
    if kind in IN_BERT_STYLE:
        part, forward = net.base_model.encoder.layer[-1].attention, _bert_attention
    else:
        part, forward = net.base_model.transformer.layer[-1], _distilbert_block
    if getattr(net.config, "is_decoder", False) or "forward" in vars(part):
        return lambda: None
    part.forward = types.MethodType(forward, part)

    def undo() -> None:
        del part.forward

    return undo


def _bert_attention(self: Any, states: Tensor, mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """`BertAttention.forward` for position 0: states (b, n, c) to (b, 1, c), or packed (1, t, c) to (1, b, c)."""
    inner, first = self.self, _first(states, **kwargs)
    found = _attend(inner, (inner.query, inner.key, inner.value), first, states, mask, **kwargs)
    return self.output(found, first), None


def _distilbert_block(self: Any, states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    """`TransformerBlock.forward` for position 0: states (b, n, c) to (b, 1, c), or packed (1, t, c) to (1, b, c)."""
    inner, first = self.attention, _first(states, **kwargs)
    found = _attend(inner, (inner.q_lin, inner.k_lin, inner.v_lin), first, states, attention_mask, **kwargs)
    attended = self.sa_layer_norm(inner.out_lin(found) + first)
    return self.output_layer_norm(self.ffn(attended) + attended)  # type: ignore[no-any-return]


def _first(states: Tensor, packing: Any = None, **kwargs: Any) -> Tensor:
    """The states of position 0: (b, 1, c), or (1, b, c) of a row that holds all sequences (`finetune.unpadded`)."""
    del kwargs
    return states[:, :1] if packing is None else states[:, packing.offsets[:-1]]


def _attend(
    inner: Any, linear: tuple[Any, Any, Any], first: Tensor, states: Tensor, mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """Attention of `first` to all: states (b, n, c), mask (b, 1, n, n) or None, to the shape of `first`."""
    if kwargs.get("packing") is None and all(type(project) is nn.Linear for project in linear):
        return _attend_to_states(inner, linear, first, states, mask)
    return _attend_to_projections(inner, linear, first, states, mask, **kwargs)


def _attend_to_states(
    inner: Any, linear: tuple[Any, Any, Any], first: Tensor, states: Tensor, mask: Tensor | None
) -> Tensor:
    """`_attend` without keys and values: each head's query is taken through the weights of the keys instead."""
    to_query, to_key, to_value = linear
    heads = (-1, inner.attention_head_size, states.shape[-1])  # (h, d, c) of a weight
    query = to_query(first).view(first.shape[0], *heads[:2]).transpose(0, 1)  # (h, b, d)
    through = torch.bmm(query, to_key.weight.view(heads))  # (h, b, c)
    constant = torch.bmm(query, to_key.bias.view(*heads[:2], 1))  # (h, b, 1)
    scores = torch.bmm(through.transpose(0, 1), states.transpose(1, 2)) + constant.transpose(0, 1)  # (b, h, n)
    wide = torch.promote_types(scores.dtype, torch.float32)
    logits = scores.to(wide) * inner.scaling
    if mask is not None:
        logits = logits + mask_bias(mask[:, 0, :1], scores.dtype)
    kept = inner.dropout(torch.softmax(logits, -1))
    context = torch.bmm(kept, states).transpose(0, 1)  # (h, b, c)
    values = torch.bmm(context, to_value.weight.view(heads).transpose(1, 2)).transpose(0, 1)  # (b, h, d)
    shift = kept.sum(-1, keepdim=True) * to_value.bias.view(heads[:2])  # dropout keeps no sum of 1
    return (values + shift).reshape(first.shape)  # type: ignore[no-any-return]


def _attend_to_projections(
    inner: Any, linear: tuple[Any, Any, Any], first: Tensor, states: Tensor, mask: Tensor | None, **kwargs: Any
) -> Tensor:
    kwargs.pop("past_key_values", None)  # None: an encoder keeps no cache
    query, key, value = (
        project(x).view(*x.shape[:2], -1, inner.attention_head_size).transpose(1, 2)
        for project, x in zip(linear, (first, states, states), strict=True)
    )
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(inner.config._attn_implementation, sdpa_attention_forward)
    mask = None if mask is None else mask[:, :, :1]
    dropout = inner.dropout.p if inner.training else 0.0
    output, _ = attend(inner, query, key, value, mask, dropout=dropout, scaling=inner.scaling, **kwargs)
    return output.reshape(first.shape)  # type: ignore[no-any-return]
