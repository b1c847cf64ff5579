"""The driver of a run: proposes candidates, has them evaluated, stores the results; the only writer of the study and the files."""

import contextlib
import math
import random
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any, Protocol

from archsearch.errors import RunError
from archsearch.models import GivenNetwork, is_given, no_score_of
from archsearch.results import ENDED, LOG_FILE, Row, number_of_seeds
from archsearch.samplers import Proposal
from archsearch.search.config import RunConfig
from archsearch.search.engine.files import RunFiles
from archsearch.search.engine.front_work import FrontWork
from archsearch.search.engine.listener import Listener, State, Tally
from archsearch.search.engine.promotion import Ending, judge, stages
from archsearch.search.engine.stalls import Stalls
from archsearch.search.engine.workers.base import KILLED, Event, Job, Workers
from archsearch.search.rungs import AGAIN_PHASE, FREE_PHASE, FULL_PHASE, RUNG_PHASE, SEED_PHASE, TIMING_PHASE
from archsearch.search.study.store import RunStore
from archsearch.space import Arch, paper
from archsearch.system import Interrupt

# How long a Ctrl-C may go unnoticed while the workers send no events.
_INTERRUPT_POLL_S = 0.1
# Candidates are asked for this share of the workers at a time: one fit of the sampler's model for all of them.
_ASKED_SHARE = 1 / 8

# What is done with one trial: yields the phases to measure next (None: the evaluator's own), and is sent the last event of their job.
Steps = Generator[Sequence[str] | None, Event, None]


class Predictor(Protocol):
    """Predicts throughput before anything is built."""

    @property
    def source(self) -> Mapping[str, Any]:
        """For the manifest: the calibration's file and its accuracy."""

    def predict(self, arch: Arch) -> float | None:
        """Images/s of the architecture, or None if it cannot be predicted."""


@dataclass
class _Task:
    """Work on one trial, which is measured no more than once at a time. `skips_done`: phases measured before are not measured again."""

    trial: int
    steps: Steps
    skips_done: bool = False
    phases: Sequence[str] | None = None  # of the job under way
    attempts: int = 0  # to do that job


class Driver:
    """Continues one run, new or old, up to a number of sampled candidates or the end of its band. Killed, it leaves a run to continue.

    As many trials are under way as there are `workers`; their results are told in the order in which they come.

    `fixed` are the models measured first, by name: by default the papers and included networks of the configuration. With `recheck` the throughput of the
    front is measured again at the end; with `remeasure` complete trials without a quiet timing of the present identity are timed anew at
    the start (see `RunStore.measure_here`); with `num_seeds` above 1 the front is trained with that many seeds in the mean, the first training counted.
    A job whose worker was killed from outside is done again up to `retries` times. One whose phase makes no progress for `stall_s`
    seconds is ended and its trial fails (`inf`: never, None: by what such phases took, see `Stalls`).
    """

    def __init__(
        self,
        config: RunConfig,
        store: RunStore,
        workers: Workers,
        listener: Listener,
        *,
        fixed: Mapping[str, Arch | GivenNetwork] | None = None,
        command: Sequence[str] | None = None,
        recheck: bool = False,
        remeasure: bool = False,
        num_seeds: int = 1,
        predictor: Predictor | None = None,
        retries: int = 1,
        stall_s: float | None = None,
    ) -> None:
        self._config, self._store, self._workers, self._listener = config, store, workers, listener
        self._fixed = _fixed_of(config) if fixed is None else dict(fixed)
        self._command = list(sys.argv if command is None else command)
        self._front_work = FrontWork(config, store, recheck=recheck, num_seeds=num_seeds)
        self._remeasure, self._predictor, self._retries = remeasure, predictor, retries
        self._stages, self._stalls = stages(config), Stalls(stall_s)
        self._files = RunFiles(config, store, self._manifest, lambda: workers.capacity)
        self._tasks: dict[int, _Task] = {}  # under way, by trial
        self._proposed: deque[Proposal] = deque()  # candidates that were asked for and have no trial yet
        self._compiled_ahead: set[str] = set()  # arch_ids that a worker was given to compile ahead
        self._trials = 0
        self._timeout_s = self._deadline = float("inf")
        self._interrupt = Interrupt()  # asked for between steps, so no measurement is lost
        self._has_begun = False
        self._is_over = False
        self._is_exhausted = False
        store.stop_waiting_when(lambda: self._interrupt.is_asked)

    def run(self, trials: int, timeout: float | None = None) -> State:
        """Evaluate the fixed trials, then candidates until `trials` of them have ended or `timeout` seconds are over, whichever is first;
        then measure the front again and train it with further seeds, as asked for. Of the time, what that will take is kept.

        Returns `complete`, `timeout` (there is work left) or `interrupted` (Ctrl-C or SIGTERM; the next run continues the unfinished
        trials). Closes the workers. Raises RunError when every trial failed, UserError when the storage or a file cannot be written.
        """
        self._trials = trials
        self._timeout_s = float("inf") if timeout is None else timeout
        self._deadline = time.monotonic() + self._timeout_s
        try:
            with self._interrupt.deferred():
                self._files.write("running")
                state = self._run()
                self._files.write(state)
        except Exception as error:
            with contextlib.suppress(Exception):
                self._files.write("failed", reason=str(error) or type(error).__name__)
                self._store.leave()
            raise
        finally:
            self._workers.close()
        self._listener.finished(state, self._tally())
        return state

    def _run(self) -> State:
        try:
            if self._remeasure:
                self._carry_out(self._kept_timings())
            self._carry_out(self._trials_to_evaluate(), keep_front_work=True)
            if self._is_over:  # counted from here, since the last trial may have ended late
                self._deadline = max(self._deadline, time.monotonic() + 2 * self._kept_s())
            self._carry_out(self._second_timings())
            self._carry_out(self._further_seeds())
        except KeyboardInterrupt:
            # A second Ctrl-C, or one raised outside our handler.
            self._interrupt.is_asked = True
        if self._interrupt.is_asked:
            with contextlib.suppress(KeyboardInterrupt):  # the study's database, which is waited for no longer
                for event in self._workers.events(0):  # phases that ended before Ctrl-C and were not read yet
                    self._record(event)
                self._store.leave()
            self._workers.close()
            return "interrupted"
        self._fail_if_all_failed()
        return "timeout" if self._is_over and any(self._missing().values()) else "complete"

    def _carry_out(self, tasks: Iterator[_Task | None], *, keep_front_work: bool = False) -> None:
        """Have tasks carried out, as many at once as there are workers, until none is left or the time is over; those under way end."""
        is_open = True
        while not self._interrupt.is_asked:
            is_open = is_open and self._begin_tasks(tasks, keep_front_work=keep_front_work)
            if not is_open and not self._tasks:
                return
            self._files.write_if_due()
            for event in self._workers.events(_INTERRUPT_POLL_S):
                self._hear(event)
            for trial, reason in self._stalls.stuck():
                self._workers.end(trial, reason)

    def _begin_tasks(self, tasks: Iterator[_Task | None], *, keep_front_work: bool) -> bool:
        """Begin tasks while a worker is free; False once no further one is to begin. None among the tasks is one that waits for others to end."""
        while len(self._tasks) < self._workers.capacity and not self._interrupt.is_asked:
            if self._is_late(keep_front_work=keep_front_work):
                return False
            try:
                task = next(tasks)
            except StopIteration:
                return False
            if task is None:
                return True
            self._has_begun = True
            self._tasks[task.trial] = task
            self._go_on(task, None)
        return True

    def _go_on(self, task: _Task, last: Event | None) -> None:
        """Have measured what the task wants next after the last event of its job, None at its beginning."""
        try:
            task.phases = next(task.steps) if last is None else task.steps.send(last)
        except StopIteration:
            del self._tasks[task.trial]
            return
        task.attempts = 0
        self._submit(task)

    def _submit(self, task: _Task) -> None:
        if self._interrupt.is_asked:
            return
        task.attempts += 1
        self._stalls.submitted(task.trial)
        config = self._config
        settings = {
            **config.settings,
            "seed": config.seed,
            "blocks": dict(config.blocks),
            "limits": list(config.limits),
        }
        if task.phases is not None:
            settings["phases"] = list(task.phases)
        if ahead := self._ahead():
            settings["ahead"] = ahead
        done = self._store.phases(task.trial) if task.skips_done else {}
        arch = self._store.arch_document(task.trial)
        self._workers.submit(Job(trial=task.trial, arch=arch, settings=settings, done=dict(done)))

    def _hear(self, event: Event) -> None:
        """Store what an event brings, and go on with its trial where its job has ended; again where its worker was killed."""
        self._stalls.heard(event)
        if event["event"] not in ("done", "failed"):
            self._record(event)
            self._listener.progress(event)
            return
        task = self._tasks[event["trial"]]
        if _was_killed(event.get("reason")) and task.attempts <= self._retries:
            again = {**event, "event": "progress", "phase": "tried again", "text": event["reason"]}
            self._listener.progress(again)
            self._submit(task)
        else:
            self._go_on(task, event)

    def _kept_s(self) -> float:
        """Seconds of the time limit that are kept for the work on the front."""
        return min(self._front_work.seconds(), self._timeout_s / 2)

    def _is_late(self, *, keep_front_work: bool) -> bool:
        """Whether the time limit is over, or what is left is kept for the work on the front, which then has twice what was kept."""
        if isinf(self._deadline) or (keep_front_work and not self._has_begun):  # the first trial is always evaluated
            return False
        if time.monotonic() < self._deadline - (self._kept_s() if keep_front_work else 0.0):
            return False
        self._is_over = True
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
            "seeds": self._front_work.seeds_left(),
        }

    # Which trials are evaluated

    def _trials_to_evaluate(self) -> Iterator[_Task | None]:
        """Each trial at its turn: unfinished ones of an earlier driver, the fixed ones, then the sampler's, which are stored now.

        One whose architecture is under way waits, since it takes over the figures. Those that may have killed an earlier driver come first,
        each alone to its end, so that a driver that dies again was killed by that one.
        """
        for row in sorted(self._store.unfinished(), key=lambda row: not self._store.is_suspect(row["trial"])):
            is_suspect = self._store.is_suspect(row["trial"])
            yield self._evaluation(row)
            while is_suspect and self._tasks:
                yield None
        for name, arch in self._fixed_left():
            while self._is_under_way(arch):
                yield None
            yield self._evaluation(self._store.start_fixed(name, arch))
        while self._store.count(is_fixed=False) < self._trials:
            if not self._proposed and not self._ask(self._workers.capacity - len(self._tasks)):
                self._is_exhausted = True
                return
            while self._is_under_way(self._proposed[0].arch):
                yield None
            proposal = self._proposed.popleft()
            predicted = self._predictor.predict(proposal.arch) if self._predictor else None
            yield self._evaluation(self._store.start(proposal, predicted))

    def _evaluation(self, row: Row) -> _Task:
        return _Task(row["trial"], self._evaluate(row), skips_done=True)

    def _ask(self, number: int) -> bool:
        """Ask the sampler for this many candidates, or more where there are many workers; False where the run has every one of its band."""
        left = self._trials - self._store.count(is_fixed=False)
        many = math.floor(_ASKED_SHARE * self._workers.capacity)
        self._proposed.extend(self._store.propose_many(max(1, min(left, max(number, many)))))
        return bool(self._proposed)

    def _is_under_way(self, arch: Arch | GivenNetwork) -> bool:
        return any(self._store.row(trial)["arch_id"] == arch.arch_id for trial in self._tasks)

    def _fixed_left(self) -> list[tuple[str, Arch | GivenNetwork]]:
        """The fixed models that have no trial yet, or one whose worker was killed."""
        known = {row["paper"] for row in self._store.fixed_rows() if not _was_killed(row["reason"])}
        return [(name, arch) for name, arch in self._fixed.items() if name not in known]

    def _ahead(self) -> list[dict[str, Any]]:
        """Architectures that come after those under way, for a worker that compiles them meanwhile; of several workers each gets its part.

        A GPU's compiling takes longer than all else, so there the sampler is asked for its next candidate one trial early, without the
        figures of this one. Elsewhere it waits for them, and a seed goes on giving the same run.
        """
        settings, capacity = self._config.settings, max(1, self._workers.capacity)
        if settings["mode"] == "eager":
            return []
        rows = [row for row in self._store.unfinished() if row["trial"] not in self._tasks]
        documents = [
            *(self._store.arch_document(row["trial"]) for row in rows),
            *(arch.to_dict() for _, arch in self._fixed_left()),
        ]
        known = [document for document in documents if not is_given(document)]
        if not known and settings["device"] == "cuda" and self._store.count(is_fixed=False) < self._trials:
            if not self._proposed:
                self._ask(1)
            known = [proposal.arch.to_dict() for proposal in self._proposed]
        if capacity == 1:
            return known
        own = [document for document in known if str(document) not in self._compiled_ahead][
            : math.ceil(len(known) / capacity)
        ]
        self._compiled_ahead |= set(map(str, own))
        return own

    # What is done with one trial

    def _evaluate(self, row: Row) -> Steps:
        """Evaluate one trial, store how it ended, and update the files; a trial interrupted by Ctrl-C stays `running`."""
        trial = row["trial"]
        self._listener.trial_started(row, self._tally())
        if row["reused_from"] is None:
            stuck = self._store.begin(trial, is_alone=self._workers.capacity == 1)
            ending = Ending(reason=stuck) if stuck else (yield from self._run_stages(row))
        else:
            same = self._store.row(row["reused_from"])
            ending = Ending(reason=same["reason"], is_stopped=same["state"] == "stopped")
        self._store.finish(trial, ending.reason, is_stopped=ending.is_stopped)
        self._files.update()
        self._listener.trial_finished(self._store.row(trial), self._tally(but=trial))

    def _run_stages(self, row: Row) -> Generator[Sequence[str] | None, Event, Ending]:
        """Evaluate a trial stage by stage until it is complete, failed or stopped early; without training where it cannot be trained."""
        has_rungs, no_score = len(self._stages) > 1, no_score_of(self._store.arch_document(row["trial"]))
        names_phases = has_rungs or FREE_PHASE in self._stages[0] or no_score is not None
        for stage, phases in enumerate(self._stages, start=1):
            done = self._store.phases(row["trial"]).keys()
            # Where the final score was taken from an earlier run no training is left that could be stopped.
            is_trained = FULL_PHASE in done
            left = [
                phase for phase in phases if phase not in done and not (is_trained and phase.startswith(RUNG_PHASE))
            ]
            if no_score is not None:
                left = [phase for phase in left if phase in ("count", TIMING_PHASE)]
            if left:
                last = yield left if names_phases else None
                if "reason" in last:
                    return Ending(reason=last["reason"])
            ending = judge(self._config, self._store, row, stage) if has_rungs and no_score is None else None
            if ending is not None:
                return ending
        needs_score = "proxy_score" in self._config.objectives
        return Ending(reason=no_score, is_stopped=True) if no_score is not None and needs_score else Ending()

    def _kept_timings(self) -> Iterator[_Task]:
        """Complete trials that have no quiet timing of the present identity are timed anew; what fails is tried again the next time."""
        left = self._store.left_to_remeasure()
        for place, row in enumerate(left, start=1):
            yield _Task(row["trial"], self._time_anew(row, place, len(left)))

    def _time_anew(self, row: Row, place: int, total: int) -> Steps:
        self._listener.remeasure_started(row, place, total)
        last = yield [TIMING_PHASE]
        self._files.update()
        self._listener.remeasure_finished(self._store.row(row["trial"]), place, total, last.get("reason"))

    def _second_timings(self) -> Iterator[_Task]:
        """The throughput of the front is measured again; what fails is tried again by the next run of the same command."""
        members, left = self._front_work.again_members(), self._front_work.again_left()
        # Shuffled, since in another order a slow drift affects other trials than the first time.
        random.Random(self._config.seed).shuffle(left)
        for place, row in enumerate(left, start=len(members) - len(left) + 1):
            yield _Task(row["trial"], self._time_again(row, place, len(members)))

    def _time_again(self, row: Row, place: int, total: int) -> Steps:
        self._listener.again_started(row, place, total)
        last = yield [AGAIN_PHASE]
        self._files.update()
        now = self._store.row(row["trial"])
        missing = "the evaluation gave no figure" if now["throughput_again_img_s"] is None else None
        self._listener.again_finished(now, place, total, last.get("reason", missing))

    def _further_seeds(self) -> Iterator[_Task | None]:
        """Trials of the front and near it are trained with further seeds, each chosen by all scores so far.

        One whose training fails is left to the next run of the same command.
        """
        total, failed = self._front_work.begin_seeds(), set[int]()
        for place in range(1, total + 1):
            while (row := self._front_work.next_training(under_way=self._tasks.keys(), without=failed)) is None:
                if not self._tasks:
                    return
                yield None
            yield _Task(row["trial"], self._train_seed(row, place, total, failed))

    def _train_seed(self, row: Row, place: int, total: int, failed: set[int]) -> Steps:
        trial, number = row["trial"], number_of_seeds(row)
        self._listener.seed_started(row, place, total)
        last = yield [f"{SEED_PHASE}{number}"]
        self._files.update()
        now = self._store.row(trial)
        missing = "the evaluation gave no score" if number_of_seeds(now) == number else None
        if missing:
            failed.add(trial)
        self._listener.seed_finished(now, place, total, last.get("reason", missing))

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

    def _fail_if_all_failed(self) -> None:
        number = self._store.count("failed")
        if number and number == self._store.count():
            raise RunError(
                f"{self._store.folder}: all {number} trials failed; the first because: {self._store.rows()[0]['reason']} "
                f"({self._store.folder / LOG_FILE} has what the evaluation printed)"
            )

    def _tally(self, but: int | None = None) -> Tally:
        """The progress; `but` is a trial under way that has just ended."""
        store, front = self._store, self._store.front()
        return Tally(
            ended=store.count(*ENDED),
            failed=store.count("failed"),
            stopped=store.count("stopped", is_fixed=False),
            # A paper counts twice where the first one's worker was killed.
            total=store.count(is_fixed=True)
            + len(self._fixed.keys() - {row["paper"] for row in store.fixed_rows()})
            + max(self._trials, store.count(is_fixed=False)),
            front_size=len(front),
            front=front,
            workers=self._workers.capacity,
            under_way=len(self._tasks.keys() - {but}),
        )

    def _manifest(self) -> dict[str, Any]:
        """What manifest.json says beside the configuration and the rows."""
        return {
            "command": self._command,
            "trials": self._trials,
            "papers": [name for name in self._fixed if name not in self._config.include],
            "calibration": self._predictor and dict(self._predictor.source),
            "missing": self._missing(),
            "exhausted": self._is_exhausted,
        }


def _was_killed(reason: str | None) -> bool:
    """Whether a trial or a job failed because its worker was killed from outside."""
    return reason is not None and reason.startswith(KILLED)


def _fixed_of(config: RunConfig) -> dict[str, Arch | GivenNetwork]:
    """The papers' models and the included networks of a run by name."""
    return {**{name: paper(name) for name in config.papers}, **config.included}
