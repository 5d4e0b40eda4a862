"""Attention masks on a GPU, made without waiting for it.

transformers asks the device whether a batch holds padding, to leave the mask out where there is none; the host then
waits for all that it has given the device to do. Here it is seen on the CPU, where the batch is made. Source:
transformers.masking_utils, `_ignore_bidirectional_mask_sdpa` and `_ignore_causal_mask_sdpa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

__all__ = ["install_masks", "mask", "seen"]

_padded: ContextVar[bool | None] = ContextVar("padded", default=None)  # the batch under way; None: not seen


@contextmanager
def seen(inputs: Mapping[str, Any]) -> Iterator[None]:
    """Within the block a model is run on these inputs, which are on the CPU here; look at their masks."""
    masks = [value for name, value in inputs.items() if name.endswith("attention_mask")]
    before = _padded.set(not all(bool(value.all()) for value in masks) if masks else None)
    try:
        yield
    finally:
        _padded.reset(before)


def mask(
    *args: Any,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' `sdpa_mask`: with no mask to look at where nothing is padded, and no look at it elsewhere."""
    padded = _padded.get()
    if attention_mask is not None and padded is not None:
        attention_mask = attention_mask if padded else None
        allow_is_causal_skip &= not padded
        allow_is_bidirectional_skip &= not padded
    found: Tensor | None = sdpa_mask(
        *args,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **kwargs,
    )
    return found


def install_masks() -> Callable[[], None]:
    """Let all models that use torch's attention make their masks so; return the function that undoes it."""
    AttentionMaskInterface.register("sdpa", mask)
    return lambda: AttentionMaskInterface.register("sdpa", sdpa_mask)
