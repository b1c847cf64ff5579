"""The driver: asks for candidates, has them evaluated, tells the study, and writes the run's files. It is the only writer."""

import contextlib
import json
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any, Literal, Protocol

from archsearch import __version__
from archsearch.arch import Arch
from archsearch.config import RunConfig
from archsearch.engine.worker import LOG_FILE, Event, Job, Worker
from archsearch.errors import ArchsearchError, RunError
from archsearch.results import Row, ranked, write_front, write_manifest, write_trials
from archsearch.space import paper
from archsearch.study import RunStore

State = Literal["running", "complete", "interrupted", "failed"]

# How long Ctrl-C may go unnoticed while the worker has nothing to say.
_ATTENTION_S = 0.1
_VERSIONS = ("torch", "torchvision", "timm", "optuna")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Where a run stands: trials ended (failed ones and reused ones among them) of those asked for, fixed ones included."""

    ended: int
    failed: int
    total: int
    front_size: int


class Listener(Protocol):
    """Who watches a run."""

    def trial_started(self, row: Row, tally: Tally) -> None:
        """A candidate goes to the worker (or, with `reused_from`, is known already)."""

    def progress(self, event: Event) -> None:
        """An event of the evaluation: `progress`, or `phase` with its `values`."""

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """A trial ended, complete or failed, and the files show it."""

    def finished(self, state: State, tally: Tally) -> None:
        """The run ended, and its files are written."""


class Driver:
    """One run from where it stands to `trials` sampled candidates. Whatever kills it, the next one goes on.

    `fixed` are the models measured first, by name: by default the papers of the configuration.
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
    ) -> None:
        self._config, self._store, self._worker, self._listener = config, store, worker, listener
        self._fixed = {name: paper(name) for name in config.papers} if fixed is None else dict(fixed)
        self._command = list(sys.argv if command is None else command)
        self._trials = 0
        self._is_stopped = False
        self._rows: list[Row] = []

    def run(self, trials: int, timeout: float | None = None) -> State:
        """Evaluate the fixed trials, then candidates until `trials` of them have ended, or no new one after `timeout` seconds.

        Returns `complete` or `interrupted` (Ctrl-C; the trial at work is taken up by the next run). Closes the worker.
        Raises RunError when every trial failed, UserError when the storage or a file cannot be written.
        """
        self._trials = trials
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        try:
            if trials:
                self._store.check_band()
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
            except KeyboardInterrupt:
                # A second Ctrl-C, or one that somebody else raised.
                self._is_stopped = True
            if self._is_stopped:
                self._rescue()
                return "interrupted"
        self._check_any()
        return "complete"

    def _queue(self) -> Iterator[Row]:
        """Trials to evaluate, each stored when it is its turn: those a dead driver left, the fixed ones, then the sampler's."""
        yield from self._store.unfinished()
        known = {row["paper"] for row in self._store.rows()}
        for name, arch in self._fixed.items():
            if name not in known:
                yield self._store.start_fixed(name, arch)
        while self._num_sampled() < self._trials:
            yield self._store.start(self._store.propose())

    def _num_sampled(self) -> int:
        return sum(not row["is_fixed"] and row["state"] != "running" for row in self._store.rows())

    def _evaluate(self, row: Row) -> None:
        """Have one trial evaluated, tell the study, bring the files up to date; leave it running when Ctrl-C came first."""
        trial, reason = row["trial"], None
        self._listener.trial_started(row, self._tally())
        if row["reused_from"] is None:
            settings = {**self._config.settings, "seed": self._config.seed}
            self._worker.submit(
                Job(trial=trial, arch=json.loads(row["arch"]), settings=settings, done=self._store.phases(trial))
            )
            last = self._follow()
            if last is None:
                return
            reason = last.get("reason")
        self._store.finish(trial, reason)
        self._write("running")
        self._listener.trial_finished(next(row for row in self._rows if row["trial"] == trial), self._tally())

    def _follow(self) -> Event | None:
        """Keep what the evaluation measures as it comes, up to its last event; None when Ctrl-C came first."""
        while not self._is_stopped:
            for event in self._worker.events(_ATTENTION_S):
                if event["event"] in ("done", "failed"):
                    return event
                self._keep(event)
        return None

    def _keep(self, event: Event) -> None:
        if event["event"] == "phase":
            self._store.record_phase(event["trial"], event["phase"], event["values"])
        self._listener.progress(event)

    def _rescue(self) -> None:
        """Keep phases that were through when Ctrl-C came but not yet read."""
        for event in self._worker.events(0):
            if event["event"] == "phase":
                self._store.record_phase(event["trial"], event["phase"], event["values"])
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
        config = self._config
        conditions = next((json.loads(row["conditions"]) for row in self._rows if row["conditions"]), None)
        created_at = self._rows[0]["started_at"].isoformat(timespec="seconds") if self._rows else _now()
        return {
            "name": config.name,
            "command": self._command,
            "space": {"name": config.space_name, "sha256": config.space_sha256},
            "budget_macs": config.budget_macs,
            "tolerance": config.tolerance,
            "band": [config.band.low, config.band.high],
            "objectives": list(config.objectives),
            "sampler": config.sampler,
            "seed": config.seed,
            "trials": self._trials,
            "papers": list(self._fixed),
            "settings": dict(config.settings),
            "proxy_id": config.settings.get("proxy_id"),
            "storage": self._store.where,
            "versions": _versions(),
            "conditions": conditions,
            "created_at": created_at,
            "updated_at": _now(),
            "state": state,
        }


@cache
def _versions() -> dict[str, str]:
    """Of what the figures depend on; reading them from disk takes milliseconds, and the manifest is written every trial."""
    libraries = {name: metadata.version(name) for name in _VERSIONS}
    return {"archsearch": __version__, **libraries, "python": platform.python_version()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
