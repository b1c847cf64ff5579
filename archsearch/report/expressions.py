"""The expressions of `archsearch report --pick`: conditions on a trial's figures, and which of the trials that keep them is picked."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archsearch.errors import UserError, did_you_mean, shown
from archsearch.metrics import Array
from archsearch.units import parse_bytes, parse_count, parse_macs, parse_milliseconds, parse_rate

# The grammar:
#     EXPRESSION = [CONDITION {"," CONDITION}] [";" CHOICE]
#     CONDITION  = FIGURE (">=" | "<=" | ">" | "<") VALUE
#     FIGURE     = "score" | "img/s" | "throughput" | "params" | "macs" | "latency" | "memory"
#     VALUE      = NUMBER | "best" | "best" ("+" | "-") NUMBER | "best" ("+" | "-") [FACTOR] "se" | "best" "*" FACTOR
#     CHOICE     = "fastest" | "smallest" | "best"
_WHERE = "--pick"
# The column of each figure, and how a number of it is read.
_FIGURES: dict[str, tuple[str, Callable[[str, str], float]]] = {
    "score": ("proxy_score", lambda text, where: _plain_number(text, where)),
    "img/s": ("throughput_img_s", parse_rate),
    "throughput": ("throughput_img_s", parse_rate),
    "params": ("params", parse_count),
    "macs": ("macs", parse_macs),
    "latency": ("latency_ms", parse_milliseconds),
    "memory": ("peak_memory_bytes", parse_bytes),
}
# What each choice takes the best of.
CHOICES = {"fastest": "throughput_img_s", "smallest": "params", "best": "proxy_score"}
_COMPARE: dict[str, Callable[[Array, float], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"([a-z/]+)\s*(>=|<=|>|<)\s*(.+)", re.IGNORECASE)
_BEST = re.compile(r"best\s*(?:([-+*])\s*(.+))?", re.IGNORECASE)
_ERRORS = re.compile(r"(\d+(?:\.\d+)?)?\s*se", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?|\.\d{1,15}")
_EXAMPLE = 'such as "score>=best-0.01, params<=25M; smallest"'


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A bound on one column: `offset`, plus where `factor` is not 0 the run's best value times it, and so many of that one's standard errors."""

    text: str
    column: str
    sign: str
    offset: float = 0.0
    factor: float = 0.0
    errors: float = 0.0

    def keeps(self, values: Array, best: float, error: float) -> NDArray[np.bool_]:
        """Which values (N,) keep the condition in a run with this best value, of this standard error; nan keeps none."""
        bound = self.offset
        if self.factor:
            bound += self.factor * best + self.errors * error
        is_bound = np.isclose(values, bound, rtol=1e-12, atol=0)  # best-0.1 of 0.8 is 0.7000000000000001
        return np.where(is_bound, self.sign.endswith("="), _COMPARE[self.sign](values, bound))


@dataclass(frozen=True, kw_only=True)
class Expression:
    """What a trial has to keep to be picked, and which of those that do is: one of CHOICES, None for what the run has."""

    text: str
    conditions: tuple[Condition, ...]
    choice: str | None


def parse_expression(text: str) -> Expression:
    """An expression of `--pick`. Raises UserError for what is none, with what is allowed."""
    conditions, _, choice = text.partition(";")
    chosen = choice.strip().lower()
    if ";" in text and chosen not in CHOICES:
        raise UserError(
            f"{_WHERE}: {shown(choice.strip())} is no choice{did_you_mean(chosen, CHOICES)}; "
            f"write one of {', '.join(CHOICES)} behind the semicolon, {_EXAMPLE}"
        )
    if not conditions.strip() and not chosen:
        raise UserError(f"{_WHERE}: got nothing; write conditions, {_EXAMPLE}")
    parts = [part.strip() for part in conditions.split(",")] if conditions.strip() else []
    return Expression(text=" ".join(text.split()), conditions=tuple(map(_condition, parts)), choice=chosen or None)


def _condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    name = match[1].lower() if match else ""
    if not match or name not in _FIGURES:
        what = f"has no figure {shown(name)}{did_you_mean(name, _FIGURES)}" if match else "is no condition"
        raise UserError(
            f"{_WHERE}: {shown(text)} {what}; write a figure ({', '.join(_FIGURES)}), >= or <=, and a value, {_EXAMPLE}"
        )
    column, sign = _FIGURES[name][0], match[2]
    where = f"{_WHERE}: {name}{sign}"
    best = _BEST.fullmatch(match[3].strip())
    if best is None:
        return Condition(text=text, column=column, sign=sign, offset=_number(name, match[3], where))
    factor, offset, errors = _beside_best(name, best[1], best[2], where)
    return Condition(text=text, column=column, sign=sign, factor=factor, offset=offset, errors=errors)


def _beside_best(name: str, sign: str | None, rest: str | None, where: str) -> tuple[float, float, float]:
    """What the best value is multiplied by, what is added, and how many standard errors are."""
    if sign is None or rest is None:
        return 1.0, 0.0, 0.0
    if sign == "*":
        factor = _plain_number(rest, where)
        if factor == 0:
            raise UserError(f"{where}: best*0 is no bound; write a positive factor, such as best*0.9")
        return factor, 0.0, 0.0
    direction = -1.0 if sign == "-" else 1.0
    errors = _ERRORS.fullmatch(rest.strip())
    if errors is None:
        return 1.0, direction * _number(name, rest, where), 0.0
    if name != "score":
        raise UserError(
            f"{where}: only a score has a standard error (se); write a number, or a factor such as best*0.9"
        )
    return 1.0, 0.0, direction * float(errors[1] or 1)


def _number(name: str, text: str, where: str) -> float:
    return float(_FIGURES[name][1](text.strip(), where))


def _plain_number(text: str, where: str) -> float:
    """A number without a unit. Raises UserError for other text."""
    value = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    if math.isnan(value):
        raise UserError(
            f"{where}: {shown(text.strip())} is no number; write one such as 0.75, best, best-0.01, best-1se or best*0.9"
        )
    return value
