"""An architecture drawn in characters: its stages from left to right, width as height, depth as length, kinds of blocks by letter and colour."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

_ROWS = 8  # of the widest stage
_EIGHTHS = " ▁▂▃▄▅▆▇█"
# The ones of the eight that stand out on dark and on light backgrounds; yellow last.
_COLOURS = ("blue", "magenta", "green", "red", "cyan", "yellow")
_GAP = 2
_HEADS = ("", "block", "width", "depth", "map", "MACs")
_HEAD_WIDTH = max(map(len, _HEADS)) + _GAP


class Drawing:
    """The drawing of a document of `cost.stage_list`, as wide as the terminal has room for.

    Letters instead of filled boxes where the terminal is `dumb` or its encoding lacks them; a list where it is too narrow for all stages side by side.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]], image: str) -> None:
        self._stages, self._image = [part for part in parts if part["depth"]], image
        self._letters = block_letters([kind for stage in self._stages for kind in stage["kinds"]])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_plain = options.ascii_only or os.environ.get("TERM") == "dumb"
        yield from self.lines(options.max_width, is_plain=is_plain)

    def lines(self, width: int, *, is_plain: bool) -> Iterator[Text]:
        """The drawing in so many columns; `is_plain`: by letters and signs of ASCII alone."""
        for with_names in (True, False):
            labels = [self._labels(stage, with_names=with_names) for stage in self._stages]
            cell = self._cell_width(labels, width)
            if cell:
                yield from self._side_by_side(labels, cell, is_plain=is_plain)
                break
        else:
            yield from map(self._one_line, self._stages)
        kinds = ", ".join(f"{letter} {kind}" for kind, letter in self._letters.items())
        yield Text(
            f"Blocks: {kinds}. Height is the width, {self._widest} channels for {_ROWS} rows; a column is a block."
        )
        yield Text(f"From left to right: {self._image}, the stages, the head.")

    @property
    def _widest(self) -> int:
        return max(int(stage["width"]) for stage in self._stages)

    def _labels(self, stage: Mapping[str, Any], *, with_names: bool) -> list[str]:
        """The words under a stage, in the order of _HEADS."""
        block = (
            stage["block"] if with_names else "/".join(self._letters[kind] for kind in dict.fromkeys(stage["kinds"]))
        )
        return [
            stage["part"].removeprefix("stage "),
            block,
            str(stage["width"]),
            str(stage["depth"]),
            "x".join(map(str, stage["map"])),
            f"{stage['share']:.0%}",
        ]

    def _cell_width(self, labels: Sequence[Sequence[str]], width: int) -> int:
        """Columns for a block, as many as there is room for, up to 3; 0 where there is none."""
        for cell in (3, 2, 1):
            if sum(self._columns(labels, cell)) + _GAP * (len(labels) - 1) + _HEAD_WIDTH <= width:
                return cell
        return 0

    def _columns(self, labels: Sequence[Sequence[str]], cell: int) -> list[int]:
        """Columns of each stage: for its blocks and for the words under it."""
        pairs = zip(self._stages, labels, strict=True)
        return [max(stage["depth"] * cell, *map(len, words)) for stage, words in pairs]

    def _side_by_side(self, labels: Sequence[Sequence[str]], cell: int, *, is_plain: bool) -> Iterator[Text]:
        columns = self._columns(labels, cell)
        for row in range(_ROWS, 0, -1):
            yield self._row([self._bar(stage, row, cell, is_plain=is_plain) for stage in self._stages], columns)
        if not is_plain:
            yield self._row([self._bar(stage, 0, cell, is_plain=True) for stage in self._stages], columns)
        for head, words in zip(_HEADS, zip(*labels, strict=True), strict=True):
            yield self._row([Text(word) for word in words], columns, head or "stage")

    @staticmethod
    def _row(cells: Sequence[Text], columns: Sequence[int], head: str = "") -> Text:
        line = Text(head.ljust(_HEAD_WIDTH), no_wrap=True)
        for cell, width in zip(cells, columns, strict=True):
            line.append_text(cell).append(" " * (width - len(cell) + _GAP))
        line.rstrip()
        return line

    def _bar(self, stage: Mapping[str, Any], row: int, cell: int, *, is_plain: bool) -> Text:
        """One row of a stage, counted from 1 at its foot; row 0 has the letters of its blocks."""
        eighths = max(8, round(8 * _ROWS * stage["width"] / self._widest)) - 8 * (row - 1)
        filled = _EIGHTHS[max(0, min(8, eighths))] if row else "x"
        line = Text()
        for kind in stage["kinds"]:
            sign = self._letters[kind] if is_plain and (eighths >= 4 or not row) else " " if is_plain else filled
            line.append(sign * max(1, cell - 1), style=self._colour(kind)).append(" " * (cell > 1))
        return line

    def _colour(self, kind: str) -> str:
        return _COLOURS[list(self._letters).index(kind) % len(_COLOURS)]

    def _one_line(self, stage: Mapping[str, Any]) -> Text:
        words = self._labels(stage, with_names=True)
        text = (
            f"stage {words[0]}: {words[1]}, width {words[2]}, depth {words[3]}, map {words[4]}, {words[5]} of the MACs"
        )
        return Text(text)


def block_letters(kinds: Sequence[str]) -> dict[str, str]:
    """A capital for each kind, in the order of their first use: the first of its own letters that is free, else of the alphabet."""
    letters: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        own = [sign.upper() for sign in kind if sign.isascii() and sign.isalpha()]
        free = [sign for sign in [*own, *map(chr, range(ord("A"), ord("Z") + 1))] if sign not in letters.values()]
        letters[kind] = free[0] if free else "?"
    return letters


def curve_lines(points: Sequence[Mapping[str, Any]], width: int, *, is_plain: bool) -> Iterator[str]:
    """A line for each point of a learning curve: steps, score with its standard error, how much it rose, and a bar from 0 to 1."""
    before: list[float | None] = [None, *(point["score"] for point in points)]
    digits = max((len(str(point["steps"])) for point in points), default=0)
    for point, (last, score) in zip(points, pairwise(before), strict=True):
        assert score is not None
        error = point.get("standard_error")
        figure = f"{score:.3f}" + (f"+-{error:.3f}" if error is not None else "")
        rise = "" if last is None else f"{score - last:+.3f}"
        head = f"  {point['steps']:>{digits}} steps  {figure:<13} {rise:>7}  "
        room = max(10, min(40, width - len(head)))
        yield head + ("#" if is_plain else "█") * round(room * max(0.0, min(1.0, score)))
