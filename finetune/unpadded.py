"""Micro-batches without padding, for encoders on a device with an attention kernel for sequences of unequal length.

Between the embeddings and the head only tokens are computed, all sequences in one row; attention tells them apart by
their offsets. The head finds the states where it looks for them. Source: torch.nested, jagged layout.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name torch's own documentation uses)
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from finetune import masking

__all__ = ["BERT_LIKE", "Packing", "base_of", "can_unpad", "install_unpadded", "kernel_error", "pack"]

NAME = "unpadded"  # of the attention in transformers' registry
BERT_LIKE = ("Bert", "Camembert", "Data2VecText", "Electra", "Ernie", "Roberta", "XLMRoberta")
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
KINDS = frozenset(f"{name}{head}" for name in (*BERT_LIKE, "DistilBert") for head in HEADS)


@dataclass(frozen=True)
class Packing:
    """Where the t tokens of a padded batch (b, s) are."""

    index: Tensor  # int64 (t,): the place of each in the flattened batch
    offsets: Tensor  # int64 (b + 1,): where each sequence begins among them; their number
    longest: int
    shortest: int

    def pin_memory(self) -> Packing:
        """The same in memory that is copied to a GPU without waiting."""
        return Packing(self.index.pin_memory(), self.offsets.pin_memory(), self.longest, self.shortest)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Packing:
        """The same on `device`."""
        index, offsets = (x.to(device, non_blocking=non_blocking) for x in (self.index, self.offsets))
        return Packing(index, offsets, self.longest, self.shortest)


def pack(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a model on the CPU, where each row begins with its tokens, with a Packing in place of the mask.

    Made on the CPU, so that the device is never waited for to learn how many tokens there are.
    """
    mask = inputs["attention_mask"]
    lengths = mask.sum(1)
    index, offsets = mask.flatten().nonzero().flatten(), F.pad(lengths.cumsum(0), (1, 0))
    packing = Packing(index, offsets, int(lengths.max()), int(lengths.min()))
    return {name: value for name, value in inputs.items() if name != "attention_mask"} | {"packing": packing}


def base_of(model: nn.Module) -> Any:
    """The model under PEFT's adapters."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def _encoder(net: Any) -> Any:
    base = net.base_model
    return base.encoder if hasattr(base, "encoder") else base.transformer


def can_unpad(model: nn.Module) -> bool:
    """Whether the model takes what `pack` gives: `install_unpadded` has been called, and knew its architecture."""
    return bool(base_of(model).config._attn_implementation == NAME)


def install_unpadded(model: nn.Module) -> Callable[[], None]:
    """Let an encoder take inputs from `pack`, in place; return the function that undoes it.

    A model of another make is left alone. Inputs with a mask are computed as before.
    """
    net = base_of(model)
    if type(net).__name__ not in KINDS or net.config._attn_implementation != "sdpa":
        return lambda: None
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, masking.mask)
    encoder, config = _encoder(net), net.config
    encoder.forward = types.MethodType(_encode, encoder)
    config._attn_implementation_internal = NAME

    def undo() -> None:
        del encoder.forward
        config._attn_implementation_internal = "sdpa"

    return undo


def _encode(self: Any, hidden_states: Tensor, *args: Any, packing: Packing | None = None, **kwargs: Any) -> Any:
    """The forward of an encoder (b, s, c) on the tokens alone; 0 comes out where there is none."""
    forward = type(self).forward
    if packing is None:
        return forward(self, hidden_states, *args, **kwargs)
    rows, width, channels = hidden_states.shape
    tokens = hidden_states.reshape(rows * width, channels).index_select(0, packing.index)
    outputs = forward(self, tokens[None], *args, packing=packing, **kwargs)
    found = outputs.last_hidden_state[0]
    if len(found) == len(packing.index):
        full = found.new_zeros(rows * width, channels).index_copy(0, packing.index, found)
        outputs.last_hidden_state = full.view(rows, width, channels)
    else:  # the last layer made the first position of each row only
        outputs.last_hidden_state = found.view(rows, 1, channels)
    return outputs


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa`; with a packing, within each sequence.

    query (1, h, t, d), or (1, h, b, d) of the first positions; key and value (1, h, t, d). Returns ((1, t or b, h, d),
    None). Source: transformers.AttentionInterface.
    """
    if packing is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    whole = packing.offsets, packing.shortest, packing.longest
    keys, values = (_jagged(x, *whole) for x in (key, value))
    if query.shape[2] == len(packing.index):
        queries = _jagged(query, *whole)
    else:
        queries = _jagged(query, torch.arange(len(packing.offsets), device=query.device), 1, 1)
    output = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).values()[None], None


def _jagged(x: Tensor, offsets: Tensor, shortest: int, longest: int) -> Tensor:
    """(1, h, t, d) as a nested tensor (b, h, lengths, d)."""
    rows = torch.nested.nested_tensor_from_jagged(
        x[0].transpose(0, 1).contiguous(), offsets, min_seqlen=shortest, max_seqlen=longest
    )
    return rows.transpose(1, 2)


def kernel_error(model: nn.Module, packed: dict[str, Any], dtype: torch.dtype) -> float:
    """How far attention over packed sequences is from attention over padded ones, on random numbers of `dtype`.

    packed: what `pack` gave, on the device in question. The largest |difference| / |expected| of the output and of the
    gradients, for the queries of all tokens and for those of first positions. Raises RuntimeError without a kernel.
    """
    config, packing = base_of(model).config, packed["packing"]
    rows, width = packed["input_ids"].shape
    heads = config.num_attention_heads
    shape = 3, len(packing.index), heads, config.hidden_size // heads
    tokens = torch.randn(shape, device=packing.index.device, dtype=dtype, requires_grad=True)
    query, key, value = tokens.transpose(1, 2).unsqueeze(1)
    firsts = packing.offsets[:-1]
    places = tokens.new_zeros(3, rows * width, *shape[2:]).index_copy(1, packing.index, tokens)
    mask = torch.zeros(rows * width, dtype=torch.bool, device=tokens.device).index_fill(0, packing.index, True)
    q, k, v = places.view(3, rows, width, *shape[2:]).transpose(2, 3)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.view(rows, 1, 1, width))
    expected = expected.transpose(1, 2).flatten(0, 1).index_select(0, packing.index)
    of_all = _attention(model, query, key, value, None, packing=packing)[0][0]
    of_first = _attention(model, query[:, :, firsts], key, value, None, packing=packing)[0][0]
    pairs = (of_all, expected), (of_first, expected[firsts])
    return max(_difference(found, wanted, tokens) for found, wanted in pairs)


def _difference(found: Tensor, wanted: Tensor, source: Tensor) -> float:
    """The larger |difference| / |wanted| of two tensors and of their gradients by `source`."""
    weight = torch.randn_like(wanted)
    gradients = (torch.autograd.grad((x * weight).sum(), source, retain_graph=True)[0] for x in (found, wanted))
    pairs = (found.detach(), wanted.detach()), tuple(gradients)
    return max(float((one.float() - other.float()).norm() / other.float().norm()) for one, other in pairs)
