"""Makes a lost study again from trials.parquet, manifest.json and space.toml: everything that the rows of the trials hold."""

import json
import random
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from archsearch.errors import UserError
from archsearch.models import is_given
from archsearch.results import (
    DATABASE_FILE,
    TRIALS_FILE,
    Row,
    damage_is_an_error,
    front_members,
    read_manifest,
    read_rows,
    study_name,
)
from archsearch.samplers import CURVE, MEASURED, STANDARD_ERRORS, params_in_space
from archsearch.search.config import RunConfig
from archsearch.search.load import read_config
from archsearch.search.study.address import refuse_network_file
from archsearch.search.study.database import create_database, run_lock, set_study_attr
from archsearch.search.study.opening import open_run
from archsearch.search.study.phases import AGAIN_COLUMNS, phases_of_row, pick_values
from archsearch.search.study.rows import ARCH, CANDIDATE, CHOICES, OUTCOME, PHASE, StoredTrial, make_row, split_attrs
from archsearch.search.study.seen import constraint_attrs, standard_errors
from archsearch.search.study.shown import AT_START, end_attrs, shown_attrs
from archsearch.search.study.store import AGAIN, SEEDED, SEEDS, STATES
from archsearch.space import Arch, propose, register_files

_MOST_OTHERS = 10_000  # trials of other programs between those of a run
_LOST = ".lost"  # put behind the names of the files that a restored study takes the place of
_CANDIDATE = (
    *("arch_id", "architecture", "macs", "params", "activations", "is_fixed", "paper", "in_band", "reused_from"),
    *("archsearch_version", "torch_version", "python_version", "throughput_predicted_img_s", "taken_from"),
)


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What `restore_run` did: the number of trials, those whose parameters the space does not have any more, and columns not kept as they were."""

    trials: int
    without_params: int
    changed: tuple[str, ...]
    aside: Path | None  # where the database went that was there


def restore_run(folder: Path) -> Restored:
    """Make study.db of a run again. Raises UserError where the run is whole, at work, or its files are damaged."""
    with damage_is_an_error(folder):
        return _restore(folder)


def _restore(folder: Path) -> Restored:
    manifest = read_manifest(folder)
    config, rows = read_config(folder, manifest), _read_trials(folder)
    register_files(config.block_files)
    database = folder / DATABASE_FILE
    refuse_network_file(folder, None)
    if database.exists() and _is_whole(folder, config):
        raise UserError(f"{database}: has all trials of the run; there is nothing to restore")
    without_params: list[int] = []

    def fill(study: optuna.Study) -> None:
        number = 0
        for row in rows:
            for _ in range(number, row["trial"]):
                study.add_trial(_not_ours())
            number = row["trial"] + 1
            if not _add(study, config, row):
                without_params.append(row["trial"])
        if any(row["proxy_seeds"] for row in rows):
            set_study_attr(study, SEEDED, [row["trial"] for row in front_members(rows)])

    with run_lock(folder):
        aside = _move_aside(database)
        create_database(folder, study_name(manifest), config.directions, config.to_dict(), fill)
    changed = {name for row in rows for name in _changed(config, row)}
    return Restored(trials=len(rows), without_params=len(without_params), changed=tuple(sorted(changed)), aside=aside)


def _is_whole(folder: Path, config: RunConfig) -> bool:
    """Whether the run's own command would go on with the database that is there."""
    try:
        with open_run(folder, config):
            return True
    except UserError:
        return False


def _move_aside(database: Path) -> Path | None:
    """Give the database that is there another name, with the files that SQLite keeps beside it; returns the new one."""
    if not database.exists():
        return None
    number = 1
    while (aside := database.with_name(f"{database.name}{_LOST}{number}")).exists():
        number += 1
    for end in ("-wal", "-shm", ""):
        beside = Path(f"{database}{end}")
        if beside.exists():
            beside.rename(f"{aside}{end}")
    return aside


def _not_ours() -> FrozenTrial:
    """A failed trial in the place of one that was not the run's own, of which nothing is left."""
    return create_trial(state=TrialState.FAIL, user_attrs={"reason": "not restored: not a trial of the run"})


def _read_trials(folder: Path) -> list[Row]:
    """The rows of a run. Raises UserError where their numbers cannot be those of a study."""
    rows = read_rows(folder)
    numbers = [row["trial"] for row in rows]
    if numbers != sorted(set(numbers)) or (numbers and not 0 <= numbers[0] <= numbers[-1] < len(rows) + _MOST_OTHERS):
        raise UserError(f"{folder / TRIALS_FILE}: damaged (its trials are not numbered one after another)")
    return rows


def _add(study: optuna.Study, config: RunConfig, row: Row) -> bool:
    """Store a row as its trial; False where the space does not have its parameters (any more)."""
    stored = _stored_trial(config, row)
    params = {} if row["is_fixed"] else _params(config, row)
    attrs = dict(stored.attrs)
    if row["is_fixed"]:
        is_unknown = is_given(json.loads(row["arch"]))
        attrs[CHOICES] = {} if is_unknown else params_in_space(_arch(row), config.space)
    shown = shown_attrs(row, AT_START)
    if row["state"] != "running":
        shown |= end_attrs(row, config.objectives, row["reason"])
    user_attrs, own = split_attrs(attrs)
    states = {name: state for state, name in STATES.items()}
    trial = create_trial(
        state=states[row["state"]],
        values=[float(row[name]) for name in config.objectives] if row["state"] == "complete" else None,
        params=params,
        distributions={name: CategoricalDistribution(config.space.parameters()[name]) for name in params},
        user_attrs={**shown, **user_attrs},
        system_attrs={**constraint_attrs(row, config), **own},
    )
    study._storage.create_new_trial(study._study_id, trial)
    for identity, values in stored.again.items():
        set_study_attr(study, f"{AGAIN}{row['trial']}:{identity}", values)
    if stored.seeds:
        set_study_attr(study, f"{SEEDS}{row['trial']}", stored.seeds)
    return bool(params) or row["is_fixed"]


def _arch(row: Row) -> Arch:
    return Arch.from_dict(json.loads(row["arch"]), f"trial {row['trial']}")


def _params(config: RunConfig, row: Row) -> dict[str, Any]:
    """The parameters that a sampler gave for this architecture; none where the space's names do not describe it."""
    described = params_in_space(_arch(row), config.space)
    params, arch = propose(config.space, described, random.Random(0))
    return params if arch.arch_id == row["arch_id"] else {}


def _stored_trial(config: RunConfig, row: Row) -> StoredTrial:
    """The trial that `make_row` made this row from."""
    conditions = json.loads(row["conditions"] or "{}")
    again = conditions.pop("again", None)
    phases = phases_of_row(config, {**row, "conditions": conditions or None})
    attrs: dict[str, Any] = {f"{PHASE}{phase}": values for phase, values in phases.items()}
    attrs |= {ARCH: json.loads(row["arch"]), CANDIDATE: {name: row[name] for name in _CANDIDATE}}
    attrs[CANDIDATE]["started_at"] = row["started_at"].isoformat(timespec="milliseconds")
    if row["state"] != "running":
        attrs[OUTCOME] = {"reason": row["reason"], "finished_at": row["finished_at"].isoformat(timespec="milliseconds")}
    if row["learning_curve"]:
        attrs[CURVE] = {str(point["steps"]): point["score"] for point in json.loads(row["learning_curve"])}
    if row["state"] == "complete" and (errors := standard_errors({**row, "proxy_seeds": None}, config.objectives)):
        attrs[STANDARD_ERRORS] = errors
    if row["state"] == "stopped":
        names = enumerate(config.objectives)
        attrs[MEASURED] = {str(index): row[name] for index, name in names if row[name] is not None}
    scores = json.loads(row["proxy_seed_scores"] or "[]")
    return StoredTrial(
        number=row["trial"],
        trial_id=-1,
        state=row["state"],
        attrs=attrs,
        again={} if again is None else {row["throughput_id"]: {**pick_values(row, AGAIN_COLUMNS), "conditions": again}},
        seeds={str(number): score for number, score in enumerate(scores[1:], start=1)},
    )


def _changed(config: RunConfig, row: Row) -> list[str]:
    """Columns that the restored trial gives otherwise."""
    again = make_row(config, _stored_trial(config, row), row["throughput_id"])
    return [name for name in again if name != "front" and not _is_equal(again[name], row[name])]


def _is_equal(one: Any, other: Any) -> bool:
    """Equal but for the rounding of sums."""
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=1e-9)
    return bool(one == other)
