"""Low-rank adapters: which layers get them, and new weights that are trained and saved in full beside them.

Source: Hu et al., arXiv:2106.09685; peft.LoraConfig.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D  # the linear layer of GPT-2, its weight stored transposed

from finetune.dropout import keep_mask, quantise
from finetune.errors import ModelError
from finetune.recipe import LoraBlock
from finetune.record import HeadSwap

__all__ = ["adapter_parameters", "add_lora", "install_cheap_adapters", "save_adapter", "target_names"]

ADAPTER = "default"  # as PEFT calls the only one


def add_lora(model: Any, head_swap: HeadSwap, block: LoraBlock, seed: int) -> Any:
    """Freeze the backbone, add LoRA adapters, and keep every newly initialised weight trainable and saved.

    The names of the new modules come from the loading report, since PEFT's own guess (`classifier`, `score`) misses
    heads of other names. Raises ModelError when `model.lora.targets` names no module.
    """
    import peft

    whole, loose = _new_parts(model, head_swap.new.names)
    targets = target_names(model, block, head_swap.new.names)
    config = peft.LoraConfig(
        r=block.r,
        lora_alpha=block.alpha,
        lora_dropout=block.dropout,
        target_modules=targets,
        modules_to_save=whole or None,
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in targets),
    )
    torch.manual_seed(seed)
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora.targets: {' '.join(str(error).split())[:300]}") from error
    inner = adapted.base_model.model
    for name in loose:
        inner.get_parameter(name).requires_grad_(True)
    frozen = [name for name in head_swap.new.names if not inner.get_parameter(_inside(name, whole)).requires_grad]
    assert not frozen, f"new weights left frozen by PEFT: {frozen}"
    return adapted


def _new_parts(model: Any, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Modules whose weights are all new and used nowhere else, and the new weights that lie in none of these.

    PEFT trains and saves copies of whole modules. A head for words holds the word embeddings of the checkpoint, too,
    which are neither to be copied nor saved again: what is new directly beside them, a bias, is trained in its place.
    """
    weights = list(model.named_parameters(remove_duplicate=False))
    new = {id(model.get_parameter(name)) for name in names}

    def is_whole(module: str) -> bool:
        inside = {id(weight) for name, weight in weights if name.startswith(f"{module}.")}
        outside = {id(weight) for name, weight in weights if not name.startswith(f"{module}.")}
        return inside <= new - outside

    around = {name.rpartition(".")[0] for name in names}
    modules = _outermost(module for module in around if module and is_whole(module))
    return modules, [name for name in names if _inside(name, modules) == name]


def _outermost(modules: Iterable[str]) -> list[str]:
    """The modules that lie in no other of them."""
    names = set(modules)
    return sorted(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _inside(name: str, modules: list[str]) -> str:
    """The name of a weight within the copy that PEFT trains, where there is one."""
    module = next((module for module in modules if name.startswith(f"{module}.")), None)
    return name if module is None else f"{module}.modules_to_save.{ADAPTER}{name.removeprefix(module)}"


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


def target_names(model: Any, block: LoraBlock, names: Sequence[str]) -> list[str]:
    """Module names for LoRA: those asked for; auto takes every linear layer of the backbone that is not new.

    Never the layer that turns states into words: its weight is most often the word embeddings, which merging would
    change, too. names: of the new weights. Raises ModelError when one that is asked for, or all, name no such layer.
    """
    words = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not words and f"{name}.weight" not in names
    ]
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear})) or "none"
    if block.targets == "auto":
        found = [name for name in linear if ".pooler." not in name]
        if not found:
            raise ModelError(f"model.lora: {type(model).__name__} has no linear layer to adapt; remove the block")
        return found
    missing = [want for want in block.targets if not any(_is_named(name, want) for name in linear)]
    if missing:
        raise ModelError(f"model.lora.targets: no linear layer is named {', '.join(missing)}; there are {known}")
    return [name for name in linear if any(_is_named(name, want) for want in block.targets)]


def adapter_parameters(model: Any, block: LoraBlock, names: Sequence[str]) -> int:
    """How many numbers `add_lora` will train: two matrices for each layer, and the new weights (names)."""
    layers: list[torch.Tensor] = [model.get_submodule(name).weight for name in target_names(model, block, names)]
    new: list[torch.Tensor] = [model.get_parameter(name) for name in names]
    return sum(block.r * sum(weight.shape) for weight in layers) + sum(weight.numel() for weight in new)


def _is_named(name: str, want: str) -> bool:
    return name == want or name.endswith(f".{want}")


def save_adapter(model: Any, folder: Path, base: str | None) -> None:
    """Write adapter and new weights as PEFT loads them; `base` is the public name of the base checkpoint."""
    model.save_pretrained(folder, safe_serialization=True)
    _add_loose(model, folder / "adapter_model.safetensors")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card carries the local path of the base model
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = base
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _add_loose(model: Any, path: Path) -> None:
    """Add the weights trained in their own place, under their own names: PEFT loads such as it loads trained biases."""
    copied = (".lora_", ".modules_to_save.")
    loose = {
        name: weight.detach().contiguous()
        for name, weight in model.named_parameters()
        if weight.requires_grad and not any(part in name for part in copied)
    }
    if loose:
        written = {name: weight.clone() for name, weight in load_file(path).items()}  # not the file's own memory
        save_file(written | loose, path, metadata={"format": "pt"})
