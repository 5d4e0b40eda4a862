"""Attention for training on a CPU: matrix products around a softmax, with the dropout of `finetune.dropout`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.dropout import install_dropout, quantise, sign_mask

__all__ = ["NAME", "attention", "install", "install_attention", "mask_bias"]

NAME = "cpu_training"  # of the attention in transformers' registry


PIECE = 1 << 20  # scores in work at a time: their float32 fits a cache, and a long batch needs no more memory than that


class _Attention(torch.autograd.Function):
    """softmax(scaling q k^T + bias), dropped, times v; the gradient is written out, so that little is stored."""

    # q (b, h, t, d), k (b, h, s, d), v (b, h, s, e) of one dtype, in which the matrix products are done and the output
    # (b, h, t, e) is given; bias (1 or b, 1 or h, 1 or t, s) of the softmax's dtype, float32 or wider. For the backward
    # pass the probabilities are stored in q's dtype, with a minus where they were dropped.

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scaling: float, p: float) -> Tensor:
        q, k, v = (x.contiguous() for x in (q, k, v))
        threshold, scale = quantise(p)
        wide = torch.promote_types(q.dtype, torch.float32)
        output = q.new_empty(*q.shape[:3], v.shape[3])
        signed = q.new_empty(*q.shape[:3], k.shape[2])
        for piece in _pieces(signed):
            pq, pk, pv, po, ps = (_flat(x, piece) for x in (q, k, v, output, signed))
            scores = torch.bmm(pq, pk.transpose(1, 2)).view(signed[piece].shape)
            add = None if bias is None else _part(bias, piece)
            logits = scores.to(wide).mul_(scaling) if add is None else torch.add(add, scores, alpha=scaling)
            ps.copy_(torch.softmax(logits, -1).view(ps.shape))
            if threshold:
                ps.mul_(sign_mask(ps.shape, threshold, ps.dtype))
            torch.bmm(ps.relu(), pv, out=po)
        ctx.save_for_backward(q, k, v, signed)
        ctx.scaling, ctx.scale = scaling, scale
        ctx.bias = None if bias is None or not bias.requires_grad else bias.shape
        return output.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, signed = ctx.saved_tensors
        grad = (grad * ctx.scale).contiguous()
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
        grad_bias = None if ctx.bias is None else torch.zeros(ctx.bias, dtype=wide)
        for piece in _pieces(signed):
            tensors = (q, k, v, grad, signed, grad_q, grad_k, grad_v)
            pq, pk, pv, pg, ps, gq, gk, gv = (_flat(x, piece) for x in tensors)
            torch.bmm(ps.relu().transpose(1, 2), pg, out=gv)
            # The gradient of a probability is what came through where it was kept, and 0 where it was dropped.
            grad_p = torch.ops.aten.threshold_backward(torch.bmm(pg, pv.transpose(1, 2)), ps, 0.0).to(wide)
            grad_s = torch._softmax_backward_data(grad_p, ps.abs().to(wide), -1, wide)
            if grad_bias is not None:
                part = _part(grad_bias, piece)
                part.add_(grad_s.view(signed[piece].shape).sum_to_size(part.shape))
            grad_s = grad_s.mul_(ctx.scaling).to(q.dtype)
            torch.bmm(grad_s, pk, out=gq)
            torch.bmm(grad_s.transpose(1, 2), pq, out=gk)
        return grad_q, grad_k, grad_v, grad_bias, None, None


def _pieces(scores: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut (b, h, t, s) into pieces of about PIECE elements: whole examples if they fit, else some heads of one."""
    examples, heads, *sides = scores.shape
    each = max(1, math.prod(sides))
    rows, columns = max(1, PIECE // (each * heads)), min(heads, max(1, PIECE // each))
    for row in range(0, examples, rows):
        for column in range(0, heads, columns):
            yield slice(row, min(row + rows, examples)), slice(column, min(column + columns, heads))


def _flat(x: Tensor, piece: tuple[slice, slice]) -> Tensor:
    """Return a piece of a contiguous (b, h, ...) as (n, ...), sharing its memory."""
    return x[piece].view(-1, *x.shape[2:])


def _part(bias: Tensor, piece: tuple[slice, slice]) -> Tensor:
    """The part of a bias that belongs to a piece of the scores; an axis of size 1 belongs to all."""
    rows, columns = (cut if size > 1 else slice(None) for cut, size in zip(piece, bias.shape, strict=False))
    return bias[rows, columns]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa` does, by a path that is cheaper to train on a CPU.

    query (b, h, t, d), key (b, h, s, d), value (b, h, s, e); attention_mask (b, 1 or h, t, s), bool (True: attend) or a
    float bias; position_bias (1 or b, h, t, s). Returns ((b, t, h, e), None). Without gradient, elsewhere or for
    arguments unknown to this path, `sdpa_attention_forward` answers. Source: transformers.AttentionInterface.
    """
    known = query.shape[1] == key.shape[1] and not any(kwargs.get(name) for name in ("cache", "softcap", "s_aux"))
    if not known or not query.requires_grad or query.device.type != "cpu" or torch.compiler.is_compiling():
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **kwargs
        )
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = is_causal and attention_mask is None and query.shape[2] > 1
    bias = _bias(attention_mask, position_bias, causal, query, key)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = _Attention.apply(query, key, value, bias, scaling, dropout)  # type: ignore[no-untyped-call]
    alive = None if attention_mask is None else _attended(attention_mask)
    if alive is not None and not bool(alive.all()):
        output = output * alive  # a query that attends to nothing gets 0 from `sdpa` too
    return output.transpose(1, 2).contiguous(), None


def _attended(mask: Tensor) -> Tensor:
    """Whether a query attends to any key: bool (b, 1 or h, t, 1)."""
    visible = mask if mask.dtype == torch.bool else mask > -torch.inf
    return visible.sum(-1, keepdim=True) > 0


def _bias(mask: Tensor | None, position: Tensor | None, causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    """Return what is added to the scores, float32 or wider: the position bias, and the minimum where not attended."""
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    terms = [] if mask is None else [mask_bias(mask, query.dtype)]
    if position is not None:
        terms.append(position.to(torch.promote_types(query.dtype, torch.float32)))
    return sum(terms[1:], start=terms[0]) if terms else None


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask, bool (True: attend) or a float bias, as what is added to scores of `dtype`: float32 or wider."""
    lowest = torch.finfo(torch.float32).min  # the softmax of a row of -inf would be NaN
    bias = torch.where(mask, 0.0, lowest) if mask.dtype == torch.bool else mask.clamp(min=lowest)
    return bias.to(torch.promote_types(dtype, torch.float32))


def install_attention(model: nn.Module) -> Callable[[], None]:
    """Let every part of the model that uses transformers' `sdpa` use `attention`; return the function that undoes it.

    Parts with an attention of their own (DeBERTa, say) stay as they are. The configs name the implementation in an
    attribute that is never saved.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    parts = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m._can_set_attn_implementation()]
    configs = list({id(m.config): m.config for m in parts if m.config._attn_implementation == "sdpa"}.values())
    for config in configs:
        config._attn_implementation_internal = NAME

    def undo() -> None:
        for config in configs:
            config._attn_implementation_internal = "sdpa"

    return undo


def install(model: nn.Module) -> Callable[[], None]:
    """Make training on a CPU cheaper without changing what is computed: `FastDropout` and `attention`, in place.

    A model on another device is left alone. Returns the function that restores the model.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return lambda: None
    undo = install_dropout(model), install_attention(model)

    def restore() -> None:
        for function in undo:
            function()

    return restore
