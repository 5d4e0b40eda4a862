"""What would stop a run, or its publication, although recipe and data are right: found before training."""

from __future__ import annotations

import difflib
from pathlib import Path

from finetune import publish, tracking
from finetune.carbon import known_country, suggest_countries
from finetune.card.rules import LANGUAGE, LICENSES
from finetune.errors import FinetuneError, RecipeError
from finetune.folder import RunFolder
from finetune.recipe import Recipe

__all__ = ["check"]


def check(recipe: Recipe) -> None:
    """Trackers, the country's grid, the Hub, the output folder.

    Raises RecipeError with a line for each problem that says what to do; what `RunFolder.probe` does where that is all.
    """
    found = tracking.preflight(recipe.track) + _carbon(recipe)
    if recipe.hub is not None:
        found += _licence(recipe) + _language(recipe)
        found += publish.preflight(recipe.hub.repo_id, recipe.hub.private)
    try:
        RunFolder(Path(recipe.output)).probe()
    except FinetuneError as error:
        if not found:
            raise
        found.append(str(error))
    if found:
        raise RecipeError("\n".join(found))


def _licence(recipe: Recipe) -> list[str]:
    """The Hub refuses a card with a licence it does not know, after training."""
    if recipe.card.license is None or recipe.card.license in LICENSES:
        return []
    near = difflib.get_close_matches(recipe.card.license, LICENSES, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; `other` is for licences outside its list"
    return [f"card.license: the Hub does not know {recipe.card.license!r}{hint}"]


def _language(recipe: Recipe) -> list[str]:
    """The same for languages."""
    given = recipe.card.language or []
    return [
        f"card.language: the Hub does not know {language!r}; expected an ISO 639 code of 2 or 3 letters, such as en"
        for language in ([given] if isinstance(given, str) else given)
        if not LANGUAGE.fullmatch(language)
    ]


def _carbon(recipe: Recipe) -> list[str]:
    if recipe.carbon is None or recipe.carbon.country is None or known_country(recipe.carbon.country):
        return []
    near = suggest_countries(recipe.carbon.country)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return [
        f"carbon.country: CodeCarbon knows no grid of {recipe.carbon.country!r}; expected an ISO code of three letters"
        f"{hint}"
    ]
