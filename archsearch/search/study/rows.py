"""Makes a row of trials.parquet from a stored trial."""

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite, nan
from typing import Any

from archsearch.results import CONDITION_COLUMNS, MEASURED_COLUMNS, SCHEMA, SCHEMA_VERSION, Row
from archsearch.search.config import RunConfig
from archsearch.search.rungs import RUNG_PHASE, Rung

# Keys of a trial's attributes: the architecture, what is known when it starts and when it ends, and a prefix of each phase.
ARCH, CANDIDATE, OUTCOME, PHASE = "arch", "candidate", "outcome", "phase:"
# The key of a trial that a driver left unfinished: its `starts`, but for those that ended orderly, and its `phases` at the last one.
STARTS = "starts"


@dataclass(kw_only=True)
class StoredTrial:
    """A trial as it is stored, kept in memory: the run has one writer, so it is read once, and every change is stored first."""

    number: int
    trial_id: int
    state: str
    attrs: dict[str, Any]
    again: dict[str, Any] | None = None  # the second throughput measurement
    seeds: dict[str, float] = field(default_factory=dict)  # number of a further seed -> score

    @property
    def phases(self) -> dict[str, dict[str, Any]]:
        """What was measured: phase -> column -> value."""
        return {key.removeprefix(PHASE): values for key, values in self.attrs.items() if key.startswith(PHASE)}

    @property
    def starts(self) -> dict[str, Any]:
        """The attribute STARTS; the first start is not noted, which saves a write for each trial."""
        return {"starts": 1, "phases": 0, **self.attrs.get(STARTS, {})}


def finished_rungs(config: RunConfig, trial: StoredTrial) -> Iterator[tuple[Rung, dict[str, Any]]]:
    """The rungs that a trial finished with a finite score, up to the first it did not, each with what was measured."""
    for rung in config.trainings:
        measured = trial.attrs.get(f"{PHASE}{rung.phase}")
        if measured is None or not isfinite(measured.get("proxy_score", nan)):
            return
        yield rung, measured


def make_row(config: RunConfig, trial: StoredTrial) -> Row:
    """The row of a trial, with every column of the schema; `front` is not set yet."""
    row: Row = dict.fromkeys(SCHEMA.names)
    row |= {name: config.settings.get(name) for name in (*CONDITION_COLUMNS, "proxy_id")}
    row |= {"run": config.name, "space": config.space.name, "budget_macs": config.budget_macs}
    row["schema_version"] = SCHEMA_VERSION
    row |= {"trial": trial.number, "state": trial.state, "seed": config.seed, "arch": json.dumps(trial.attrs[ARCH])}
    row |= trial.attrs[CANDIDATE]
    seconds = 0.0
    for phase, values in trial.phases.items():
        seconds += values.get("seconds", 0.0)
        if not phase.startswith(RUNG_PHASE):
            measured = {f"seconds_{phase}": values.get("seconds"), **values}
            row |= {key: value for key, value in measured.items() if key in MEASURED_COLUMNS}
    row |= _rung_columns(config, trial, is_reused=row["reused_from"] is not None)
    # Reused figures took no time of their own.
    row["seconds_total"] = 0.0 if row["reused_from"] is not None else seconds
    if trial.state != "running":
        row |= trial.attrs[OUTCOME]
        row["finished_at"] = datetime.fromisoformat(row["finished_at"])
    row["started_at"] = datetime.fromisoformat(row["started_at"])
    if trial.again is not None:
        row |= _recheck_columns(row, trial.again)
    if trial.seeds and row["proxy_score"] is not None:
        scores = [row["proxy_score"], *(trial.seeds[key] for key in sorted(trial.seeds, key=int))]
        row |= {"proxy_seeds": len(scores), "proxy_seed_scores": json.dumps(scores)}
        row |= {"proxy_score_mean": statistics.fmean(scores), "proxy_score_sd": statistics.stdev(scores)}
    if isinstance(row["conditions"], dict):
        row["conditions"] = json.dumps(row["conditions"])
    return row


def _rung_columns(config: RunConfig, trial: StoredTrial, *, is_reused: bool) -> dict[str, Any]:
    """The number of finished rungs, the last score below the full training, and all scores as a learning curve."""
    finished = list(finished_rungs(config, trial))
    if not finished:
        return {"rung": 0} if trial.state == "stopped" else {}
    lower = [(rung, measured) for rung, measured in finished if rung.place < rung.total]
    score, error, proxy_id = None, None, None
    if lower:
        rung, measured = lower[-1]
        score, error, proxy_id = measured["proxy_score"], measured.get("proxy_score_se"), rung.proxy_id
    points = [
        {
            "steps": rung.steps,
            "score": measured["proxy_score"],
            "standard_error": measured.get("proxy_score_se"),
            "proxy_id": rung.proxy_id,
            "seconds": measured.get("seconds_proxy", measured.get("seconds")),
        }
        for rung, measured in finished
    ]
    last, measured = finished[-1]
    # A training that diverged and was repeated counts twice, since it is not known when the first one diverged.
    images = last.images * (2 if measured.get("proxy_retried") else 1)
    return {
        "rung": len(finished),
        "rung_score": score,
        "rung_score_se": error,
        "rung_proxy_id": proxy_id,
        "learning_curve": json.dumps(points),
        "train_images": 0 if is_reused else images,
    }


def _recheck_columns(row: Row, again: Mapping[str, Any]) -> Row:
    """The columns of the second throughput measurement, the change from the first, and the conditions of both."""
    figures = {key: value for key, value in again.items() if key in MEASURED_COLUMNS and key != "conditions"}
    first, second = row["throughput_ratio"], figures.get("throughput_again_ratio")
    if first and second:
        figures["throughput_change"] = second / first - 1
    return {**figures, "conditions": {**(row["conditions"] or {}), "again": again.get("conditions")}}
