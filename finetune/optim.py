"""The optimizer's parameter groups and the learning rate as a function of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

__all__ = [
    "FiniteGuard",
    "adamw",
    "clip_in_update",
    "learning_rate",
    "parameter_groups",
    "trained_parameters",
    "warmup_steps",
]


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups of the trainable parameters: with weight decay, and without for biases and the weights of norms.

    A parameter of one axis is a bias or belongs to a norm (LayerNorm, RMSNorm), as in transformers'
    `Trainer.get_decay_parameter_names`.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decay = [parameter for _, parameter in named if parameter.ndim > 1]
    plain = [parameter for _, parameter in named if parameter.ndim <= 1]
    groups: Iterable[tuple[list[torch.nn.Parameter], float]] = ((decay, weight_decay), (plain, 0.0))
    return [{"params": parameters, "weight_decay": rate} for parameters, rate in groups if parameters]


def trained_parameters(model: torch.nn.Module) -> int:
    """Numbers in all weights that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adamw(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW with betas (0.9, 0.999) and epsilon 1e-8. Source: Loshchilov & Hutter, arXiv:1711.05101."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, fused=True)


def clip_in_update(
    optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter], limit: float | None
) -> torch.Tensor:
    """Let a fused optimizer's next update clip the gradients to the norm `limit`; the norm that they have, ().

    The kernel divides each gradient where it reads it, which spares a pass over all of them. Source:
    torch.nn.utils.clip_grad_norm_; torch.optim.AdamW, `grad_scale`, as torch.amp.GradScaler uses it.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    scale = None if limit is None else ((norm.float() + 1e-6) / limit).clamp(min=1.0)
    optimizer.grad_scale = scale  # type: ignore[attr-defined]
    return norm


class FiniteGuard:
    """Keeps a fused optimizer from updating with a gradient that is not finite, without waiting for the device.

    The kernel itself skips where `found_inf` is 1, and takes the step back from its counters. Source:
    torch.optim.AdamW, `_fused_adamw`, as torch.amp.GradScaler uses it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._first = torch.full((), -1, dtype=torch.int64, device=device)

    def watch(self, norm: torch.Tensor, step: int) -> None:
        """Call before the update of step `step` (from 0). norm: of the gradient, ()."""
        bad = ~torch.isfinite(norm)
        self._optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self._first = torch.where(bad & (self._first < 0), step, self._first)

    def first(self) -> int | None:
        """The first step whose gradient was not finite; waits for the device."""
        step = int(self._first)
        return None if step < 0 else step


def warmup_steps(warmup: float, steps: int) -> int:
    """The steps of warm-up: `warmup` below 1 is a share of `steps`, rounded up; else a number of steps."""
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def learning_rate(schedule: str, peak: float, step: int, steps: int, warmup: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`.

    Linear rise to `peak` over `warmup` steps, then constant, or down to 0 linearly or by half a cosine. Equal to
    transformers' `get_scheduler` of the same name.
    """
    if step < warmup:
        return peak * step / max(1, warmup)
    if schedule == "constant":
        return peak
    share = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return peak * max(0.0, 1.0 - share)
    assert schedule == "cosine", schedule
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
