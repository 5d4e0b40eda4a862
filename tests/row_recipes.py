"""Recipes for rows that a test writes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune import recipe
from finetune.recipe import Recipe

TASKS = {"text": "sequence", "tokens": "token", "question": "span", "source": "seq2seq"}


def make(folder: Path, path: Any, role: str = "text", **data: Any) -> Recipe:
    """A recipe in `folder` for the task that reads `role`; `data` are further keys of its data block."""
    block = {
        "task": TASKS[role],
        "model": {"checkpoint": "user/model"},
        "data": {"path": path, **data},
        "output": "run",
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(block), encoding="utf-8")
    return recipe.load(file)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """A file with exactly these bytes (text as UTF-8)."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
