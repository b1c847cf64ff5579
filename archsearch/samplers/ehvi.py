"""Expected hypervolume improvement, exact for any number of independent normal objectives; every objective is minimised here.

The region that a front does not dominate is cut into disjoint boxes (Lacour, Klamroth and Fonseca, 2017: the search zones of its local upper
bounds). In a box the expected improvement is a product over the objectives of one-dimensional integrals, so it takes one table of
E[(edge - y)+] for each objective, and sums of products of their columns. The tests hold it against moocore's hypervolume and against Monte Carlo; botorch has
the same formula, but brings gpytorch along and works with its own models only.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from archsearch.metrics import Array

Indices = NDArray[np.int64]
_CELLS = 2_000_000  # numbers in one array of candidates by boxes: 16 MB


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Disjoint boxes that make up what a front leaves undominated below the reference.

    `edges` holds, for each objective, -inf, the front's sorted values and the reference; `lower` and `upper` (B, M) are places in it.
    """

    edges: tuple[Array, ...]
    lower: Indices
    upper: Indices


def undominated_boxes(front: Array, reference: Array) -> Boxes:
    """The boxes of a front (N, M), in any order; points at or beyond `reference` (M,) in an objective are left out."""
    inside = np.unique(front[np.all(front < reference, axis=1)], axis=0)
    number, width = len(inside), len(reference)
    edges = tuple(
        np.concatenate(([-np.inf], np.sort(column), [limit])) for column, limit in zip(inside.T, reference, strict=True)
    )
    # Places instead of values: equal values get different places, so the points are in general position, and the boxes between them are empty.
    places = np.argsort(np.argsort(inside, axis=0, kind="stable"), axis=0, kind="stable") + 1
    bounds = np.full((1, width), number + 1)
    # makers[u, k] is the point that set coordinate k of bound u.
    makers = np.zeros((1, width, width), dtype=np.int64)
    makers[0, np.arange(width), np.arange(width)] = number + 1
    for point in places:
        bounds, makers = _split(bounds, makers, point)
    lower = np.zeros_like(bounds)
    for column in range(1, width):
        lower[:, column] = makers[:, :column, column].max(axis=1)
    full = np.all(lower < bounds, axis=1)
    return Boxes(edges=edges, lower=lower[full], upper=bounds[full])


def _split(bounds: Indices, makers: Indices, point: Indices) -> tuple[Indices, Indices]:
    """The local upper bounds once `point` has been added."""
    hit = np.all(point < bounds, axis=1)
    if not hit.any():
        return bounds, makers
    new_bounds, new_makers = [bounds[~hit]], [makers[~hit]]
    old_bounds, old_makers = bounds[hit], makers[hit]
    for column in range(len(point)):
        others = np.delete(old_makers[:, :, column], column, axis=1)
        stays = np.all(point[column] > others, axis=1)
        lowered, made = old_bounds[stays].copy(), old_makers[stays].copy()
        lowered[:, column], made[:, column] = point[column], point
        new_bounds.append(lowered)
        new_makers.append(made)
    return np.concatenate(new_bounds), np.concatenate(new_makers)


def expected_improvement(boxes: Boxes, means: Array, deviations: Array) -> Array:
    """Expected hypervolume improvement (C,) of candidates with independent normal objectives (C, M); a deviation of 0 is a known value."""
    step = max(1, _CELLS // max(1, len(boxes.lower)))
    parts = []
    for start in range(0, len(means), step):
        lengths = []  # (S, B) of each objective
        for column, edges in enumerate(boxes.edges):
            some = (slice(start, start + step), column)
            table = expected_excess(edges, means[some], deviations[some])  # (S, E)
            lengths.append(table[:, boxes.upper[:, column]] - table[:, boxes.lower[:, column]])
        parts.append(np.maximum(reduce(np.multiply, lengths), 0.0).sum(axis=1))
    return np.concatenate(parts) if parts else np.zeros(0)


def expected_excess(edges: Array, means: Array, deviations: Array) -> Array:
    """E[(edge - y)+] (C, E) of y normal with these means and deviations (C,); 0 at an edge of -inf."""
    gap = np.where(np.isneginf(edges), 0.0, edges)[None, :] - means[:, None]
    if not deviations.any():  # all known: half of the time of an ask that scores a whole table
        return np.asarray(np.where(np.isneginf(edges), 0.0, np.maximum(gap, 0.0)))
    spread = deviations[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = gap / spread
        density = np.exp(-0.5 * scaled**2) / np.sqrt(2 * np.pi)
        excess = np.where(spread > 0, gap * ndtr(scaled) + spread * density, np.maximum(gap, 0.0))
    excess[:, np.isneginf(edges)] = 0.0
    return np.asarray(np.maximum(excess, 0.0))
