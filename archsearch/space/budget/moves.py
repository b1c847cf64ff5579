"""Moves in the parameters of a space: proposals completed, changed, and brought into a band."""

import random
from weakref import WeakKeyDictionary

from archsearch.space.arch import Arch
from archsearch.space.budget.band import Bounds
from archsearch.space.budget.graph import Params
from archsearch.space.budget.in_band import InBand
from archsearch.space.budget.maker import cached_maker
from archsearch.space.space import Space

_MOVES = 60
_NEIGHBOURS = 8
_BANDS_KEPT = 4  # for each space; the tables of one take some tens of megabytes
_CACHE: WeakKeyDictionary[Space, dict[Bounds, InBand]] = WeakKeyDictionary()


def cached_in_band(space: Space, bounds: Bounds) -> InBand:
    """The architectures of a space inside the bounds; the tables of the last few are cached. Raises UserError when there are none."""
    known = _CACHE.setdefault(space, {})
    if bounds not in known:
        known[bounds] = InBand(space, bounds.macs, bounds.params)
        while len(known) > _BANDS_KEPT:
            known.pop(next(iter(known)))
    return known[bounds]


def propose(space: Space, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """The architecture of `params`, missing names drawn at random; with the parameters that were used."""
    return cached_maker(space).complete(params, rng.choice)


def draw(space: Space, bounds: Bounds, rng: random.Random) -> tuple[Params, Arch]:
    """A uniform draw from the distinct architectures inside the bounds. Raises UserError when there is none."""
    return cached_in_band(space, bounds).draw(rng)


def repair(space: Space, bounds: Bounds, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """An architecture inside the bounds near the proposal: itself when inside, else after some one-parameter moves towards them, else a uniform draw."""
    used, arch = propose(space, params, rng)
    gap = bounds.distance(arch.cost())
    for _ in range(_MOVES):
        if gap == 0:
            return used, arch
        for _ in range(_NEIGHBOURS):
            moved, neighbour = mutate(space, used, rng)
            new_gap = bounds.distance(neighbour.cost())
            if new_gap < gap:
                used, arch, gap = moved, neighbour, new_gap
                break
    return (used, arch) if gap == 0 else draw(space, bounds, rng)


def mutate(space: Space, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """Change one parameter to another of its choices."""
    names = [name for name in space.parameters() if name in params]
    if not names:
        return propose(space, params, rng)
    name = rng.choice(names)
    others = [value for value in space.parameters()[name] if value != params[name]]
    return propose(space, {**params, name: rng.choice(others)}, rng)


def check_feasible(space: Space, bounds: Bounds) -> None:
    """Raise UserError when no architecture of the space lies inside the bounds."""
    cached_in_band(space, bounds)
