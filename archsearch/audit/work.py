"""What an audit has to train: which architectures, for how long, with which seeds; in an order in which the first half already tells something."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archsearch.audit.records import Key, Record
from archsearch.config import rung_steps
from archsearch.space.arch import Arch

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
