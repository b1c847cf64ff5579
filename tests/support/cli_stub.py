"""Evaluations for runs that the command line starts: some that measure nothing, and the real one with short timings."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

from archsearch.errors import RunError

Document = dict[str, Any]
SHORT_TIMINGS: dict[str, Any] = {
    "warmup_s": 0.1,
    "min_warmup_iterations": 2,
    "min_slow_warmup_iterations": 2,
    "block_s": 0.005,
    "min_blocks": 3,
    "max_s": 0.2,
    "iqr_limit": 10.0,
    "agree": 1.0,
}


def evaluate(arch: Document, settings: Document, done: Document, emit: Callable[[Document], None]) -> None:
    """Figures that follow from the exact cost, so that a test can work them out again."""
    # Late: these import torch, which a worker without jobs does not need.
    from archsearch.device import conditions
    from archsearch.space import REFERENCE, Arch
    from archsearch.throughput import Measurement

    cost = Arch.from_dict(arch).cost()
    measurement = Measurement.from_dict(settings)
    measurement.use_device()
    here = {"conditions": {**conditions(measurement.torch_device), "reference": REFERENCE}}
    if settings.get("phases") == ["again"]:
        figures = {
            "throughput_again_img_s": 1.02e9 / cost.params,
            "throughput_again_ratio": 1.02e9 / cost.params / 128,
            **here,
        }
        emit({"event": "phase", "phase": "again", "values": figures})
        return
    phases = {
        "count": {"macs_fvcore": cost.macs},
        "throughput": {
            "throughput_img_s": 1e9 / cost.params,
            "throughput_ratio": 1e9 / cost.params / 128,
            "latency_ms": 10.0,
            "throughput_noisy": False,
            "throughput_drift": 0.0,
            **here,
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


def evaluate_with_short_timings(
    arch: Document, settings: Document, done: Document, emit: Callable[[Document], None]
) -> None:
    """The product's own evaluation; only its timings take tenths of seconds, and every round counts as quiet."""
    from archsearch.search.evaluate import evaluate as evaluate_candidate
    from archsearch.throughput.measurement import Measurement
    from archsearch.throughput.protocol import Protocol

    usual = Measurement.protocol

    def short(measurement: Measurement, **sizes: Any) -> Protocol:
        return replace(usual(measurement, **sizes), **SHORT_TIMINGS)

    with mock.patch.object(Measurement, "protocol", short):
        evaluate_candidate(arch, settings, done, emit)
