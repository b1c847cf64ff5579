"""Early stopping in a run: the stages of a candidate's evaluation, and the decision after each whether it goes on."""

from dataclasses import dataclass

from archsearch.results import Row
from archsearch.search.config import RunConfig
from archsearch.search.early_stopping import CurveTable, goes_on, with_free_rung
from archsearch.search.rungs import FREE_PHASE, FULL_PHASE
from archsearch.search.study.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a trial ended: complete without a reason, else failed or stopped for that reason."""

    reason: str | None = None
    is_stopped: bool = False


def stages(config: RunConfig) -> list[tuple[str, ...]]:
    """The phases of a candidate in stages; after each stage it may be stopped. Phases before the first training share a stage with it."""
    first, *later = [rung.phase for rung in config.trainings] or [FULL_PHASE]
    after = [(phase,) for phase in later]
    if config.settings.get("free_rung"):
        return [("count", "throughput", FREE_PHASE), (first,), *after]
    free = (FREE_PHASE,) if config.settings.get("training_free") else ()
    return [("count", "throughput", *free, first), *after]


def judge(config: RunConfig, store: RunStore, row: Row, stage: int) -> Ending | None:
    """Decide after a trial's `stage`-th stage, from 1: why it ends here, or None if it goes on. Only the stored trials matter.

    Fixed trials always go on: they are the models to beat, and show how scores grow from rung to rung.
    """
    free_name = config.settings.get("free_rung")
    num_trainings = stage - 1 if free_name else stage
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
