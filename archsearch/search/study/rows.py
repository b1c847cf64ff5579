"""Makes a row of trials.parquet from a stored trial."""

import json
import statistics
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite, nan
from typing import Any

from archsearch.identity import Identity, identity_digest, row_identity
from archsearch.results import (
    CONDITION_COLUMNS,
    MEASURED_COLUMNS,
    RANK_COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    Row,
    outside,
)
from archsearch.samplers import DESCRIBED
from archsearch.search.config import RunConfig
from archsearch.search.rungs import FULL_PHASE, RUNG_PHASE, TIMING_PHASE, Rung

# Before the key of an attribute that only the engine reads, of a trial or of the study; they are stored as system attributes, which Optuna's own tools
# do not show.
OWN = "archsearch:"
# Keys of a trial's attributes: the architecture, what is known when it starts and when it ends, and a prefix of each phase.
ARCH, CANDIDATE, OUTCOME, PHASE = "arch", "candidate", "outcome", "phase:"
# The key of a trial that a driver left unfinished: its `starts`, but for those that ended orderly, its `phases` at the last one, and whether
# it was evaluated `alone` then, so that a driver that died was killed by it or from outside.
STARTS = "starts"
# The choices of a fixed trial by the names of the space: of the engine's own the only one that a sampler reads.
CHOICES = DESCRIBED.removeprefix(OWN)
OWN_KEYS = (ARCH, CANDIDATE, OUTCOME, STARTS, CHOICES)
# Texts that are equal in most rows of a run, and are then in memory once.
_REPEATED = (
    "device_name",
    "archsearch_version",
    "torch_version",
    "python_version",
    "conditions",
    "throughput_id",
    "rung_proxy_id",
)
_TIMING_COLUMNS = {name for name in MEASURED_COLUMNS | RANK_COLUMNS if not name.startswith("seconds")}


@dataclass(kw_only=True)
class StoredTrial:
    """A trial as it is stored, kept in memory: the run has one writer, so it is read once, and every change is stored first.

    `timed` is what was timed anew after the trial had ended, and `again` the second timings of the front, by throughput_id; a trial that
    reused another's results shares its `timed`.
    """

    number: int
    trial_id: int
    state: str
    attrs: dict[str, Any]
    timed: dict[str, dict[str, Any]] = field(default_factory=dict)
    again: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: dict[str, float] = field(default_factory=dict)  # number of a further seed -> score

    @property
    def phases(self) -> dict[str, dict[str, Any]]:
        """What was measured: phase -> column -> value."""
        return {key.removeprefix(PHASE): values for key, values in self.attrs.items() if key.startswith(PHASE)}

    @property
    def starts(self) -> dict[str, Any]:
        """The attribute STARTS; the first start is not noted, which saves a write for each trial."""
        return {"starts": 1, "phases": 0, "alone": True, **self.attrs.get(STARTS, {})}


def split_attrs(attrs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A trial's attributes as they are stored: user attributes, for people and samplers, and the engine's own as system attributes."""
    own = {key for key in attrs if key in OWN_KEYS or key.startswith(PHASE)}
    user_attrs = {key: value for key, value in attrs.items() if key not in own}
    return user_attrs, {f"{OWN}{key}": attrs[key] for key in attrs if key in own}


def finished_rungs(config: RunConfig, trial: StoredTrial) -> Iterator[tuple[Rung, dict[str, Any]]]:
    """The rungs that a trial finished with a finite score, up to the first it did not, each with what was measured."""
    for rung in config.trainings:
        measured = trial.attrs.get(f"{PHASE}{rung.phase}")
        if measured is None or not isfinite(measured.get("proxy_score", nan)):
            return
        yield rung, measured


def learning_curve(config: RunConfig, trial: StoredTrial) -> dict[str, float]:
    """The attribute CURVE of a trial: steps -> score of the rungs that it has finished."""
    return {str(rung.steps): measured["proxy_score"] for rung, measured in finished_rungs(config, trial)}


def timing_identity(config: RunConfig, trial: StoredTrial, values: Mapping[str, Any]) -> Identity:
    """The identity of a stored timing of a trial, as its phase `throughput` or `again` gave it."""
    versions = {**trial.attrs[CANDIDATE], **trial.attrs.get(f"{PHASE}count", {})}
    row = {
        **config.settings,
        "mode": values.get("mode", config.settings["mode"]),
        "torch_version": versions.get("torch_version"),
        "device_name": values.get("device_name"),
        "conditions": values.get("conditions"),
        "throughput_raw_img_s": values.get("throughput_raw_img_s", values.get("throughput_again_raw_img_s")),
    }
    return row_identity(row)


def make_row(config: RunConfig, trial: StoredTrial, throughput_id: str | None = None) -> Row:
    """The row of a trial, with every column of the schema; `front` is not set yet.

    Its timing is that of this identity where there is one, else the trial's own.
    """
    row: Row = dict.fromkeys(SCHEMA.names)
    row |= {"run": config.name, "space": config.space.name, "budget_macs": config.budget_macs}
    row["schema_version"] = SCHEMA_VERSION
    row |= {name: config.settings.get(name) for name in (*CONDITION_COLUMNS, "proxy_id")}
    row |= {"trial": trial.number, "state": trial.state, "seed": config.seed, "arch": json.dumps(trial.attrs[ARCH])}
    row |= trial.attrs[CANDIDATE]
    for phase, values in trial.phases.items():
        if not phase.startswith(RUNG_PHASE):
            measured = {f"seconds_{phase}": values.get("seconds"), **values}
            row |= {key: value for key, value in measured.items() if key in MEASURED_COLUMNS}
    row |= _timing_columns(config, trial, throughput_id)
    taken = json.loads(row["taken_from"] or "{}")
    if row["throughput_id"] in trial.timed:
        taken.pop(TIMING_PHASE, None)  # timed anew here
    row["taken_from"] = json.dumps(taken) if taken else None
    row["other_cores"] = _other_cores(trial)
    row |= _rung_columns(config, trial, taken, is_reused=row["reused_from"] is not None)
    row |= _durations(trial, row)
    if trial.state != "running":
        row |= trial.attrs[OUTCOME]
        row["finished_at"] = datetime.fromisoformat(row["finished_at"])
    row["started_at"] = datetime.fromisoformat(row["started_at"])
    if trial.seeds and row["proxy_score"] is not None:
        scores = [row["proxy_score"], *(trial.seeds[key] for key in sorted(trial.seeds, key=int))]
        row |= {"proxy_seeds": len(scores), "proxy_seed_scores": json.dumps(scores)}
        row |= {"proxy_score_mean": statistics.fmean(scores), "proxy_score_sd": statistics.stdev(scores)}
    row["outside"] = ",".join(limit.column for limit in outside(row, config.kept_limits)) or None
    if isinstance(row["conditions"], dict):
        row["conditions"] = json.dumps(row["conditions"])
    return row | {name: sys.intern(row[name]) for name in _REPEATED if isinstance(row[name], str)}


def _timing_columns(config: RunConfig, trial: StoredTrial, throughput_id: str | None) -> Row:
    """The columns of the timing that is shown, and of the second one of the same identity."""
    own = trial.phases.get(TIMING_PHASE)
    if own is None or own.get("throughput_img_s") is None:
        return {}
    timings = {identity_digest(timing_identity(config, trial, own)): own, **trial.timed}
    shown = throughput_id if throughput_id in timings else next(iter(timings))
    columns: Row = {name: value for name, value in timings[shown].items() if name in _TIMING_COLUMNS}
    columns["throughput_id"] = shown
    return columns | (_recheck_columns(columns, trial.again[shown]) if shown in trial.again else {})


def _durations(trial: StoredTrial, row: Row) -> Row:
    """Seconds of all trainings, of whichever length, and of all phases; 0 where the results were reused, which took none of their own."""
    phases = trial.phases
    trainings = [
        values.get("seconds_proxy", values.get("seconds"))
        for phase, values in phases.items()
        if phase == FULL_PHASE or phase.startswith(RUNG_PHASE)
    ]
    columns = {name: row[name] for name in ("seconds_count", "seconds_throughput")}
    columns["seconds_proxy"] = sum(seconds or 0.0 for seconds in trainings) if trainings else None
    columns["seconds_total"] = sum(values.get("seconds", 0.0) for values in phases.values())
    if row["reused_from"] is None:
        return columns
    return {name: None if seconds is None else 0.0 for name, seconds in columns.items()}


def _other_cores(trial: StoredTrial) -> float | None:
    """Cores that other processes used during the trial's phases, the mean by their seconds."""
    known = [each for each in trial.phases.values() if each.get("other_cores") is not None]
    seconds = sum(each["seconds"] for each in known)
    return sum(each["other_cores"] * each["seconds"] for each in known) / seconds if seconds else None


def _rung_columns(config: RunConfig, trial: StoredTrial, taken: Collection[str], *, is_reused: bool) -> dict[str, Any]:
    """The number of finished rungs, the last score below the full training, and all scores as a learning curve; `taken`: phases of other runs."""
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
        "train_images": 0 if is_reused or last.phase in taken else images,
    }


def _recheck_columns(row: Row, again: Mapping[str, Any]) -> Row:
    """The columns of the second throughput measurement, the change from the first, and the conditions of both."""
    figures = {key: value for key, value in again.items() if key in _TIMING_COLUMNS and key != "conditions"}
    first, second = row.get("throughput_ratio"), figures.get("throughput_again_ratio")
    if first and second:
        figures["throughput_change"] = second / first - 1
    return {**figures, "conditions": {**(row.get("conditions") or {}), "again": again.get("conditions")}}
