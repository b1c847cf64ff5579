"""Which architectures an audit judges a proxy by: the papers' models with published figures, and hybrids spread over the space."""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from archsearch.audit.work import Subject
from archsearch.space.arch import Arch
from archsearch.space.budget import Band, InBand
from archsearch.space.papers import paper, paper_space
from archsearch.space.space import load_space

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
