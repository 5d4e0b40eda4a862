"""Figures of matplotlib: as SVG for the page, whose colours follow light and dark, or as PNG for the model card.

What is drawn depends on the arguments alone: no settings of the user's, no date, no random ids.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

__all__ = ["COLOURS", "blank", "drawable", "png", "stacked", "svg"]

COLOURS = {  # name of the CSS variable -> what it is on a light page, and in a PNG
    "surface": "#ffffff",
    "ink": "#1d2733",
    "muted": "#5a6675",
    "grid": "#e3e7ec",
    "model": "#0b61c4",
    "second": "#b8510d",
    "baseline": "#7a8594",
}
_SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["grid"],
    "axes.facecolor": COLOURS["surface"],
    "axes.grid": True,
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": COLOURS["surface"],
    "font.family": "DejaVu Sans",  # comes with matplotlib: sizes are the same everywhere
    "font.size": 10.5,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # a label such as $x$ is text
    "xtick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.color": COLOURS["grid"],
    "ytick.labelcolor": COLOURS["muted"],
}
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@contextmanager
def _own_settings() -> Iterator[None]:
    """matplotlib's defaults and ours, whatever the user's matplotlibrc says, in silence about missing glyphs."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


@contextmanager
def blank(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of `width` x `height` inches with one pair of axes; draw on it, then call svg or png, inside."""
    with stacked(width, height, [1]) as (figure, [axes]):
        yield figure, axes


@contextmanager
def stacked(width: float, height: float, shares: Sequence[float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """As `blank`, with several pairs of axes, one below the other; `shares`: their heights, in any unit."""
    with _own_settings():
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.add_gridspec(len(shares), height_ratios=shares)
        yield figure, [figure.add_subplot(grid[row]) for row in range(len(shares))]


def drawable(text: str) -> bool:
    """Whether the font of the PNGs has every character of `text`."""
    font = FT2Font(mpl.font_manager.findfont("DejaVu Sans"))
    return set(map(ord, text)) <= set(font.get_charmap())


def png(figure: Figure) -> bytes:
    """The figure for a light or a dark page: 144 dots an inch, on a white ground."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=144, metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure, name: str, title: str) -> Markup:
    """An <svg> element for the page. `name`, unique on the page, starts its ids; `title` is read to the blind.

    Text stays text, in the font of the page; colours are the variables of the style sheet.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata=_NO_METADATA)
    root = ElementTree.fromstring(stream.getvalue())  # noqa: S314  (matplotlib wrote it just now)
    root.remove(root[0])  # a style sheet, which would hold for the whole page
    _rename(root, name)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _styled(element.attrib["style"]))
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title", "class": "chart"}
    heading = ElementTree.Element(f"{{{_SVG}}}title", {"id": f"{name}-title"})
    heading.text = title
    root.insert(0, heading)
    ElementTree.register_namespace("", _SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704  (every text was escaped on the way)


def _rename(root: ElementTree.Element, name: str) -> None:
    """Ids unique on the page; those that nothing refers to are dropped."""
    used = set()
    for element in root.iter():
        link, clip = element.attrib.pop(_LINK, None), element.get("clip-path")
        if link is not None:
            used.add(link[1:])
            element.set("href", f"#{name}-{link[1:]}")
        if clip is not None:
            used.add(clip[5:-1])
            element.set("clip-path", f"url(#{name}-{clip[5:-1]})")
    for element in root.iter():
        found = element.attrib.pop("id", None)
        if found in used:
            element.set("id", f"{name}-{found}")


def _styled(style: str) -> str:
    style = re.sub(r" ?font-family: [^;]+;?", "", style)
    return re.sub("#[0-9a-f]{6}", lambda found: _VARIABLES.get(found[0], found[0]), style)


_VARIABLES = {value: f"var(--{name})" for name, value in COLOURS.items()}
