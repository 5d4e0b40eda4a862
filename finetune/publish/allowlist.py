"""Which files of an export may leave this machine: a list of names, and no secret or local path inside them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from finetune.card.pictures import SHOWN
from finetune.errors import PublishError

__all__ = ["allowed", "pattern", "redact"]

_VOCABULARIES = (
    "bpe.codes",
    "dict.txt",
    "entity_vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "spiece.model",
    "spm.model",
    "target.spm",
    "target_vocab.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
_NAMES = frozenset(
    (
        *_VOCABULARIES,
        *SHOWN,
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    )
)
_FAMILIES = r"model-[0-9]{5}-of-[0-9]{5}\.safetensors"

# User access tokens of the Hub, of GitHub, and access keys of AWS.
_TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{36}|\bAKIA[A-Z0-9]{16}\b"
)
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")
_ROOTS = "home|Users|root|tmp|private|mnt|media|srv|opt|work|workspace|scratch|content|kaggle|gpfs|lustre|Volumes"
_LOCAL_PATH = re.compile(
    rf"(?<![\w.~/-])/(?:{_ROOTS})/[^\s\"'`<>)\]]+"  # not inside a longer path or an URL
    r"|\bfile:/+[^\s\"'`<>)\]]+"
    r"|(?<![A-Za-z])[A-Za-z]:\\{1,2}Users\\{1,2}[^\s\"'`<>)\]]+"
)
_HEADER_LIMIT = 100 << 20  # bytes; of a safetensors header, as the format's own reader has it


def pattern(modules: Collection[str] = ()) -> str:
    """A regular expression for the whole name, relative to the export, of every file that may be pushed."""
    return "|".join([*(re.escape(name) for name in sorted({*_NAMES, *modules})), _FAMILIES])


def allowed(export: Path, modules: Collection[str] = ()) -> list[Path]:
    """Every file of `export`, sorted by name, when all of them may be pushed.

    modules: names of the inference modules that this package put there. Raises PublishError with all problems: a name
    that is not on the list, a link, and in a text file an absolute path of this machine or what looks like a token.
    """
    if not export.is_dir():
        raise PublishError(f"{export}: no such folder; train first")
    files, problems, names = [], [], re.compile(pattern(modules))
    for path in sorted(_walk(export)):
        name = path.relative_to(export).as_posix()
        if path.is_symlink():
            problems.append(f"{name}: a link; replace it by the file itself")
        elif names.fullmatch(name) is None:
            problems.append(f"{name}: not a file that belongs to a model; move it out of the export")
        elif not path.is_file():
            problems.append(f"{name}: not a regular file; remove it")
        else:
            files.append(path)
            problems += _inside(path, name, export)
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        raise PublishError(f"{export}: nothing was sent, {len(problems)} of its files must not be published\n{lines}")
    return files


def redact(text: str) -> str:
    """`text` without tokens, for messages."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return _TOKEN.sub("***", text)


def _walk(folder: Path) -> Iterator[Path]:
    """Files, and links of any kind, below `folder`. A link is not followed."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _inside(path: Path, name: str, export: Path) -> list[str]:
    """What must not be read by others in this file."""
    text = _text(path)
    found = [secret for secret in _secrets() if secret in text] or _TOKEN.findall(text)
    problems = [f"{name}: holds what looks like an access token; remove it and revoke the token"] if found else []
    places = {str(export.resolve().parent), str(Path.cwd()), str(Path.home())}
    known = [place for place in places if place.count("/") > 1 and place + "/" in text]
    if not known and name not in _VOCABULARIES:
        known = _LOCAL_PATH.findall(text)
    return problems + [f"{name}: holds a path of this machine ({path}); remove it" for path in known[:1]]


def _text(path: Path) -> str:
    """The text of a file; of safetensors the header, of pictures and binary vocabularies what can be read as text."""
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            return file.read().decode(errors="replace")
        size = int.from_bytes(file.read(8), "little")
        return file.read(min(size, _HEADER_LIMIT)).decode(errors="replace")


def _secrets() -> list[str]:
    """Values of the environment that are named as secrets, and the stored login of the Hub."""
    values = [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 16]
    values += [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")]
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    store = Path(os.environ.get("HF_TOKEN_PATH") or Path(home, "token")).expanduser()
    if store.is_file():
        values.append(store.read_text(encoding="utf-8").strip())
    return [value for value in values if len(value) >= 8]
