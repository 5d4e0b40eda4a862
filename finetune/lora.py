"""Low-rank adapters: which layers get them, and new weights that are trained and saved in full beside them.

Source: Hu et al., arXiv:2106.09685; peft.LoraConfig.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from finetune.dropout import keep_mask, quantise
from finetune.errors import ModelError
from finetune.recipe import LoraBlock
from finetune.record import HeadSwap

__all__ = ["add_lora", "install_cheap_adapters", "save_adapter"]

ADAPTER = "default"  # as PEFT calls the only one


def add_lora(model: Any, head_swap: HeadSwap, block: LoraBlock, seed: int) -> Any:
    """Freeze the backbone, add LoRA adapters, and keep every newly initialised weight trainable and saved.

    The names of the new modules come from the loading report, since PEFT's own guess (`classifier`, `score`) misses
    heads of other names. Raises ModelError when `model.lora.targets` names no module.
    """
    import peft

    new_modules = _outermost(name.rsplit(".", 1)[0] for name in head_swap.new.names)
    config = peft.LoraConfig(
        r=block.r,
        lora_alpha=block.alpha,
        lora_dropout=block.dropout,
        target_modules=_targets(model, block, new_modules),
        modules_to_save=new_modules or None,
    )
    shared = _shared(model, new_modules)
    torch.manual_seed(seed)
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora.targets: {' '.join(str(error).split())[:300]}") from error
    _share_again(adapted, shared)
    trainable = {parameter for parameter in adapted.parameters() if parameter.requires_grad}
    frozen = [
        name
        for name in head_swap.new.names
        if adapted.base_model.model.get_parameter(_inside(name, new_modules)) not in trainable
    ]
    assert not frozen, f"new weights left frozen by PEFT: {frozen}"
    return adapted


def _outermost(modules: Iterable[str]) -> list[str]:
    """The modules that lie in no other of them."""
    names = set(modules)
    return sorted(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _inside(name: str, modules: list[str]) -> str:
    """The name of a weight within the copy that PEFT trains."""
    module = next(module for module in modules if name.startswith(f"{module}."))
    return f"{module}.modules_to_save.default{name.removeprefix(module)}"


def _shared(model: Any, modules: list[str]) -> dict[str, torch.nn.Parameter]:
    """Weights inside `modules` that are also used outside of them, such as word embeddings in a head for words."""
    everywhere = list(model.named_parameters(remove_duplicate=False))
    inside = {name: parameter for name, parameter in everywhere if any(name.startswith(f"{m}.") for m in modules)}
    outside = {id(parameter) for name, parameter in everywhere if name not in inside}
    return {_inside(name, modules): parameter for name, parameter in inside.items() if id(parameter) in outside}


def _share_again(adapted: Any, shared: dict[str, torch.nn.Parameter]) -> None:
    """Put shared weights back, frozen: PEFT trains a copy of a new module, with copies of all that is in it."""
    for name, parameter in shared.items():
        module, _, attribute = name.rpartition(".")
        parameter.requires_grad_(False)
        setattr(adapted.base_model.model.get_submodule(module), attribute, parameter)


def install_cheap_adapters(model: torch.nn.Module) -> Callable[[], None]:
    """Let LoRA layers on a CPU compute the same in fewer passes over wide tensors; return the function that undoes it.

    The factor alpha / r and the scale of dropout are applied where the product is r wide, and the sum with the layer
    beside it is made by the last matrix product.
    """
    from peft.tuners.lora.layer import Linear

    changed = [part for part in model.modules() if type(part) is Linear and not part.lora_variant]
    for part in changed:
        part.forward = types.MethodType(_adapted, part)

    def undo() -> None:
        for part in changed:
            del part.forward

    return undo


def _adapted(self: Any, x: torch.Tensor) -> torch.Tensor:
    """W x + (alpha / r) B A dropout(x), for x (..., in) to (..., out). Source: peft.tuners.lora.layer.Linear."""
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))  # once, for both products
    result = self.base_layer(x)
    p = getattr(self.lora_dropout[ADAPTER], "p", 0.0) if self.training else 0.0
    threshold, scale = quantise(p)
    kept = x * keep_mask(x.shape, threshold, x.dtype) if threshold else x
    low = self.lora_A[ADAPTER](kept) * (self.scaling[ADAPTER] * scale)
    total = torch.addmm(result.flatten(0, -2), low.flatten(0, -2), self.lora_B[ADAPTER].weight.t())
    return total.view(result.shape)


def _targets(model: Any, block: LoraBlock, new_modules: list[str]) -> list[str]:
    """Module names for LoRA: those asked for; auto takes every linear layer of the backbone that is not new.

    Never the layer that turns states into words: its weight is most often the word embeddings, which merging would
    change, too.
    """
    words = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not words
    ]
    linear = [name for name in linear if not any(name == new or name.startswith(f"{new}.") for new in new_modules)]
    if block.targets == "auto":
        return [name for name in linear if ".pooler." not in name]
    wanted = [block.targets] if isinstance(block.targets, str) else list(block.targets)
    found = [name for name in linear if any(name == want or name.endswith(f".{want}") for want in wanted)]
    if not found:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ModelError(f"model.lora.targets: no linear layer is named {wanted}; there are {', '.join(known)}")
    return found


def save_adapter(model: Any, folder: Path, base: str | None) -> None:
    """Write adapter and new weights as PEFT loads them; `base` is the public name of the base checkpoint.

    Word embeddings that a new module shares with the base are in it once more: PEFT loads whole modules only.
    """
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card carries the local path of the base model
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = base
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
