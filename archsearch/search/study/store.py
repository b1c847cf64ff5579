"""The store of a run: one Optuna study with one writer; a trial is stored when it starts, and each phase as soon as it is measured."""

import contextlib
import json
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from archsearch.errors import UserError
from archsearch.identity import identity_digest
from archsearch.models import GivenNetwork
from archsearch.results import (
    DEVICE_OBJECTIVES,
    Row,
)
from archsearch.samplers import (
    CURVE,
    KNOWN_COST,
    MEASURED,
    STANDARD_ERRORS,
    PredictThroughput,
    Proposal,
    make_sampler,
    params_in_space,
    with_changed,
)
from archsearch.search.config import RunConfig
from archsearch.search.early_stopping import RungScore
from archsearch.search.rungs import AGAIN_PHASE, TIMING_PHASE
from archsearch.search.study.database import (
    FileWatch,
    set_study_attr,
    storage_errors,
)
from archsearch.search.study.donors import DONOR, Donor, reference_rates, take_over
from archsearch.search.study.earlier import EarlierRuns
from archsearch.search.study.enqueued import enqueued_proposal
from archsearch.search.study.rows import (
    ARCH,
    CANDIDATE,
    CHOICES,
    OUTCOME,
    PHASE,
    STARTS,
    StoredTrial,
    finished_rungs,
    learning_curve,
    make_row,
    split_attrs,
    timing_identity,
)
from archsearch.search.study.seen import changed_trials, constraint_attrs, standard_errors, trials_under_way
from archsearch.search.study.shown import AT_START, end_attrs, paper_note, shown_attrs, study_notes, study_user_attrs
from archsearch.search.study.storage import Record, RunStorage
from archsearch.search.study.table import TrialTable
from archsearch.search.study.timings import Timings
from archsearch.space import Arch, Params, spectral_capacity
from archsearch.system import utc_now
from archsearch.version import __version__

# Keys of the study's attributes, with the trial's number behind them: Optuna refuses further attributes of a trial that has ended.
# A throughput_id may follow: of a second timing, or of one made anew after the trial had ended.
AGAIN, SEEDS, TIMED = "archsearch:again:", "archsearch:seeds:", "archsearch:timed:"
# The trials that were on the front when it was trained with further seeds.
SEEDED = "archsearch:seeded"
TRACK_ID = "archsearch:track_id"
_MOST_STARTS = 2
# What the sampler knows of the score of every candidate before the first trial.
ESTIMATES = {"spectral_capacity": spectral_capacity}
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped",
}


class RunStore(TrialTable):
    """The study of a run, open for its one writer; every change is stored before it is in memory."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        study: optuna.Study,
        backend: RunStorage,
        where: str,
        predict: PredictThroughput | None = None,
        donors: Sequence[Donor] = (),
    ) -> None:
        """`backend` holds the study. `donors` are earlier runs that it has not taken figures from yet; they are stored."""
        self.folder, self.where = folder, where
        self._study, self._backend, self.study_name = study, backend, study.study_name
        # Used directly, because it stores a whole trial in one transaction.
        self._storage = study._storage
        self.watch = FileWatch(None)
        is_old = backend.upgrade_study(study._study_id)
        attrs = backend.read_study_attrs(study._study_id)
        super().__init__(config, Timings(config, attrs, self._set_study))
        # What was taken from earlier runs, and done to trials that others had put into the study.
        self.notices: list[str] = []
        self.donors = self._take(attrs, donors)
        self.earlier_runs = EarlierRuns(config, self.donors)
        self._sampler = make_sampler(
            config.sampler,
            config.space,
            config.bounds,
            config.seed,
            self.arch_ids,
            objectives=config.objectives,
            predict=predict,
            batch_size=config.settings["batch_size"],
            scores=ESTIMATES,
            donors=self.earlier_runs.models,
        )
        study.sampler = self._sampler
        self._num_foreign = 0
        self._trial_ids: dict[int, int] = {}
        self._running: dict[int, StoredTrial] = {}
        self._seen: dict[int, FrozenTrial] | None = None
        self._again, self._timed = _by_trial(attrs, AGAIN), _by_trial(attrs, TIMED)
        self._seeds = {number: found[""] for number, found in _by_trial(attrs, SEEDS).items()}
        # Earlier versions trained members of the front alone, and noted none.
        self.seeded: frozenset[int] = frozenset(attrs.get(SEEDED, self._seeds))
        is_any_waiting = False
        for record in backend.read_records(study._study_id):
            self._load_trial(record)
            is_any_waiting |= record.state == TrialState.WAITING
        self._left = set(self._running)  # not begun again by this driver yet
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)) if is_any_waiting else ():
            self._adopt(trial)
        self._rows = dict(sorted(self._rows.items()))  # one that was adopted may come before others
        if is_old:
            ended = [row for row in self._rows.values() if row["state"] != "running"]
            shown = {self._trial_ids[row["trial"]]: self._shown(row) for row in ended}
            backend.add_shown(shown)
        self._describe(attrs)

    def _shown(self, row: Row) -> dict[str, Any]:
        """The user attributes of an ended trial for people."""
        return {**shown_attrs(row, AT_START), **end_attrs(row, self.config.objectives, row["reason"])}

    def _describe(self, attrs: Mapping[str, Any]) -> None:
        """Store what Optuna's tools show of the study and of its fixed trials, as far as it is not among its attributes."""
        fixed = {self._trial_ids[row["trial"]]: str(row["paper"]) for row in self.fixed_rows()}
        there = self._study.user_attrs
        for key, value in study_user_attrs(self.config).items():
            if key not in there:
                with self._writing():
                    self._study.set_user_attr(key, value)
        for key, value in study_notes(self.config, fixed).items():
            if key not in attrs:
                self._set_study(key, value)

    def _take(self, attrs: Mapping[str, Any], donors: Sequence[Donor]) -> list[Donor]:
        """The earlier runs that are stored in the study's attributes, these with them."""
        taken = [Donor.from_dict(attrs[f"{DONOR}{place}"]) for place in range(_num_donors(attrs))]
        for donor in donors:
            if not any(donor.is_same_run(other) for other in taken):
                self._set_study(f"{DONOR}{len(taken)}", donor.to_dict())
                taken.append(donor)
                self.notices.append(
                    f"took the figures of {len(donor.trials)} trials from {donor.folder}; they are kept in this run"
                )
        return taken

    def stop_waiting_when(self, is_stopped: Callable[[], bool]) -> None:
        """A wait for a lost database ends with KeyboardInterrupt as soon as `is_stopped()`."""
        self._backend.stop_waiting = is_stopped

    def _load_trial(self, record: Record) -> None:
        """Take over a stored trial. One without an architecture is not ours: someone called the study's `ask`, `add_trial` or `enqueue_trial`."""
        if ARCH not in record.attrs or record.state == TrialState.WAITING:
            self._num_foreign += 1
            if record.state == TrialState.RUNNING:
                self._close(record.trial_id, "its proposal was never completed")
            return
        self._keep(self._stored(record))

    def _stored(self, record: Record) -> StoredTrial:
        number, attrs, state = record.number, record.attrs, STATES[record.state]
        if state != "running" and OUTCOME not in attrs:
            ended_at = (self._storage.get_trial(record.trial_id).datetime_complete or datetime.now()).astimezone(UTC)
            attrs[OUTCOME] = {"reason": "ended by another program", "finished_at": ended_at.isoformat()}
            state = "failed"
        seeds = self._seeds.get(number, {})
        stored = StoredTrial(number=number, trial_id=record.trial_id, state=state, attrs=attrs, seeds=seeds)
        for name, values in self._again.get(number, {}).items():
            # Earlier versions stored one without its identity.
            stored.again[name or identity_digest(timing_identity(self.config, stored, values))] = values
        return stored

    def _trial(self, number: int) -> StoredTrial:
        """A trial with all that is stored of it; read again once it has ended, since only few are needed then."""
        if number in self._running:
            return self._running[number]
        (record,) = self._backend.read_records(self._study._study_id, [self._trial_ids[number]])
        return self._stored(record)

    def _adopt(self, trial: FrozenTrial) -> None:
        """Make a candidate of a trial that someone enqueued, or close it with the reason. Killed meanwhile, it is still waiting."""
        trial_id = trial._trial_id
        try:
            proposal = enqueued_proposal(trial, self.config.space, self.config.bounds)
        except UserError as error:
            self._close(trial_id, str(error))
            self.notices.append(f"trial {trial.number} was enqueued by another program and is not evaluated: {error}")
            return
        attrs = {**self._attributes(proposal.arch), STARTS: {"starts": 0, "phases": 0, "alone": False}}
        for name, distribution in self._sampler.distributions(proposal.params).items():
            if name not in trial.params:
                value = distribution.to_internal_repr(proposal.params[name])
                self._storage.set_trial_param(trial_id, name, value, distribution)
        user_attrs, own = split_attrs(attrs)
        for key, value in {**shown_attrs(attrs[CANDIDATE], AT_START), **user_attrs}.items():
            self._storage.set_trial_user_attr(trial_id, key, value)
        for key, value in own.items():
            self._storage.set_trial_system_attr(trial_id, key, value)
        self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        self._num_foreign -= 1
        self._keep(StoredTrial(number=trial.number, trial_id=trial_id, state="running", attrs=attrs))
        self.notices.append(f"trial {trial.number} was enqueued by another program and is evaluated")

    def _close(self, trial_id: int, reason: str) -> None:
        """End a trial that is not ours as failed."""
        self._storage.set_trial_user_attr(trial_id, "reason", reason)
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _keep(self, trial: StoredTrial) -> Row:
        """Update what is in memory of a trial; returns its row."""
        number, other = trial.number, trial.attrs[CANDIDATE]["reused_from"]
        trial.timed = self._timed.get(number if other is None else other, {})
        row = make_row(self.config, trial, self.timings.throughput_id)
        self._trial_ids[number] = trial.trial_id
        scores = (
            RungScore(value=measured["proxy_score"], standard_error=measured.get("proxy_score_se") or 0.0)
            for _, measured in finished_rungs(self.config, trial)
        )
        self._put(row, tuple(scores))
        if trial.state == "running":
            self._running[number] = trial
        elif self._running.pop(number, None) is not None:
            self._admit(row)
        return row

    def measure_here(
        self, conditions: Mapping[str, Any], *, remeasure: bool = False, usual_rate: float | None = None
    ) -> None:
        """From now on trials are timed under these `device.conditions`; kept timings of others are not ranked with them.

        `usual_rate`: images/s of the reference in a calibration for them. With `remeasure` the caller times `left_to_remeasure`.
        """
        self.timings.measure_here(
            conditions,
            self._rows.values(),
            wants_ratios=remeasure,
            usual_rate=usual_rate,
            taken_rates=reference_rates(self.donors),
        )
        self._identity_changed()

    def _identity_changed(self) -> None:
        self._seen = self._front = None
        for number, row in list(self._rows.items()):
            if number in self._timed or row["reused_from"] in self._timed:
                self._keep(self._trial(number))

    def unfinished(self) -> list[Row]:
        """The rows of trials that an earlier driver did not finish, in order."""
        return [self._rows[number] for number in sorted(self._running)]

    def propose(self) -> Proposal | None:
        """The sampler's next candidate, inside the band; None when the run has every architecture of the band."""
        with storage_errors(self.where):
            return self._sampler.propose(self._study_as_seen(), self._num_trials())

    def propose_many(self, number: int) -> list[Proposal]:
        """The sampler's next candidates, distinct and none in the run yet; fewer when the band is exhausted. Start all of them before the next call."""
        with storage_errors(self.where):
            return self._sampler.propose_many(self._study_as_seen(), self._num_trials(), number)

    def _study_as_seen(self) -> optuna.Study:
        """The study as the sampler may see it. Optuna's own samplers learn nothing from what is measured of a trial under way."""
        known_cost, now = self.config.sampler == KNOWN_COST, self.throughput_id
        if self._seen is None:
            self._seen = changed_trials(self._study, self._rows, self._timed, self._seeds, self.config, now)
        running = trials_under_way(self._study, self._rows, self._running, self.config, now) if known_cost else {}
        return with_changed(self._study, {**self._seen, **running})

    def start_fixed(self, paper: str, arch: Arch | GivenNetwork) -> Row:
        """Store a paper's model, or an included network, as a running trial."""
        row = self._start({}, {}, self._attributes(arch, paper))
        for key, value in paper_note(self._trial_ids[row["trial"]], paper).items():
            self._set_study(key, value)
        return row

    def start(self, proposal: Proposal, predicted_img_s: float | None = None) -> Row:
        """Store a candidate as a running trial, with the throughput predicted for it if there is one."""
        attrs = self._attributes(proposal.arch, None, predicted_img_s)
        return self._start(proposal.params, proposal.system_attrs, attrs)

    def _start(self, params: Params, system_attrs: Mapping[str, Any], attrs: dict[str, Any]) -> Row:
        """Store a running trial in one transaction, so that none lacks its architecture."""
        user_attrs, own = split_attrs(attrs)
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=self._sampler.distributions(params),
            user_attrs={**shown_attrs(attrs[CANDIDATE], AT_START), **user_attrs},
            system_attrs={**system_attrs, **own},
        )
        with self._writing():
            trial_id = self._storage.create_new_trial(self._study._study_id, template)
            number = self._backend.get_trial_number_from_id(trial_id)
        self._forget_trials()
        self._num_foreign = number - len(self._rows)  # others may have put trials into the study meanwhile
        return self._keep(StoredTrial(number=number, trial_id=trial_id, state="running", attrs=attrs))

    def _attributes(
        self, arch: Arch | GivenNetwork, paper: str | None = None, predicted_img_s: float | None = None
    ) -> dict[str, Any]:
        """The attributes of a trial that starts; figures measured before, in this run or in an earlier one, are copied."""
        cost = arch.cost()
        # The first complete trial of the architecture, else the first stopped one: a fixed trial is never stopped.
        same = [self._rows[number] for number in self._numbers.get(arch.arch_id, ())]
        states = ("complete", "stopped") if paper is None else ("complete",)
        known = next((row for state in states for row in same if row["state"] == state), None)
        candidate = {
            "arch_id": arch.arch_id,
            "architecture": arch.describe(),
            "macs": cost.macs,
            "params": cost.params,
            "activations": cost.activations,
            "is_fixed": paper is not None,
            "paper": paper,
            "in_band": self.config.bounds.contains(cost),
            "reused_from": known["trial"] if known else None,
            "started_at": utc_now("milliseconds"),
            "archsearch_version": __version__,
            "torch_version": _torch_version(),
            "python_version": platform.python_version(),
            "throughput_predicted_img_s": predicted_img_s,
            "taken_from": None,
        }
        figures = self._trial(known["trial"]).phases if known else {}
        attrs = {ARCH: arch.to_dict(), CANDIDATE: candidate, **{f"{PHASE}{key}": figures[key] for key in figures}}
        if known is None:
            self._take_over(arch.arch_id, attrs)
        if paper is not None:
            attrs[CHOICES] = {} if isinstance(arch, GivenNetwork) else params_in_space(arch, self.config.space)
        return attrs

    def _take_over(self, arch_id: str, attrs: dict[str, Any]) -> None:
        """Add to a trial's attributes what earlier runs measured of its architecture as it would be measured here."""
        now = self.timings.throughput_id
        found = take_over(self.donors, arch_id, self.config, now)
        if TIMING_PHASE in found:
            trial, values = (
                StoredTrial(number=-1, trial_id=-1, state="running", attrs=attrs),
                found[TIMING_PHASE].values,
            )
            if identity_digest(timing_identity(self.config, trial, values)) == now:
                as_timed = {**values, "throughput_img_s": values.pop("throughput_raw_img_s")}
                values |= self._ranked_figures(trial, TIMING_PHASE, as_timed)
            else:
                del found[TIMING_PHASE]
        attrs |= {f"{PHASE}{phase}": taken.values for phase, taken in found.items()}
        if found:
            attrs[CANDIDATE]["taken_from"] = json.dumps({phase: taken.origin for phase, taken in found.items()})

    def _num_trials(self) -> int:
        return len(self._rows) + self._num_foreign

    def is_suspect(self, number: int) -> bool:
        """Whether a driver died while a trial was evaluated that had not come further since its start: the trial may have killed it."""
        trial = self._running.get(number)
        return trial is not None and trial.starts["starts"] > 0 and len(trial.phases) <= trial.starts["phases"]

    def begin(self, number: int, *, is_alone: bool) -> str | None:
        """Note that a trial is evaluated; a reason not to, where two drivers died meanwhile, the second one when it was alone and came no further.

        Without this a trial that kills its driver would be the first at every start. `is_alone`: there is one worker. A suspect is alone too,
        see the driver; others that were under way when a driver died must not fail for it.
        """
        if number not in self._left:
            return None
        self._left.remove(number)
        trial, is_suspect = self._running[number], self.is_suspect(number)
        before = trial.starts
        if is_suspect and before["starts"] >= _MOST_STARTS and before["alone"]:
            return f"the run was killed {before['starts']} times while it was evaluated; it is not tried again"
        noted = {"starts": before["starts"] + 1, "phases": len(trial.phases), "alone": is_suspect or is_alone}
        self._set(trial, {STARTS: noted})
        return None

    def leave(self) -> None:
        """Note that this driver ends orderly, so that its start counts for no unfinished trial."""
        for row in self.unfinished():
            if row["trial"] not in self._left:
                trial = self._running[row["trial"]]
                self._set(trial, {STARTS: {**trial.starts, "starts": trial.starts["starts"] - 1, "alone": False}})

    def phases(self, number: int) -> dict[str, dict[str, Any]]:
        """What was measured of a trial: phase -> column -> value; without a timing that cannot be ranked with those made here."""
        phases = self._trial(number).phases
        now, own = self.timings.throughput_id, self._asked_id(self._rows[number])
        if DEVICE_OBJECTIVES.isdisjoint(self.config.objectives) or now is None or own in (None, now):
            return phases
        return {phase: values for phase, values in phases.items() if phase != TIMING_PHASE}

    def record_phase(self, number: int, phase: str, values: Mapping[str, Any]) -> None:
        """Store what a finished phase of a trial measured. A timing of a trial that has ended is one made anew: the earlier ones stay stored."""
        trial = self._trial(number)
        if phase == TIMING_PHASE:
            values = self._ranked_figures(trial, phase, values)
            own = trial.phases.get(TIMING_PHASE)
            if trial.state != "running":
                self._keep_timing(trial, values)
                return
            if own is not None and self._asked_id(self._rows[number]) != self.timings.throughput_id:
                self._keep_timing(trial, own)
        self._set(trial, {f"{PHASE}{phase}": dict(values)})
        self._keep(trial)

    def _ranked_figures(self, trial: StoredTrial, phase: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is stored of a timing; where it shows another identity than was taken to be the present one, that becomes the present one."""
        before = self.timings.throughput_id
        stored = self.timings.ranked_figures(trial, phase, values, self._rows.values())
        if self.timings.throughput_id != before:
            self._identity_changed()
        return stored

    def _keep_timing(self, trial: StoredTrial, values: Mapping[str, Any]) -> None:
        """Store a timing of a trial beside its own one, also for the trials that reused its results."""
        identity = identity_digest(timing_identity(self.config, trial, values))
        self._set_study(f"{TIMED}{trial.number}:{identity}", dict(values))
        self._timed.setdefault(trial.number, {})[identity] = dict(values)
        self._seen = self._front = None
        for number in self._numbers[self._rows[trial.number]["arch_id"]]:
            if trial.number in (number, self._rows[number]["reused_from"]):
                self._keep(trial if number == trial.number else self._trial(number))

    def record_again(self, number: int, values: Mapping[str, Any]) -> Row:
        """Store the second throughput measurement of a finished trial, beside its first figures."""
        trial = self._trial(number)
        stored = self._ranked_figures(trial, AGAIN_PHASE, values)
        identity = identity_digest(timing_identity(self.config, trial, stored))
        self._set_study(f"{AGAIN}{number}:{identity}", stored)
        self._again.setdefault(number, {})[identity] = stored
        return self._keep(self._trial(number))

    def record_seed(self, number: int, seed: str, score: float) -> Row:
        """Store the score of a finished trial's training with another seed; its first score stays the ranked one."""
        seeds = {**self._seeds.get(number, {}), seed: score}
        self._set_study(f"{SEEDS}{number}", seeds)
        self._seeds[number] = seeds
        self._seen = None
        return self._keep(self._trial(number))

    def note_seeded(self, trials: Iterable[int]) -> None:
        """Note trials as members of a front that is trained with further seeds."""
        self.seeded = self.seeded.union(trials)
        self._set_study(SEEDED, sorted(self.seeded))

    @property
    def num_further_trainings(self) -> int:
        """The trainings with further seeds, of all trials."""
        return sum(map(len, self._seeds.values()))

    def finish(self, number: int, reason: str | None = None, *, is_stopped: bool = False) -> Row:
        """Store how a trial ended: failed or stopped for `reason`, else complete, or failed where an objective has no value.

        In Optuna a stopped trial is a pruned one, without values, and without intermediate ones since TPE raises on those in
        studies of several objectives. The scores of the rungs are in the attribute `learning_curve`: steps -> score.
        """
        assert reason or not is_stopped, "a stopped trial needs a reason"
        trial = self._running[number]
        if reason is not None and not reason.strip():
            reason = "the evaluation failed without a reason"
        row = make_row(self.config, trial, self.timings.throughput_id)
        missing = (
            f"the evaluation gave no {name}" if row[name] is None else f"{name} is {row[name]}"
            for name in self.config.objectives
            if row[name] is None or not isfinite(row[name])
        )
        reason = next(missing, None) if reason is None else reason
        curve = learning_curve(self.config, trial)
        attrs: dict[str, Any] = {CURVE: curve} if curve else {}
        if is_stopped:
            names = enumerate(self.config.objectives)
            attrs[MEASURED] = {str(index): row[name] for index, name in names if row[name] is not None}
        if reason is None and (errors := standard_errors(row, self.config.objectives)):
            attrs[STANDARD_ERRORS] = errors
        attrs[OUTCOME] = {"reason": reason, "finished_at": utc_now("milliseconds")}
        attrs |= end_attrs(row, self.config.objectives, reason)
        state = TrialState.COMPLETE if reason is None else TrialState.PRUNED if is_stopped else TrialState.FAIL
        with self._writing():
            for key, excess in constraint_attrs(row, self.config).items():
                self._storage.set_trial_system_attr(trial.trial_id, key, excess)
        # Not study.tell, which reads the whole trial back twice and repeats our checks.
        values = [float(row[name]) for name in self.config.objectives] if reason is None else None
        self._set(trial, attrs, state, values)
        self._forget_trials()
        trial.state = STATES[state]
        if row["throughput_id"] not in (None, self.throughput_id):
            self._seen = None  # it reused results of another identity
        return self._keep(trial)

    def _forget_trials(self) -> None:
        """As study.ask and study.tell do: samplers read trials through this cache, which lacks what has just changed."""
        self._study._thread_local.cached_all_trials = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around every write."""
        self.watch.check(self.folder)
        with storage_errors(self.where):
            yield

    def track_id(self) -> str:
        """Some digits by which trackers know this run again; they are drawn when it is first tracked, and kept in the study."""
        attrs = self._backend.read_study_attrs(self._study._study_id)
        if TRACK_ID not in attrs:
            self._set_study(TRACK_ID, uuid.uuid4().hex[:8])
            return self.track_id()
        return str(attrs[TRACK_ID])

    def _set_study(self, key: str, value: Any) -> None:
        with self._writing():
            set_study_attr(self._study, key, value)

    def _set(
        self,
        trial: StoredTrial,
        attrs: Mapping[str, Any],
        state: TrialState | None = None,
        values: Sequence[float] | None = None,
    ) -> None:
        """Store attributes of a trial, and with a state how it ended."""
        with self._writing():
            self._backend.write_trial(trial.trial_id, attrs, state, values)
        trial.attrs |= attrs


def _num_donors(attrs: Mapping[str, Any]) -> int:
    return sum(key.startswith(DONOR) for key in attrs)


def _by_trial(attrs: Mapping[str, Any], prefix: str) -> dict[int, dict[str, Any]]:
    """The study's attributes of this prefix: trial -> throughput_id ("" where none follows) -> value."""
    found: dict[int, dict[str, Any]] = {}
    for key in attrs:
        if key.startswith(prefix):
            number, _, identity = key.removeprefix(prefix).partition(":")
            found.setdefault(int(number), {})[identity] = attrs[key]
    return found


@cache
def _torch_version() -> str:
    return metadata.version("torch")
