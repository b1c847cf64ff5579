"""What all reports share: the console, the table style, JSON, and how conditions and quantities are written."""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from archsearch.units import format_bytes, format_image, stored_size

Document = Mapping[str, Any]  # the content of a report as plain values: what --json prints

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
            console.print(part, soft_wrap=isinstance(part, Text) and bool(part.no_wrap))
        lines = [line.rstrip() for line in capture.get().splitlines()]
        console.file.write("\n" * (number > 0) + "\n".join(lines) + "\n")
    console.file.flush()


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str] = ()) -> Table:
    """A table of text cells; columns named in `left` are left-aligned and may fold, the others hold figures and may not."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        justify: Literal["left", "right"] = "left" if name in left else "right"
        table.add_column(name, justify=justify, no_wrap=name not in left, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


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
