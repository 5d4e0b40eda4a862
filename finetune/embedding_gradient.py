"""The gradient of a word embedding on a CPU: of the rows that a step touches, until the optimizer needs it for all.

As torch writes it, it is as large as the table: at each step it is zeroed, read for the norm and multiplied for
clipping, although a batch holds some hundred of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from finetune.seen_vocabulary import is_plain_embedding, users

__all__ = ["RowGradients", "install_row_gradients"]

SMALLEST = 1 << 20  # elements of a table; below, one pass over all costs no more than finding the rows


def install_row_gradients(model: nn.Module) -> Callable[[], None]:
    """Let the large embeddings that are trained give sparse gradients; return the function that undoes it.

    A table that another kind of layer uses, too (an output layer that is tied to it, say), is left alone, as are those
    whose embedding renormalises or scales by frequency.
    """
    found = [
        module
        for parameter, modules in users(model).items()
        if parameter.requires_grad and parameter.numel() >= SMALLEST and all(map(is_plain_embedding, modules))
        for module in modules
    ]
    for module in found:
        module.sparse = True  # type: ignore[assignment]

    def undo() -> None:
        for module in found:
            module.sparse = False  # type: ignore[assignment]

    return undo


class RowGradients:
    """The sparse gradients of the step under way, and one dense tensor for each table, zero between the steps."""

    def __init__(self) -> None:
        self._dense: dict[nn.Parameter, Tensor] = {}
        self._touched: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def narrow(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """`parameters`, each with a sparse gradient in them replaced by one whose gradient is that of its rows.

        What is done to that gradient, (rows, width), in place is done to the parameter's.
        """
        return [self._narrowed(p) if p.grad is not None and p.grad.is_sparse else p for p in parameters]

    def _narrowed(self, parameter: nn.Parameter) -> nn.Parameter:
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        self._touched.append((parameter, rows, values))
        stand_in = nn.Parameter(torch.empty_like(values))
        stand_in.grad = values
        return stand_in

    def widen(self) -> None:
        """Make the gradients dense, as AdamW takes them: it moves rows that are not touched, too."""
        for parameter, rows, values in self._touched:
            if parameter not in self._dense:
                self._dense[parameter] = torch.zeros_like(parameter, requires_grad=False)
            parameter.grad = self._dense[parameter].index_copy_(0, rows, values)

    def clear(self) -> None:
        """Forget the step's gradients."""
        for parameter, rows, _ in self._touched:
            self._dense[parameter].index_fill_(0, rows, 0.0)
            parameter.grad = None
        self._touched.clear()
