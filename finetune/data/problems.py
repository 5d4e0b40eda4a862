"""Everything wrong with the data, collected and told in one message."""

from __future__ import annotations

from finetune.errors import DataError

__all__ = ["Problems"]

SHOWN = 20  # lines of one kind


class Problems:
    """Problems by kind; of each kind the first lines are kept and the rest counted."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def add(self, kind: str, text: str) -> None:
        """text: where, what was expected, what was found, what to do."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        lines = self._lines.setdefault(kind, [])
        if len(lines) < SHOWN:
            lines.append(text)

    def extend(self, other: Problems) -> None:
        """Add all problems of another collection, kind by kind."""
        for kind, lines in other._lines.items():
            own = self._lines.setdefault(kind, [])
            own += lines[: SHOWN - len(own)]
            self._counts[kind] = self._counts.get(kind, 0) + other._counts[kind]

    def lines(self) -> list[str]:
        """The lines kept of each kind, and how many more there are."""
        lines = []
        for kind, shown in self._lines.items():
            more = self._counts[kind] - len(shown)
            lines += shown + ([f"… and {more:,} more: {kind}"] if more else [])
        return lines

    def error(self, title: str) -> DataError:
        """One DataError with all of them: a single line for a single problem."""
        lines = self.lines()
        if len(lines) == 1:
            return DataError(f"{title}: {lines[0]}")
        return DataError(f"{title}: {len(self):,} problems\n" + "\n".join(f"  {line}" for line in lines))

    def check(self, title: str) -> None:
        """Raises the DataError when there are any."""
        if len(self):
            raise self.error(title)
