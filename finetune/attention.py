"""Attention for training on a CPU: matrix products around a softmax, with the dropout of `finetune.dropout`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.dropout import install_dropout, keep_mask, quantise

__all__ = ["NAME", "attention", "install", "install_attention"]

NAME = "cpu_training"  # of the attention in transformers' registry


class _Attention(torch.autograd.Function):
    """softmax(scaling q k^T + bias), dropped, times v; the gradient is written out, so that little is stored."""

    # q (b, h, t, d), k (b, h, s, d), v (b, h, s, e) of one dtype, in which the matrix products are done and the output
    # (b, h, t, e) is given; bias (1 or b, 1 or h, 1 or t, s) of the softmax's dtype, float32 or wider.

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scaling: float, p: float) -> Tensor:
        shape = q.shape
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2)).view(*shape[:3], -1)
        wide = torch.promote_types(q.dtype, torch.float32)
        logits = scores.to(wide).mul_(scaling) if bias is None else torch.add(bias, scores, alpha=scaling)
        probabilities = torch.softmax(logits, -1)
        kept = probabilities.to(q.dtype)
        threshold, scale = quantise(p)
        if threshold:
            kept = kept.mul(keep_mask(kept.shape, threshold, kept.dtype))
        kept = kept.view(-1, *kept.shape[2:])
        ctx.save_for_backward(q, k, v, probabilities, kept)
        ctx.shape, ctx.scaling, ctx.scale = shape, scaling, scale
        ctx.bias = None if bias is None or not bias.requires_grad else bias.shape
        return torch.bmm(kept, v).mul_(scale).view(*shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities, kept = ctx.saved_tensors
        grad = (grad * ctx.scale).reshape(q.shape[0], q.shape[1], -1)
        grad_v = torch.bmm(kept.transpose(1, 2), grad)
        grad_kept = torch.bmm(grad, v.transpose(1, 2))
        # A dropped probability is 0 in `kept`, so `kept` is its own mask: pass the gradient where it is above 0.
        grad_p = torch.ops.aten.threshold_backward(grad_kept, kept, 0.0).to(probabilities.dtype)
        grad_s = torch._softmax_backward_data(grad_p.view_as(probabilities), probabilities, -1, probabilities.dtype)
        grad_bias = None if ctx.bias is None else grad_s.sum_to_size(ctx.bias)
        grad_s = grad_s.mul_(ctx.scaling).to(q.dtype).view_as(kept)
        grad_q = torch.bmm(grad_s, k)
        grad_k = torch.bmm(grad_s.transpose(1, 2), q)
        b, h = ctx.shape[:2]
        q, k, v = (x.view(b, h, *x.shape[1:]) for x in (grad_q, grad_k, grad_v))
        return q, k, v, grad_bias, None, None


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
    wide = torch.promote_types(query.dtype, torch.float32)
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    elif mask is not None:
        mask = mask.clamp(min=torch.finfo(torch.float32).min)  # the softmax of a row of -inf would be NaN
    terms = [term.to(wide) for term in (mask, position) if term is not None]
    return sum(terms[1:], start=terms[0]) if terms else None


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
