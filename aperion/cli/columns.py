"""A table that gives way where the terminal is narrow: whole columns go, the least important first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    Args:
        name: its head.
        cells: from top to bottom.
        gives_way: when it goes, 1 first; 0 for never.
        least: for text: the width below which it is not folded; None for numbers, which are never folded.
    """

    name: str
    cells: Sequence[str | Text]
    gives_way: int = 0
    least: int | None = None

    @property
    def width(self) -> int:
        """What it takes when it is folded as far as may be, with the space behind it."""
        widest = max(cell_len(str(cell)) for cell in (self.name, *self.cells))
        return (widest if self.least is None else min(widest, self.least)) + 1


def table(columns: Sequence[Column], width: int) -> Table:
    """Return a table of those columns that find room."""
    kept = _kept(columns, width)
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for column in kept:
        if column.least is None:
            shown.add_column(column.name, justify="right", no_wrap=True)
        else:
            shown.add_column(column.name, overflow="fold", min_width=min(column.width - 1, width))
    for row in zip(*(column.cells for column in kept), strict=True):
        shown.add_row(*row)
    return shown


def _kept(columns: Sequence[Column], width: int) -> list[Column]:
    kept = list(columns)
    for column in sorted((each for each in columns if each.gives_way), key=lambda each: each.gives_way):
        if sum(each.width for each in kept) <= width + 1:  # nothing follows the last space
            break
        kept.remove(column)
    return kept
