"""Numbers with units, as people type and read them, and the number formats that networks compute in."""

import re
from collections.abc import Sequence
from typing import Literal

from archsearch.errors import UserError, shown

# Pure bfloat16 (weights, activations and inputs) and autocast (weights stay float32) are two figures, never one.
DType = Literal["float32", "bfloat16", "amp_bfloat16"]

_SCALES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)\s*(?:FLOPs?|MACs?)?\s*", re.IGNORECASE)
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_COUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)\s*", re.IGNORECASE)
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)\s*", re.IGNORECASE)
# Multiply-adds or parameters: a thousand times what the largest networks have, and sums of them stay far below 64 bits.
MOST_COUNT = 10**15
_SURELY_LARGER = 1000  # a number without a unit below it was meant in another one
_MOST_SECONDS = 3650 * 86400
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_macs(text: str, where: str = "--budget") -> int:
    """`4.5GFLOPs`, `4.5G`, `800 MMACs` or `4500000000` as multiply-adds; vision papers' FLOPs are multiply-adds. UserError for other text."""
    match = _BUDGET.fullmatch(text)
    macs = _read(match)
    if _lacks_unit(match):
        raise UserError(f"{where}: {shown(text)} multiply-adds are no network's; did you mean {text.strip()}G?")
    if not 1 <= macs <= MOST_COUNT:
        raise UserError(
            f"{where}: {shown(text)} is not a budget; write a positive number of multiply-adds such as 4.5GFLOPs, 800M or 4500000000, "
            f"at most {format_count(MOST_COUNT)}"
        )
    return round(macs)


def parse_share(text: str, where: str = "--tolerance") -> float:
    """`5%` or `0.05` as a fraction in [0, 1); UserError for other text."""
    match = _SHARE.fullmatch(text)
    try:
        share = float(match[1]) / 100 if match else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        hint = f"; did you mean {share:g}%?" if not match and 1 <= share < 100 else ""
        raise UserError(
            f"{where}: {shown(text)} is not a share; write a percentage from 0% to below 100%, such as 5%{hint}"
        )
    return share


def parse_count_range(text: str, where: str = "--params") -> tuple[int, int]:
    """`20M-30M` or `25000000-28000000` as two whole numbers, the lower one first; UserError for other text."""
    matches = [_COUNT.fullmatch(part) for part in text.split("-")]
    ends = [_read(match) for match in matches if match]
    if len(matches) != 2 or len(ends) != 2 or not ends[0] <= ends[1] <= MOST_COUNT or round(ends[1]) < 1:
        raise UserError(
            f"{where}: {shown(text)} is not a range; write the lowest and the highest number, such as 20M-30M, at most {format_count(MOST_COUNT)}"
        )
    if any(map(_lacks_unit, matches)):
        meant = "-".join(f"{match[1]}{match[2] or 'M'}" for match in matches if match)
        raise UserError(f"{where}: {shown(text)} are no network's parameters; did you mean {meant}?")
    return round(ends[0]), round(ends[1])


def parse_seconds(text: str, where: str = "--timeout") -> float:
    """`90s`, `30m`, `2h` or `1d` in seconds; UserError for other text."""
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2].lower()] if match else 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise UserError(
            f"{where}: {shown(text)} is not a duration; write a positive number with s, m, h or d, such as 90s or 2h, at most 3650d"
        )
    return seconds


def _read(match: re.Match[str] | None) -> float:
    """A number with its prefix; 0 for no match, infinite for too many digits."""
    return float(match[1]) * _SCALES[match[2].upper()] if match else 0.0


def _lacks_unit(match: re.Match[str] | None) -> bool:
    """Whether a number was meant in millions or billions and is written without their letter."""
    return match is not None and not match[2] and 0.01 <= float(match[1]) < _SURELY_LARGER


def format_count(number: float) -> str:
    """`4540244736` as `4.54G`: three or four significant digits and a decimal prefix."""
    for prefix in ("T", "G", "M", "K"):
        scale = _SCALES[prefix]
        if abs(number) >= scale:
            return f"{number / scale:.2f}{prefix}"
    return f"{number:.0f}"


def format_seconds(seconds: float) -> str:
    """`4210` as `1h10m`, `75` as `1m15s`, `3.2` as `3s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def format_bytes(count: float) -> str:
    """`1536000000` as `1.43 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def format_names(names: Sequence[str], shown: int = 5, separator: str = ", ", *, number: int | None = None) -> str:
    """`a, b, c and 7 more`: the first `shown` of some names; `number` is that of all, where `names` are only the first ones."""
    left = (len(names) if number is None else number) - shown
    return separator.join(names[:shown]) + (f" and {left} more" if left > 0 else "")
