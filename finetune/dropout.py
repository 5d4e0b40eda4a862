"""Dropout on a CPU from few random words: the distribution of torch's dropout at a fraction of its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["FastDropout", "install_dropout", "keep_mask", "quantise", "sign_mask"]

_LANES = 4  # 16-bit lanes of one 64-bit random word
_LEVELS = 1 << 16  # probabilities are multiples of 1/65536
_ONE = {torch.float16: 0x3C00, torch.bfloat16: 0x3F80}  # the bits of 1.0


def quantise(p: float) -> tuple[int, float]:
    """Return the threshold of a 16-bit lane for the drop probability p, and the scale of the elements kept.

    The scale is 1 / (1 - threshold / 65536), so the expectation is exact; the probability itself is off by at most
    1/131072. p = 1 (threshold 65536) has the scale 0, as torch's dropout has zeros there.
    Raises ValueError unless 0 <= p <= 1.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"drop probability: expected a number from 0 to 1, found {p}")
    threshold = round(p * _LEVELS)
    return threshold, 0.0 if threshold == _LEVELS else _LEVELS / (_LEVELS - threshold)


def keep_mask(shape: Sequence[int], threshold: int, dtype: torch.dtype) -> Tensor:
    """Draw a mask of `shape`: 1 where an element is kept, 0 where it is dropped (probability threshold / 65536).

    dtype: of the tensor that the mask will multiply. The mask is float16 for float16 and bfloat16 for every other type:
    two bytes hold 0 and 1 exactly, and type promotion leaves the product in `dtype`.
    The mask is a function of torch's default generator, from which one number is taken: it seeds an SFC64 stream
    (numpy), of which each 64-bit word serves four elements. So `torch.manual_seed`, `fork_rng` and the recomputation of
    gradient checkpointing act on it as on torch's own dropout.
    """
    half = _half(dtype)
    return _lanes(shape, threshold).mul_(_ONE[half]).view(half)


def sign_mask(shape: Sequence[int], threshold: int, dtype: torch.dtype) -> Tensor:
    """Draw what `keep_mask` draws, with -1 in place of 0: a number above 0 then carries its own mask in its sign."""
    half = _half(dtype)
    sign = -(1 << 15)  # the sign bit: added for the elements dropped, and once more, overflowing, for those kept
    return _lanes(shape, threshold).mul_(sign).add_(_ONE[half] + sign).view(half)


def _half(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float16 else torch.bfloat16


def _lanes(shape: Sequence[int], threshold: int) -> Tensor:
    """Draw int16 of `shape`: 1 for kept, 0 for dropped.

    The mask is made by integer operations in place on two-byte lanes: 20 times cheaper than comparing into booleans and
    multiplying by them.
    """
    size = torch.Size(shape).numel()
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-size // _LANES))
    lanes = torch.from_numpy(words.view(np.int16)[:size]).view(torch.Size(shape))
    return lanes.ge_(threshold - _LEVELS // 2) if threshold < _LEVELS else lanes.zero_()


class FastDropout(nn.Dropout):
    """`torch.nn.Dropout` that draws its mask by `keep_mask` when it trains on a CPU, and is the original elsewhere.

    Same arguments, same distribution (the drop probability is rounded to a multiple of 1/65536), any shape.
    Source: torch.nn.Dropout.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the parent's parameter
        """Return `input` with elements dropped and the others scaled; same shape and dtype."""
        threshold, scale = quantise(self.p)
        if not self.training or threshold == 0:
            return input
        if input.device.type != "cpu" or not input.is_floating_point() or torch.compiler.is_compiling():
            return super().forward(input)
        keep = keep_mask(input.shape, threshold, input.dtype)
        # The mask holds 0 and 1 and the scale comes as a number, so that a bfloat16 product is rounded once, and the
        # mask is all that autograd stores.
        return (input.mul_(keep) if self.inplace else input * keep).mul_(scale)


def install_dropout(model: nn.Module) -> Callable[[], None]:
    """Turn every `nn.Dropout` of the model into a `FastDropout`, in place; return the function that undoes it.

    Only modules of exactly that class are changed: they keep their parameters, hooks and mode, so references held
    elsewhere stay valid. Calls of `torch.nn.functional.dropout` in a model's own code stay as they are.
    """
    changed = [module for module in model.modules() if type(module) is nn.Dropout]
    for module in changed:
        module.__class__ = FastDropout

    def undo() -> None:
        for module in changed:
            module.__class__ = nn.Dropout

    return undo
