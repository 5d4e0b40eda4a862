"""The page around the sections. The template escapes every value; this is the only place where text becomes HTML."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from finetune.card.markdown import visible
from finetune.report.blocks import Section, Tile

__all__ = ["render_page"]

LONGEST = 20_000  # characters of one value


def render_page(title: str, kind: str, under: str, tiles: Sequence[Tile], sections: Sequence[Section]) -> str:
    """The whole HTML file."""
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        loader=FunctionLoader(_read),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    style = Markup(_read("page.css"))  # noqa: S704  (our own style sheet)
    page = environment.get_template("page.html")
    return page.render(title=title, kind=kind, under=under, tiles=tiles, sections=sections, style=style)


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """A value before it is escaped: no control characters, none that reorder the text around them."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    return visible(text if len(text) <= LONGEST else text[:LONGEST] + "…", keep="\n\t")
