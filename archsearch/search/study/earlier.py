"""The earlier runs that a run has taken figures from: their models for the sampler, and what they were worth so far."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from archsearch.metrics import kendall_tau
from archsearch.models import is_given
from archsearch.results import Row
from archsearch.samplers import FEWEST_SCORES, ArchDonor
from archsearch.search.config import RunConfig
from archsearch.search.rungs import FULL_PHASE, TIMING_PHASE
from archsearch.search.study.donors import Donor, taken_phases
from archsearch.space import Arch

# Kendall's tau with an earlier run's scores is computed from this many scores of the run itself on, and over the latest ones only.
_FEWEST_COMPARED = 3
_MOST_COMPARED = 200


class EarlierRuns:
    """The earlier runs of a run, each with a model of its scores where it has enough of them."""

    def __init__(self, config: RunConfig, donors: Sequence[Donor]) -> None:
        self.donors = list(donors)
        self._models = [_model(config, donor) for donor in donors]
        self._predicted: list[dict[int, float]] = [{} for _ in donors]  # scores by trial of this run

    @property
    def models(self) -> list[ArchDonor]:
        """Those of the runs that have one."""
        return [model for model in self._models if model is not None]

    def documents(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """For the manifest: of each run how many figures were used again in these rows, and how well its scores order theirs."""
        return [
            {
                **{name: getattr(donor, name) for name in ("run", "folder", "begun_at", "taken_at", "proxy_id")},
                "trials": len(donor.trials),
                "timings": _num_taken(rows, donor, TIMING_PHASE),
                "scores": _num_taken(rows, donor, FULL_PHASE),
                "order": self._order(place, rows),
            }
            for place, donor in enumerate(self.donors)
        ]

    def _order(self, place: int, rows: Sequence[Row]) -> dict[str, Any] | None:
        """Kendall's tau between a run's model and the scores measured in this run, and its standard error; None of too few."""
        model, predicted = self._models[place], self._predicted[place]
        scored = [row for row in rows if row["proxy_score"] is not None and row["reused_from"] is None]
        own = [
            row
            for row in scored[-_MOST_COMPARED:]
            if FULL_PHASE not in taken_phases(row) and not is_given(json.loads(row["arch"]))
        ]
        if model is None or len(own) < _FEWEST_COMPARED:
            return None
        new = [row for row in own if row["trial"] not in predicted]
        if new:
            found = model.predict([Arch.from_dict(json.loads(row["arch"])) for row in new])
            predicted |= zip((row["trial"] for row in new), found.tolist(), strict=True)
        tau = kendall_tau(
            np.array([predicted[row["trial"]] for row in own]), np.array([row["proxy_score"] for row in own])
        )
        return {"trials": len(own), "tau": tau, "standard_error": _tau_error(len(own))} if math.isfinite(tau) else None


def _tau_error(number: int) -> float:
    """The standard error of Kendall's tau of so many pairs where there is no relation (Kendall, 1938)."""
    return math.sqrt(2 * (2 * number + 5) / (9 * number * (number - 1)))


def _model(config: RunConfig, donor: Donor) -> ArchDonor | None:
    if "proxy_score" not in config.objectives:
        return None
    found = [
        (trial.arch, trial.phases[FULL_PHASE]["proxy_score"]) for trial in donor.trials if FULL_PHASE in trial.phases
    ]
    if len(found) < FEWEST_SCORES:
        return None
    return ArchDonor(config.space, *zip(*found, strict=True))


def _num_taken(rows: Sequence[Row], donor: Donor, phase: str) -> int:
    """The trials whose phase was taken from this run."""
    origins = [taken_phases(row).get(phase, "") for row in rows if row["taken_from"]]
    return sum(origin.rpartition(":")[0] == donor.run for origin in origins)
