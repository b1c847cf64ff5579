"""What a run has taken from earlier runs, as its study stores it: their trials, whose figures are used again where they were measured alike."""

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from archsearch.results import Row
from archsearch.search.config import RunConfig
from archsearch.search.rungs import TIMING_PHASE, Rung
from archsearch.space import Arch

COUNT_PHASE = "count"
# Key of a study's attribute, with a number behind it: an earlier run as `Donor.to_dict` gives it.
DONOR = "archsearch:donor:"
_TRAIN_MEMORY = "train_memory_bytes"
_NO_TIME = ("seconds", "seconds_count", "seconds_throughput", "seconds_proxy")


@dataclass(frozen=True, kw_only=True)
class DonorTrial:
    """A trial of an earlier run: its architecture, the identity of its throughput, and what each of its phases measured."""

    number: int
    arch: Arch
    throughput_id: str | None
    phases: Mapping[str, Mapping[str, Any]]

    @cached_property
    def by_proxy(self) -> dict[str, Mapping[str, Any]]:
        """What trainings measured, those of rungs too, by proxy_id."""
        return {
            str(values["proxy_id"]): values
            for values in self.phases.values()
            if values.get("proxy_id") and values.get("proxy_score") is not None
        }


@dataclass(frozen=True, kw_only=True)
class Donor:
    """An earlier run with its trials that ended with figures. `is_same_code`: its architectures are built by the same files of blocks."""

    run: str
    folder: str
    begun_at: str
    taken_at: str
    proxy_id: str | None
    training_seed: int | None
    is_same_code: bool
    trials: tuple[DonorTrial, ...]

    @cached_property
    def by_arch(self) -> dict[str, list[DonorTrial]]:
        """Trials by arch_id."""
        found: dict[str, list[DonorTrial]] = {}
        for trial in self.trials:
            found.setdefault(trial.arch.arch_id, []).append(trial)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        trials = [
            {
                "trial": trial.number,
                "arch": trial.arch.to_dict(),
                "throughput_id": trial.throughput_id,
                "phases": {phase: dict(values) for phase, values in trial.phases.items()},
            }
            for trial in self.trials
        ]
        names = ("run", "folder", "begun_at", "taken_at", "proxy_id", "training_seed", "is_same_code")
        return {**{name: getattr(self, name) for name in names}, "trials": trials}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Donor":
        """What `to_dict` gave."""
        trials = tuple(
            DonorTrial(
                number=trial["trial"],
                arch=Arch.from_dict(trial["arch"], f"{document['run']}:{trial['trial']}"),
                throughput_id=trial["throughput_id"],
                phases=trial["phases"],
            )
            for trial in document["trials"]
        )
        return Donor(**{**document, "trials": trials})

    def is_same_run(self, other: "Donor") -> bool:
        """Whether both were taken from one run, wherever its folder was."""
        return (self.run, self.begun_at) == (other.run, other.begun_at)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a phase measured in an earlier run; `origin` is `RUN:TRIAL`."""

    origin: str
    values: dict[str, Any]


def take_over(donors: Sequence[Donor], arch_id: str, config: RunConfig, throughput_id: str | None) -> dict[str, Taken]:
    """The phases of an architecture that earlier runs measured under this identity and with the trainings of `config`; they take no time here."""
    found: dict[str, Taken] = {}
    for donor in donors:
        trainings = config.trainings if donor.training_seed == training_seed(config) else ()
        for trial in donor.by_arch.get(arch_id, ()) if donor.is_same_code else ():
            for phase, values in _comparable(trial, throughput_id, trainings, limits=config.limits):
                free = {name: 0.0 for name in _NO_TIME if name in values}
                taken = Taken(origin=f"{donor.run}:{trial.number}", values={**values, **free, "seconds": 0.0})
                found.setdefault(phase, taken)
    return found


def training_seed(config: RunConfig) -> int | None:
    """The seed of a run's trainings, which their proxy_id leaves out."""
    recipe = (config.settings.get("proxy") or {}).get("recipe") or {}
    return None if recipe.get("seed") is None else int(recipe["seed"])


def _comparable(
    trial: DonorTrial, throughput_id: str | None, trainings: Sequence[Rung], *, limits: Container[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The phases of a trial that would give the same figures here."""
    # What training takes of a GPU's memory depends on the run's dtype and batch: it is counted anew where a limit asks for it.
    if COUNT_PHASE in trial.phases and _TRAIN_MEMORY not in limits:
        yield COUNT_PHASE, {name: value for name, value in trial.phases[COUNT_PHASE].items() if name != _TRAIN_MEMORY}
    if throughput_id is not None and trial.throughput_id == throughput_id:
        yield TIMING_PHASE, trial.phases[TIMING_PHASE]
    for rung in trainings:
        if rung.proxy_id in trial.by_proxy:
            yield rung.phase, trial.by_proxy[rung.proxy_id]


def reference_rates(donors: Sequence[Donor]) -> dict[str, float]:
    """The reference's images/s by which earlier runs multiplied the ratios of an identity, by throughput_id; of several the first run's."""
    rates: dict[str, float] = {}
    for donor in donors:
        for trial in donor.trials:
            timing = trial.phases.get(TIMING_PHASE, {})
            if trial.throughput_id is not None and timing.get("throughput_ratio"):
                rates.setdefault(trial.throughput_id, timing["throughput_img_s"] / timing["throughput_ratio"])
    return rates


def taken_phases(row: Row) -> dict[str, str]:
    """The phases of a trial that were taken from earlier runs, with `RUN:TRIAL` of each: the column `taken_from`."""
    phases: dict[str, str] = json.loads(row.get("taken_from") or "{}")
    return phases
