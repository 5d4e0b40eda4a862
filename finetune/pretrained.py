"""Checkpoints on disk: found by Hub id, folder or package; refused when unsafe or unfit; their config and tokenizer."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from finetune import decoder
from finetune.errors import ModelError
from finetune.recipe import Recipe, is_local
from finetune.store import content_sha256, file_sha256
from finetune.tasks.base import Task
from finetune.tasks.encoding import bare

__all__ = [
    "Checkpoint",
    "checkpoint_in",
    "file_hashes",
    "files",
    "find_checkpoint",
    "identity",
    "load_tokenizer",
    "locate",
    "longest_input",
    "own_config",
    "read_config",
    "tokenizer_sha256",
    "with_decoder",
]

# Files that make a checkpoint. Pickled weights (.bin, .pt) and code (.py) are never fetched.
PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.spm", "model*.safetensors", "adapter_model.safetensors"]
VOCABULARIES = ("vocab.txt", "merges.txt", "bpe.codes", "dict.txt")  # no other text is part of a checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as files on disk. `name` is what the recipe wrote; `revision` the commit, where a Hub gave one."""

    name: str
    folder: Path
    revision: str | None = None
    decoder: Checkpoint | None = None  # where the decoder that an encoder is given starts from
    adapter: Path | None = None  # the folder of a PEFT adapter that `folder` is the base of


def find_checkpoint(recipe: Recipe) -> Checkpoint:
    """The recipe's checkpoint on disk, downloaded when it is a Hub id. Raises ModelError."""
    block = recipe.model
    checkpoint = locate(block.checkpoint, block.revision, recipe.locate)
    if block.sha256 is not None:
        _check_sha256(checkpoint, block.sha256)
    return with_decoder(checkpoint, recipe)


def with_decoder(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The checkpoint with the decoder that the recipe gives it, if any. Raises ModelError."""
    name = recipe.model.decoder
    if name is None:
        return checkpoint
    return replace(checkpoint, decoder=checkpoint if name == "same" else _decoder(name, recipe))


def _decoder(name: str, recipe: Recipe) -> Checkpoint:
    try:
        return locate(name, None, recipe.locate)
    except ModelError as error:
        raise ModelError(str(error).replace("model.checkpoint", "model.decoder")) from error


def locate(name: str, revision: str | None = None, resolve: Callable[[str], Path] = Path) -> Checkpoint:
    """A checkpoint by Hub id, folder or package://… ; `resolve` makes a path of a local name. Raises ModelError."""
    return checkpoint_in(*files(name, revision, resolve), name)


def checkpoint_in(folder: Path, commit: str | None, name: str) -> Checkpoint:
    """The checkpoint `name` in a folder that `files` gave. Raises ModelError when there is none."""
    if (folder / "config.json").is_file():
        return Checkpoint(name, folder, commit)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"model.checkpoint: {name} is a PEFT adapter without its base, which only finetune evaluate takes as it is;"
            " merge it (PEFT's merge_and_unload), save model and tokenizer, and give that folder"
        )
    if commit is not None:
        raise ModelError(f"model.checkpoint: {name} has no config.json: not a transformers checkpoint")
    hint = f"; did you mean {name.rstrip('/')}/export?" if (folder / "export" / "config.json").is_file() else ""
    raise ModelError(
        f"model.checkpoint: {name} is not a folder with a config.json; give a checkpoint's folder or a Hub id{hint}"
    )


def files(name: str, revision: str | None = None, resolve: Callable[[str], Path] = Path) -> tuple[Path, str | None]:
    """The folder of a checkpoint or adapter, downloaded when it is a Hub id, and the commit. Raises ModelError."""
    if name.startswith("package://"):
        return _package_folder(name), None
    folder = Path(resolve(name))
    known = ("config.json", "adapter_config.json", "export/config.json")
    if is_local(name) or any((folder / file).is_file() for file in known):
        return folder, None
    return _download(name, revision)


def _package_folder(name: str) -> Path:
    package, _, inside = name.removeprefix("package://").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model.checkpoint: {name}: no package {package} is installed; install it (for the shipped recipes:"
            " the extra `quickstart`)"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not (folder / "config.json").is_file():
        raise ModelError(f"model.checkpoint: {name}: no folder {inside!r} with a config.json inside the package")
    return folder


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, ignore_patterns=["*/*"]))
    except GatedRepoError as error:
        raise ModelError(f"model.checkpoint: {name} is gated; accept its terms on the Hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model.revision: {name} has no branch, tag or commit {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model.checkpoint: the Hub has no model {name!r} that you can see; check the spelling, or set HF_TOKEN if"
            " it is private; a folder is written ./folder"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"model.checkpoint: {name} could not be fetched ({type(error).__name__}) and is not in the local cache;"
            " check the network, or give a folder"
        ) from error
    return folder, folder.name


def _check_sha256(checkpoint: Checkpoint, expected: str) -> None:
    path = checkpoint.folder / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"model.sha256: {checkpoint.name} has no model.safetensors to check")
    found = content_sha256(path)
    if found != expected.lower():
        raise ModelError(
            f"model.sha256: model.safetensors of {checkpoint.name} has sha256 {found}, expected {expected};"
            " the file is not the one this recipe was written for"
        )


def file_hashes(checkpoint: Checkpoint) -> list[dict[str, str]]:
    """Name -> sha256 of the files that a model is loaded from, of its folder and its decoder's. Raises ModelError."""
    return [_hashes(part) for part in _parts(checkpoint)]


def identity(checkpoint: Checkpoint) -> list[Any]:
    """As `file_hashes`, with the commit in the place of hashes where a Hub gave one. Raises ModelError."""
    return [part.revision or _hashes(part) for part in _parts(checkpoint)]


def _parts(checkpoint: Checkpoint) -> list[Checkpoint]:
    return [checkpoint] if checkpoint.decoder is None else [checkpoint, checkpoint.decoder]


def _hashes(part: Checkpoint) -> dict[str, str]:
    try:
        return {path.name: file_sha256(path) for path in sorted(part.folder.iterdir()) if _is_read(path)}
    except OSError as error:
        raise ModelError(f"model.checkpoint: {part.name} does not load: {error}") from error


def _is_read(path: Path) -> bool:
    return (path.suffix in (".json", ".safetensors", ".model", ".spm") or path.name in VOCABULARIES) and path.is_file()


def read_config(
    checkpoint: Checkpoint, task: type[Task] | Task, *, needs_weights: bool = True, trained: bool = False
) -> Any:
    """The checkpoint's config, after all checks that need no weights. Raises ModelError.

    With a decoder from elsewhere it is the config of both together. trained: it comes with its head, or is of no use.
    """
    config = own_config(checkpoint, needs_weights)
    if checkpoint.decoder is not None:
        own = config if checkpoint.decoder == checkpoint else own_config(checkpoint.decoder, needs_weights)
        config = decoder.join(config, own, (checkpoint.name, checkpoint.decoder.name))
    if type(config) not in getattr(transformers, task.auto_class)._model_mapping:
        raise ModelError(_untrained(checkpoint.name, config) if trained else task.unfit(checkpoint.name, config))
    return config


def _untrained(name: str, config: Any) -> str:
    saved = ", ".join(getattr(config, "architectures", None) or [f"a model of type {config.model_type!r}"])
    return (
        f"{name}: is saved as {saved}; it has no trained head for this task; fine-tune one that can have it, or use a"
        " recipe of its own task"
    )


def own_config(checkpoint: Checkpoint, needs_weights: bool = True) -> Any:
    """The config of a checkpoint of any architecture that transformers has. Raises ModelError."""
    folder = checkpoint.folder
    raw = _json_object(checkpoint, "config.json")
    if "auto_map" in raw:
        raise ModelError(
            f"model.checkpoint: {checkpoint.name} asks for trust_remote_code: code that comes with a checkpoint is"
            " never run; use a checkpoint whose architecture is part of transformers"
        )
    if needs_weights and not list(folder.glob("model*.safetensors")):
        raise ModelError(
            f"model.checkpoint: {checkpoint.name} has no model.safetensors; pickled weights (.bin, .pt) can run code"
            " when loaded and are refused; load them once in a place you trust and call save_pretrained, or use"
            " a revision that has safetensors (on the Hub often refs/pr/…)"
        )
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        kind = raw.get("model_type")
        raise ModelError(
            f"model.checkpoint: {checkpoint.name} is of type {kind!r}, which transformers {transformers.__version__}"
            f" cannot load ({str(error).splitlines()[0]})"
        ) from error


def _json_object(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    try:
        found = json.loads((checkpoint.folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.checkpoint: {name} of {checkpoint.name} cannot be read ({error}); fetch or save it again"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"model.checkpoint: {name} of {checkpoint.name}: expected an object, found {found!r:.60}")
    return found


def load_tokenizer(checkpoint: Checkpoint, config: Any) -> Any:
    """The checkpoint's tokenizer, with a padding token, which `config` gets too if it has none. Raises ModelError."""
    adapter = checkpoint.adapter
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        return _own_tokenizer(replace(checkpoint, folder=adapter), config)
    tokenizer = _own_tokenizer(checkpoint, config)
    if checkpoint.decoder is not None:
        same = checkpoint.decoder.folder == checkpoint.folder
        decoder.mark(config, tokenizer, None if same else _own_tokenizer(checkpoint.decoder, config.decoder))
    return tokenizer


def _own_tokenizer(checkpoint: Checkpoint, config: Any) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=False, local_files_only=True
        )
    except (ValueError, KeyError, OSError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        missing = isinstance(error, ImportError) and "sentencepiece" in str(error).lower()
        hint = "; install it: pip install sentencepiece" if missing else ""
        raise ModelError(
            f"model.checkpoint: {checkpoint.name} has no tokenizer that loads ({lines[0]}){hint}"
        ) from error
    rows = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if rows is not None and largest >= rows:
        raise ModelError(
            f"model.checkpoint: the tokenizer of {checkpoint.name} has ids up to {largest}, but the model has only"
            f" {rows} embeddings; tokenizer and weights do not belong together"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model.checkpoint: the tokenizer of {checkpoint.name} has neither a padding nor an end token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:  # a decoder's head looks for the last token that is none
        text.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def tokenizer_sha256(tokenizer: Any) -> str:
    """A hash of everything that decides how text becomes ids: the key of the encoding cache."""
    digest = hashlib.sha256(transformers.__version__.encode())
    if tokenizer.is_fast:
        digest.update(bare(tokenizer).to_str().encode())
    else:
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(repr((type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.all_special_tokens)).encode())
    return digest.hexdigest()


def longest_input(config: Any, tokenizer: Any, wanted: int) -> int:
    """min(wanted, what the tokenizer states, positions of the model), in tokens.

    A RoBERTa-like model loses `padding index + 1` of its positions (transformers `create_position_ids_from_input_ids`).
    """
    text = getattr(config, "encoder", None) or config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    relative = getattr(text, "position_embedding_type", "absolute") != "absolute" or hasattr(
        text, "relative_attention_num_buckets"
    )
    limits = [wanted, tokenizer.model_max_length]
    if positions and positions > 0 and not relative:
        offset = text.pad_token_id + 1 if text.model_type in _OFFSET_POSITIONS and text.pad_token_id is not None else 0
        limits.append(positions - offset)
    return int(min(limits))


_OFFSET_POSITIONS = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "camembert",
        "longformer",
        "mpnet",
        "roberta-prelayernorm",
        "xlm-roberta-xl",
        "data2vec-text",
        "ibert",
        "esm",
        "luke",
    }
)
