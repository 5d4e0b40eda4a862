"""How near a run comes to what the machine can do: its matrix products, measured, against those that training needs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from finetune.hardware import threads_for

__all__ = ["limits", "training_flops"]

SIDE = 2048
SECONDS = 2.0


def training_flops(config: Any, lengths: np.ndarray) -> float | None:
    """Floating-point operations to train an encoder on sequences of these lengths once; None for another make.

    Forward and backward of the layers: 6 P n + 12 L H sum(n_i^2) with P = L (4 H^2 + 2 H F), for n real tokens in
    sequences of n_i. Source: Chowdhery et al., arXiv:2204.02311, appendix B, without its causal half.
    """
    names = ("num_hidden_layers", "hidden_size", "intermediate_size")
    layers, hidden, inner = (getattr(config, name, None) for name in names)
    if not (layers and hidden and inner) or getattr(config, "is_encoder_decoder", False):
        return None
    n = lengths.astype(np.float64)
    weights = layers * (4 * hidden**2 + 2 * hidden * inner)
    return float(6 * weights * n.sum() + 12 * layers * hidden * (n**2).sum())


def limits() -> dict[str, float]:
    """The most operations per second that a product of two 2048-square matrices reached, by precision."""
    torch.set_num_threads(threads_for(1))
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {f"{name}_gemm_flops_per_second": _peak(dtype) for name, dtype in kinds.items()}


def _peak(dtype: torch.dtype) -> float:
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    out = torch.empty(SIDE, SIDE, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - started)
    return float(2 * SIDE**3 / best)
