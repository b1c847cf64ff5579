"""A run's truth: one Optuna study, one writer; a trial is stored whole when it starts and phase by phase as it is measured."""

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from archsearch.errors import UserError
from archsearch.results import MANIFEST_FILE, Row
from archsearch.samplers import CURVE, DESCRIBED, FEATURES, MEASURED, Proposal, make_sampler, params_in_space
from archsearch.samplers.make import PredictThroughput
from archsearch.search.config import SPACE_FILE, RunConfig
from archsearch.search.early_stopping import Score
from archsearch.search.rungs import FREE_PHASE, FREE_SCORES
from archsearch.search.study import database as storage
from archsearch.search.study.rows import ARCH, CANDIDATE, OUTCOME, PHASE, StoredTrial, make_row, trained
from archsearch.space.arch import Arch
from archsearch.system import replace_file
from archsearch.version import __version__

__all__ = ["RunConfig", "RunStore"]

# Of the study, as Optuna closes a trial that has ended to further attributes.
_AGAIN, _SEEDS = "archsearch:again:", "archsearch:seeds:"
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped",
}


class RunStore:
    """A run's study, open for its one writer."""

    def __init__(
        self, folder: Path, config: RunConfig, study: optuna.Study, where: str, predict: PredictThroughput | None = None
    ) -> None:
        self.folder, self.config, self.where = folder, config, where
        self._study = study
        # The study's own door to the storage, through which a trial is stored in one transaction.
        self._storage = study._storage
        self._sampler = make_sampler(
            config.sampler,
            config.space,
            config.band,
            config.seed,
            self.arch_ids,
            objectives=config.objectives,
            predict=predict,
            batch_size=config.settings["batch_size"],
            features=_features_of(config),
        )
        study.sampler = self._sampler
        self._num_foreign = 0
        self._trials: dict[int, StoredTrial] = {}
        self._rows: dict[int, Row] = {}
        self._scores: dict[int, tuple[Score, ...]] = {}
        attrs = study.user_attrs
        for trial in study.get_trials(deepcopy=False):
            self._take_over(trial, attrs)

    def _take_over(self, trial: FrozenTrial, later: Mapping[str, Any]) -> None:
        """Know a stored trial. One without an architecture is not ours (somebody asked Optuna for it), and closed."""
        if ARCH in trial.user_attrs:
            number, trial_id, state = trial.number, trial._trial_id, _STATES[trial.state]
            attrs = dict(trial.user_attrs)
            again, seeds = later.get(f"{_AGAIN}{number}"), later.get(f"{_SEEDS}{number}", {})
            stored = StoredTrial(number=number, trial_id=trial_id, state=state, attrs=attrs, again=again, seeds=seeds)
            self._keep(stored)
            return
        self._num_foreign += 1
        if not trial.state.is_finished():
            self._storage.set_trial_user_attr(trial._trial_id, "reason", "its proposal was never completed")
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _keep(self, trial: StoredTrial) -> Row:
        self._trials[trial.number] = trial
        self._scores[trial.number] = tuple(
            Score(value=measured["proxy_score"], standard_error=measured.get("proxy_score_se") or 0.0)
            for _, measured in trained(self.config, trial)
        )
        row = self._rows[trial.number] = make_row(self.config, trial)
        return row

    @staticmethod
    @contextlib.contextmanager
    def open(
        folder: Path, config: RunConfig, storage_url: str | None = None, *, predict: PredictThroughput | None = None
    ) -> "Iterator[RunStore]":
        """Create the run in `folder`, or go on with it, and hold it alone meanwhile; `predict` tells the sampler images/s.

        Raises UserError when the folder holds another run or a damaged one, cannot be written, or another driver is at work in it.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with storage.locked(folder):
            _check_place(folder, storage_url)
            document = config.to_dict()
            if storage_url is None and not (folder / storage.DATABASE_FILE).exists():
                storage.create_database(folder, config.name, config.directions, document)
            with storage.opened(folder, storage_url) as backend:
                where = storage.shown(storage_url) if storage_url else str(folder / storage.DATABASE_FILE)
                with storage.storage_errors(where):
                    if storage_url is not None:
                        storage.ensure_study(backend, config.name, config.directions, document)
                    store = _load(folder, config, backend, where, config.name if storage_url else None, predict)
                replace_file(folder / SPACE_FILE, lambda path: path.write_text(config.space_text, encoding="utf-8"))
                yield store

    def rows(self) -> list[Row]:
        """Every trial of the run in order, `front` not yet set."""
        return [self._rows[number] for number in sorted(self._rows)]

    def unfinished(self) -> list[Row]:
        """Trials that a driver left behind when it died, in order."""
        return [row for row in self.rows() if row["state"] == "running"]

    def arch_ids(self) -> set[str]:
        """Every architecture the run has met."""
        return {row["arch_id"] for row in self._rows.values()}

    def propose(self) -> Proposal | None:
        """The sampler's next candidate, in the band; None when the run has met every architecture there is in it."""
        with storage.storage_errors(self.where):
            return self._sampler.propose(self._study, self._num_trials())

    def start_fixed(self, paper: str, arch: Arch) -> Row:
        """Store a paper's model as a running trial."""
        return self._start(Proposal(params={}, arch=arch), paper)

    def start(self, proposal: Proposal, predicted_img_s: float | None = None) -> Row:
        """Store a candidate as a running trial, with the throughput predicted for it if there is one."""
        return self._start(proposal, None, predicted_img_s)

    def _start(self, proposal: Proposal, paper: str | None, predicted_img_s: float | None = None) -> Row:
        """One transaction: there is no trial without its architecture. One measured before brings its figures along."""
        arch, cost = proposal.arch, proposal.arch.cost()
        known = self._known(arch.arch_id, is_fixed=paper is not None)
        candidate = {
            "arch_id": arch.arch_id,
            "architecture": arch.describe(),
            "macs": cost.macs,
            "params": cost.params,
            "is_fixed": paper is not None,
            "paper": paper,
            "in_band": self.config.band.contains(cost.macs),
            "reused_from": known["trial"] if known else None,
            "started_at": _now(),
            "archsearch_version": __version__,
            "torch_version": _torch_version(),
            "python_version": platform.python_version(),
            "throughput_predicted_img_s": predicted_img_s,
        }
        figures = self._trials[known["trial"]].phases if known else {}
        attrs = {ARCH: arch.to_dict(), CANDIDATE: candidate, **{f"{PHASE}{key}": figures[key] for key in figures}}
        if paper is not None:
            attrs[DESCRIBED] = params_in_space(arch, self.config.space)
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(proposal.params),
            distributions=self._sampler.distributions(proposal.params),
            user_attrs=attrs,
            system_attrs=dict(proposal.system_attrs),
        )
        number = self._num_trials()
        with storage.storage_errors(self.where):
            trial_id = self._storage.create_new_trial(self._study._study_id, template)
        return self._keep(StoredTrial(number=number, trial_id=trial_id, state="running", attrs=attrs))

    def _known(self, arch_id: str, *, is_fixed: bool) -> Row | None:
        """The first trial that says all there is to say of an architecture: complete, or stopped, as it would be again; fixed ones never stop."""
        states = ("complete",) if is_fixed else ("complete", "stopped")
        same = [row for row in self.rows() if row["arch_id"] == arch_id]
        return next((row for state in states for row in same if row["state"] == state), None)

    def _num_trials(self) -> int:
        return len(self._trials) + self._num_foreign

    def phases(self, number: int) -> dict[str, dict[str, Any]]:
        """What has been measured of a trial: phase -> column -> value."""
        return self._trials[number].phases

    def record_phase(self, number: int, phase: str, values: Mapping[str, Any]) -> None:
        """Keep what a finished phase of a running trial measured, whatever comes after it."""
        self._set(self._trials[number], f"{PHASE}{phase}", dict(values))
        if phase == FREE_PHASE:
            self._set(self._trials[number], FEATURES, _numbers(values))
        self._keep(self._trials[number])

    def record_again(self, number: int, values: Mapping[str, Any]) -> Row:
        """Keep what measuring a finished trial's throughput again gave; its first figures stay as they are."""
        with storage.storage_errors(self.where):
            self._study.set_user_attr(f"{_AGAIN}{number}", dict(values))
        self._trials[number].again = dict(values)
        return self._keep(self._trials[number])

    def record_seed(self, number: int, seed: str, score: float) -> Row:
        """Keep what training a finished trial once more with another seed gave; its first score stays the ranked one."""
        seeds = {**self._trials[number].seeds, seed: score}
        with storage.storage_errors(self.where):
            self._study.set_user_attr(f"{_SEEDS}{number}", seeds)
        self._trials[number].seeds = seeds
        return self._keep(self._trials[number])

    def scores(self, number: int) -> tuple[Score, ...]:
        """What the rungs that a trial has finished gave, in order."""
        return self._scores[number]

    def finish(self, number: int, reason: str | None = None, *, is_stopped: bool = False) -> Row:
        """Tell the study how a trial ended: failed or stopped for `reason`, or complete, unless an objective has no value.

        To Optuna a stopped trial is a pruned one: it has no values, and no intermediate ones either, since TPE raises on those
        where there are several objectives. What the rungs gave is the attribute `learning_curve`: steps -> score.
        """
        assert reason or not is_stopped, "a trial is stopped for a reason"
        trial = self._trials[number]
        row = make_row(self.config, trial)
        reason = reason or _without_value(row, self.config.objectives)
        curve = {str(rung.steps): measured["proxy_score"] for rung, measured in trained(self.config, trial)}
        if curve:
            self._set(trial, CURVE, curve)
        if is_stopped:
            names = enumerate(self.config.objectives)
            self._set(trial, MEASURED, {str(index): row[name] for index, name in names if row[name] is not None})
        self._set(trial, OUTCOME, {"reason": reason, "finished_at": _now()})
        state = TrialState.COMPLETE if reason is None else TrialState.PRUNED if is_stopped else TrialState.FAIL
        with storage.storage_errors(self.where):
            # Not through study.tell, which reads the whole trial back twice and checks what is checked here:
            # 152 against 178 ms a trial at 500 trials, in two runs minutes apart.
            values = [float(row[name]) for name in self.config.objectives] if reason is None else None
            self._storage.set_trial_state_values(trial.trial_id, state, values)
            # As study.tell does: samplers read trials through this cache, and would never see the new one.
            self._study._thread_local.cached_all_trials = None
        trial.state = _STATES[state]
        return self._keep(trial)

    def _set(self, trial: StoredTrial, key: str, value: dict[str, Any]) -> None:
        with storage.storage_errors(self.where):
            self._storage.set_trial_user_attr(trial.trial_id, key, value)
        trial.attrs[key] = value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The training-free scores among a phase's values."""
    return {name: values[f"{FREE_PHASE}_{name}"] for name in FREE_SCORES if f"{FREE_PHASE}_{name}" in values}


def _features_of(config: RunConfig) -> Callable[[Arch], Mapping[str, float]] | None:
    """What the sampler is told of its best few candidates, where the run works out such scores: the same as their trials would be."""
    if not config.settings.get("training_free"):
        return None

    def features(arch: Arch) -> Mapping[str, float]:
        from archsearch.proxy.training_free import scores  # here: most runs do without

        found = scores(arch, seed=config.settings["proxy"]["recipe"]["seed"], device=config.settings["device"])
        return {name: found[name] for name in FREE_SCORES if isfinite(found[name])}

    return features


def _without_value(row: Row, objectives: tuple[str, ...]) -> str | None:
    """Why a measured row cannot be ranked; None when it can."""
    for name in objectives:
        if row[name] is None or not isfinite(row[name]):
            return f"the evaluation gave no {name}" if row[name] is None else f"{name} is {row[name]}"
    return None


def _load(
    folder: Path, config: RunConfig, backend: Any, where: str, name: str | None, predict: PredictThroughput | None
) -> RunStore:
    """The study behind an open storage, if it is this run's and whole."""
    try:
        study = storage.load_study(backend, name)
        differences = RunConfig.from_dict(storage.stored_config(study)).differences(config)
        if differences:
            raise UserError(
                f"{folder}: holds another run: {'; '.join(differences)}; use another --output, or ask for the same"
            )
        return RunStore(folder, config, study, where, predict)
    except (KeyError, TypeError, ValueError) as error:
        raise storage.damaged(where, f"{type(error).__name__}: {error}") from error


def _check_place(folder: Path, storage_url: str | None) -> None:
    """Refuse to start a second history of a run whose trials lie elsewhere, or are gone."""
    database, is_run = folder / storage.DATABASE_FILE, (folder / MANIFEST_FILE).exists()
    if storage_url is not None and database.exists():
        raise UserError(
            f"--storage: {folder} keeps its trials in {database}; leave --storage out, or use another --output"
        )
    if storage_url is None and is_run and not database.exists():
        raise UserError(
            f"{database}: gone, though {folder} holds a run; put it back, give the --storage it was started with, or use another --output"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@cache
def _torch_version() -> str:
    return metadata.version("torch")
