"""Evaluators that measure nothing, for the tests and the benchmark of the engine; they run in a real worker process.

They write every phase they start and end to a log beside the run, so that a test can count what was measured, and how often.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Emit = Callable[[Document], None]
REFERENCE = 128.0  # images/s; a power of two, so that a ratio times it gives the same figure again to the last bit
Done = dict[str, Document]


def arch_id(arch: Document) -> str:
    """An id of the architecture, computed without the package."""
    text = json.dumps(
        {key: value for key, value in arch.items() if key != "name"}, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def written(arch: str) -> str:
    """The same id, from the JSON text in trials.parquet."""
    return arch_id(json.loads(arch))


def fraction(arch: Document, salt: str) -> float:
    """A number in [0, 1) that depends on the architecture alone."""
    return int(hashlib.sha256(f"{arch_id(arch)}/{salt}".encode()).hexdigest()[:8], 16) / 2**32


def note(settings: Document, *words: str) -> None:
    """Append one line to the log in one write: whole, or not at all."""
    with Path(settings["log"]).open("a") as log:
        log.write(" ".join(words) + "\n")


def noted(path: Path) -> list[list[str]]:
    """The lines of such a log, in words."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def measure(phase: str, arch: Document) -> Document:
    """Values of a phase, the same for the same architecture."""
    if phase == "count":
        return {"macs_fvcore": 1}
    if phase == "throughput":
        images_s = 100 + 900 * fraction(arch, "throughput")
        figures = {
            "throughput_img_s": images_s,
            "latency_ms": 1000 / images_s,
            "throughput_ratio": images_s / REFERENCE,
        }
        return {**figures, "throughput_iqr": 0.01, "conditions": {"threads": 1}}
    if phase == "again":
        ratio = measure("throughput", arch)["throughput_ratio"] * (0.95 + 0.1 * fraction(arch, "again"))
        figures = {
            "throughput_again_img_s": REFERENCE * ratio,
            "throughput_again_ratio": ratio,
            "throughput_again_iqr": 0.01,
        }
        return {**figures, "conditions": {"threads": 1, "date": "later"}}
    if phase == "proxy":
        return {"proxy_score": fraction(arch, "proxy"), "proxy_score_se": 0.01}
    if phase == "free":
        # One that predicts the score, on another scale, and one that is noise.
        return {"free_zico": 1000 + 500 * fraction(arch, "proxy"), "free_naswot": 100 * fraction(arch, "free")}
    if phase.startswith("seed@"):
        return {"proxy_score": fraction(arch, "proxy") + 0.02 * (fraction(arch, phase) - 0.5), "proxy_score_se": 0.01}
    # A shorter training: lower, and a little off, by less the longer it is.
    steps = int(phase.removeprefix("proxy@"))
    off = (fraction(arch, phase) - 0.5) / steps
    return {"proxy_score": fraction(arch, "proxy") - 5 / steps + off, "proxy_score_se": 0.01}


def evaluate(arch: Document, settings: Document, done: Done, emit: Emit) -> None:
    """Three phases, or those asked for, of settings["phase_s"] seconds each."""
    for phase in settings.get("phases", ("count", "throughput", "proxy")):
        if phase in done:
            continue
        note(settings, "start", arch_id(arch), phase, str(os.getpid()))
        emit({"event": "progress", "phase": phase, "step": 1, "steps": 2, "images_s": 1.0})
        time.sleep(settings.get("phase_s", 0.0))
        note(settings, "end", arch_id(arch), phase)
        emit({"event": "phase", "phase": phase, "values": measure(phase, arch)})


def kill_driver(arch: Document, settings: Document, done: Done, emit: Emit) -> None:
    """Kill the driver before the first phase of the first architecture that is evaluated, each time.

    After a phase, it would be chance whether the driver had stored it.
    """
    victim = next((words[1] for words in noted(Path(settings["log"]))), arch_id(arch))
    if arch_id(arch) != victim:
        evaluate(arch, settings, done, emit)
        return
    note(settings, "kill", victim)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def on_machine(arch: Document, settings: Document, done: Done, emit: Emit) -> None:
    """As `evaluate`, on the machine that the file `machine.json` beside the log describes.

    `conditions` are its conditions; images/s as timed are `speed` times the usual ones, changed by up to the factor `load` either way from
    one timing to the next, and the ratios to the reference are those of another machine's for each `salt`.
    """
    machine = json.loads(Path(settings["log"]).with_name("machine.json").read_text())
    salt = machine.get("salt", "throughput")

    def emit_here(event: Document) -> None:
        if event.get("values") and event["phase"] in ("throughput", "again"):
            prefix = "throughput" if event["phase"] == "throughput" else "throughput_again"
            ratio = (100 + 900 * fraction(arch, salt)) / REFERENCE
            factor = machine.get("load", 1.0) ** (2 * fraction(arch, str(time.time_ns())) - 1)
            raw = machine.get("speed", 1.0) * REFERENCE * ratio * factor
            figures = {f"{prefix}_img_s": raw, f"{prefix}_ratio": ratio, "conditions": machine["conditions"]}
            noisy = {"throughput_noisy": machine.get("noisy", False)} if event["phase"] == "throughput" else {}
            event = {**event, "values": {**event["values"], **figures, **noisy}}
        emit(event)

    evaluate(arch, settings, done, emit_here)


def not_compiled(arch: Document, settings: Document, done: Document, emit: Emit) -> None:
    """As `on_machine`, in a run that compiles: architectures in `machine.json`'s list `eager` do not, and are timed so. Notes what is ahead."""
    machine = json.loads(Path(settings["log"]).with_name("machine.json").read_text())
    note(settings, "ahead", arch_id(arch), *map(arch_id, settings.get("ahead", ())))

    def emit_here(event: Document) -> None:
        if arch_id(arch) in machine["eager"] and event.get("phase") in ("throughput", "again") and "values" in event:
            problem = {"compile_error": "throughput: the candidate cannot be compiled: no such op"}
            values = {**event["values"], "mode": "eager", "conditions": {**event["values"]["conditions"], **problem}}
            event = {**event, "values": values}
        emit(event)

    on_machine(arch, settings, done, emit_here)


def misbehave(arch: Document, settings: Document, done: Done, emit: Emit) -> None:
    """Do settings["behaviours"][i] in the i-th evaluation, well after its count phase; evaluate properly after the last one."""
    behaviours = settings["behaviours"]
    index = sum(words[0] == "evaluation" for words in noted(Path(settings["log"])))
    note(settings, "evaluation", arch_id(arch))
    if index >= len(behaviours) or behaviours[index] == "well":
        evaluate(arch, settings, done, emit)
        return
    if "phases" not in settings:
        emit({"event": "phase", "phase": "count", "values": measure("count", arch)})
    BEHAVIOURS[behaviours[index]](arch, emit)


def _killed(arch: Document, emit: Emit) -> None:
    # As the kernel does when memory runs out.
    os.kill(os.getpid(), signal.SIGKILL)


def _terminated(arch: Document, emit: Emit) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    os.kill(os.getpid(), signal.SIGHUP)  # a worker leaves SIGTERM to its driver


def _segfault(arch: Document, emit: Emit) -> None:
    signal.raise_signal(signal.SIGSEGV)


def _exit_code(arch: Document, emit: Emit) -> None:
    os._exit(3)


def _system_exit(arch: Document, emit: Emit) -> None:
    sys.exit("enough")


def _interrupt(arch: Document, emit: Emit) -> None:
    raise KeyboardInterrupt


def _unexpected(arch: Document, emit: Emit) -> None:
    raise ZeroDivisionError("no such\nquotient")


def _own_error(arch: Document, emit: Emit) -> None:
    from archsearch.errors import UserError

    raise UserError("the data are not images")


def _unknown_column(arch: Document, emit: Emit) -> None:
    emit({"event": "phase", "phase": "proxy", "values": {"proxy_scor": 1.0}})


def _hang(arch: Document, emit: Emit) -> None:
    """Make no progress after the first step."""
    emit({"event": "progress", "phase": "throughput", "text": "timing"})
    time.sleep(600)


def _nothing(arch: Document, emit: Emit) -> None:
    """End without a score."""


def _not_a_number(arch: Document, emit: Emit) -> None:
    emit({"event": "phase", "phase": "throughput", "values": measure("throughput", arch)})
    emit({"event": "phase", "phase": "proxy", "values": {"proxy_score": float("nan")}})


def _device_lost(arch: Document, emit: Emit) -> None:
    try:
        raise RuntimeError(
            "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"
        )
    except RuntimeError as error:
        raise ValueError("throughput: stages.1 at batch 128, 224 px: it failed") from error


BEHAVIOURS: dict[str, Callable[[Document, Emit], None]] = {
    "killed": _killed,
    "terminated": _terminated,
    "segfault": _segfault,
    "exit_code": _exit_code,
    "system_exit": _system_exit,
    "interrupt": _interrupt,
    "unexpected": _unexpected,
    "own_error": _own_error,
    "unknown_column": _unknown_column,
    "device_lost": _device_lost,
    "hang": _hang,
    "nothing": _nothing,
    "not_a_number": _not_a_number,
}


def on_node(arch: Document, settings: Document, done: Done, emit: Emit) -> None:
    """As `evaluate`; notes the node's mark and the folder of images it was given."""
    folder = settings["proxy"].get("source", {}).get("prepared", "none")
    note(settings, "node", arch_id(arch), os.environ.get("NODE_MARK", "none"), folder)
    evaluate(arch, settings, done, emit)
