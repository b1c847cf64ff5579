"""Numbers with units, as people type and read them, and the number formats that networks compute in."""

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from archsearch.errors import UserError, shown

# Pure bfloat16 (weights, activations and inputs) and autocast (weights stay float32) are two figures, never one.
DType = Literal["float32", "bfloat16", "amp_bfloat16"]
# Side of an image in pixels, or its height and width.
ImageSize = int | tuple[int, int]
MOST_SIDE = 8192  # pixels
MOST_CHANNELS = 4096  # of an image

_SCALES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)\s*(?:FLOPs?|MACs?)?\s*", re.IGNORECASE)
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_COUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)\s*", re.IGNORECASE)
_PLAIN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:img/s|images/s)?\s*")
_SIDES = re.compile(r"\s*(\d{1,4})(?:\s*[xX×]\s*(\d{1,4}))?\s*")
_MILLISECONDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s)\s*", re.IGNORECASE)
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", re.IGNORECASE)
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


def parse_macs_range(text: str, where: str) -> tuple[int, int]:
    """`3.5G-6G` as two whole numbers of multiply-adds, the lower one first; UserError for other text."""
    ends = text.split("-")
    if len(ends) != 2:
        raise UserError(f"{where}: {shown(text)} is not a range; write the least and the most MACs, such as 3.5G-6G")
    low, high = (parse_macs(end, where) for end in ends)
    if low > high:
        raise UserError(f"{where}: {shown(text)} begins above its end; write the least MACs first, such as 3.5G-6G")
    return low, high


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


def parse_count(text: str, where: str) -> int:
    """`25M` or `25000000` as a whole number of parameters; UserError for other text."""
    match = _COUNT.fullmatch(text)
    number = _read(match)
    if _lacks_unit(match):
        raise UserError(f"{where}: {shown(text)} are no network's parameters; did you mean {text.strip()}M?")
    if not 1 <= number <= MOST_COUNT:
        raise UserError(
            f"{where}: {shown(text)} is not a number of parameters; write a positive one such as 25M, at most {format_count(MOST_COUNT)}"
        )
    return round(number)


def parse_seconds(text: str, where: str = "--timeout") -> float:
    """`90s`, `30m`, `2h` or `1d` in seconds; UserError for other text."""
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2].lower()] if match else 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise UserError(
            f"{where}: {shown(text)} is not a duration; write a positive number with s, m, h or d, such as 90s or 2h, at most 3650d"
        )
    return seconds


def parse_milliseconds(text: str, where: str = "--max-latency") -> float:
    """`8ms`, `800us` or `0.5s` in milliseconds; UserError for other text."""
    match = _MILLISECONDS.fullmatch(text)
    value = float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2].lower()] if match else 0.0
    if not 0 < value <= 1000 * _MOST_SECONDS:
        raise UserError(
            f"{where}: {shown(text)} is not a latency; write a positive number with us, ms or s, such as 8ms"
        )
    return value


def parse_bytes(text: str, where: str = "--max-memory") -> int:
    """`2GB` (2 * 10^9) or `2GiB` (2 * 2^30) in bytes; UserError for other text."""
    match = _BYTES.fullmatch(text)
    base = 1024 if match and match[3] else 1000
    value = float(match[1]) * base ** " KMGT".index(match[2].upper() or " ") if match else 0.0
    if not 1 <= value <= MOST_COUNT:
        raise UserError(
            f"{where}: {shown(text)} is not a memory; write a positive number with MB, GB, MiB or GiB, such as 2GB"
        )
    return round(value)


def parse_rate(text: str, where: str = "--min-throughput") -> float:
    """`900` images/s as a number; UserError for other text."""
    match = _PLAIN.fullmatch(text)
    value = float(match[1]) if match else 0.0
    if not 0 < value <= MOST_COUNT:
        raise UserError(f"{where}: {shown(text)} is not a rate; write a positive number of images/s, such as 900")
    return value


def parse_sides(text: str, where: str = "--image-size") -> ImageSize:
    """`224` or `192x256`, height x width in pixels, as one side or a pair; UserError for other text."""
    match = _SIDES.fullmatch(text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (1 <= height <= MOST_SIDE and 1 <= width <= MOST_SIDE):
        raise UserError(
            f"{where}: got {shown(text)}; write a side in pixels such as 224, or height x width such as 192x256, at most {MOST_SIDE}"
        )
    return one_size(height, width)


def sides(image_size: ImageSize | Sequence[int], where: str = "image_size") -> tuple[int, int]:
    """Height and width in pixels; UserError for what is no size."""
    try:
        height, width = map(
            operator.index, image_size if isinstance(image_size, Sequence) else (image_size, image_size)
        )
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise UserError(f"{where} is {shown(image_size)}; allowed are a side, or height and width, in pixels from 1")
    return height, width


def one_size(height: int, width: int) -> ImageSize:
    """One side for a square, else both."""
    return height if height == width else (height, width)


def plain_size(image_size: ImageSize) -> int | list[int]:
    """The size as JSON and TOML write it: one side, or a list of height and width."""
    return image_size if isinstance(image_size, int) else list(image_size)


def stored_size(values: Mapping[str, Any]) -> ImageSize:
    """The size in stored conditions: `image_size`, and `image_width` where the image is not square."""
    height, width = sides(values["image_size"])
    return one_size(height, values.get("image_width") or width)


def format_sides(image_size: ImageSize | Sequence[int]) -> str:
    """`224`, or `192x256` for height and width that differ."""
    height, width = sides(image_size)
    return str(height) if height == width else f"{height}x{width}"


def format_image(image_size: ImageSize | Sequence[int], in_chans: int | None = None) -> str:
    """`224 px`, or `192x256 px, 4 channels`: the channels where they are not the usual three."""
    channels = f", {in_chans} channel{'s' * (in_chans != 1)}" if in_chans not in (None, 3) else ""
    return f"{format_sides(image_size)} px{channels}"


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
