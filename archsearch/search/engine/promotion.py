"""Where a candidate's training may end early, and what the trainings of a run came to."""

from dataclasses import dataclass
from math import isfinite
from operator import mul

from archsearch.results import OBJECTIVES, Row
from archsearch.search.config import RunConfig
from archsearch.search.early_stopping import Curve, Decision, goes_on, with_free_rung
from archsearch.search.rungs import FREE_PHASE, FULL_PHASE
from archsearch.search.study.store import RunStore

_SCORE = "proxy_score"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a trial ended: complete without a reason, else failed or stopped for it."""

    reason: str | None = None
    is_stopped: bool = False


def stages(config: RunConfig) -> list[tuple[str, ...]]:
    """The phases of a candidate, cut where it may be stopped: all that is no training belongs to the first rung."""
    first, *later = [rung.phase for rung in config.trainings] or [FULL_PHASE]
    after = [(phase,) for phase in later]
    if config.settings.get("free_rung"):
        return [("count", "throughput", FREE_PHASE), (first,), *after]
    free = (FREE_PHASE,) if config.settings.get("training_free") else ()
    return [("count", "throughput", *free, first), *after]


def judge(config: RunConfig, store: RunStore, row: Row, place: int) -> Ending | None:
    """After the `place`-th stage: why this trial goes no further; None if it does. It depends on the stored trials alone.

    Fixed trials always go on: they are what has to be beaten, and they teach how scores grow from rung to rung.
    """
    if config.settings.get("free_rung"):
        if place == 1:
            return _judge_free(config, store, row)
        place -= 1
    rung, full = config.trainings[place - 1], config.trainings[-1]
    if rung is full:
        return None
    if len(store.scores(row["trial"])) < place:
        return Ending(reason=f"the evaluation gave no score after {rung.steps} training steps")
    if row["is_fixed"]:
        return None
    decision = decide(config, store, row["trial"])
    if decision.goes_on:
        return None
    return Ending(reason=f"after {rung.steps} of {full.steps} training steps: {decision.reason}", is_stopped=True)


def _judge_free(config: RunConfig, store: RunStore, row: Row) -> Ending | None:
    """Before any training: why this trial is not worth one, by the training-free score that was asked for."""
    name = config.settings["free_rung"]
    column = f"{FREE_PHASE}_{name}"
    values = {other["trial"]: other[column] for other in store.rows() if other[column] is not None}
    if row["is_fixed"] or row["trial"] not in values:
        return None
    curves = with_free_rung(_curves(config, store), values)
    candidate = next((curve for curve in curves if curve.trial == row["trial"]), None)
    if candidate is None:
        return None
    decision = goes_on(candidate, [curve for curve in curves if curve is not candidate], names=_costs(config))
    if decision.goes_on:
        return None
    return Ending(
        reason=f"before training, {name} on the scale of the first rung's scores: {decision.reason}", is_stopped=True
    )


def decide(config: RunConfig, store: RunStore, trial: int) -> Decision:
    """The decision on a trial that has just finished a rung, against all that did not fail and were measured for themselves."""
    curves = _curves(config, store)
    candidate = next((curve for curve in curves if curve.trial == trial), None)
    if candidate is None:  # nothing to be compared by: told as a failure at its end
        return Decision(goes_on=True)
    return goes_on(candidate, [curve for curve in curves if curve is not candidate], names=_costs(config))


def _costs(config: RunConfig) -> list[str]:
    return [name for name in config.objectives if name != _SCORE]


def _curves(config: RunConfig, store: RunStore) -> list[Curve]:
    """Of all trials that did not fail, were measured for themselves and have all other objectives."""
    names = _costs(config)
    signs = [-1.0 if OBJECTIVES[name] == "maximize" else 1.0 for name in names]
    found = []
    for row in store.rows():
        figures = [row[name] for name in names]
        if row["state"] == "failed" or row["reused_from"] is not None or None in figures:
            continue
        costs = tuple(map(mul, signs, figures))
        if all(map(isfinite, costs)):
            found.append(Curve(trial=row["trial"], costs=costs, scores=store.scores(row["trial"])))
    return found
