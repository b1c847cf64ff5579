"""Which images of a source are taken: classes, a stratified subset, and validation held out of training, all by seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from archsearch.data.sources.base import Entries, Source
from archsearch.errors import UserError

MOST_HELD_OUT = 10_000  # a binomial standard error of half a point
DEFAULT_VAL_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What to take. Subsets are drawn class by class; of `per_class`, `share` and `max_train` the smallest counts.

    Validation is `val_share` of the training split, at most 10,000 images, where `val_split` names none. It is drawn before
    the subset, from the same images whatever the subset.
    """

    train_split: str = "train"
    val_split: str | None = None
    classes: int | None = None
    per_class: int | None = None
    share: float | None = None
    max_train: int | None = None
    max_val: int | None = None
    val_share: float = DEFAULT_VAL_SHARE
    seed: int = 0

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of the source that are read, validation first: it is smaller, so a bad folder is refused sooner."""
        return (self.train_split,) if self.val_split is None else (self.val_split, self.train_split)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Images for one output in its order: storage indices in a source's split, and labels int64 (N,) in the drawn classes."""

    split: str
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]  # for people: split/class/name


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """Both outputs, and the names of the classes drawn."""

    train: Drawn
    val: Drawn
    classes: tuple[str, ...]

    def outputs(self) -> dict[str, Drawn]:
        """By the names that prepared files begin with; validation first, as it is decoded."""
        return {"val": self.val, "train": self.train}


def draw(source: Source, policy: Policy) -> Draw:
    """Raises UserError where too little is left to train on or to validate with."""
    entries = source.entries(policy.train_split)
    chosen = _classes(source, entries, policy)
    by_class = _members(entries, chosen)
    if policy.val_split is None:
        held, rest = _hold_out(source, by_class, policy)
        val = _drawn(source, entries, policy.train_split, held, chosen)
    else:
        rest = by_class
        others = source.entries(policy.val_split)
        val_by_class = _members(others, chosen)
        counts = _at_most([len(each) for each in val_by_class], policy.max_val)
        val = _drawn(source, others, policy.val_split, _take(val_by_class, counts, chosen, policy.seed), chosen)
    kept = _take(rest, _train_counts([len(each) for each in rest], policy), chosen, policy.seed)
    train = _drawn(source, entries, policy.train_split, kept, chosen)
    for drawn, what in ((train, "train on"), (val, "validate with")):
        if not len(drawn.labels):
            raise UserError(f"{source.path}: no image is left to {what} in split {drawn.split!r}; take more images")
    return Draw(train=train, val=val, classes=tuple(source.classes[label] for label in chosen))


def allocate(counts: list[int], total: int) -> list[int]:
    """`total` shared out in proportion to `counts`, by largest remainder, first ones first on a tie; never above a count."""
    available = sum(counts)
    if total >= available:
        return list(counts)
    floors = [count * total // available for count in counts]
    remainders = sorted(range(len(counts)), key=lambda i: (-(counts[i] * total % available), i))
    for i in remainders[: total - sum(floors)]:
        floors[i] += 1
    return floors


def _classes(source: Source, entries: Entries, policy: Policy) -> list[int]:
    present: list[int] = np.unique(entries.labels).tolist()
    if len(present) < 2:
        raise UserError(f"{source.path}: {len(present)} classes with images; at least two are needed")
    if policy.classes is None:
        return present
    if policy.classes > len(present):
        raise UserError(f"{source.path}: {policy.classes} classes asked for, there are {len(present)}")
    picked = np.random.default_rng([policy.seed, len(present)]).permutation(len(present))[: policy.classes]
    return [present[i] for i in np.sort(picked)]


def _members(entries: Entries, chosen: list[int]) -> list[NDArray[np.int64]]:
    """Storage indices of each chosen class, in the shared order."""
    order = entries.in_order()
    labels = entries.labels[order]
    starts, stops = np.searchsorted(labels, chosen, "left"), np.searchsorted(labels, chosen, "right")
    return [order[start:stop] for start, stop in zip(starts, stops, strict=True)]


def _hold_out(
    source: Source, by_class: list[NDArray[np.int64]], policy: Policy
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Validation and rest; an own stream of random numbers, so that the subset drawn later changes nothing here."""
    counts = [len(each) for each in by_class]
    wanted = min(round(policy.val_share * sum(counts)), policy.max_val or MOST_HELD_OUT, MOST_HELD_OUT)
    taken = allocate(counts, max(wanted, 1))
    if any(count == number for count, number in zip(counts, taken, strict=True)):
        raise UserError(
            f"{source.path}: holding out {wanted} of {sum(counts)} images for validation leaves a class without any;"
            " give a smaller --val-share, or name a split by --val-split"
        )
    held, rest = [], []
    for number, (members, count) in enumerate(zip(by_class, taken, strict=True)):
        mixed = np.random.default_rng([policy.seed, 1, number]).permutation(len(members))
        held.append(members[np.sort(mixed[:count])])
        rest.append(members[np.sort(mixed[count:])])
    return held, rest


def _train_counts(counts: list[int], policy: Policy) -> list[int]:
    total = sum(counts)
    if policy.share is not None:
        counts = allocate(counts, max(1, round(policy.share * total)))
    if policy.per_class is not None:
        counts = [min(count, policy.per_class) for count in counts]
    return _at_most(counts, policy.max_train)


def _at_most(counts: list[int], most: int | None) -> list[int]:
    return counts if most is None else allocate(counts, most)


def _take(
    by_class: list[NDArray[np.int64]], counts: list[int], chosen: list[int], seed: int
) -> list[NDArray[np.int64]]:
    """The first so many of each class in an order by seed: smaller draws lie within larger ones."""
    taken = []
    for members, count, label in zip(by_class, counts, chosen, strict=True):
        mixed = np.random.default_rng([seed, 2, label]).permutation(len(members))
        taken.append(members[np.sort(mixed[:count])])
    return taken


def _drawn(source: Source, entries: Entries, split: str, by_class: list[NDArray[np.int64]], chosen: list[int]) -> Drawn:
    indices = np.concatenate(by_class)
    names = tuple(f"{split}/{source.classes[entries.labels[i]]}/{entries.keys[i]}" for i in indices)
    labels = np.repeat(np.arange(len(chosen), dtype=np.int64), [len(each) for each in by_class])
    return Drawn(split=split, indices=indices, labels=labels, names=names)
