"""The types of the commands' options: quantities with units, ranges, sizes, devices."""

import math
import re
from collections.abc import Callable
from typing import Any

import click

from archsearch.errors import UserError, shown
from archsearch.units import (
    ImageSize,
    parse_count_range,
    parse_macs,
    parse_macs_range,
    parse_seconds,
    parse_share,
    parse_sides,
)

ANY_BUDGET = "any"
# Four digits: no machine has ten thousand cores, and the list of a longer range would fill the memory.
MOST_CORES = 9999
MOST_BATCH = 2**20
_CPU_RANGE = re.compile(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*")


class Quantity(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """A number with a unit, in its base unit; a bad one is a UserError that names the option."""

    def __init__(self, name: str, parse: Callable[[str, str], float]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`4.5GFLOPs` as 4500000000; MACs are whole numbers."""
        number: float = self.parse(value, param.opts[0] if param else self.name) if isinstance(value, str) else value
        return number


class CpuList(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """Numbers of logical cores, `0,2-3`, as a sorted tuple; a bad list is a UserError that names the option."""

    name = "cpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`0,2-3` as (0, 2, 3)."""
        if isinstance(value, tuple):
            return value
        found: set[int] = set()
        for part in value.split(","):
            match = _CPU_RANGE.fullmatch(part)
            low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if low > high:
                raise UserError(f"--cpus: got {shown(value)}; write numbers of cores and ranges of them, such as 0,2-3")
            found.update(range(low, high + 1))
        return tuple(sorted(found))


class ParamsRange(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """`20M-30M` as two whole numbers; a bad range is a UserError that names the option."""

    name = "params"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Lowest and highest number of parameters."""
        return value if isinstance(value, tuple) else parse_count_range(value, param.opts[0] if param else self.name)


class MacsRanges(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """`1.5G-2.5G,3.5G-6G` as pairs of whole numbers; a bad range is a UserError that names the option."""

    name = "bands"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        """Least and most multiply-adds of each."""
        where = param.opts[0] if param else self.name
        return value if isinstance(value, tuple) else tuple(parse_macs_range(part, where) for part in value.split(","))


class Sides(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """`224`, or `192x256` as height and width; a bad size is a UserError that names the option."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ImageSize:
        """One side in pixels for a square, else both."""
        size: ImageSize = parse_sides(value, param.opts[0] if param else self.name) if isinstance(value, str) else value
        return size


class Device(click.Choice):  # type: ignore[type-arg]  # generic only since click 8.2
    """A device's name, or the numbers of GPUs, which `device.pick_device` checks."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`cuda:0,2` as it is."""
        return value if value.startswith("cuda:") else str(super().convert(value, param, ctx))


class Workers(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """A number of workers, or `auto`, which is None."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """As the class says."""
        if value is None or value == "auto":
            return None
        if not (str(value).isdecimal() and 1 <= int(str(value)[:9]) <= MOST_CORES):
            self.fail(f"{shown(str(value))} is neither auto nor a whole number from 1 to {MOST_CORES}.", param, ctx)
        return int(value)


MACS = Quantity("macs", parse_macs)
SHARE = Quantity("share", parse_share)
SECONDS = Quantity("seconds", parse_seconds)


def _parse_stall(text: str, where: str) -> float:
    """A duration in seconds, `none` as infinity."""
    if text.strip() == "none":
        return math.inf
    try:
        return parse_seconds(text, where)
    except UserError as error:
        raise UserError(f"{error}, or none") from None


STALL = Quantity("seconds", _parse_stall)


def _parse_any(text: str, where: str) -> float:
    """Multiply-adds, `any` as 0."""
    if text.strip() == ANY_BUDGET:
        return 0
    try:
        return parse_macs(text, where)
    except UserError as error:
        raise UserError(f"{error}; any takes architectures of any cost") from None


BUDGET_OR_ANY = Quantity("macs", _parse_any)
