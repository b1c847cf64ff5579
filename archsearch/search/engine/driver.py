"""The driver of a run: proposes candidates, has them evaluated, stores the results; the only writer of the study and the files."""

import contextlib
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from math import isinf
from typing import Any, Protocol

from archsearch.errors import RunError
from archsearch.results import ENDED, Row, write_front, write_manifest, write_trials
from archsearch.samplers import Proposal
from archsearch.search.config import RunConfig
from archsearch.search.engine.front_work import FrontWork
from archsearch.search.engine.listener import Listener, State, Tally
from archsearch.search.engine.manifest import describe
from archsearch.search.engine.promotion import Ending, judge, stages
from archsearch.search.engine.workers.base import KILLED, Event, Job, Worker
from archsearch.search.engine.workers.process import LOG_FILE
from archsearch.search.rungs import AGAIN_PHASE, FREE_PHASE, SEED_PHASE, TIMING_PHASE
from archsearch.search.study.store import RunStore
from archsearch.space import Arch, paper

# How long a Ctrl-C may go unnoticed while the worker sends no events.
_INTERRUPT_POLL_S = 0.1
# The files are written after every trial while that takes no longer than this. After that, writing them takes one part in so many of the
# time, and they are never older than so many seconds.
_QUICK_S = 0.05
_WRITE_SHARE, _STALE_S = 20, 30.0


class Predictor(Protocol):
    """Predicts throughput before anything is built."""

    @property
    def source(self) -> Mapping[str, Any]:
        """For the manifest: the calibration's file and its accuracy."""

    def predict(self, arch: Arch) -> float | None:
        """Images/s of the architecture, or None if it cannot be predicted."""


class Driver:
    """Continues one run, new or old, up to a number of sampled candidates or the end of its band. Killed, it leaves a run to continue.

    `fixed` are the models measured first, by name: by default the papers of the configuration. With `recheck` the throughput of the
    front is measured again at the end; with `remeasure` complete trials without a quiet timing of the present identity are timed anew at
    the start (see `RunStore.measure_here`); with `num_seeds` above 1 the front is trained with that many seeds, the first training counted.
    """

    def __init__(
        self,
        config: RunConfig,
        store: RunStore,
        worker: Worker,
        listener: Listener,
        *,
        fixed: Mapping[str, Arch] | None = None,
        command: Sequence[str] | None = None,
        recheck: bool = False,
        remeasure: bool = False,
        num_seeds: int = 1,
        predictor: Predictor | None = None,
    ) -> None:
        self._config, self._store, self._worker, self._listener = config, store, worker, listener
        self._fixed = {name: paper(name) for name in config.papers} if fixed is None else dict(fixed)
        self._command = list(sys.argv if command is None else command)
        self._front_work = FrontWork(config, store, recheck=recheck, num_seeds=num_seeds)
        self._remeasure, self._predictor = remeasure, predictor
        self._stages = stages(config)
        self._trials = 0
        self._proposed: Proposal | None = None  # the next candidate, where it was asked for ahead of its turn
        self._timeout_s = self._deadline = float("inf")
        self._is_stopped = False
        self._is_over = False
        self._is_exhausted = False
        self._is_stale = False  # the files lack something that the study has
        self._written_at, self._write_s = 0.0, 0.0

    def run(self, trials: int, timeout: float | None = None) -> State:
        """Evaluate the fixed trials, then candidates until `trials` of them have ended or `timeout` seconds are over, whichever is first;
        then measure the front again and train it with further seeds, as asked for. Of the time, what that will take is kept.

        Returns `complete`, `timeout` (there is work left) or `interrupted` (Ctrl-C or SIGTERM; the next run continues the unfinished
        trial). Closes the worker. Raises RunError when every trial failed, UserError when the storage or a file cannot be written.
        """
        self._trials = trials
        self._timeout_s = float("inf") if timeout is None else timeout
        self._deadline = time.monotonic() + self._timeout_s
        try:
            with self._deferred_interrupt():
                self._write("running")
                state = self._run()
                self._write(state)
        except Exception as error:
            with contextlib.suppress(Exception):
                self._write("failed", reason=str(error) or type(error).__name__)
                self._store.leave()
            raise
        finally:
            self._worker.close()
        self._listener.finished(state, self._tally())
        return state

    def _run(self) -> State:
        try:
            if self._remeasure:
                self._remeasure_kept()
            for row in self._queue():
                self._evaluate(row)
                if self._is_stopped or self._is_late(keep_front_work=True):
                    break
            self._remeasure_front()
            self._reseed_front()
        except KeyboardInterrupt:
            # A second Ctrl-C, or one raised outside our handler.
            self._is_stopped = True
        if self._is_stopped:
            for event in self._worker.events(0):  # phases that ended before Ctrl-C and were not read yet
                self._record(event)
            self._worker.close()
            self._store.leave()
            return "interrupted"
        self._fail_if_all_failed()
        return "timeout" if self._is_over and any(self._missing().values()) else "complete"

    def _is_late(self, *, keep_front_work: bool = False) -> bool:
        """Whether the time limit is over, or what is left is kept for the work on the front, which then has twice what was kept."""
        if isinf(self._deadline):
            return False
        now = time.monotonic()
        kept_s = min(self._front_work.seconds(), self._timeout_s / 2) if keep_front_work else 0.0
        if now < self._deadline - kept_s:
            return False
        self._is_over = True
        # Counted from here, since the last trial may have ended late.
        self._deadline = max(self._deadline, now + 2 * kept_s)
        return True

    def _missing(self) -> dict[str, int]:
        """What was asked for and has not been done: trials, second timings of the front's members, further trainings of them."""
        unfinished = len(self._store.unfinished())
        tally = self._tally()
        trials = unfinished if self._is_exhausted else tally.total - tally.ended
        anew = len(self._store.left_to_remeasure()) if self._remeasure else 0
        return {
            "trials": trials,
            "anew": anew,
            "again": len(self._front_work.again_left()),
            "seeds": len(self._front_work.seeds_left()),
        }

    def _queue(self) -> Iterator[Row]:
        """The trials to evaluate, each stored at its turn: unfinished ones of an earlier driver, the fixed ones, then the sampler's."""
        yield from self._store.unfinished()
        for name, arch in self._fixed_left():
            yield self._store.start_fixed(name, arch)
        while self._store.count(*ENDED, is_fixed=False) < self._trials:
            proposal, self._proposed = self._proposed or self._store.propose(), None
            if proposal is None:
                self._is_exhausted = True
                return
            predicted = self._predictor.predict(proposal.arch) if self._predictor else None
            yield self._store.start(proposal, predicted)

    def _fixed_left(self) -> list[tuple[str, Arch]]:
        """The fixed models that have no trial yet, or one whose worker was killed."""
        known = {row["paper"] for row in self._store.rows() if not _was_killed(row["reason"])}
        return [(name, arch) for name, arch in self._fixed.items() if name not in known]

    def _ahead(self, trial: int) -> list[dict[str, Any]]:
        """The architectures that come after a trial, for a worker that compiles them meanwhile.

        A GPU's compiling takes longer than all else, so there the sampler is asked for its next candidate one trial early, without this one's
        figures. Elsewhere it waits for them, and a seed goes on giving the same run.
        """
        settings = self._config.settings
        if settings["mode"] == "eager":
            return []
        unfinished = [row["trial"] for row in self._store.unfinished() if row["trial"] != trial]
        known = [*map(self._store.arch_document, unfinished), *(arch.to_dict() for _, arch in self._fixed_left())]
        if known or settings["device"] != "cuda" or self._store.count(is_fixed=False) >= self._trials:
            return known
        self._proposed = self._proposed or self._store.propose()
        return [self._proposed.arch.to_dict()] if self._proposed else []

    def _evaluate(self, row: Row) -> None:
        """Evaluate one trial, store how it ended, and update the files; a trial interrupted by Ctrl-C stays `running`."""
        trial = row["trial"]
        self._listener.trial_started(row, self._tally())
        if row["reused_from"] is None:
            stuck = self._store.begin(trial)
            ending = Ending(reason=stuck) if stuck else self._run_stages(row)
            if ending is None:
                return
        else:
            same = self._row(row["reused_from"])
            ending = Ending(reason=same["reason"], is_stopped=same["state"] == "stopped")
        self._store.finish(trial, ending.reason, is_stopped=ending.is_stopped)
        self._update()
        self._listener.trial_finished(self._row(trial), self._tally())

    def _run_stages(self, row: Row) -> Ending | None:
        """Evaluate a trial stage by stage until it is complete, failed or stopped early; None after Ctrl-C."""
        has_rungs = len(self._stages) > 1
        names_phases = has_rungs or FREE_PHASE in self._stages[0]
        for stage, phases in enumerate(self._stages, start=1):
            done = self._store.phases(row["trial"])
            if not done.keys() >= set(phases):
                last = self._run_job(row, phases if names_phases else None, done)
                if last is None:
                    return None
                if "reason" in last:
                    return Ending(reason=last["reason"])
            ending = judge(self._config, self._store, row, stage) if has_rungs else None
            if ending is not None:
                return ending
        return Ending()

    @property
    def _rows(self) -> list[Row]:
        return self._store.rows()

    def _row(self, trial: int) -> Row:
        return self._store.row(trial)

    def _remeasure_kept(self) -> None:
        """Time complete trials anew that have no quiet timing of the present identity; what fails is tried again the next time."""
        left = self._store.left_to_remeasure()
        for place, row in enumerate(left, start=1):
            if self._is_stopped or self._is_late():
                return
            self._listener.remeasure_started(row, place, len(left))
            last = self._run_job(row, [TIMING_PHASE])
            if last is None:
                return
            self._update()
            self._listener.remeasure_finished(self._row(row["trial"]), place, len(left), last.get("reason"))

    def _remeasure_front(self) -> None:
        """Measure the throughput of the front again; what fails is tried again by the next run of the same command."""
        members, left = self._front_work.again_members(), self._front_work.again_left()
        # Shuffled, since in another order a slow drift affects other trials than the first time.
        random.Random(self._config.seed).shuffle(left)
        for place, row in enumerate(left, start=len(members) - len(left) + 1):
            if self._is_stopped or self._is_late():
                return
            self._listener.again_started(row, place, len(members))
            last = self._run_job(row, [AGAIN_PHASE])
            if last is None:
                return
            self._update()
            now = self._row(row["trial"])
            missing = "the evaluation gave no figure" if now["throughput_again_img_s"] is None else None
            self._listener.again_finished(now, place, len(members), last.get("reason", missing))

    def _reseed_front(self) -> None:
        """Train the front with further seeds, all of one seed before the next; what fails is tried again by the next run of the same command."""
        left = self._front_work.seeds_left()
        for place, (row, number) in enumerate(left, start=1):
            if self._is_stopped or self._is_late():
                return
            self._listener.seed_started(row, place, len(left))
            last = self._run_job(row, [f"{SEED_PHASE}{number}"])
            if last is None:
                return
            self._update()
            self._listener.seed_finished(self._row(row["trial"]), place, len(left), last.get("reason"))

    def _run_job(
        self, row: Row, phases: Sequence[str] | None, done: Mapping[str, dict[str, Any]] | None = None
    ) -> Event | None:
        """Have `phases` of a trial measured (None: the evaluator's default) and store each as it ends; once more where the worker was killed.

        Returns the last event of the job, or None after Ctrl-C.
        """
        last = self._try_job(row, phases, done)
        if last is None or not _was_killed(last.get("reason")):
            return last
        again = {"event": "progress", "trial": row["trial"], "phase": "tried once more", "text": last["reason"]}
        self._listener.progress(again)
        return self._try_job(row, phases, None if done is None else self._store.phases(row["trial"]))

    def _try_job(
        self, row: Row, phases: Sequence[str] | None, done: Mapping[str, dict[str, Any]] | None
    ) -> Event | None:
        """`_run_job` once."""
        if self._is_stopped:
            return None
        settings = {**self._config.settings, "seed": self._config.seed, "blocks": dict(self._config.blocks)}
        if phases is not None:
            settings["phases"] = list(phases)
        if ahead := self._ahead(row["trial"]):
            settings["ahead"] = ahead
        arch = self._store.arch_document(row["trial"])
        self._worker.submit(Job(trial=row["trial"], arch=arch, settings=settings, done=dict(done or {})))
        while not self._is_stopped:
            self._write_if_due()
            for event in self._worker.events(_INTERRUPT_POLL_S):
                if event["event"] in ("done", "failed"):
                    return event
                self._record(event)
                self._listener.progress(event)
        return None

    def _record(self, event: Event) -> None:
        """Store what a phase measured; other events are ignored."""
        if event["event"] != "phase":
            return
        trial, phase, values = event["trial"], event["phase"], event["values"]
        if phase == AGAIN_PHASE:
            self._store.record_again(trial, values)
        elif phase.startswith(SEED_PHASE):
            self._store.record_seed(trial, phase.removeprefix(SEED_PHASE), values["proxy_score"])
        else:
            self._store.record_phase(trial, phase, values)

    @contextlib.contextmanager
    def _deferred_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM only sets `_is_stopped`, which is checked between steps, so no measurement is lost; a second one raises."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: object) -> None:
            if self._is_stopped:
                raise KeyboardInterrupt
            self._is_stopped = True

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _fail_if_all_failed(self) -> None:
        number = self._store.count("failed")
        if number and number == self._store.count():
            raise RunError(
                f"{self._store.folder}: all {number} trials failed; the first because: {self._rows[0]['reason']} "
                f"({self._store.folder / LOG_FILE} has what the evaluation printed)"
            )

    def _tally(self) -> Tally:
        store, front = self._store, self._store.front()
        return Tally(
            ended=store.count(*ENDED),
            failed=store.count("failed"),
            stopped=store.count("stopped"),
            # A paper counts twice where the first one's worker was killed.
            total=store.count(is_fixed=True)
            + len(self._fixed.keys() - store.papers())
            + max(self._trials, store.count(is_fixed=False)),
            front_size=len(front),
            front=front,
        )

    def _update(self) -> None:
        """Have the files written at once where that is quick, as it is up to some thousand trials, else when they are due."""
        self._is_stale = True
        self._write_if_due()

    def _write_if_due(self) -> None:
        """Write the files if they lack something, unless that would take a large share of the time or they are not old yet."""
        if self._is_stale:
            wait_s = 0.0 if self._write_s <= _QUICK_S else min(_STALE_S, _WRITE_SHARE * self._write_s)
            if time.monotonic() - self._written_at >= wait_s:
                self._write("running")

    def _write(self, state: State, reason: str | None = None) -> None:
        """Update the run's files from the study, all of them, so that they tell of the same moment; `front` of every row is set.

        `reason` is why a run failed.
        """
        start = time.monotonic()
        self._store.rank()
        rows, folder, throughput_id = self._rows, self._store.folder, self._store.ranked_id
        write_trials(rows, folder)
        write_front(rows, folder, self._config.objectives, throughput_id)
        manifest = {
            **describe(self._config, rows, throughput_id),
            "command": self._command,
            "trials": self._trials,
            "papers": list(self._fixed),
            "storage": self._store.where,
            "study": self._store.study_name,
            "calibration": self._predictor and dict(self._predictor.source),
            "state": state,
            "reason": reason,
            "missing": self._missing(),
            "exhausted": self._is_exhausted,
        }
        write_manifest(manifest, folder)
        self._is_stale, self._written_at = False, time.monotonic()
        self._write_s = self._written_at - start


def _was_killed(reason: str | None) -> bool:
    """Whether a trial or a job failed because its worker was killed from outside."""
    return reason is not None and reason.startswith(KILLED)
