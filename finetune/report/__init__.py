"""`report.html`: one page on a run or an evaluation, complete in itself: no script, nothing fetched, text escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.card.public_names import dataset_name, model_name
from finetune.recipe import Recipe
from finetune.record import RunRecord, write_atomic
from finetune.report.auditing import auditing
from finetune.report.blocks import Section
from finetune.report.curves import read_curves
from finetune.report.failing import Shown, failing, hard_rows
from finetune.report.making import data, head_swap, recipe_text, versions
from finetune.report.page import render_page
from finetune.report.results import results, tiles
from finetune.report.running import Curves, curves, emissions, speed

__all__ = ["render", "write"]


def write(folder: Path, recipe: Recipe, record: RunRecord) -> None:
    """Write `report.html` into a run folder, or that of an evaluation, from its record and its metrics.jsonl."""
    page = render(recipe, record, read_curves(folder / "metrics.jsonl"), _read_hard_rows(folder / "hard_rows.jsonl"))
    write_atomic(folder / "report.html", page)


def _read_hard_rows(path: Path) -> Shown:
    shown: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return shown
    with open(path, encoding="utf-8") as file:
        for line in file:  # not `splitlines`, which splits inside of texts, too
            row = json.loads(line)
            shown.setdefault(row["split"], {})[row["id"]] = row
    return shown


def render(recipe: Recipe, record: RunRecord, found: Curves, shown: Shown) -> str:
    """The page. Sections about which the record says nothing are left out."""
    sections = [section for section in _sections(recipe, record, found, shown) if section.blocks]
    checkpoint = record.model.checkpoint if record.model is not None else recipe.model.checkpoint
    under = f"{checkpoint} on {dataset_name(recipe)}; {record.status}" + (
        f", {record.started}" if record.started else ""
    )
    return render_page(model_name(recipe, None), recipe.task, under, list(tiles(record)), sections)


def _sections(recipe: Recipe, record: RunRecord, found: Curves, shown: Shown) -> list[Section]:
    return [
        results(record),
        curves(record, found),
        failing(record),
        hard_rows(record, shown),
        data(recipe, record),
        auditing(record),
        speed(record, found),
        emissions(record),
        head_swap(record),
        recipe_text(recipe),
        versions(record),
    ]
