"""Settings of runs for tests, as `archsearch run` makes them from its options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archsearch.proxy import ProxyTask, choose_profile
from archsearch.search import make_settings
from archsearch.throughput import Measurement


def settings_for(
    proxy: str | None = None,
    *,
    data: str | Path | None = None,
    steps: int | None = None,
    rungs: Sequence[int] | None = None,
    **training: Any,
) -> dict[str, Any]:
    """The settings of a run on the CPU with this proxy."""
    measurement = Measurement.resolve(device="cpu")
    task = ProxyTask.resolve(choose_profile(proxy, "cpu", data), data=data, steps=steps, rungs=rungs, **training)
    return make_settings(measurement, task)
