"""A run's trials as a scatter of characters: the front, dominated trials and the papers' models over two objectives."""

import os
import string
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archsearch.report.picks import two_axes
from archsearch.report.tables import HEADINGS, Document, make_console
from archsearch.results import Row
from archsearch.units import format_bytes, format_count

_NARROWEST, _WIDEST, _HEIGHT = 80, 110, 20  # columns and lines of the picture
_GRID = (80, 40)  # of the cells of which each holds one dominated trial of the document
_LETTERS = string.ascii_lowercase + string.ascii_uppercase
_FRONT, _DOMINATED = "●", "·"


def scatter_document(rows: Sequence[Row], objectives: Sequence[str]) -> Document | None:
    """The trials of a scatter over two objectives, [x, y] each, dominated ones thinned; None for fewer than two objectives, or no trial."""
    y, x = two_axes(objectives)
    if x is None or not rows:
        return None
    points = np.array([[row[x], row[y]] for row in rows], dtype=np.float64)
    is_named = np.array([row["is_fixed"] for row in rows], dtype=bool)
    is_front = np.array([row["front"] == 0 for row in rows], dtype=bool)
    dominated = points[_one_in_each_cell(points) & ~is_named & ~is_front]
    return {
        "x": x,
        "y": y,
        "dominated": dominated.tolist(),
        "front": points[is_front & ~is_named].tolist(),
        "fixed": [
            {"name": rows[place]["paper"], "point": points[place].tolist(), "is_on_front": bool(is_front[place])}
            for place in np.flatnonzero(is_named).tolist()
        ],
    }


def _one_in_each_cell(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Marks the first point (N, 2) in each cell of a grid over all."""
    low, high = points.min(axis=0), points.max(axis=0)
    places = ((points - low) / np.where(high > low, high - low, 1.0) * np.subtract(_GRID, 1)).round().astype(np.int64)
    first = np.unique(places @ np.array([1, _GRID[0]]), return_index=True)[1]
    is_first = np.zeros(len(points), dtype=bool)
    is_first[first] = True
    return is_first


def scatter_parts(document: Document) -> Iterator[str]:
    """The scatter and what its marks are, where stdout is a terminal or COLUMNS is set, and there is room; without colours."""
    console = make_console()
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    if document["scatter"] and has_width and console.width >= _NARROWEST and not console.options.ascii_only:
        yield _picture(document["scatter"], min(console.width, _WIDEST)) + "\n" + _legend(document["scatter"])


def _picture(scatter: Document, width: int) -> str:
    import plotext

    plotext.terminal.limit(False, False)  # else no wider and higher than the terminal that it finds
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, _HEIGHT)
    marks = [(scatter["dominated"], _DOMINATED), (scatter["front"], _FRONT)]
    marks += [([each["point"]], letter) for each, letter in zip(scatter["fixed"], _LETTERS, strict=False)]
    for points, mark in marks:
        if points:
            figure.draw(figure.signal(*map(list, zip(*points, strict=True)), marker=mark))
    every = np.array([point for points, _ in marks for point in points])
    for axis, name, number in ((0, "x", 6), (1, "y", 5)):
        low, high = _ends(every[:, axis])
        ticks = np.linspace(low, high, number)
        ruler = figure.ruler(name)
        ruler.lim(low, high)
        ruler.ticks(ticks.tolist(), [_written(scatter[name], tick) for tick in ticks])
        figure.label(HEADINGS.get(scatter[name], scatter[name]), name)
        figure.axes(False, axis=name, side=1)
    return "\n".join(line.rstrip() for line in figure.build().string(colorless=True).splitlines()).rstrip("\n")


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - abs(low) / 10 - 0.1, high + abs(high) / 10 + 0.1)


def _written(name: str, value: float) -> str:
    """A figure on an axis."""
    if name == "peak_memory_bytes":
        return format_bytes(value)
    if name == "proxy_score":
        return f"{value:.3f}"
    return format_count(value) if name in ("params", "macs") else f"{value:.4g}"


def _legend(scatter: Document) -> str:
    """What the marks are."""
    words = [f"{_FRONT} on the front"] if scatter["front"] else []
    words += [f"{_DOMINATED} dominated"] if scatter["dominated"] else []
    words += [_named(each, letter) for each, letter in zip(scatter["fixed"], _LETTERS, strict=False)]
    return f"{', '.join(words)}."


def _named(fixed: dict[str, Any], letter: str) -> str:
    return f"{letter} {fixed['name']}" + (" (on the front)" if fixed["is_on_front"] else "")
