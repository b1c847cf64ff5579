"""The identity that a run ranks now, and the throughput figures that it stores and ranks.

A run ranks the ratio to the reference model, which repeats where images/s as timed do not: `throughput_img_s` is the ratio times one rate
of the reference, which is fixed for an identity when its first trial is timed, so that a figure that a sampler has learned from never changes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from archsearch.identity import RAW_FIGURE, Identity, identity_digest, ratio_figure, throughput_identity
from archsearch.results import Row
from archsearch.search.config import RunConfig
from archsearch.search.rungs import AGAIN_PHASE
from archsearch.search.study.rows import StoredTrial, timing_identity
from archsearch.space import REFERENCE

# Key of a study's attribute, with a throughput_id behind it: the reference's images/s with which the ratios of that identity are multiplied.
RATE = "archsearch:reference:"


class Timings:
    """The identity and the rates of a run; `store` keeps an attribute of its study."""

    def __init__(self, config: RunConfig, attrs: Mapping[str, Any], store: Callable[[str, float], None]) -> None:
        self._config, self._store = config, store
        self._rates = {key.removeprefix(RATE): float(attrs[key]) for key in attrs if key.startswith(RATE)}
        self._wants_ratios = False
        self._usual_rate: float | None = None
        self._identity: Identity | None = None
        self._throughput_id: str | None = None

    @property
    def identity(self) -> Identity | None:
        """That of what is timed now; None before the first timing, if `measure_here` was not called."""
        return self._identity

    @property
    def throughput_id(self) -> str | None:
        """The digest of `identity`."""
        return self._throughput_id

    def _become(self, identity: Identity) -> None:
        if identity != self._identity:
            self._identity, self._throughput_id = identity, identity_digest(identity)

    @property
    def rate(self) -> float | None:
        """The reference's images/s with which ratios are multiplied now; None before the first timing, and where images/s as timed are ranked."""
        return self._rates.get(self.throughput_id or "")

    def measure_here(
        self,
        conditions: Mapping[str, Any],
        rows: Iterable[Row],
        *,
        wants_ratios: bool,
        usual_rate: float | None,
        taken_rates: Mapping[str, float] | None = None,
    ) -> None:
        """Time under these conditions from now on; `wants_ratios` ends the ranking by images/s as timed of an earlier version's run.

        `usual_rate` is the reference's images/s that a calibration for these conditions found; it becomes the rate where none is stored yet.
        `taken_rates` are those of earlier runs by throughput_id, which come before it: figures taken from them stay what they are.
        """
        self._wants_ratios, self._usual_rate = wants_ratios, usual_rate
        identity = throughput_identity(self._config.settings, conditions, ratio_figure(REFERENCE))
        self._become(self._ranked(identity, rows))
        taken_rate = (taken_rates or {}).get(self._throughput_id or "")
        if taken_rate is not None and self._throughput_id is not None:
            self._usual_rate = taken_rate
            self._rate(self._throughput_id, taken_rate, rows)

    def ranked_figures(
        self, trial: StoredTrial, phase: str, values: Mapping[str, Any], rows: Iterable[Row]
    ) -> dict[str, Any]:
        """What is stored of a timing: the ranked figure by the ratio, and beside it the one as timed; its identity becomes the present one."""
        prefix = "throughput_again" if phase == AGAIN_PHASE else "throughput"
        raw, ratio = values.get(f"{prefix}_img_s"), values.get(f"{prefix}_ratio")
        if raw is None:
            return dict(values)
        stored = {**values, f"{prefix}_raw_img_s": raw}
        identity = timing_identity(self._config, trial, stored)
        # One that could not be compiled is timed eager, and the others are not for that.
        asked = {**identity, "mode": self._config.settings["mode"]}
        self._become(self._ranked(asked, rows) if ratio is not None else {**asked, "figure": RAW_FIGURE})
        if ratio is None or self.identity != asked:
            return dict(values)
        images_s = ratio * self._rate(identity_digest(identity), raw / ratio, rows)
        stored[f"{prefix}_img_s"] = images_s
        if "latency_ms" in stored:
            stored["latency_ms"] = 1000 * self._config.settings["batch_size"] / images_s
        return stored

    def _ranked(self, identity: Identity, rows: Iterable[Row]) -> Identity:
        """The same identity, or that of images/s as timed where the run has such rows, of an earlier version, and no ratios yet."""
        as_timed = {**identity, "figure": RAW_FIGURE}
        if self._wants_ratios or identity_digest(identity) in self._rates:
            return identity
        digest = identity_digest(as_timed)
        return as_timed if any(row["throughput_id"] == digest for row in rows) else identity

    def _rate(self, digest: str, first: float, rows: Iterable[Row]) -> float:
        """The rate of an identity, fixed now if it was not: that of rows restored from the run's files, the calibration's, or the first trial's."""
        if digest not in self._rates:
            restored = (row for row in rows if row["throughput_id"] == digest and row["throughput_ratio"])
            rates = (row["throughput_img_s"] / row["throughput_ratio"] for row in restored)
            rate = next(rates, self._usual_rate or first)
            self._store(f"{RATE}{digest}", rate)
            self._rates[digest] = rate
        return self._rates[digest]
