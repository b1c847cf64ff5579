"""The trainings of an audit: which architectures, for how long, with which seeds, the most informative first."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from archsearch.proxy.audit.store import Key, Record
from archsearch.proxy.task import ProxyTask
from archsearch.proxy.training.recipe import rung_steps
from archsearch.space import Arch, Band, InBand, load_space, paper, paper_space

Group = Literal["papers", "hybrids"]

# Where a training pauses to be scored, in parts of its end.
POINTS = (1, 2, 4, 8)
# Of the longer trainings: a seed that the proxy is not trained with, since shared initial weights and order would flatter it.
LONGER_SEED = 1000
# Hybrids are chosen among so many drawn from this space, inside this tolerance of the budget.
_SPACE, _TOLERANCE, _NUM_DRAWN, _SEED = "hybrid", 0.05, 200, 0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An architecture that the audit trains; `top1` is what its paper publishes, in percent of ImageNet's validation images."""

    arch: Arch
    group: Group
    name: str | None = None
    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class AuditTraining:
    """A training to be done; it replaces the recipe's `steps` and `seed`."""

    subject: Subject
    proxy_id: str
    steps: int
    seed: int

    @property
    def key(self) -> Key:
        """As `Record.key`."""
        return self.proxy_id, self.subject.arch.arch_id, self.seed

    @property
    def name(self) -> str:
        """The architecture's, for people."""
        return self.subject.name or self.subject.arch.describe()

    @property
    def points(self) -> list[int]:
        """Steps at which the training is scored."""
        return [*rung_steps(self.steps, POINTS), self.steps]

    def record(
        self, curve: Mapping[str, list[float]], *, seconds: float, conditions: Mapping[str, Any], reason: str | None
    ) -> Record:
        """The record of its result."""
        arch = self.subject.arch
        cost = arch.cost()
        return Record(
            proxy_id=self.proxy_id,
            arch_id=arch.arch_id,
            name=self.subject.name,
            arch=arch.to_dict(),
            seed=self.seed,
            steps=self.steps,
            curve=curve,
            seconds=seconds,
            macs=cost.macs,
            params=cost.params,
            conditions=conditions,
            reason=reason,
        )


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """Everything an audit trains.

    `longer` is how many times as many steps the longer trainings of hybrids have, `longer_id` their proxy_id; None without such trainings.
    """

    proxy: ProxyTask
    device: str
    subjects: Sequence[Subject]
    num_seeds: int
    longer: int
    longer_id: str | None = None
    threads: int | None = None
    cpus: Sequence[int] | None = None
    run: str | None = None
    measured: Sequence[Record] = ()  # what a run has trained already

    @property
    def steps(self) -> int:
        """Of the proxy's whole training."""
        return self.proxy.recipe.steps

    @property
    def seeds(self) -> range:
        """The recipes' seeds, a run's own first."""
        first = self.proxy.recipe.seed
        return range(first, first + self.num_seeds)

    def trainings(self) -> Iterator[AuditTraining]:
        """The proxy with a run's seed, then longer, then with the other seeds: half of them already allow conclusions."""
        for seed in self.seeds:
            for subject in self.subjects:
                yield AuditTraining(subject=subject, proxy_id=self.proxy.proxy_id, steps=self.steps, seed=seed)
            if seed == self.seeds[0] and self.longer_id is not None:
                steps = self.longer * self.steps
                for subject in self.subjects:
                    if subject.group == "hybrids":
                        yield AuditTraining(subject=subject, proxy_id=self.longer_id, steps=steps, seed=LONGER_SEED)


def paper_subjects(names: Sequence[str]) -> list[Subject]:
    """The papers' models; those without a published top-1 are left out."""
    published = {name: paper_space(name).paper.get("top1") for name in names}
    return [
        Subject(arch=paper(name), group="papers", name=name, top1=float(top1))
        for name, top1 in published.items()
        if top1 is not None
    ]


def hybrid_subjects(number: int, budget_macs: int) -> list[Subject]:
    """So many hybrids of the default space within 5 % of the budget: many are drawn, and some that lie far apart are taken.

    Each is described by the kinds of block of its first and last stage and by the rank of its parameters; the next one
    taken is always the one farthest from all taken (Gonzalez 1985), the first that with the median parameters.
    """
    if not number:
        return []
    inside = InBand(load_space(_SPACE), Band.around(budget_macs, _TOLERANCE))
    drawn = {arch.arch_id: arch for _, arch in inside.draw_many(_NUM_DRAWN, random.Random(_SEED))}
    arches = list(drawn.values())
    return [Subject(arch=arches[index], group="hybrids") for index in _spread(arches, number)]


def _spread(arches: list[Arch], number: int) -> list[int]:
    params = np.array([arch.cost().params for arch in arches], dtype=np.float64)
    ranks = params.argsort(kind="stable").argsort(kind="stable") / max(1, len(arches) - 1)
    blocks = np.array([[stage.block for stage in arch.stages] for arch in arches])
    taken = [int(np.abs(ranks - 0.5).argmin())]
    nearest = _distances(taken[0], ranks, blocks)
    while len(taken) < min(number, len(arches)):
        taken.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(taken[-1], ranks, blocks))
    return taken


def _distances(index: int, ranks: NDArray[np.float64], blocks: NDArray[np.str_]) -> NDArray[np.float64]:
    """From one architecture to all: the ranks of the parameters count as much as the first and last stage together, a middle stage half as much as an end."""
    others = blocks != blocks[index]
    weights = np.array([0.5, *[0.25] * (blocks.shape[1] - 2), 0.5])
    return np.asarray(np.abs(ranks - ranks[index]) + others @ weights, dtype=np.float64)
