"""Evaluation in another process: a job goes in, events come out, and whatever dies in between is a reason in words."""

import atexit
import contextlib
import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from archsearch.errors import ArchsearchError
from archsearch.results import check_measured
from archsearch.search.engine.workers.base import Evaluator, Event, Job
from archsearch.system import without_interrupts

EVALUATOR = "archsearch.search.evaluate:evaluate"
LOG_FILE = "worker.log"
_REASON_LENGTH = 500
_PATIENCE_S = 5.0


class ProcessWorker:
    """One spawned process, kept for many jobs and started again when it dies; it never outlives its driver.

    `evaluator` is "module:function". The process starts now, so that importing torch overlaps with what the driver does.
    """

    def __init__(self, log: Path, evaluator: str = EVALUATOR) -> None:
        self._log, self._evaluator = log, evaluator
        self._trial: int | None = None
        self._start()
        # Before multiprocessing's own exit handler, which would wait for the process without end.
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """Process id of the process now at work."""
        return self._process.pid

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Nothing is ever sent here: it ends when we close it, or die.
        lifeline, self._lifeline = context.Pipe(duplex=False)
        arguments = (theirs, lifeline, self._evaluator, str(self._log))
        self._process: SpawnProcess = context.Process(target=_serve, args=arguments, name="archsearch-worker")
        with without_interrupts():
            self._process.start()
        theirs.close()
        lifeline.close()

    def submit(self, job: Job) -> None:
        """Start an evaluation; one at a time."""
        assert self._trial is None, f"trial {self._trial} is still being evaluated"
        message = json.dumps(asdict(job)).encode()
        try:
            self._connection.send_bytes(message)
        except OSError:
            # It died while it had nothing to do: that is not this job's fault.
            self._bury()
            self._start()
            self._connection.send_bytes(message)
        self._trial = job.trial

    def events(self, timeout: float) -> list[Event]:
        """What has happened since the last call, waiting up to `timeout` seconds for something."""
        events: list[Event] = []
        try:
            while self._connection.poll(0 if events else timeout):
                events.append(json.loads(self._connection.recv_bytes()))
        except (EOFError, OSError):
            # Also in the middle of a message.
            if self._trial is not None:
                events.append({"event": "failed", "trial": self._trial, "reason": self._bury()})
                self._start()
        if events and events[-1]["event"] in ("done", "failed"):
            self._trial = None
        return events

    def _bury(self, patience_s: float = _PATIENCE_S) -> str:
        """Why the process died, once it and whatever it started are gone; one that lives on after `patience_s` is killed."""
        self._connection.close()
        self._lifeline.close()
        if not wait([self._process.sentinel], patience_s):
            self._process.kill()
            wait([self._process.sentinel])
        if sys.platform != "win32" and self._process.pid:
            # What it left behind in its process group; nobody has waited for it yet, so the number is still its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        return _death(self._process.exitcode, self._log.name)

    def close(self) -> None:
        """Stop at once, whatever is being evaluated. A second call does nothing."""
        atexit.unregister(self.close)
        self._trial = None
        if not self._connection.closed:
            self._bury(patience_s=0)


def _death(exitcode: int | None, log: str) -> str:
    """A process's end in words."""
    if exitcode is None or exitcode >= 0:
        return f"the worker process ended by itself with exit code {exitcode}; {log} may say more"
    name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else "unknown"
    if name == "SIGKILL":
        return "the worker process was killed (signal 9, SIGKILL), probably because the machine ran out of memory"
    return f"the worker process crashed (signal {-exitcode}, {name}); {log} may say more"


def _serve(jobs: Connection, lifeline: Connection, evaluator: str, log: str) -> None:
    """The worker's life: evaluate what comes until the driver hangs up."""
    _detach(Path(log))
    threading.Thread(target=_follow, args=(lifeline,), daemon=True).start()
    function = _load(evaluator)
    while True:
        try:
            job = json.loads(jobs.recv_bytes())
        except (EOFError, OSError):
            return
        jobs.send_bytes(json.dumps({"trial": job["trial"], **_evaluate(function, job, jobs)}).encode())


def _detach(log: Path) -> None:
    """A process group of our own, so that Ctrl-C is the driver's to handle; what libraries print goes to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        os.setpgid(0, 0)
    with contextlib.suppress(OSError):  # a full disk is no reason not to measure
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        faulthandler.enable(file=2)


def _follow(lifeline: Connection) -> None:
    """Die with the driver, at once and with everything we started."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    if sys.platform != "win32":
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _load(evaluator: str) -> Evaluator:
    """The function of "module:function"; one that cannot be imported fails every job with the reason."""
    module, _, name = evaluator.partition(":")
    try:
        function: Evaluator = getattr(importlib.import_module(module), name)
    except Exception as error:
        traceback.print_exc()
        problem = f"the evaluation cannot be loaded: {type(error).__name__}: {error}"

        def fail(*_: object) -> None:
            raise ArchsearchError(problem)

        return fail
    return function


def _evaluate(function: Evaluator, job: Mapping[str, Any], jobs: Connection) -> Event:
    """Evaluate, passing events on; the last event, `done` or `failed`."""
    started = time.perf_counter()

    def emit(event: Event) -> None:
        nonlocal started
        if event["event"] == "phase":
            check_measured(event["phase"], event["values"])
            now = time.perf_counter()
            event = {**event, "values": {**event["values"], "seconds": now - started}}
            started = now
        jobs.send_bytes(json.dumps({**event, "trial": job["trial"]}).encode())

    try:
        function(job["arch"], job["settings"], job["done"], emit)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: an evaluation ends a trial, never the worker
        return {"event": "failed", "reason": _reason(error)}
    return {"event": "done"}


def _reason(error: BaseException) -> str:
    """One line: our own errors by their text, others by type, text and place, with the traceback in the log."""
    text = " ".join(str(error).split())
    if not isinstance(error, ArchsearchError):
        traceback.print_exception(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {text[:_REASON_LENGTH]} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
    return text[: 2 * _REASON_LENGTH]
