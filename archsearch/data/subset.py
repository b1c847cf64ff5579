"""The images that are taken of a source: classes, a stratified subset, and validation held out of training, all by seed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from archsearch.data.image_folder import quote_names
from archsearch.data.sources.base import Entries, Source
from archsearch.errors import UserError

MOST_HELD_OUT = 10_000  # a binomial standard error of half a point
DEFAULT_VAL_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What to take. Subsets are drawn class by class; of `per_class`, `share` and `max_train` the smallest counts.

    Validation is `val_share` of the training split, at most 10,000 images, where `val_split` names none. It is drawn before
    the training subset and does not depend on it.
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
        """Splits of the source that are read, validation first: it is smaller, so a bad folder is refused sooner."""
        return (self.train_split,) if self.val_split is None else (self.val_split, self.train_split)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """Images of one split in their final order: storage indices int64 (N,) and labels int64 (N,) into the selected classes."""

    split: str
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]  # for people: split/class/name


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The training and the validation subset, and the names of the selected classes."""

    train: Subset
    val: Subset
    classes: tuple[str, ...]
    unlabelled: Mapping[str, int]  # number of unlabelled images of each split that was read
    left_out: tuple[str, ...]  # in words: files of these splits that were not taken for images

    def outputs(self) -> dict[str, Subset]:
        """Subsets by the names that prepared files begin with; validation first, as it is decoded."""
        return {"val": self.val, "train": self.train}


def select(source: Source, policy: Policy) -> Selection:
    """The images that `policy` takes of `source`. Raises UserError where too few are left to train on or to validate with."""
    listed = {split: source.entries(split) for split in policy.splits}
    entries = listed[policy.train_split]
    labels = _select_classes(source, entries, policy)
    by_class = _group_by_class(entries, labels)
    if policy.val_split is None:
        val_by_class, by_class = _hold_out(source, by_class, policy)
        val = _make_subset(source, entries, policy.train_split, val_by_class)
    else:
        val_entries = listed[policy.val_split]
        val_by_class = _group_by_class(val_entries, labels)
        _check_every_class(source, val_entries, labels, val_by_class, policy)
        counts = allocate([len(members) for members in val_by_class], policy.max_val)
        val_by_class = _take(val_by_class, counts, labels, policy.seed)
        val = _make_subset(source, val_entries, policy.val_split, val_by_class)
    counts = [len(members) for members in by_class]
    if policy.share is not None:
        counts = allocate(counts, max(1, round(policy.share * sum(counts))))
    if policy.per_class is not None:
        counts = [min(count, policy.per_class) for count in counts]
    by_class = _take(by_class, allocate(counts, policy.max_train), labels, policy.seed)
    train = _make_subset(source, entries, policy.train_split, by_class)
    for subset, purpose in ((train, "train on"), (val, "validate with")):
        if not len(subset.labels):
            raise UserError(f"{source.path}: no image is left to {purpose} in split {subset.split!r}; take more images")
    return Selection(
        train=train,
        val=val,
        classes=tuple(source.classes[label] for label in labels),
        unlabelled={split: each.unlabelled for split, each in listed.items()},
        left_out=tuple(f"{split}: {text}" for split, each in listed.items() for text in each.left_out),
    )


def allocate(counts: list[int], total: int | None) -> list[int]:
    """`total` (all without one) shared out in proportion to `counts`, by largest remainder, first ones first on a tie; never above a count."""
    available = sum(counts)
    if total is None or total >= available:
        return list(counts)
    floors = [count * total // available for count in counts]
    remainders = sorted(range(len(counts)), key=lambda i: (-(counts[i] * total % available), i))
    for i in remainders[: total - sum(floors)]:
        floors[i] += 1
    return floors


def _select_classes(source: Source, entries: Entries, policy: Policy) -> list[int]:
    """Labels of the selected classes, ascending."""
    present: list[int] = np.unique(entries.labels[entries.labels >= 0]).tolist()
    if len(present) < 2:
        unlabelled = f" beside {entries.unlabelled:,} unlabelled ones" if entries.unlabelled else ""
        left_out = f"; left out: {', '.join(entries.left_out)}" if entries.left_out else ""
        raise UserError(
            f"{source.path}: {len(present)} classes with images{unlabelled}; at least two are needed{left_out}"
        )
    if policy.classes is None:
        return present
    if policy.classes > len(present):
        raise UserError(f"{source.path}: {policy.classes} classes asked for, there are {len(present)}")
    picked = np.random.default_rng([policy.seed, len(present)]).permutation(len(present))[: policy.classes]
    return [present[i] for i in np.sort(picked)]


def _check_every_class(
    source: Source, entries: Entries, labels: list[int], by_class: list[NDArray[np.int64]], policy: Policy
) -> None:
    """Raise UserError where the validation split has no image of a selected class: its score would be of another task."""
    missing = [source.classes[label] for label, members in zip(labels, by_class, strict=True) if not len(members)]
    if missing:
        unlabelled = f" ({entries.unlabelled:,} are unlabelled)" if entries.unlabelled else ""
        raise UserError(
            f"{source.path}: validation split {policy.val_split!r} has no images{unlabelled} of {quote_names(missing)};"
            f" needed are images of each class of {policy.train_split!r}"
        )


def _group_by_class(entries: Entries, labels: list[int]) -> list[NDArray[np.int64]]:
    """Storage indices of the images of each class, in the order that all forms of a data set share."""
    order = entries.sorted_indices()
    in_order = entries.labels[order]
    starts, stops = np.searchsorted(in_order, labels, "left"), np.searchsorted(in_order, labels, "right")
    return [order[start:stop] for start, stop in zip(starts, stops, strict=True)]


def _hold_out(
    source: Source, by_class: list[NDArray[np.int64]], policy: Policy
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Validation and the rest; random numbers of its own, so that the training subset drawn later changes nothing here."""
    counts = [len(members) for members in by_class]
    wanted = min(round(policy.val_share * sum(counts)), policy.max_val or MOST_HELD_OUT, MOST_HELD_OUT)
    taken = allocate(counts, max(wanted, 1))
    if any(count == number for count, number in zip(counts, taken, strict=True)):
        raise UserError(
            f"{source.path}: holding out {wanted} of {sum(counts)} images for validation leaves a class without any;"
            " give a smaller --val-share, or name a split by --val-split"
        )
    held_out, rest = [], []
    for number, (members, count) in enumerate(zip(by_class, taken, strict=True)):
        mixed = np.random.default_rng([policy.seed, 1, number]).permutation(len(members))
        held_out.append(members[np.sort(mixed[:count])])
        rest.append(members[np.sort(mixed[count:])])
    return held_out, rest


def _take(
    by_class: list[NDArray[np.int64]], counts: list[int], labels: list[int], seed: int
) -> list[NDArray[np.int64]]:
    """The first `counts` of each class in an order by seed: smaller subsets lie within larger ones."""
    taken = []
    for members, count, label in zip(by_class, counts, labels, strict=True):
        mixed = np.random.default_rng([seed, 2, label]).permutation(len(members))
        taken.append(members[np.sort(mixed[:count])])
    return taken


def _make_subset(source: Source, entries: Entries, split: str, by_class: list[NDArray[np.int64]]) -> Subset:
    indices = np.concatenate(by_class)
    names = tuple(f"{split}/{source.classes[entries.labels[i]]}/{entries.keys[i]}" for i in indices)
    labels = np.repeat(np.arange(len(by_class), dtype=np.int64), [len(members) for members in by_class])
    return Subset(split=split, indices=indices, labels=labels, names=names)
