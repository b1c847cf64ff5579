"""Early stopping in a run: the stages of a candidate's evaluation, and the decision after each whether it goes on: by its limits, then by its scores."""

from dataclasses import dataclass

from archsearch.results import LIMITED_BY_PHASE, Row, outside
from archsearch.search.config import RunConfig
from archsearch.search.early_stopping import CurveTable, goes_on, with_free_rung
from archsearch.search.rungs import FREE_PHASE, FULL_PHASE, TIMING_PHASE
from archsearch.search.study.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a trial ended: complete without a reason, else failed or stopped for that reason."""

    reason: str | None = None
    is_stopped: bool = False


def stages(config: RunConfig) -> list[tuple[str, ...]]:
    """The phases of a candidate in stages; after each stage it may be stopped. Phases that nothing is decided between share a stage."""
    trainings = _trainings(config)
    free_rung, has_free = config.settings.get("free_rung"), config.settings.get("training_free")
    free = (FREE_PHASE,) if free_rung or has_free else ()
    decides = {phase for phase, columns in LIMITED_BY_PHASE.items() if not config.limits.keys().isdisjoint(columns)}
    decides |= {*trainings, *([FREE_PHASE] if free_rung else [])}
    found: list[tuple[str, ...]] = []
    under_way: tuple[str, ...] = ()
    for phase in ("count", TIMING_PHASE, *free, *trainings):
        under_way = (*under_way, phase)
        if phase in decides:
            found.append(under_way)
            under_way = ()
    return found


def _trainings(config: RunConfig) -> list[str]:
    """The phases that train."""
    return [rung.phase for rung in config.trainings] or [FULL_PHASE]


def judge(config: RunConfig, store: RunStore, row: Row, stage: int) -> Ending | None:
    """Decide after a trial's `stage`-th stage, from 1: why it ends here, or None if it goes on. Only the stored trials matter.

    Fixed trials always go on: they are the models to beat, and show how scores grow from rung to rung.
    """
    phases = [phase for stage_phases in stages(config)[:stage] for phase in stage_phases]
    if (ending := _judge_limits(config, store, row, phases[-1])) or phases[-1] in ("count", TIMING_PHASE):
        return ending
    # Taken from an earlier run: no training is left to be saved.
    if not config.trainings or FULL_PHASE in store.phases(row["trial"]):
        return None
    return _judge_scores(config, store, row, num_trainings=len([one for one in phases if one in _trainings(config)]))


def _judge_limits(config: RunConfig, store: RunStore, row: Row, phase: str) -> Ending | None:
    """Why a trial ends after a phase whose figures are outside the run's limits."""
    measured, columns = store.row(row["trial"]), LIMITED_BY_PHASE.get(phase, ())
    broken = [limit for limit in outside(measured, config.kept_limits) if limit.column in columns]
    if row["is_fixed"] or not broken:
        return None
    return Ending(reason="; ".join(limit.explain(measured[limit.column]) for limit in broken), is_stopped=True)


def _judge_scores(config: RunConfig, store: RunStore, row: Row, *, num_trainings: int) -> Ending | None:
    """Why a trial ends after so many trainings, by its score and those of others."""
    free_name = config.settings.get("free_rung")
    if num_trainings:
        rung, full = config.trainings[num_trainings - 1], config.trainings[-1]
        if rung is full:
            return None
        if len(store.scores(row["trial"])) < num_trainings:
            return Ending(reason=f"the evaluation gave no score after {rung.steps} training steps")
        when = f"after {rung.steps} of {full.steps} training steps"
    else:
        when = f"before training, {free_name} on the scale of the first rung's scores"
    if row["is_fixed"]:
        return None

    costs = [name for name in config.objectives if name != "proxy_score"]
    curves = store.curves()
    if not num_trainings:
        free_scores = {other["trial"]: other[f"{FREE_PHASE}_{free_name}"] for other in store.rows()}
        known = {trial: score for trial, score in free_scores.items() if score is not None}
        with_free = with_free_rung(curves.curves(), known)
        curves = CurveTable(len(costs), 1 + len(config.trainings))
        for curve in with_free:
            curves.set(curve)
    candidate = curves.get(row["trial"])
    if candidate is None:  # nothing to compare it by; one that lacks an objective fails at its end
        return None
    decision = goes_on(candidate, curves, names=costs)
    return None if decision.goes_on else Ending(reason=f"{when}: {decision.reason}", is_stopped=True)
