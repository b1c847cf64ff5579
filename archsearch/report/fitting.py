"""Tables that become lists where the terminal is too narrow for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding

from archsearch.report.tables import make_table

_INDENT = 4
_GAP = 2  # blanks between two columns
_LEAST_FOLDED = 24  # a column that may fold is no narrower, where it has more to show


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """A table of text cells, as `make_table` makes it, or a list of its rows where it would have to break a word or a figure.

    Only the column `folds` may have several lines a row. In the list the first `heads` cells of a row stand on its first line; empty
    cells and dashes are left out.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()
    folds: str | None = None
    heads: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._least_width() <= options.max_width:
            table = make_table(self.columns, self.rows, left=self.left)
            for column in table.columns:
                column.no_wrap = column.header != self.folds
            yield table
            return
        for row in self.rows:
            yield "  ".join(row[: self.heads])
            named = zip(self.columns[self.heads :], row[self.heads :], strict=True)
            words = ", ".join(f"{name} {cell}" for name, cell in named if cell not in ("", "-"))
            yield Padding(words, (0, 0, 0, _INDENT))

    def _least_width(self) -> int:
        """Of the table, with every word and figure whole."""
        widths = [self._column_width(place) for place in range(len(self.columns))]
        return sum(widths) + _GAP * (len(widths) - 1)

    def _column_width(self, place: int) -> int:
        cells = [self.columns[place], *(row[place] for row in self.rows)]
        widest = max(map(cell_len, cells))
        if self.columns[place] != self.folds:
            return widest
        longest_word = max(cell_len(word) for cell in cells for word in [*cell.split(), ""])
        return max(longest_word, min(widest, _LEAST_FOLDED))
