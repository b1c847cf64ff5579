"""What an audit has to train: which architectures, for how long, with which seeds; in an order in which the first half already tells something."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from archsearch.proxy.audit.store import Key, Record
from archsearch.proxy.training.recipe import rung_steps
from archsearch.space.arch import Arch
from archsearch.space.budget import Band, InBand
from archsearch.space.papers import paper, paper_space
from archsearch.space.space import load_space

Group = Literal["papers", "hybrids"]

# Where a training pauses to be scored, in parts of its end.
POINTS = (1, 2, 4, 8)
# Of the longer trainings: no seed that the proxy itself is trained with, as shared first weights and order would flatter it.
LONGER_SEED = 1000


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An architecture that the audit judges the proxy by; `top1` is what its paper publishes, in percent of ImageNet's validation images."""

    arch: Arch
    group: Group
    name: str | None = None
    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training to be done: the recipe's `steps` and `seed` are what the audit decides."""

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
        """Whom it trains."""
        return self.subject.name or self.subject.arch.describe()

    @property
    def points(self) -> list[int]:
        """Steps at which the training is scored."""
        return [*rung_steps(self.steps, POINTS), self.steps]

    def record(
        self, curve: Mapping[str, list[float]], *, seconds: float, conditions: Mapping[str, Any], reason: str | None
    ) -> Record:
        """What is kept of it."""
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
    """Everything an audit trains. `proxy` are the settings' own: source, profile and recipe; `longer_id` is None without longer trainings."""

    proxy_id: str
    longer_id: str | None
    proxy: Mapping[str, Any]
    device: str
    subjects: Sequence[Subject]
    num_seeds: int
    longer: int
    threads: int | None = None
    cpus: Sequence[int] | None = None
    run: str | None = None
    measured: Sequence[Record] = ()  # what a run has trained already

    @property
    def steps(self) -> int:
        """Of the proxy's whole training."""
        return int(self.proxy["recipe"]["steps"])

    @property
    def seeds(self) -> range:
        """The recipes' seeds, a run's own first."""
        first = int(self.proxy["recipe"]["seed"])
        return range(first, first + self.num_seeds)

    def tasks(self) -> Iterator[Task]:
        """The proxy with a run's seed, then longer, then with the other seeds."""
        hybrids = [subject for subject in self.subjects if subject.group == "hybrids"]
        first, *others = self.seeds
        yield from self._of_seed(first)
        if self.longer_id is not None:
            for subject in hybrids:
                yield Task(subject=subject, proxy_id=self.longer_id, steps=self.longer * self.steps, seed=LONGER_SEED)
        for seed in others:
            yield from self._of_seed(seed)

    def _of_seed(self, seed: int) -> Iterator[Task]:
        for subject in self.subjects:
            yield Task(subject=subject, proxy_id=self.proxy_id, steps=self.steps, seed=seed)


_SPACE, _TOLERANCE = "hybrid", 0.05


_DRAWN, _SEED = 200, 0


def paper_subjects(names: Sequence[str]) -> list[Subject]:
    """The papers' models; those without a published top-1 are left out."""
    found = [(name, paper_space(name).paper.get("top1")) for name in names]
    return [
        Subject(arch=paper(name), group="papers", name=name, top1=float(top1))
        for name, top1 in found
        if top1 is not None
    ]


def hybrid_subjects(number: int, budget_macs: int) -> list[Subject]:
    """So many of the default space within 5 % of the budget: many are drawn, and those taken that lie far apart.

    Each is described by the kinds of block of its first and last stage and by the rank of its parameters; the next one
    taken is always the one farthest from all taken (Gonzalez 1985), the first that with the median parameters.
    """
    if not number:
        return []
    inside = InBand(load_space(_SPACE), Band.around(budget_macs, _TOLERANCE))
    drawn = {arch.arch_id: arch for _, arch in inside.draw_many(_DRAWN, random.Random(_SEED))}
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
    """From one to all: parameters' ranks count as much as first and last stage together, those in between half as much as the ends."""
    others = blocks != blocks[index]
    weights = np.array([0.5, *[0.25] * (blocks.shape[1] - 2), 0.5])
    return np.asarray(np.abs(ranks - ranks[index]) + others @ weights, dtype=np.float64)
