"""What a section of the page is made of. All text is plain; the template escapes it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

__all__ = ["Beside", "Block", "Chart", "Code", "Facts", "Folded", "Note", "Section", "Table", "Tile"]


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Code:
    """Text in its own lines, in a font of equal widths."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values; values of None are left out."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str | None]]


@dataclass(frozen=True)
class Table:
    """Rows of cells. Columns by number: `right` hold figures, `mono` names of things in code, `wide` sentences."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[int] = ()
    mono: Collection[int] = ()
    wide: Collection[int] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing and what it shows, in a few words."""

    kind: ClassVar[str] = "chart"
    drawing: Markup
    caption: str
    wide: bool = False  # on a small screen it scrolls rather than shrinks


@dataclass(frozen=True)
class Beside:
    """Charts and tables, side by side where there is room."""

    kind: ClassVar[str] = "beside"
    blocks: Sequence[Chart | Table]


@dataclass(frozen=True)
class Folded:
    """Many names behind one line that opens."""

    kind: ClassVar[str] = "folded"
    summary: str
    text: str


Block = Note | Code | Facts | Table | Chart | Beside | Folded


@dataclass
class Section:
    """One heading and what stands under it."""

    name: str  # of the anchor
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Tile:
    """One figure at the head of the page."""

    label: str
    value: str
    beside: str = ""
