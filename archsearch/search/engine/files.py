"""The files of a run, written from its study: all at once after every trial while that is quick, else now and then."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from archsearch.results import write_front, write_manifest, write_trials
from archsearch.search.config import RunConfig
from archsearch.search.engine.listener import State
from archsearch.search.engine.manifest import describe
from archsearch.search.study.store import RunStore

# The files are written after every trial while that takes no longer than this, of several workers no longer than its part of this.
# After that, writing them takes one part in so many of the
# time, and they are never older than so many seconds.
_QUICK_S = 0.05
_WRITE_SHARE, _STALE_S = 20, 30.0


class RunFiles:
    """Writes trials.parquet, front.parquet and manifest.json; `more` gives what the manifest says beside the configuration and the rows.

    `workers` gives how many trials may be under way: as many end in the time in which one worker has one.
    """

    def __init__(
        self,
        config: RunConfig,
        store: RunStore,
        more: Callable[[], Mapping[str, Any]],
        workers: Callable[[], int],
    ) -> None:
        self._config, self._store, self._more, self._workers = config, store, more, workers
        self._is_stale = False  # the files lack something that the study has
        self._written_at, self._write_s = 0.0, 0.0

    def update(self) -> None:
        """Have the files written at once where that is quick, as it is up to some thousand trials, else when they are due."""
        self._is_stale = True
        self.write_if_due()

    def write_if_due(self) -> None:
        """Write the files if they lack something, unless that would take a large share of the time or they are not old yet."""
        if self._is_stale:
            is_quick = self._write_s <= _QUICK_S / max(1, self._workers())
            wait_s = 0.0 if is_quick else min(_STALE_S, _WRITE_SHARE * self._write_s)
            if time.monotonic() - self._written_at >= wait_s:
                self.write("running")

    def write(self, state: State, reason: str | None = None) -> None:
        """Update the files, all of them, so that they tell of the same moment; `front` of every row is set. `reason` is why a run failed."""
        start = time.monotonic()
        self._store.rank()
        rows, folder, throughput_id = self._store.rows(), self._store.folder, self._store.ranked_id
        write_trials(rows, folder)
        write_front(rows, folder, self._config.objectives, throughput_id)
        manifest = {
            **describe(self._config, rows, throughput_id),
            **self._more(),
            "taken_from": self._store.earlier_runs.documents(rows),
            "storage": self._store.where,
            "study": self._store.study_name,
            "state": state,
            "reason": reason,
        }
        write_manifest(manifest, folder)
        self._is_stale, self._written_at = False, time.monotonic()
        self._write_s = self._written_at - start
