"""The rungs of a run: the points of a candidate's training at which it is judged, and the names of the evaluation's phases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archsearch.errors import UserError, did_you_mean

# Phases of an evaluation: the full training; one up to a rung (this with its steps behind it); one more with another seed (with its number
# behind it); the scores that need no training, one of which may be the first rung (settings["free_rung"]); the throughput, and the throughput once more.
FULL_PHASE, RUNG_PHASE, SEED_PHASE, FREE_PHASE = "proxy", "proxy@", "seed@", "free"
TIMING_PHASE, AGAIN_PHASE = "throughput", "again"
PHASES = ("count", TIMING_PHASE, FULL_PHASE)  # of an evaluation that is not told which
FREE_SCORES = ("naswot", "zico", "expressivity", "progressivity", "trainability")


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung, the `place`-th of `total`: a point of a candidate's training, after so many steps and images of it from its start."""

    phase: str
    place: int
    total: int
    steps: int
    images: int
    proxy_id: str | None


def phase_kind(phase: str) -> str:
    """The name under which what phases took is kept: all further seeds are one; each rung is its own, since they differ in length."""
    return SEED_PHASE if phase.startswith(SEED_PHASE) else phase


def rungs_of(settings: Mapping[str, Any]) -> tuple[Rung, ...]:
    """The rungs of a run's settings, the full training last; none where they do not say how long that is."""
    proxy = settings.get("proxy") or {}
    recipe = proxy.get("recipe") or {}
    if not recipe.get("steps"):
        return ()
    full = {"steps": recipe["steps"], "proxy_id": settings.get("proxy_id")}
    lower = [{**rung, "phase": f"{RUNG_PHASE}{rung['steps']}"} for rung in proxy.get("rungs", [])]
    return tuple(
        Rung(
            phase=rung.get("phase", FULL_PHASE),
            place=place,
            total=len(lower) + 1,
            steps=rung["steps"],
            images=rung["steps"] * recipe.get("batch_size", 0),
            proxy_id=rung["proxy_id"],
        )
        for place, rung in enumerate([*lower, full], start=1)
    )


def check_free_rung(name: str, where: str = "--free-rung") -> None:
    """Raise UserError for a name that is no training-free score."""
    if name not in FREE_SCORES:
        hint = did_you_mean(name, FREE_SCORES)
        raise UserError(f"{where}: unknown training-free score {name!r}{hint}; allowed are {', '.join(FREE_SCORES)}")
