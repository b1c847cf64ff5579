"""The driver: asks for candidates, has them evaluated, tells the study, and writes the run's files. It is the only writer."""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from archsearch.errors import ArchsearchError, RunError
from archsearch.results import Row, ranked, timed_front, write_front, write_manifest, write_trials
from archsearch.search.config import RunConfig
from archsearch.search.engine.listener import Listener, State, Tally
from archsearch.search.engine.manifest import describe
from archsearch.search.engine.promotion import Ending, judge, stages
from archsearch.search.engine.recheck import PHASE as AGAIN_PHASE
from archsearch.search.engine.recheck import scored_front, to_remeasure, to_reseed
from archsearch.search.engine.workers.base import Event, Job, Worker
from archsearch.search.engine.workers.process import LOG_FILE
from archsearch.search.rungs import FREE_PHASE, SEED_PHASE
from archsearch.search.study.store import RunStore
from archsearch.space.arch import Arch
from archsearch.space.papers import paper

# How long Ctrl-C may go unnoticed while the worker has nothing to say.
_ATTENTION_S = 0.1


class Predictor(Protocol):
    """Foresees images/s before anything is built; `source` says for the manifest where that knowledge comes from."""

    @property
    def source(self) -> Mapping[str, Any]:
        """The calibration's file and how good it is."""

    def predict(self, arch: Arch) -> float | None:
        """Images/s of the architecture; None for one it knows nothing about."""


class Driver:
    """One run from where it stands to `trials` sampled candidates, or all of the band. Whatever kills it, the next one goes on.

    `fixed` are the models measured first, by name: by default the papers of the configuration. `recheck` has the front
    timed another time at the end, `num_seeds` has it trained with so many seeds, the first training counted.
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
        num_seeds: int = 1,
        predictor: Predictor | None = None,
    ) -> None:
        self._config, self._store, self._worker, self._listener = config, store, worker, listener
        self._fixed = {name: paper(name) for name in config.papers} if fixed is None else dict(fixed)
        self._command = list(sys.argv if command is None else command)
        self._recheck, self._num_seeds, self._predictor = recheck, num_seeds, predictor
        self._stages = stages(config)
        self._trials = 0
        self._is_stopped = False
        self._is_exhausted = False
        self._rows: list[Row] = []

    def run(self, trials: int, timeout: float | None = None) -> State:
        """Evaluate the fixed trials, then candidates until `trials` of them have ended, or no new one after `timeout` seconds;
        then time the front again and train it with further seeds, whichever of the two it was.

        Returns `complete` or `interrupted` (Ctrl-C; the trial at work is taken up by the next run). Closes the worker.
        Raises RunError when every trial failed, UserError when the storage or a file cannot be written.
        """
        self._trials = trials
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        try:
            self._write("running")
            state = self._run(deadline)
            self._write(state)
        except ArchsearchError:
            with contextlib.suppress(ArchsearchError):
                self._write("failed")
            raise
        finally:
            self._worker.close()
        self._listener.finished(state, self._tally())
        return state

    def _run(self, deadline: float) -> State:
        with self._deferred_interrupt():
            try:
                for row in self._queue():
                    self._evaluate(row)
                    if self._is_stopped or time.monotonic() >= deadline:
                        break
                if self._recheck:
                    self._measure_again()
                self._train_again()
            except KeyboardInterrupt:
                # A second Ctrl-C, or one that somebody else raised.
                self._is_stopped = True
            if self._is_stopped:
                self._rescue()
                return "interrupted"
        self._check_any()
        return "complete"

    def _queue(self) -> Iterator[Row]:
        """Trials to evaluate, each stored when it is its turn: those a dead driver left, the fixed ones, then the sampler's, while it has any."""
        yield from self._store.unfinished()
        known = {row["paper"] for row in self._store.rows()}
        for name, arch in self._fixed.items():
            if name not in known:
                yield self._store.start_fixed(name, arch)
        while self._num_sampled() < self._trials:
            proposal = self._store.propose()
            if proposal is None:
                self._is_exhausted = True
                return
            predicted = self._predictor.predict(proposal.arch) if self._predictor else None
            yield self._store.start(proposal, predicted)

    def _num_sampled(self) -> int:
        return sum(not row["is_fixed"] and row["state"] != "running" for row in self._store.rows())

    def _evaluate(self, row: Row) -> None:
        """Have one trial evaluated, tell the study, bring the files up to date; leave it running when Ctrl-C came first."""
        trial = row["trial"]
        self._listener.trial_started(row, self._tally())
        ending = self._have_measured(row) if row["reused_from"] is None else self._as_before(row["reused_from"])
        if ending is None:
            return
        self._store.finish(trial, ending.reason, is_stopped=ending.is_stopped)
        self._write("running")
        self._listener.trial_finished(self._row(trial), self._tally())

    def _as_before(self, trial: int) -> Ending:
        """How a trial of the same architecture ended."""
        before = self._row(trial)
        return Ending(reason=before["reason"], is_stopped=before["state"] == "stopped")

    def _have_measured(self, row: Row) -> Ending | None:
        """Take a trial from rung to rung as far as it is worth it; None when Ctrl-C came first."""
        has_rungs = len(self._stages) > 1
        are_told = has_rungs or FREE_PHASE in self._stages[0]
        for place, phases in enumerate(self._stages, start=1):
            done = self._store.phases(row["trial"])
            if not done.keys() >= set(phases):
                last = self._have_evaluated(row, done, **({"phases": list(phases)} if are_told else {}))
                if last is None:
                    return None
                if "reason" in last:
                    return Ending(reason=last["reason"])
            ending = judge(self._config, self._store, row, place) if has_rungs else None
            if ending is not None:
                return ending
        return Ending()

    def _row(self, trial: int) -> Row:
        return next(row for row in self._rows if row["trial"] == trial)

    def _measure_again(self) -> None:
        """Time members of the front another time; one that cannot be is left to the next run of the same command."""
        members = timed_front(self._rows, self._config.objectives)
        left = to_remeasure(members, self._config.seed)
        for place, row in enumerate(left, start=len(members) - len(left) + 1):
            if self._is_stopped:
                return
            self._listener.again_started(row, place, len(members))
            last = self._have_evaluated(row, {}, phases=[AGAIN_PHASE])
            if last is None:
                return
            self._write("running")
            now = self._row(row["trial"])
            missing = "the evaluation gave no figure" if now["throughput_again_img_s"] is None else None
            self._listener.again_finished(now, place, len(members), last.get("reason", missing))

    def _train_again(self) -> None:
        """Train members of the front with further seeds; one that fails is left to the next run of the same command."""
        left = to_reseed(scored_front(self._rows, self._config.objectives), self._num_seeds)
        for place, (row, phase) in enumerate(left, start=1):
            if self._is_stopped:
                return
            self._listener.seed_started(row, place, len(left))
            last = self._have_evaluated(row, {}, phases=[phase])
            if last is None:
                return
            self._write("running")
            self._listener.seed_finished(self._row(row["trial"]), place, len(left), last.get("reason"))

    def _have_evaluated(self, row: Row, done: dict[str, dict[str, Any]], **told: Any) -> Event | None:
        """The evaluation's last event, its phases kept meanwhile; None when Ctrl-C came first."""
        if self._is_stopped:
            return None
        settings = {**self._config.settings, "seed": self._config.seed, **told}
        self._worker.submit(Job(trial=row["trial"], arch=json.loads(row["arch"]), settings=settings, done=done))
        return self._follow()

    def _follow(self) -> Event | None:
        """Keep what the evaluation measures as it comes, up to its last event; None when Ctrl-C came first."""
        while not self._is_stopped:
            for event in self._worker.events(_ATTENTION_S):
                if event["event"] in ("done", "failed"):
                    return event
                self._keep(event)
        return None

    def _keep(self, event: Event) -> None:
        self._record(event)
        self._listener.progress(event)

    def _record(self, event: Event) -> None:
        if event["event"] == "phase" and event["phase"] == AGAIN_PHASE:
            self._store.record_again(event["trial"], event["values"])
        elif event["event"] == "phase" and event["phase"].startswith(SEED_PHASE):
            self._store.record_seed(
                event["trial"], event["phase"].removeprefix(SEED_PHASE), event["values"]["proxy_score"]
            )
        elif event["event"] == "phase":
            self._store.record_phase(event["trial"], event["phase"], event["values"])

    def _rescue(self) -> None:
        """Keep phases that were through when Ctrl-C came but not yet read."""
        for event in self._worker.events(0):
            self._record(event)
        self._worker.close()

    @contextlib.contextmanager
    def _deferred_interrupt(self) -> Iterator[None]:
        """Ctrl-C is noted and acted on between two steps, so that nothing measured is lost in the middle of one; a second one is not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: object) -> None:
            if self._is_stopped:
                raise KeyboardInterrupt
            self._is_stopped = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)

    def _check_any(self) -> None:
        """Raise RunError when there are trials and all failed."""
        failed = [row for row in self._store.rows() if row["state"] == "failed"]
        if failed and len(failed) == len(self._store.rows()):
            raise RunError(
                f"{self._store.folder}: all {len(failed)} trials failed; the first because: {failed[0]['reason']} "
                f"({self._store.folder / LOG_FILE} has what the evaluation printed)"
            )

    def _tally(self) -> Tally:
        rows = self._store.rows()
        ended = [row for row in rows if row["state"] != "running"]
        sampled = max(self._trials, sum(not row["is_fixed"] for row in rows))
        fixed = {*self._fixed, *(row["paper"] for row in rows if row["is_fixed"])}
        return Tally(
            ended=len(ended),
            failed=sum(row["state"] == "failed" for row in ended),
            stopped=sum(row["state"] == "stopped" for row in ended),
            total=len(fixed) + sampled,
            front_size=sum(row["front"] == 0 and row["reused_from"] is None for row in self._rows),
        )

    def _write(self, state: State) -> None:
        """Bring the run's files up to date with the study."""
        self._rows = ranked(self._store.rows(), self._config.objectives)
        folder = self._store.folder
        write_trials(self._rows, folder)
        write_front(self._rows, folder, self._config.objectives)
        write_manifest(self._manifest(state), folder)

    def _manifest(self, state: State) -> dict[str, Any]:
        return {
            **describe(self._config, self._rows),
            "command": self._command,
            "trials": self._trials,
            "papers": list(self._fixed),
            "storage": self._store.where,
            "calibration": self._predictor and dict(self._predictor.source),
            "state": state,
            "exhausted": self._is_exhausted,
        }
