"""Checkpoint to model with a new head, with a report of the weights; export."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from finetune import adapter, decoder
from finetune.errors import Attempts, ModelError
from finetune.lora import save_adapter, target_names
from finetune.pretrained import Checkpoint, load_tokenizer, read_config
from finetune.recipe import Recipe
from finetune.record import ExportedFile, HeadSwap, Names
from finetune.store import content_sha256
from finetune.tasks.base import Task, refuse_placeholder_names
from finetune.tasks.encoding import bare

__all__ = [
    "Loaded",
    "describe_files",
    "divide_logits",
    "export",
    "load_for_evaluation",
    "load_for_training",
    "quiet_transformers",
    "write_config",
    "write_weights",
]

LOADING = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}


@dataclass
class Loaded:
    """A model on the CPU with fp32 weights, its tokenizer, and where the weights came from."""

    model: Any
    tokenizer: Any
    head_swap: HeadSwap

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())


# -------------------------------------------------------------------------------------------- weights


def load_for_training(checkpoint: Checkpoint, config: Any, task: Task, recipe: Recipe) -> Loaded:
    """The model with a head for `task`: new unless `model.keep_head`, with fp32 weights on the CPU.

    The new weights depend on `train.seed` alone. Raises ModelError when weights of the backbone are missing or any
    weight is not finite.
    """
    if (method := _quantisation(config)) is not None:
        raise ModelError(
            f"model.checkpoint: {checkpoint.name} is stored quantised ({method}), which cannot be fine-tuned in full"
            " precision; use the checkpoint it was made from"
        )
    tokenizer = load_tokenizer(checkpoint, config)
    refuse_placeholder_names(task.labels)
    foreign = list(getattr(config, "architectures", None) or [])
    if recipe.model.keep_head:
        _check_kept_head(config, task, checkpoint)
    _forget_origin(config)
    task.configure(config)
    auto = getattr(transformers, task.auto_class)
    torch.manual_seed(recipe.train.seed if recipe.train is not None else 0)
    if recipe.model.init == "scratch":
        model = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
        unused = decoder.freeze_unused(model)
        head_swap = HeadSwap(new=_names(set(model.state_dict()) - set(unused)))
        _check_settings(model, head_swap, task, recipe)
        return Loaded(model, tokenizer, head_swap)
    model, info = _load(auto, checkpoint, config, ignore_mismatched_sizes=not recipe.model.keep_head)
    head_swap = _report(model, info, checkpoint, task)
    _leave_out(head_swap, decoder.freeze_unused(model))
    if task.renews_head and not recipe.model.keep_head:
        _renew_head(model, auto, config, head_swap, recipe, task)
        assert head_swap.reused.count, f"all weights of {type(model).__name__} were taken for those of a head"
    elif recipe.model.keep_head and head_swap.new.count:
        raise ModelError(
            f"model.keep_head: {checkpoint.name} ({', '.join(foreign)}) has no weights for"
            f" {', '.join(head_swap.new.names[:5])}; leave keep_head out to train a new head"
        )
    _check_settings(model, head_swap, task, recipe)
    return Loaded(model, tokenizer, head_swap)


def _check_settings(model: Any, head_swap: HeadSwap, task: Task, recipe: Recipe) -> None:
    """Raises ModelError when the model cannot be trained in the way that the recipe asks for."""
    attempts = Attempts()
    if (block := recipe.model.lora) is not None:
        attempts(lambda: target_names(model, block, head_swap.new.names))
    if recipe.train is not None and recipe.train.gradient_checkpointing:
        attempts(lambda: _check_recomputing(model))
    if recipe.evaluate.calibrate:
        attempts(lambda: _last_layer(model, task))
    attempts.check()


def _check_recomputing(model: Any) -> None:
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"train.gradient_checkpointing: transformers cannot recompute the layers of {type(model).__name__}; remove"
            " the key"
        )


def load_for_evaluation(checkpoint: Checkpoint, task: type[Task] | Task) -> Loaded:
    """A checkpoint with its own head, fp32, on the CPU.

    Raises ModelError unless architecture, missing, mismatched and unexpected keys all say that the head is trained.
    """
    config = read_config(checkpoint, task, trained=checkpoint.adapter is None)
    if checkpoint.adapter is not None:
        return _with_adapter(checkpoint, config, task)
    auto = getattr(transformers, task.auto_class)
    expected = {cls.__name__ for cls in _classes(auto, config)}
    found = list(getattr(config, "architectures", None) or [])
    if not expected & set(found):
        raise ModelError(
            f"{checkpoint.name}: is saved as {', '.join(found) or 'an unnamed architecture'}, expected"
            f" {' or '.join(sorted(expected))}; it has no trained head for this task; fine-tune it first, or use"
            " a recipe of its own task"
        )
    tokenizer = load_tokenizer(checkpoint, config)  # first: it completes the config
    model, info = _load(auto, checkpoint, config, ignore_mismatched_sizes=False)
    head_swap = _report(model, info, checkpoint, task)
    if head_swap.new.count:
        raise ModelError(
            f"{checkpoint.name}: has no weights for {', '.join(head_swap.new.names[:5])}: the head would be"
            " random; fine-tune it first"
        )
    return Loaded(model, tokenizer, head_swap)


def _with_adapter(checkpoint: Checkpoint, config: Any, task: type[Task] | Task) -> Loaded:
    """A base with a PEFT adapter merged into it, head included."""
    adapter.set_labels(checkpoint, config, task)
    tokenizer = load_tokenizer(checkpoint, config)  # first: it completes the config
    model, info = _load(getattr(transformers, task.auto_class), checkpoint, config, ignore_mismatched_sizes=True)
    head_swap = _report(model, info, checkpoint, task)
    with quiet_transformers():
        merged = adapter.merge(checkpoint, model, head_swap.new.names)
    return Loaded(merged.eval(), tokenizer, head_swap)


def _classes(auto: Any, config: Any) -> tuple[Any, ...]:
    found = auto._model_mapping[type(config)]
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def _load(
    auto: Any, checkpoint: Checkpoint, config: Any, *, ignore_mismatched_sizes: bool
) -> tuple[Any, dict[str, Any]]:
    arguments: dict[str, Any] = LOADING | {"dtype": torch.float32, "ignore_mismatched_sizes": ignore_mismatched_sizes}
    with quiet_transformers():
        try:
            if (other := checkpoint.decoder) is not None:
                both = (checkpoint.folder, other.folder), (checkpoint.name, other.name)
                model, info = decoder.load_joined(*both, config, **arguments)
            else:
                model, info = auto.from_pretrained(
                    checkpoint.folder, config=config, output_loading_info=True, **arguments
                )
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            if (method := _quantisation(config)) is not None:
                raise ModelError(
                    f"{checkpoint.name}: is stored quantised ({method}) and does not load here: {_first_lines(error)};"
                    " install what is missing, or give the checkpoint that it was made from"
                ) from error
            raise ModelError(f"model.checkpoint: {checkpoint.name} does not load: {_first_lines(error)}") from error
        except Exception as error:  # safetensors raises its own class for a damaged file, which is no subclass of these
            if type(error).__module__.startswith("safetensors"):
                raise ModelError(f"model.checkpoint: the weights of {checkpoint.name} are damaged: {error}") from error
            raise
    return model, info


def _quantisation(config: Any) -> str | None:
    """The method that config.json says the weights are quantised by."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method) or "unknown")


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _report(model: Any, info: dict[str, Any], checkpoint: Checkpoint, task: type[Task] | Task) -> HeadSwap:
    """Sort the weights by where they come from; refuse a hole in the backbone and weights that are not finite."""
    new = set(info["missing_keys"]) | {item[0] if isinstance(item, tuple) else item for item in info["mismatched_keys"]}
    holes = sorted(name for name in new if task.in_backbone(model, name) and ".pooler." not in name)
    if holes:
        raise ModelError(
            f"model.checkpoint: {checkpoint.name} lacks {len(holes)} weights of the backbone"
            f" ({', '.join(holes[:3])} …); the checkpoint is incomplete or of another architecture"
            " than its config.json says"
        )
    plain = [(name, one) for name, one in model.named_parameters() if type(one) is torch.nn.Parameter]
    bad = [name for name, tensor in plain if not bool(torch.isfinite(tensor).all())]  # quantised ones cannot tell
    if bad:
        raise ModelError(f"model.checkpoint: {checkpoint.name} holds NaN or infinite numbers in {', '.join(bad[:3])}")
    weights = {name for name, _ in model.named_parameters()}
    return HeadSwap(reused=_names(weights - new), new=_names(weights & new), dropped=_names(info["unexpected_keys"]))


def _leave_out(head_swap: HeadSwap, unused: list[str]) -> None:
    """Count weights that the model carries and does not use as left out."""
    head_swap.reused = _names(set(head_swap.reused.names) - set(unused))
    head_swap.new = _names(set(head_swap.new.names) - set(unused))
    head_swap.dropped = _names(set(head_swap.dropped.names) | set(unused))


def _renew_head(model: Any, auto: Any, config: Any, head_swap: HeadSwap, recipe: Recipe, task: Task) -> None:
    """Give a head that came with the checkpoint fresh random weights: it was trained for something else."""
    foreign = sorted(name for name in head_swap.reused.names if not task.in_backbone(model, name))
    if not foreign:
        return
    torch.manual_seed(recipe.train.seed if recipe.train is not None else 0)
    fresh = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        for name in foreign:
            model.get_parameter(name).copy_(fresh.get_parameter(name))
    head_swap.reused = _names(set(head_swap.reused.names) - set(foreign))
    head_swap.new = _names(set(head_swap.new.names) | set(foreign))
    head_swap.dropped = _names(set(head_swap.dropped.names) | set(foreign))


def _check_kept_head(config: Any, task: Task, checkpoint: Checkpoint) -> None:
    own = [config.id2label[number] for number in sorted(config.id2label)]
    if task.labels_must_match and own != task.labels:
        raise ModelError(
            f"model.keep_head: the labels of {checkpoint.name} are {own}, those of the data {task.labels}; they must be"
            " the same names; leave keep_head out to train a new head"
        )


def _forget_origin(config: Any) -> None:
    """Drop what a checkpoint's config would carry on into ours: code hooks, pipelines, calibration, place on disk."""
    for key in ("auto_map", "calibration_temperature", "custom_pipelines", "task_specific_params", "thresholds"):
        if hasattr(config, key):
            delattr(config, key)
    config._name_or_path = ""


def _names(names: Any) -> Names:
    return Names(count=len(names), names=sorted(names))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load tables of transformers: the head swap is reported by us."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)


# -------------------------------------------------------------------------------------------- export


def export(model: Any, tokenizer: Any, task: Task, folder: Path, *, base: str | None) -> None:
    """Write the model as a reader loads it: safetensors in fp32, tokenizer, config; a LoRA adapter merged, and beside.

    `base`: the public name of the base checkpoint, for the adapter's config. `folder` must not exist.
    """
    folder.mkdir(parents=True)
    if hasattr(model, "merge_and_unload"):
        with quiet_transformers():
            save_adapter(model, folder / "adapter", base)
        model = model.merge_and_unload()
    refuse_placeholder_names(task.labels)
    _forget_origin(model.config)
    task.configure(model.config)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.model_max_length = task.max_length
        if tokenizer.is_fast:
            bare(tokenizer)  # its file would say how it was called last
        tokenizer.save_pretrained(folder)
    _clean_json(
        folder / "tokenizer_config.json", drop=("name_or_path", "tokenizer_file", "local_files_only", "is_local")
    )
    _clean_json(folder / "config.json", drop=("_name_or_path",))
    task.export(folder)
    _open_to_all(folder)


def _open_to_all(folder: Path) -> None:
    """safetensors writes files that only their owner can read."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def divide_logits(model: Any, task: Task, temperature: float) -> None:
    """Divide weights and bias of the head's last linear layer, and so its logits, by a temperature.

    Raises ModelError where the head has not exactly one linear layer with an output for each label.
    """
    with torch.no_grad():
        for parameter in _last_layer(model, task).parameters():
            parameter.div_(temperature)


def _last_layer(model: Any, task: Task) -> torch.nn.Linear:
    last = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == len(task.labels)
        if not task.in_backbone(model, f"{name}.weight")
    ]
    if len(last) != 1:
        raise ModelError(
            f"evaluate.calibrate: the head of {type(model).__name__} has {len(last)} linear layers with"
            f" {len(task.labels)} outputs, expected one; leave evaluate.calibrate out"
        )
    return last[0]


def write_weights(model: Any, folder: Path) -> None:
    """Write the weights of an exported model again."""
    with quiet_transformers():
        model.save_pretrained(folder)
    _clean_json(folder / "config.json", drop=("_name_or_path",))
    _open_to_all(folder)


def write_config(config: Any, task: Task, folder: Path) -> None:
    """Write config.json again, with what the task has tuned since."""
    _forget_origin(config)
    task.configure(config)
    config.save_pretrained(folder)
    _clean_json(folder / "config.json", drop=("_name_or_path",))


def _clean_json(path: Path, drop: tuple[str, ...]) -> None:
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(_without(content, drop), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without(content: Any, drop: tuple[str, ...]) -> Any:
    """JSON without some keys, at any depth: an encoder-decoder's config holds two others."""
    if not isinstance(content, dict):
        return content
    return {key: _without(value, drop) for key, value in content.items() if key not in drop}


def describe_files(folder: Path) -> dict[str, ExportedFile]:
    """Size and sha256 of every file under `folder`, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): ExportedFile(size_bytes=path.stat().st_size, sha256=content_sha256(path))
        for path in files
    }
