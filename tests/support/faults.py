"""An evaluator that does what a job asks for, good or bad: for the contract that every kind of workers keeps."""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.stub_evaluators import BEHAVIOURS, Document, Done, Emit, evaluate, measure, note

BIG = 5_000_000  # characters of an event


def act(arch: Document, settings: Document, done: Done, emit: Emit) -> None:
    """Do settings["act"] after a count phase, where there is one; else as `evaluate`. Its log has the process that begins."""
    note(settings, "begin", str(os.getpid()))
    if "act" not in settings:
        evaluate(arch, settings, done, emit)
        return
    emit({"event": "phase", "phase": "count", "values": measure("count", arch)})
    ACTS[settings["act"]](arch, emit)


@contextmanager
def _little_memory() -> Iterator[None]:
    """No more than 50 MB beside what the process has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 50_000_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _out_of_memory(arch: Document, emit: Emit) -> None:
    with _little_memory():
        bytearray(500_000_000)


def _device_out_of_memory(arch: Document, emit: Emit) -> None:
    # As torch has it, without torch, which takes seconds to import.
    raise RuntimeError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nof which"
    )


def _hang(arch: Document, emit: Emit) -> None:
    time.sleep(600)


def _chatter(arch: Document, emit: Emit) -> None:
    while True:
        emit({"event": "progress", "phase": "proxy", "step": 1})


def _close_pipes(arch: Document, emit: Emit) -> None:
    # As programs do that make themselves daemons.
    os.closerange(3, 64)
    time.sleep(600)


def _close_pipes_and_end(arch: Document, emit: Emit) -> None:
    os.closerange(3, 64)


def _garbage(arch: Document, emit: Emit) -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"no message of ours\n" * 100)
        except OSError:
            continue
    time.sleep(600)


def _die_beside_a_child(arch: Document, emit: Emit) -> None:
    """The child has every descriptor of its parent, as one that a data loader forks."""
    if os.fork() == 0:
        time.sleep(600)
    BEHAVIOURS["killed"](arch, emit)


def _start_program(arch: Document, emit: Emit) -> None:
    subprocess.Popen(["sleep", "600"])
    time.sleep(600)


def _print_much(arch: Document, emit: Emit) -> None:
    for stream in (sys.stdout, sys.stderr):
        print("x" * BIG, file=stream)


def _big_event(arch: Document, emit: Emit) -> None:
    emit({"event": "progress", "phase": "proxy", "text": "x" * BIG})


def _not_a_number(arch: Document, emit: Emit) -> None:
    emit({"event": "phase", "phase": "proxy", "values": {"proxy_score": float("nan")}})


def _not_json(arch: Document, emit: Emit) -> None:
    emit({"event": "progress", "phase": "proxy", "images_s": {1.0}})


def _not_a_column(arch: Document, emit: Emit) -> None:
    emit({"event": "phase", "phase": "proxy", "values": {"proxy_score": object()}})


def _talk_on(arch: Document, emit: Emit) -> None:
    """End, and have a thread go on with events."""

    def talk() -> None:
        for step in range(300):
            emit({"event": "progress", "phase": "proxy", "step": step})
            time.sleep(0.001)

    threading.Thread(target=talk, daemon=True).start()


ACTS: dict[str, Callable[[Document, Emit], Any]] = {
    **BEHAVIOURS,
    "out_of_memory": _out_of_memory,
    "device_out_of_memory": _device_out_of_memory,
    "hang": _hang,
    "chatter": _chatter,
    "close_pipes": _close_pipes,
    "close_pipes_and_end": _close_pipes_and_end,
    "garbage": _garbage,
    "die_beside_a_child": _die_beside_a_child,
    "start_program": _start_program,
    "print_much": _print_much,
    "big_event": _big_event,
    "not_a_number": _not_a_number,
    "not_json": _not_json,
    "not_a_column": _not_a_column,
    "talk_on": _talk_on,
}
