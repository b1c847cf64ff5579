"""Rows as columns, in the short forms that the page's script reads back."""

from collections.abc import Sequence
from typing import Any

from archsearch.results import SCHEMA, Row

# Sent in a form of their own, or of no use on a page.
LEFT_OUT = ("arch", "conditions", "learning_curve", "macs_fvcore")
_MOST_WORDS = 4096  # distinct texts of a column that is sent as numbers of words


def columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Every column but LEFT_OUT by name, each packed."""
    return {name: packed([row[name] for row in rows]) for name in SCHEMA.names if name not in LEFT_OUT}


def packed(values: Sequence[Any]) -> dict[str, Any]:
    """`{"same": value}` where all are equal, `{"words": [...], "codes": [...]}` for texts that repeat, else `{"values": [...]}`."""
    if not values or all(value == values[0] for value in values):
        return {"same": values[0] if values else None}
    if any(isinstance(value, str) for value in values):
        codes: dict[Any, int] = {}
        numbers = [codes.setdefault(value, len(codes)) for value in values]
        if len(codes) <= min(_MOST_WORDS, len(values) / 2):
            return {"words": list(codes), "codes": numbers}
    return {"values": list(values)}


def unpacked(column: dict[str, Any], number: int) -> list[Any]:
    """The values of a packed column of so many rows, as the page's script has them."""
    if "same" in column:
        return [column["same"]] * number
    if "words" in column:
        return [column["words"][code] for code in column["codes"]]
    return list(column["values"])
