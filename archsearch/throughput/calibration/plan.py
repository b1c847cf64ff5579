"""The plan of a calibration: which sites, hybrids of the band and papers' models to measure; the same for the same request."""

import hashlib
import json
import random
import tomllib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from archsearch.errors import UserError
from archsearch.space import Arch, Band, Bounds, Space, draw, paper
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.calibration.sites import Site, choose_sites, space_sites, unique_sites
from archsearch.units import format_image
from archsearch.version import __version__

Group = Literal["train", "held_out", "paper"]
MIN_HYBRIDS, MIN_HELD_OUT = 4, 3
DEFAULT_SLOPES = {
    "eager": 800,
    "compile": 150,
    "reduce-overhead": 150,
}  # compiling a chain of layers takes about ten seconds
_MOST_REPEATS = 200  # successive draws of known architectures, after which a small space counts as exhausted


@dataclass(frozen=True, kw_only=True)
class NetworkTask:
    """A whole network to time."""

    group: Group
    name: str
    arch: Arch


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """A checked request; two plans with the same `identity` measure the same. UserError for too few hybrids and other images than the key's."""

    key: CalibrationKey
    space: Space
    budget_macs: int
    tolerance: float
    seed: int
    hybrids: int
    held_out: int
    slopes: int
    papers: tuple[str, ...]
    reference: Arch

    def __post_init__(self) -> None:
        for name, least in (("hybrids", MIN_HYBRIDS), ("held_out", MIN_HELD_OUT)):
            if getattr(self, name) < least:
                raise UserError(f"calibrate {name}: got {getattr(self, name)}, allowed is {least} or more")
        own, wanted = ((each.image_size, each.in_chans) for each in (self.space.plan, self.key))
        if own != wanted:
            raise UserError(
                f"{self.space.source}: a space for {format_image(*own)} cannot be calibrated at {format_image(*wanted)}"
            )

    @property
    def band(self) -> Band:
        """The band of MACs from which hybrids are drawn."""
        return Band.around(self.budget_macs, self.tolerance)

    @property
    def identity(self) -> dict[str, Any]:
        """Values for JSON that must be equal for an interrupted calibration to be continued."""
        document = json.dumps(tomllib.loads(self.space.text), sort_keys=True, default=str)
        return {
            "key": self.key.to_dict(),
            "space": self.space.name,
            "space_id": hashlib.sha256(document.encode()).hexdigest()[:12],
            "budget_macs": self.budget_macs,
            "tolerance": self.tolerance,
            "seed": self.seed,
            "hybrids": self.hybrids,
            "held_out": self.held_out,
            "slopes": self.slopes,
            "papers": list(self.papers),
            "reference": self.reference.arch_id,
            "archsearch_version": __version__,
        }

    @cached_property
    def networks(self) -> list[NetworkTask]:
        """Hybrids to fit on, held-out hybrids, and the papers' models; shuffled, so that a change of the machine's speed affects all groups."""
        archs = self._hybrids()
        num_train = len(archs) - self.held_out
        drawn = [
            NetworkTask(group="train" if number < num_train else "held_out", name=arch.describe(), arch=arch)
            for number, arch in enumerate(archs)
        ]
        known = {task.arch.arch_id for task in drawn}  # a space may hold a paper's model
        papers = [NetworkTask(group="paper", name=name, arch=paper(name)) for name in self.papers]
        tasks = [*drawn, *(task for task in papers if task.arch.arch_id not in known)]
        random.Random(self.seed).shuffle(tasks)
        return tasks

    def _hybrids(self) -> list[Arch]:
        """Distinct architectures drawn from the band; UserError when the space has too few."""
        rng, wanted, repeats = random.Random(self.seed), self.hybrids + self.held_out, 0
        found: dict[str, Arch] = {}
        while len(found) < wanted and repeats < _MOST_REPEATS:
            _, arch = draw(self.space, Bounds(macs=self.band), rng)
            repeats = repeats + 1 if arch.arch_id in found else 0
            found[arch.arch_id] = arch
        if len(found) < MIN_HYBRIDS + self.held_out:
            raise UserError(
                f"{self.space.source}: {len(found)} different architectures were found in the band, and {MIN_HYBRIDS} to fit on "
                f"and {self.held_out} held out are needed; widen --tolerance or lower --held-out"
            )
        return list(found.values())

    @cached_property
    def space_sites(self) -> list[Site]:
        """Sites of random architectures of the space, the more frequent first."""
        counts = space_sites(self.space, random.Random(self.seed))
        return sorted(counts, key=lambda site: (-counts[site], repr(site)))

    @cached_property
    def sites(self) -> list[Site]:
        """Sites to time: about `slopes` of the space, at least one of every kind at every shape, and those of the papers' models.

        They include every kind of layer in the networks. Shuffled, so that a slow minute of the machine affects all kinds.
        """
        chosen = choose_sites(self.space_sites, self.slopes)
        sites = list(dict.fromkeys([*chosen, *unique_sites(paper(name) for name in self.papers)]))
        kinds = {site.kind for site in sites}
        for site in unique_sites(task.arch for task in self.networks):
            if site.kind not in kinds:
                kinds.add(site.kind)
                sites.append(site)
        random.Random(self.seed).shuffle(sites)
        return sites
