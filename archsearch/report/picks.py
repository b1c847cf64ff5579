"""Which trial to take: named picks among a run's complete trials, each with its rule, the fixed trials that it beats, and what is not resolved."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archsearch.metrics import TIE_SE, Array, dominates, is_dominated
from archsearch.report.expressions import CHOICES, Expression
from archsearch.report.noise import Measured, Noise, speed_noise
from archsearch.report.repeatability import is_changed
from archsearch.report.tables import Document
from archsearch.results import DEVICE_OBJECTIVES, OBJECTIVES, Row, is_timed, minimised
from archsearch.space import paper_names
from archsearch.throughput import Protocol
from archsearch.units import format_count, format_names

Mask = NDArray[np.bool_]

SCORE, SPEED, SIZE = "proxy_score", "throughput_img_s", "params"
BEST = "best score"
FASTEST = "fastest within one standard error"
SMALLEST = "smallest within one standard error"
KNEE = "knee"
# Words for the objectives, and how their figures are written.
_WORDS = {
    SCORE: "score",
    SPEED: "img/s",
    SIZE: "parameters",
    "macs": "MACs",
    "latency_ms": "latency",
    "peak_memory_bytes": "memory",
}
_CHOICE_WORDS = {"fastest": "the fastest", "smallest": "the smallest", "best": "the one with the best score"}
_PAPERS, _INCLUDED = "paper's model", "included network"
_NAMES_SHOWN, _BEATEN_SHOWN = 6, 3
_SURE = 0.95  # a chance to be on the front from which on it is not called open


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What is picked from: the complete trials inside the limits that are ranked together, and all that were measured with them."""

    rows: Sequence[Row]
    fixed: Sequence[Row]
    objectives: Sequence[str]
    noise: Noise
    measured: Measured
    throughput_id: str | None
    chances: Mapping[int, float]

    def values(self, name: str) -> Array:
        """A figure of each row (N,); nan for none, and for one of a device or conditions that are not the ranked ones."""
        is_here = [name not in DEVICE_OBJECTIVES or row["throughput_id"] == self.throughput_id for row in self.rows]
        return np.array(
            [row[name] if here else None for row, here in zip(self.rows, is_here, strict=True)], dtype=np.float64
        )

    def best(self, name: str, among: Mask | None = None) -> Row | None:
        """The row with the best figure; of equal ones the best in score, then speed, size and the run's other objectives, then the first."""
        values = _signed(name, self.values(name))
        if among is not None:
            values = np.where(among, values, math.nan)
        if np.all(np.isnan(values)):
            return None
        equal = [self.rows[place] for place in np.flatnonzero(values == np.nanmin(values)).tolist()]
        others = dict.fromkeys([SCORE, SPEED, SIZE, *self.objectives])
        first: Row = min(equal, key=lambda row: [*(_sortable(row, other) for other in others), row["trial"]])
        return first


def _signed(name: str, values: Array) -> Array:
    """The values of an objective to minimise."""
    return -values if OBJECTIVES[name] == "maximize" else values


def _sortable(row: Row, name: str) -> float:
    value = row[name]
    return math.inf if value is None else (-value if OBJECTIVES[name] == "maximize" else value)


@dataclass(kw_only=True)
class Pick:
    """A pick before it is put into words: the row, or why there is none; `peers` are trials that could as well have been picked, by noise."""

    name: str
    rule: str
    row: Row | None = None
    reason: str | None = None
    peers: str | None = None
    beats: list[Document] = field(default_factory=list)


def build_picks(pool: Pool, expressions: Sequence[Expression] = ()) -> list[Document]:
    """The four default picks and one for each expression; none where no trial is complete and inside the limits."""
    if not pool.rows:
        return []
    best = pool.best(SCORE)
    picks = [
        _best_score(pool, best),
        _within_one_error(pool, best, FASTEST, SPEED, "is the fastest"),
        _within_one_error(pool, best, SMALLEST, SIZE, "has the fewest parameters"),
        _knee(pool),
        *(_expressed(pool, best, expression) for expression in expressions),
    ]
    return [_document(pool, pick) for pick in picks]


def _best_score(pool: Pool, best: Row | None) -> Pick:
    pick = Pick(name=BEST, rule="The complete trial with the highest proxy score.", row=best)
    if best is None:
        pick.reason = "this run has no proxy score"
        return pick
    tied = _trials(pool, pool.measured.ties(best, SCORE), best)
    if tied:
        pick.peers = f"its score is a tie, by less than {TIE_SE:.0f} standard errors, with {_of_trials(tied, '1 other trial', 'other trials')}"
    return pick


def _within_one_error(pool: Pool, best: Row | None, name: str, column: str, what: str) -> Pick:
    rule = f"Of the trials whose score is no more than one standard error below the best score, the one that {what}."
    pick = Pick(name=name, rule=rule)
    if best is None:
        pick.reason = "this run has no proxy score"
        return pick
    is_near = pool.values(SCORE) >= best[SCORE] - pool.noise.standard_error(best)
    pick.row = pool.best(column, is_near)
    if pick.row is None:
        pick.reason = "none of these trials was timed"
    elif is_timed([column]):
        pick.peers = _as_fast(pool, pick.row, is_near)
    return pick


def _as_fast(pool: Pool, row: Row, among: Mask) -> str | None:
    """Which of those that it was picked from are as fast, by noise."""
    slower = pool.measured.ties(row, SPEED) & among & ~np.isnan(pool.values(SPEED))
    equal = _trials(pool, slower, row)
    if not equal:
        return None
    are = "is" if len(equal) == 1 else "are"
    return f"{_of_trials(equal, '1 other that was to choose from', 'others that were to choose from')} {are} as fast within noise"


def _trials(pool: Pool, mask: Mask, row: Row) -> list[int]:
    return [pool.rows[place]["trial"] for place in np.flatnonzero(mask).tolist() if pool.rows[place] is not row]


def _of_trials(trials: Sequence[int], one: str, several: str) -> str:
    """`3 other trials (4, 7, 9)`."""
    count = one if len(trials) == 1 else f"{len(trials)} {several}"
    return f"{count} ({format_names([str(trial) for trial in trials], _NAMES_SHOWN)})"


def _knee(pool: Pool) -> Pick:
    """The knee over the score and a cost, the throughput where it is an objective; without a score over the first two objectives."""
    first, second = two_axes(pool.objectives)
    if second is None:
        rule = "The trial of the front over two objectives that lies farthest above the line between that front's two ends."
        return Pick(name=KNEE, rule=rule, reason="this run has one objective")
    words = f"{_WORDS[first]} and {_WORDS[second]}"
    rule = (
        f"The trial of the front over {words} that lies farthest above the straight line between that front's two ends, "
        "if by more than noise; each of the two is scaled to 0..1 between the ends."
    )
    pick = Pick(name=KNEE, rule=rule)
    rows = [row for row in pool.rows if row[first] is not None and row[second] is not None]
    values = minimised(rows, [first, second])
    front = np.flatnonzero(~is_dominated(values))
    order = front[np.argsort(values[front, 0], kind="stable")]
    number = len(np.unique(values[order], axis=0))
    if number < 3:
        pick.reason = f"the front over {words} has {number} member{'s' * (number != 1)}, and a knee needs three"
        return pick
    low, high = values[order[0]], values[order[-1]]
    scaled = (values[order] - np.minimum(low, high)) / np.abs(high - low)  # from (0, 1) to (1, 0)
    above = 1 - scaled.sum(axis=1)
    place = int(np.argmax(above))
    row, ends = rows[order[place]], (rows[order[0]], rows[order[-1]])
    along, (x, y) = np.abs(high - low), scaled[place].tolist()
    errors = [
        _axis_noise(pool.noise, first, row, ends, 1 - y) / float(along[0]),
        _axis_noise(pool.noise, second, row, ends, x) / float(along[1]),
    ]
    if above[place] <= sum(errors):
        pick.reason = (
            f"no trial of the front over {words} lies above the line between its two ends by more than noise "
            f"(trial {row['trial']} by {max(0.0, above[place]):.2f} of the range, the noise is {sum(errors):.2f})"
        )
    else:
        pick.row = row
    return pick


def two_axes(objectives: Sequence[str]) -> tuple[str, str | None]:
    """The score and the throughput where these are objectives, else the first others."""
    order = sorted(objectives, key=lambda name: {SCORE: 0, SPEED: 1}.get(name, 2) if SCORE in objectives else 0)
    return order[0], order[1] if len(order) > 1 else None


def _axis_noise(noise: Noise, name: str, row: Row, ends: tuple[Row, Row], along: float) -> float:
    """Noise of a member's distance from the line between two ends in one objective; `along` says how far along the line, from 0 to 1."""
    shares = ((row, 1.0), (ends[0], 1 - along), (ends[1], along))
    if name == SCORE:
        return TIE_SE * math.hypot(*(share * noise.standard_error(each) for each, share in shares))
    if is_timed([name]):
        return math.hypot(*(share * speed_noise(each) * float(each[name]) for each, share in shares))
    return 0.0


def _expressed(pool: Pool, best: Row | None, expression: Expression) -> Pick:
    choice = expression.choice or _usual_choice(pool)
    conditions = " and ".join(condition.text for condition in expression.conditions)
    rule = f"{_CHOICE_WORDS[choice].capitalize()} of the complete trials" + (
        f" with {conditions}." if conditions else "."
    )
    pick = Pick(name=expression.text, rule=rule)
    keeps = np.ones(len(pool.rows), dtype=bool)
    for condition in expression.conditions:
        values = pool.values(condition.column)
        if np.isnan(values).all():
            pick.reason = f"no complete trial has a figure for {_WORDS[condition.column]}"
            return pick
        top = (np.nanmax if OBJECTIVES[condition.column] == "maximize" else np.nanmin)(values)
        keeps &= condition.keeps(values, float(top), 0.0 if best is None else pool.noise.standard_error(best))
    if not keeps.any():
        pick.reason = f"no complete trial keeps {'all of these' if len(expression.conditions) > 1 else 'this'}"
        return pick
    pick.row = pool.best(CHOICES[choice], keeps)
    if pick.row is None:
        pick.reason = f"none of these trials has a figure for {_WORDS[CHOICES[choice]]}"
    elif choice == "fastest":
        pick.peers = _as_fast(pool, pick.row, keeps)
    return pick


def _usual_choice(pool: Pool) -> str:
    """The fastest where trials were timed, else the one with the best score, else the smallest."""
    for choice, column in CHOICES.items():
        if choice != "smallest" and not np.isnan(pool.values(column)).all():
            return choice
    return "smallest"


def _document(pool: Pool, pick: Pick) -> Document:
    row = pick.row
    pick.beats = [] if row is None else list(_beaten(pool, row))
    open_points = [] if row is None else list(_open_points(pool, pick, row))
    return {
        "name": pick.name,
        "rule": pick.rule,
        "trial": None if row is None else row["trial"],
        "reason": pick.reason,
        "sentence": _sentence(pool, pick, open_points),
        "beats": pick.beats,
        "unresolved": open_points,
    }


def _beaten(pool: Pool, row: Row) -> Iterator[Document]:
    """The fixed trials that are worse in one of the run's objectives and better in none, the best score first."""
    others = [each for each in pool.fixed if each is not row]
    values, own = minimised(others, pool.objectives), minimised([row], pool.objectives)[0]
    under = [others[place] for place in np.flatnonzero(dominates(own, values))]
    for other in sorted(under, key=lambda each: (_sortable(each, SCORE), each["trial"])):
        is_timed = row["throughput_id"] == other["throughput_id"] and row[SPEED] and other[SPEED]
        has_scores = row[SCORE] is not None and other[SCORE] is not None
        yield {
            "paper": other["paper"],
            "trial": other["trial"],
            "score_difference": row[SCORE] - other[SCORE] if has_scores else None,
            "throughput_ratio": row[SPEED] / other[SPEED] if is_timed else None,
            "params_ratio": row[SIZE] / other[SIZE],
            "macs_ratio": row["macs"] / other["macs"],
            "is_score_tie": pool.noise.is_tie(row, other),
            "is_speed_tie": bool(is_timed and Measured([other], [SPEED], pool.noise).ties(row, SPEED)[0]),
        }


def _open_points(pool: Pool, pick: Pick, row: Row) -> Iterator[str]:
    """What is not resolved about a pick."""
    if pick.peers:
        yield pick.peers
    rivals = pool.measured.may_dominate(row)
    if rivals:
        yield f"within noise it may be dominated by {_of_trials(rivals, '1 trial', 'trials')}"
    chance = pool.chances.get(row["trial"])
    if chance is not None and chance < _SURE:
        yield f"by the noise of the scores its chance to be on the front is {chance:.0%}"
    if row["throughput_noisy"]:
        yield "its speed is noisy"
    elif (row["throughput_drift"] or 0.0) > Protocol.drift_limit:
        yield "its speed was measured while the machine's drifted"
    if is_changed(row):
        yield f"its speed changed by {abs(row['throughput_change']):.0%} when it was timed again"


def _sentence(pool: Pool, pick: Pick, open_points: Sequence[str]) -> str:
    """What a manager could read of a pick."""
    name = pick.name if ">" in pick.name or "<" in pick.name else pick.name.capitalize()
    if pick.row is None:
        return f"{name}: none, since {pick.reason}."
    open_text = f" Not resolved: {'; '.join(open_points)}." if open_points else ""
    return f"{name}: trial {pick.row['trial']}, {what_it_is(pick.row)}, with {figures_of(pick.row)}. {_beats_text(pick, pool)}{open_text}"


def what_it_is(row: Mapping[str, Any]) -> str:
    """The architecture in words, or whose model it is."""
    if not row["is_fixed"]:
        return str(row["architecture"])
    whose = {_PAPERS: "a paper's own model", _INCLUDED: "an included network"}[_kind(row)]
    return f"{whose}, {row['paper']}"


def _kind(fixed: Mapping[str, Any]) -> str:
    return _PAPERS if fixed["paper"] in paper_names() else _INCLUDED


def figures_of(row: Mapping[str, Any]) -> str:
    """`score 0.933+-0.010, 391.6 img/s, 10.25M parameters and 4.37G MACs`, without what is not known."""
    parts = []
    if row[SCORE] is not None:
        error = f"+-{row['proxy_score_se']:.3f}" if row["proxy_score_se"] is not None else ""
        parts.append(f"score {row[SCORE]:.3f}{error}")
    if row[SPEED] is not None:
        parts.append(f"{row[SPEED]:.1f} img/s")
    return f"{', '.join([*parts, f'{format_count(row[SIZE])} parameters'])} and {format_count(row['macs'])} MACs"


def _beats_text(pick: Pick, pool: Pool) -> str:
    """Which fixed trials it beats, and by how much the best few of them."""
    kinds = dict.fromkeys(_kind(row) for row in pool.fixed)
    which = " or ".join(sorted(kinds, reverse=True)) or "fixed trial"
    if not any(row is not pick.row for row in pool.fixed):
        other = "other " * bool(pool.fixed)
        return f"The run has no {other}{which} to compare it with."
    if not pick.beats:
        words = [_WORDS[name] for name in pool.objectives]
        together = f"{', '.join(words[:-1])} and {words[-1]} together" if len(words) > 1 else words[0]
        return f"It beats no {which} in {together}."
    words = [f"{beaten['paper']} ({_margin(beaten)})" for beaten in pick.beats[:_BEATEN_SHOWN]]
    left = len(pick.beats) - len(words)
    more = f" and {left} more" if left else ""
    return f"It beats {', '.join(words)}{more}."


def _margin(beaten: Document) -> str:
    """`score +0.012, a tie; 1.32 times the img/s; 0.73 times the parameters; 0.98 times the MACs`."""
    parts = []
    if beaten["score_difference"] is not None:
        parts.append(f"score {beaten['score_difference']:+.3f}" + (", a tie" if beaten["is_score_tie"] else ""))
    if beaten["throughput_ratio"] is not None:
        noise = ", no more than noise" if beaten["is_speed_tie"] else ""
        parts.append(f"{beaten['throughput_ratio']:.2f} times the img/s{noise}")
    parts += [f"{_ratio(beaten['params_ratio'])} the parameters", f"{_ratio(beaten['macs_ratio'])} the MACs"]
    return "; ".join(parts)


def _ratio(value: float) -> str:
    return f"{value:.2f} times" if value >= 0.01 else f"{value:.2g} times"
