"""Fine-tune and evaluate transformer models from one recipe.

    recipe = finetune.load_recipe("recipe.yaml", ["train.epochs=1"])
    record = finetune.train(recipe)
    record = finetune.evaluate(recipe, "runs/name/export")
    answer = finetune.pipeline("runs/name/export")("Some text.", truncation=True)

Functions return typed objects, print nothing and raise `FinetuneError`. Heavy libraries load with the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from finetune.recipe import Recipe
    from finetune.record import RunRecord

__all__ = ["FinetuneError", "evaluate", "load_recipe", "pipeline", "train"]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `key=value` in dotted form. Raises RecipeError with all problems."""
    from finetune.recipe import load

    return load(path, overrides)


def train(recipe: Recipe, resume: Literal["auto", "never"] = "auto") -> RunRecord:
    """The whole run: fine-tune, evaluate, export, verify, push if the recipe says so; what `run.json` holds."""
    from finetune.run import train as run_train

    return run_train(recipe, resume)


def evaluate(recipe: Recipe, checkpoint: str | Path, split: str | None = None) -> RunRecord:
    """Evaluation only, of a folder or Hub id, on the recipe's data."""
    from finetune.assessment import evaluate as assess

    return assess(recipe, str(checkpoint), split=split)


def pipeline(model: str | Path) -> Any:
    """The transformers pipeline for a folder or Hub id; code that comes with a model is never run."""
    from finetune.prediction import pipeline as make

    return make(str(model))
