"""The one-sentence verdict of an audit, made by rule from its figures; it claims no more than the intervals show."""

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]

# With fewer, chance gives the right order too often: of four, once in 24 times.
_FEWEST_TO_JUDGE = 5
_GROUP_NAMES = {"papers": "papers' models", "hybrids": "hybrids"}


def verdict(document: Document) -> str:
    """One sentence: how the proxy orders the papers' models by their published top-1, and the hybrids by longer training."""
    found = [clause(document, one) for one in document["comparisons"] if one["target"] != "proxy"]
    if not found:
        return "Nothing to compare the proxy with: three architectures with a published top-1 or a longer training are needed."
    return f"This proxy {'; and '.join(found)}."


def clause(document: Document, comparison: Document) -> str:
    """The part of the sentence about one target."""
    by_name = {judge["judge"]: judge for judge in comparison["judges"]}
    proxy, params = by_name["proxy"], by_name["params"]
    target = "their published ImageNet top-1"
    if comparison["target"] == "longer":
        target = f"their scores after {document['longer']} times the steps"
    words = f"orders the {comparison['count']} {_GROUP_NAMES[comparison['group']]} by {target} with Kendall tau {interval(proxy)}"
    alone = f"counting parameters with {number(params['value'])}"
    return f"{words}, {alone}: {_judgement(comparison, proxy)}{_noise_limit(proxy, comparison['ceiling'])}"


def _judgement(comparison: Document, proxy: Document) -> str:
    """What the intervals show; an interval that contains 0 shows nothing."""
    minus = comparison["minus_params"]
    if comparison["count"] < _FEWEST_TO_JUDGE:
        return "too few to show anything"
    if proxy["value"] is None or proxy["low"] is None:
        return "nothing can be said, as the values do not differ"
    if proxy["high"] < 0:
        return "it orders them the wrong way round"
    if proxy["low"] <= 0:
        shown = "the interval holds 0, so it is not shown to order them at all"
        return f"{shown}, and it is worse than counting parameters" if _is_below(minus) else shown
    if _is_below(minus):
        return "it orders them, but worse than counting parameters"
    if minus["low"] is not None and minus["low"] > 0:
        return "it orders them, and better than counting parameters"
    return "it orders them, but is not shown to be better than counting parameters"


def _is_below(minus: Document) -> bool:
    return minus["high"] is not None and minus["high"] < 0


def _noise_limit(proxy: Document, ceiling: Document | None) -> str:
    """How far the proxy agrees with itself; where it agrees with the target as far, its noise may be the limit."""
    if ceiling is None or ceiling["value"] is None:
        return " (its noise is not known: it was trained with one seed)" if ceiling is None else ""
    words = f"two of its seeds agree by {number(ceiling['value'])}"
    is_limited = proxy["single"] is not None and proxy["single"] >= ceiling["low"]
    return f" ({words}, so its noise may be what bounds it)" if is_limited else f" ({words})"


def interval(estimate: Document) -> str:
    """`0.42 (95 %: -0.10 to 0.81)`."""
    if estimate["value"] is None:
        return "undefined"
    return f"{number(estimate['value'])} (95 %: {interval_ends(estimate)})"


def interval_ends(estimate: Document) -> str:
    """`-0.10 to 0.81`."""
    return f"{number(estimate['low'])} to {number(estimate['high'])}"


def number(value: float | None) -> str:
    """Two digits, and no -0.00."""
    return "undefined" if value is None else f"{value + 0.0:.2f}".replace("-0.00", "0.00")
