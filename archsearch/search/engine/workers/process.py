"""The worker on this machine: evaluates in a spawned process, and turns a crash of it into a failure reason."""

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
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from archsearch.cores import OthersLoad, child_pids, usable_cores
from archsearch.errors import ArchsearchError
from archsearch.lock import work_for
from archsearch.results import check_measured
from archsearch.search.engine.workers.base import KILLED, Evaluator, Event, Job
from archsearch.system import without_interrupts

EVALUATOR = "archsearch.search.evaluate:evaluate"
_REASON_LENGTH = 500
# How long a process whose pipe has broken may take to exit before it is killed.
_EXIT_TIMEOUT_S = 5.0
# Events read at once: more come as fast as they are read from an evaluation that does nothing else. A longer message is none of ours.
_MOST_EVENTS, _LONGEST_MESSAGE = 1_000, 2**28
# Signals that a process gets from others: the kernel without memory, a user, a batch system. What the evaluation itself does wrong gives others.
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGXCPU")
_DEVICE_LOST = ("CUDA error:", "CUBLAS_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_EXECUTION_FAILED")
# Spans over which the use of the cores by others is averaged: for a display, and at least, as the system counts in hundredths.
_LATELY_S, _SHORTEST_S = 2.0, 0.2


class ProcessWorker:
    """`Workers` (see `base`) of one spawned process, which serves many jobs, is restarted when it dies, and never outlives the driver.

    `evaluator` is "module:function", an `Evaluator`; what it prints goes to the file `log`. The process has the variables of `environment`
    besides its parent's, and evaluates with the run's settings changed by `own_settings`. It starts at construction, so that importing torch
    overlaps with the driver's own work.
    """

    def __init__(
        self,
        log: Path,
        evaluator: str = EVALUATOR,
        *,
        name: str = "",
        environment: Mapping[str, str] | None = None,
        own_settings: Mapping[str, Any] | None = None,
        can_time: bool = True,
    ) -> None:
        self._log, self._evaluator, self.name, self.can_time = log, evaluator, name, can_time
        self._environment, self._own_settings = dict(environment or {}), dict(own_settings or {})
        self._trial: int | None = None
        self._unread: list[Event] = []  # of a job that was ended
        self._start()
        # Before multiprocessing's own exit handler, which would wait for the process without end.
        atexit.register(self.close)

    @property
    def capacity(self) -> int:
        """One job at a time."""
        return 1

    @property
    def pid(self) -> int | None:
        """Id of the current process."""
        return self._process.pid

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Nothing is ever sent here: the worker exits when the driver closes its end or dies.
        lifeline, self._lifeline = context.Pipe(duplex=False)
        arguments = (theirs, lifeline, self._evaluator, str(self._log), self._environment)
        self._process: SpawnProcess = context.Process(target=_serve, args=arguments, name="archsearch-worker")
        with without_interrupts():
            self._process.start()
        theirs.close()
        lifeline.close()

    def submit(self, job: Job) -> None:
        """Start a job, in a new process where the old one has died meanwhile."""
        assert self._trial is None, f"trial {self._trial} is still being evaluated"
        message = json.dumps({**vars(job), "settings": {**job.settings, **self._own_settings}}).encode()
        try:
            self._connection.send_bytes(message)
        except OSError:
            # It died while idle, which must not fail this job.
            self._reap()
            self._start()
            self._connection.send_bytes(message)
        self._trial = job.trial

    def events(self, timeout: float) -> list[Event]:
        """The events since the last call; a process that died is a `failed` event, and a new one has been started."""
        events, self._unread = self._unread, []
        # Asked before the pipe is read to its end. A child that it forked keeps the pipe open.
        has_died = self._process.exitcode is not None
        try:
            while len(events) < _MOST_EVENTS and self._connection.poll(0 if events or has_died else timeout):
                events.append(json.loads(self._connection.recv_bytes(_LONGEST_MESSAGE)))
            if has_died and len(events) < _MOST_EVENTS:
                raise EOFError
        except (EOFError, OSError, ValueError):
            # The process died, perhaps in the middle of a message, or what came was none.
            if self._trial is not None and not _has_ended(events):
                events.append({"event": "failed", "trial": self._trial, "reason": self._reap()})
                self._start()
        if _has_ended(events):
            self._trial = None
            if events[-1].pop("device_lost", False):
                self._reap(exit_timeout_s=0)  # at once: such a process may hang at its exit
                self._start()
        return events

    def end(self, trial: int, reason: str) -> None:
        """Kill the process where it evaluates this trial, and start a new one; the reason is the trial's."""
        if self._trial != trial:
            return
        unread = self.events(0)
        if self._trial is not None:  # it has not ended meanwhile
            self._reap(exit_timeout_s=0)
            self._start()
            self._trial = None
            unread.append({"event": "failed", "trial": trial, "reason": reason})
        self._unread = unread

    def _reap(self, exit_timeout_s: float = _EXIT_TIMEOUT_S) -> str:
        """Wait for the process to exit, kill it after the timeout, kill its children; returns why it ended."""
        deadline = time.monotonic() + exit_timeout_s
        # Not by its sentinel: a pipe too, which an evaluation may have closed, or have left open in a child.
        while not (has_exited := self._process.exitcode is not None) and time.monotonic() < deadline:
            time.sleep(0.001)
        self._connection.close()
        self._lifeline.close()
        self._process.kill()
        if sys.platform != "win32" and self._process.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its children, which are in its process group
        self._process.join()
        if not has_exited:
            return f"the worker process broke off its connection to the run; {self._log.name} may say more"
        return _describe_exit(self._process.exitcode, self._log.name)

    def close(self) -> None:
        """Kill the process, also in the middle of a job. A second call does nothing."""
        atexit.unregister(self.close)
        self._trial = None
        if not self._connection.closed:
            self._reap(exit_timeout_s=0)


def _has_ended(events: Sequence[Event]) -> bool:
    """Whether the last of these events is the last one of its job."""
    return bool(events) and events[-1]["event"] in ("done", "failed")


def wait_for_processes(workers: Sequence[ProcessWorker], timeout: float) -> None:
    """Return when one of the workers may have events, or after `timeout` seconds."""
    has_unread = any(worker._unread for worker in workers)
    wait([worker._connection for worker in workers], 0 if has_unread else timeout)


def _describe_exit(exitcode: int | None, log: str) -> str:
    """Why a process ended, in words."""
    if exitcode is None or exitcode >= 0:
        return f"the worker process ended by itself with exit code {exitcode}; {log} may say more"
    name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else "unknown"
    if name in _FROM_OUTSIDE:
        why = ", probably because the machine ran out of memory" if name == "SIGKILL" else ""
        return f"{KILLED} (signal {-exitcode}, {name}){why}"
    return f"the worker process crashed (signal {-exitcode}, {name}); {log} may say more"


def _serve(jobs: Connection, lifeline: Connection, evaluator: str, log: str, environment: Mapping[str, str]) -> None:
    """The main function of the process: evaluate jobs until the driver closes the pipe."""
    os.environ.update(environment)  # before torch is imported
    _detach(Path(log))
    work_for(f"run {Path(log).parent.absolute()}")
    threading.Thread(target=_die_with_driver, args=(lifeline,), daemon=True).start()
    function = load_evaluator(evaluator)
    while True:
        try:
            job = Job(**json.loads(jobs.recv_bytes()))
        except (EOFError, OSError):
            return
        last = evaluate_job(function, job, jobs.send_bytes)
        jobs.send_bytes(json.dumps({"trial": job.trial, **last}).encode())


def _detach(log: Path) -> None:
    """Start a process group of our own, so that only the driver gets Ctrl-C and SIGTERM, and send stdout and stderr to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform != "win32":
        os.setpgid(0, 0)
    with contextlib.suppress(OSError):  # measuring needs no log, as on a full disk
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        faulthandler.enable(file=2)


def _die_with_driver(lifeline: Connection) -> None:
    """Wait until the driver closes its end or dies, then kill this process and its children at once."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    if sys.platform != "win32":
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def load_evaluator(evaluator: str) -> Evaluator:
    """The function named by "module:function"; if it cannot be imported, one that fails every job with the reason."""
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


def evaluate_job(function: Evaluator, job: Job, send: Callable[[bytes], object]) -> Event:
    """Evaluate a job and send its events as JSON; returns the last one, `done` or `failed`, without its trial."""
    started = time.perf_counter()
    others = _Others(job.settings)
    sending, is_over = threading.Lock(), False

    def emit(event: Event) -> None:
        nonlocal started
        if event["event"] == "phase":
            check_measured(event["phase"], event["values"])
            now = time.perf_counter()
            seconds = now - started - event.get("waited_s", 0.0)
            event = {**event, "values": {**event["values"], "seconds": seconds, "other_cores": others.phase_ended()}}
            started = now
        elif event.get("waiting") is not None:
            others.phase_ended()  # what is busy during a wait is not beside the phase
        else:
            event = {**event, "other_cores": others.lately()}
        message = json.dumps({**event, "trial": job.trial}).encode()
        with sending:
            if not is_over:  # a thread may have been left at work
                send(message)

    try:
        function(job.arch, job.settings, job.done, emit)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: they end the trial, not the worker
        last: Event = {"event": "failed", "reason": _describe_error(error)}
        return {**last, "device_lost": True} if _is_device_lost(error) else last
    finally:
        with sending:
            is_over = True
    return {"event": "done"}


def _is_device_lost(error: BaseException | None) -> bool:
    """Whether a CUDA error was among what led to this one: such as an illegal access to memory, after which every call of the process fails.

    By names, since a worker loads torch only with its evaluation.
    """
    while error is not None:
        if type(error).__name__ == "AcceleratorError" or any(words in str(error) for words in _DEVICE_LOST):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Others:
    """Cores that other processes use beside a job; the driver, our parent, and its other workers are not among them."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        cpus = settings.get("cpus")
        self._load, self._threads = OthersLoad(cpus), settings.get("threads") or usable_cores() or 1
        self._lately: float | None = None
        self._phase = self._mark = self._read()

    def _read(self) -> tuple[float, float | None]:
        driver = os.getppid()
        own = [driver, *child_pids(driver), *(process.pid for process in multiprocessing.active_children())]
        return time.monotonic(), self._load.total_s(own, own_threads=self._threads)

    def phase_ended(self) -> float | None:
        """The mean since the last phase ended, None where the system does not say or it was too short to tell."""
        before, self._phase = self._phase, self._read()
        self._mark, self._lately = self._phase, None
        return _mean(before, self._phase)

    def lately(self) -> float | None:
        """The mean of the last seconds."""
        if time.monotonic() - self._mark[0] >= _LATELY_S:
            before, self._mark = self._mark, self._read()
            self._lately = _mean(before, self._mark)
        return self._lately


def _mean(before: tuple[float, float | None], after: tuple[float, float | None]) -> float | None:
    seconds = after[0] - before[0]
    if before[1] is None or after[1] is None or seconds < _SHORTEST_S:
        return None
    return (after[1] - before[1]) / seconds


def _describe_error(error: BaseException) -> str:
    """An error in one line: the text of our own errors; type, text and place of others, whose traceback goes to the log."""
    text = " ".join(str(error).split())
    if not isinstance(error, ArchsearchError):
        traceback.print_exception(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {text[:_REASON_LENGTH]} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
    return text[: 2 * _REASON_LENGTH] or type(error).__name__
