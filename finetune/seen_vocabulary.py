"""The word embedding in training: the rows of the table whose tokens the training data holds.

No other row has a gradient, yet AdamW keeps two moments for it, which stay zero, reads and writes all three at every
step, and shrinks the row by its weight decay; processes exchange its zeros, and checkpoints store them. Here such a row
keeps its pretrained value and is left out of all that. What is computed of the other rows is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name torch's own documentation uses)
from torch import Tensor, nn

from finetune.features import Features

__all__ = [
    "SeenEmbedding",
    "cuttable",
    "install_seen_vocabulary",
    "is_plain_embedding",
    "left_out",
    "unseen_tokens",
    "users",
]

SMALLEST = 1 << 20  # elements that must be left out; below, it is not worth while
BLOCK = 1 << 22  # tokens of a file looked at together


class SeenEmbedding(nn.Embedding):
    """The rows of a table that are trained (`weight`), and those that evaluation alone looks up, which are not.

    A token of neither raises IndexError. In training one of the latter does, too.
    """

    places: Tensor  # int64 (vocabulary,): of a token in `weight` followed by `unseen`
    unseen: Tensor  # (tokens of evaluation, width)

    def __init__(self, whole: nn.Embedding, trained: Tensor, evaluated: Tensor) -> None:
        """trained, evaluated: tokens, int64 (n,), in ascending order and without a common one."""
        assert whole.padding_idx is None or whole.padding_idx in trained
        weight = whole.weight.detach()
        padding = None if whole.padding_idx is None else int(torch.searchsorted(trained, whole.padding_idx))
        super().__init__(len(trained), whole.embedding_dim, padding, _weight=weight[trained])
        held = torch.cat([trained, evaluated])
        places = torch.full((whole.num_embeddings,), len(held), device=weight.device)
        places[held] = torch.arange(len(held), device=weight.device)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("unseen", weight[evaluated], persistent=False)
        self.train(whole.training)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: integers of any shape; gives (*shape, width)."""
        places = self.places[tokens]
        if self.training or not len(self.unseen):
            return F.embedding(places, self.weight, self.padding_idx, sparse=self.sparse)
        return F.embedding(places, torch.cat([self.weight, self.unseen]))


def install_seen_vocabulary(
    model: Any, trained: Features, evaluated: Iterable[Features], padding: int
) -> Callable[[], None]:
    """Put a SeenEmbedding in the place of a model's word embedding; return the function that puts it back, trained.

    trained: what steps are made of; evaluated: what the model is asked besides; padding: the token that fills batches.
    A table is left alone if it is frozen, shared with another layer (an output layer that is tied to it, say), of a
    kind of its own, or if little of it would be left out; so is that of an encoder with a decoder.
    """
    whole, where = _word_embedding(model)
    if whole is None:
        return lambda: None
    size = whole.num_embeddings
    seen = _tokens([trained], size)
    seen[[token for token in (padding, whole.padding_idx, model.config.pad_token_id) if token is not None]] = True
    asked = _tokens(evaluated, size) & ~seen
    if (size - int(seen.sum())) * whole.embedding_dim < SMALLEST:
        return lambda: None
    rows = torch.from_numpy(np.flatnonzero(seen))
    cut = SeenEmbedding(whole, rows, torch.from_numpy(np.flatnonzero(asked)))
    model.set_submodule(where, cut)

    def undo() -> None:
        with torch.no_grad():
            whole.weight[rows] = cut.weight.to(whole.weight.device)
        model.set_submodule(where, whole)

    return undo


def cuttable(model: Any) -> tuple[int, int] | None:
    """Rows and columns of the word embedding that `install_seen_vocabulary` may cut; None where it may not."""
    whole, _ = _word_embedding(model)
    return None if whole is None else (whole.num_embeddings, whole.embedding_dim)


def left_out(shape: tuple[int, int] | None, trained: Features) -> int:
    """About how many numbers of a `cuttable` table training leaves out: that of padding may be kept besides."""
    if shape is None:
        return 0
    rows, columns = shape
    numbers = (rows - int(_tokens([trained], rows).sum())) * columns
    return numbers if numbers >= SMALLEST else 0


def unseen_tokens(model: nn.Module) -> int:
    """How many tokens of the vocabulary keep their pretrained embedding, since the training data holds none of them."""
    cut = next((module for module in model.modules() if isinstance(module, SeenEmbedding)), None)
    return 0 if cut is None else len(cut.places) - cut.num_embeddings


def _word_embedding(model: Any) -> tuple[nn.Embedding | None, str]:
    """The table that can be cut, and its name among the modules."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None, ""
    names = [name for name, module in model.named_modules() if module is table]
    plain = is_plain_embedding(table) and table.weight.requires_grad and users(model)[table.weight] == [table]
    return (table, names[0]) if plain and len(names) == 1 and not model.config.is_encoder_decoder else (None, "")


def is_plain_embedding(module: nn.Module) -> bool:
    """Whether a module looks rows up as torch's embedding does, with a gradient that is the sum over their places."""
    if type(module) not in (nn.Embedding, SeenEmbedding):
        return False
    assert isinstance(module, nn.Embedding)
    return not module.sparse and not module.scale_grad_by_freq and module.max_norm is None


def users(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """The modules that hold each parameter."""
    found: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(parameter, []).append(module)
    return found


def _tokens(many: Iterable[Features], size: int) -> np.ndarray:
    """Which of `size` tokens some features hold: bool (size,)."""
    held = np.zeros(size, dtype=bool)
    for features in many:
        values = features.sequences["input_ids"].values
        for start in range(0, len(values), BLOCK):
            held[values[start : start + BLOCK]] = True
    return held
