"""An evaluation that measures nothing, for runs that the command line starts."""

import time
from collections.abc import Callable
from typing import Any

from archsearch.errors import RunError
from archsearch.space import Arch

Document = dict[str, Any]


def evaluate(arch: Document, settings: Document, done: Document, emit: Callable[[Document], None]) -> None:
    """Figures that follow from the exact cost, so that a test can work them out again."""
    cost = Arch.from_dict(arch).cost()
    if settings.get("phases") == ["again"]:
        figures = {"throughput_again_img_s": 1.02e9 / cost.params, "throughput_again_ratio": 1.02}
        emit({"event": "phase", "phase": "again", "values": figures})
        return
    phases = {
        "count": {"macs_fvcore": cost.macs},
        "throughput": {
            "throughput_img_s": 1e9 / cost.params,
            "throughput_ratio": 1.0,
            "latency_ms": 10.0,
            "throughput_noisy": False,
            "throughput_drift": 0.0,
        },
    }
    for phase in settings.get("phases", ("count", "throughput", "proxy")):
        if phase in done:
            continue
        if phase.startswith("proxy"):
            emit({"event": "progress", "phase": phase, "step": 1, "steps": 2, "images_s": 812.0})
        score = {"proxy_score": cost.macs / 1e10, "proxy_score_se": 0.01}
        emit({"event": "phase", "phase": phase, "values": phases.get(phase, score)})


def sleep(arch: Document, settings: Document, done: Document, emit: Callable[[Document], None]) -> None:
    """Never ends by itself, after a first phase."""
    emit({"event": "phase", "phase": "count", "values": {"macs_fvcore": 1}})
    time.sleep(600)


def fail(arch: Document, settings: Document, done: Document, emit: Callable[[Document], None]) -> None:
    """Ends in one sentence."""
    raise RunError("proxy: out of memory on cpu")
