"""What all reports share: the console, tables and lists, JSON, and how conditions and quantities are written."""

import json
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

from archsearch.units import format_bytes, format_image, stored_size

Document = Mapping[str, Any]  # the content of a report as plain values: what --json prints

# What a column of figures is called.
HEADINGS = {
    "proxy_score": "score",
    "throughput_img_s": "img/s",
    "params": "params",
    "macs": "MACs",
    "latency_ms": "ms/batch",
    "peak_memory_bytes": "memory",
}

_PIPE_WIDTH = 120  # of text written to a file or a pipe, which has no width of its own


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text unchanged, without markup or highlighting; NO_COLOR and COLUMNS are respected."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def show(console: Console, *parts: RenderableType) -> None:
    """Print the parts with an empty line between them, and without the blanks that rich appends to lines."""
    for number, part in enumerate(parts):
        with console.capture() as capture:
            console.print(part, soft_wrap=isinstance(part, Text) and bool(part.no_wrap), crop=False)
        lines = [line.rstrip() for line in capture.get().splitlines()]
        console.file.write("\n" * (number > 0) + "\n".join(lines) + "\n")
    console.file.flush()


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str] = ()) -> "FittingTable":
    """A table of text cells; columns named in `left` are left-aligned and may fold between words, the others hold figures and may not."""
    table = FittingTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        justify: Literal["left", "right"] = "left" if name in left else "right"
        table.add_column(name, justify=justify, no_wrap=name not in left, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


class FittingTable(Table):
    """A table that breaks no word: where the console is too narrow for that, it is a list with a block of `column: value` lines for each row."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or the list."""
        needed = [_Widths.of(column) for column in self.columns]
        for blanks in (1, 0):  # beside the one between two columns
            widths = _fitting_widths(needed, options.max_width - (1 + blanks) * (len(needed) - 1))
            if widths is not None:
                self.padding = (0, blanks, 0, 0)
                for column, width in zip(self.columns, widths, strict=True):
                    column.width = width
                yield from super().__rich_console__(console, options)
                return
        yield Text("\n".join(self._lines(options.max_width)), no_wrap=True, overflow="ignore")

    def _lines(self, width: int) -> Iterator[str]:
        """A block for each row with an empty line before it, unless it goes on with the row above; empty cells are left out."""
        heads = [str(column.header) for column in self.columns]
        cells = [[str(cell) for cell in column.cells] for column in self.columns]
        for number, row in enumerate(zip(*cells, strict=True)):
            if number and (row[0] or not heads[0]):
                yield ""
            for head, cell in zip(heads, row, strict=True):
                if cell:
                    yield from _folded(f"{head}: {cell}" if head else cell, width)


@dataclass(frozen=True)
class _Widths:
    """What a column needs: `least` without breaking a word, `most` without folding."""

    least: int
    most: int

    @staticmethod
    def of(column: Column) -> "_Widths":
        cells = [str(column.header), *map(str, column.cells)]
        most = max(map(cell_len, cells))
        if column.no_wrap:
            return _Widths(most, most)
        return _Widths(max((cell_len(word) for cell in cells for word in cell.split()), default=0), most)


def _fitting_widths(columns: Sequence[_Widths], width: int) -> list[int] | None:
    """The width of each column, so that all of them fit into `width` and no word is broken; None where that cannot be.

    The narrowest columns get what they need first, and the others share what is left evenly.
    """
    left = width - sum(column.least for column in columns)
    if left < 0:
        return None
    widths = [column.least for column in columns]
    by_need = sorted(range(len(columns)), key=lambda place: columns[place].most - columns[place].least)
    for number, place in enumerate(by_need):
        more = min(columns[place].most - columns[place].least, left // (len(by_need) - number))
        widths[place], left = widths[place] + more, left - more
    return widths


def _folded(line: str, width: int) -> list[str]:
    """A line in as many as it takes, broken between words alone; those after the first are indented."""
    return textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def unbroken(lines: str) -> Text:
    """Lines to be copied, which are not broken at the terminal's width."""
    return Text(lines, no_wrap=True)


def titled(title: str, table: Table) -> Group:
    """A table under its title; rich's own title may not be wider than the table."""
    return Group(Text(title, style="bold"), table)


def text(value: object, pattern: str = "", unit: str = "") -> str:
    """A formatted value with its unit, or a dash for None."""
    return "-" if value is None else f"{value:{pattern}}{unit}"


def signed_percent(fraction: float | None) -> str:
    """`0.0123` as `+1.2%`."""
    return "-" if fraction is None else f"{fraction:+.1%}"


def plain(value: Any) -> Any:
    """Plain values for strict JSON: NaN and infinities become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def to_json(document: Any) -> str:
    """Strict JSON of a document; times as ISO 8601."""
    return json.dumps(plain(document), indent=2, allow_nan=False, default=lambda value: value.isoformat())


def conditions_line(values: Mapping[str, Any]) -> str:
    """`measured on cpu (Xeon ...), float32, eager, batch 4, 224 px, 2 threads, reference van_b0`, in another runtime than torch its name and precision."""
    name = f" ({values['device_name']})" if values.get("device_name") else ""
    how = [str(values.get("dtype")), str(values.get("mode"))]
    if values.get("runtime") not in (None, "torch"):
        providers = f" ({', '.join(values['runtime_providers'])})" if values.get("runtime_providers") else ""
        how = [
            f"{values['runtime']} {values.get('runtime_version') or ''}".strip() + providers,
            str(values["precision"]),
        ]
    parts = [f"measured on {values.get('device')}{name}", *how, f"batch {values.get('batch_size')}"]
    if values.get("image_size"):
        parts.append(format_image(stored_size(values), values.get("in_chans")))
    if values.get("threads"):
        parts.append(f"{values['threads']} thread{'s' * (values['threads'] != 1)}")
    if values.get("cpus"):
        parts.append(f"cores {', '.join(map(str, values['cpus']))}")
    if values.get("reference"):
        parts.append(f"reference {values['reference']}")
    return ", ".join(parts)


def memory_text(count: int | None) -> str:
    """`1.43 GiB`, or a dash."""
    return "-" if count is None else format_bytes(count)
