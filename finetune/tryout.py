"""A checkpoint tried before it is trained: whether its weights load, and its own code takes rows and odd texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune import data, pretrained
from finetune.errors import ModelError
from finetune.preparation import Prepared, encode_now
from finetune.record import HeadSwap
from finetune.seen_vocabulary import cuttable
from finetune.store import content_sha256, entry, key_of

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.features import Features
    from finetune.rows import Rows

__all__ = ["TriedOut", "probes", "try_out"]

TEXTS = ("", "Привет, мир! 你好，世界。 שלום עולם", "word " * 2000)  # they often break a model, or its pipeline
PADDING_ERROR = 0.05  # of the largest logit: above what a kernel's rounding does, below attention to the padding
CODE = ("decoder.py", "lora.py", "model.py", "pretrained.py", "seen_vocabulary.py", "tryout.py")


@dataclass(frozen=True)
class TriedOut:
    """What is known of weights that can be used."""

    head_swap: HeadSwap
    parameters: int
    word_embedding: tuple[int, int] | None  # rows and columns, if training may cut it
    adapter_parameters: int | None  # numbers that training changes with `model.lora`
    leaves_out: bool  # weights that a row gives no gradient: processes must not wait for it


def probes(ready: Prepared, split: str, count: int) -> tuple[Rows, Features]:
    """`count` rows of a split, evenly spread, and the texts above, as a caller of the pipeline gives them.

    Without those of which the tokenizer leaves no token: no pipeline takes such a text.
    """
    rows = ready.splits[split]
    index = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))
    found = ready.task.probes(rows, index, TEXTS)
    features = encode_now(found, ready.task, ready.tokenizer)
    kept = np.unique(features.scalars["row"][features.lengths > 0])
    if len(kept) == len(found):
        return found, features
    found = found.take(kept)
    return found, encode_now(found, ready.task, ready.tokenizer)


def try_out(ready: Prepared) -> TriedOut:
    """Load the weights as for training, and run the model on a row and the texts above. Raises ModelError.

    Weights that were found in order are not loaded again: that, and the import of the model's code, takes longer than
    all the rest of a check whose rows and features are in the cache. The model is not kept: in some, such as BigBird,
    a short text changes how later ones are computed.
    """

    def build(folder: Path) -> dict[str, Any]:
        from finetune import lora, model

        del folder  # the facts are all
        loaded = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
        _run(ready, loaded.model.eval())
        return {
            "head_swap": loaded.head_swap.model_dump(mode="json"),
            "parameters": loaded.num_parameters,
            "word_embedding": cuttable(loaded.model),
            "adapter_parameters": None
            if (block := ready.recipe.model.lora) is None
            else lora.adapter_parameters(loaded.model, block, loaded.head_swap.new.names),
            "leaves_out": _leaves_out(ready, loaded.model),
        }

    facts = entry("weights", _key(ready), build).facts
    swap, table = HeadSwap.model_validate(facts["head_swap"]), facts["word_embedding"]
    return TriedOut(
        head_swap=swap,
        parameters=facts["parameters"],
        word_embedding=tuple(table) if table else None,
        adapter_parameters=facts["adapter_parameters"],
        leaves_out=facts["leaves_out"],
    )


def _key(ready: Prepared) -> str:
    """Of all that decides whether the weights can be used: files, labels, settings, and the code that looks at them."""
    checkpoint, task, recipe = ready.checkpoint, ready.task, ready.recipe
    code = [content_sha256(Path(__file__).with_name(name)) for name in CODE]
    versions = [version(name) for name in ("transformers", "torch", "safetensors")]
    recomputed = recipe.train is not None and recipe.train.gradient_checkpointing
    evaluate = recipe.evaluate.model_dump(mode="json", include={"calibrate", "generation"})
    settings = [recipe.model.model_dump(mode="json"), recomputed, evaluate, recipe.data.languages, task.max_length]
    files = pretrained.file_hashes(checkpoint)
    return key_of(versions, code, data.task_code(type(task)), files, settings, task.labels, task.problem)


def _run(ready: Prepared, net: Any) -> None:
    """Raises ModelError when the model's own code fails, or when what it says of a text depends on the padding."""
    _, features = probes(ready, next(iter(ready.splits)), 1)
    _, firsts = np.unique(features.scalars["row"], return_index=True)  # of the windows of a row, one is enough
    order = firsts[np.argsort(features.lengths[firsts], kind="stable")]
    alone = [_logits(ready, net, features, order[number : number + 1]) for number in range(len(order))]
    together = _logits(ready, net, features, order[[1, -1]])  # 0 may be the empty text
    for one, both in zip(alone[1], together, strict=True):
        error = float((both[:1][tuple(slice(size) for size in one.shape)] - one).abs().max())
        if not error <= PADDING_ERROR * float(one.abs().max()):  # NaN, too
            raise ModelError(
                f"model.checkpoint: what {type(net).__name__} of {ready.checkpoint.name} says of a text depends on the"
                f" padding beside it: a logit of {float(one.abs().max()):.3g} moves by {error:.2g}; expected a model"
                " whose attention mask leaves padding out; choose a checkpoint of another architecture"
            )
    batch = ready.task.collate(features, order[[1, -1]], ready.tokenizer)
    remedy = "look at evaluate.generation, and at the generation_config.json of the checkpoint"
    with _its_own_code(ready, net, "cannot answer", remedy):
        ready.task.begin(net, batch)


@contextmanager
def _its_own_code(ready: Prepared, net: Any, fails: str, remedy: str) -> Iterator[None]:
    """Run the model's code; whatever it raises becomes a ModelError."""
    import torch

    try:
        with torch.inference_mode():
            yield
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(
            f"model.checkpoint: {type(net).__name__} of {ready.checkpoint.name} {fails}: {reason}; {remedy}"
        ) from error


def _leaves_out(ready: Prepared, net: Any) -> bool:
    """Whether the loss of the longest row leaves a weight without a gradient."""
    from torch.autograd import backward

    features = next(iter(ready.features.values()))
    batch = ready.task.collate(features, np.array([features.lengths.argmax()]), ready.tokenizer)
    backward(ready.task.loss(net(**batch.inputs), batch))
    return any(parameter.grad is None for parameter in net.parameters() if parameter.requires_grad)


def _logits(ready: Prepared, net: Any, features: Features, index: np.ndarray) -> list[Tensor]:
    """What the model gives for a batch: tensors (b, …)."""
    batch = ready.task.collate(features, index, ready.tokenizer)
    texts = " and ".join(f"a text of {length} tokens" for length in features.lengths[index].tolist())
    with _its_own_code(ready, net, f"cannot take {texts}", "choose a checkpoint of another architecture"):
        outputs = net(**batch.inputs)
    return [outputs[name] for name in ("logits", "start_logits", "end_logits") if name in outputs]
