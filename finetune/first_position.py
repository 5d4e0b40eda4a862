"""The last layer of an encoder for its first position alone, where the head reads no other.

A head that reads position 0 needs, of the last layer, keys and values at all positions, and query, attention output
and feed-forward at one. Logits and gradients are the same; 10/12 of the last layer's matrix products are not made.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune.attention import NAME
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
