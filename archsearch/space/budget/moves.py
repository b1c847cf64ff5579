"""Moves in the parameters of a space: proposals completed, changed, and brought into a band."""

import random
from weakref import WeakKeyDictionary

from archsearch.space.arch import Arch
from archsearch.space.budget.band import Band
from archsearch.space.budget.graph import Params
from archsearch.space.budget.in_band import InBand
from archsearch.space.budget.maker import cached_maker
from archsearch.space.space import Space

_MOVES = 60
_NEIGHBOURS = 8
_BANDS_KEPT = 4  # for each space; the tables of a band take some tens of megabytes
_CACHE: WeakKeyDictionary[Space, dict[tuple[Band | None, Band | None], InBand]] = WeakKeyDictionary()


def cached_in_band(space: Space, band: Band | None, params_band: Band | None = None) -> InBand:
    """The architectures of a space in a band; the tables of the last few bands are cached. Raises UserError when there are none."""
    known = _CACHE.setdefault(space, {})
    key = (band, params_band)
    if key not in known:
        known[key] = InBand(space, band, params_band)
        while len(known) > _BANDS_KEPT:
            known.pop(next(iter(known)))
    return known[key]


def propose(space: Space, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """The architecture of `params`, missing names drawn at random; with the parameters that were used."""
    return cached_maker(space).complete(params, rng.choice)


def draw(space: Space, band: Band, rng: random.Random) -> tuple[Params, Arch]:
    """A uniform draw from the distinct architectures in the band. Raises UserError when there is none."""
    return cached_in_band(space, band).draw(rng)


def repair(space: Space, band: Band, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """An architecture in the band near the proposal: itself when inside, else after some one-parameter moves towards the band, else a uniform draw."""
    used, arch = propose(space, params, rng)
    gap = band.distance(arch.cost().macs)
    for _ in range(_MOVES):
        if gap == 0:
            return used, arch
        for _ in range(_NEIGHBOURS):
            moved, neighbour = mutate(space, used, rng)
            new_gap = band.distance(neighbour.cost().macs)
            if new_gap < gap:
                used, arch, gap = moved, neighbour, new_gap
                break
    return (used, arch) if gap == 0 else draw(space, band, rng)


def mutate(space: Space, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """Change one parameter to another of its choices."""
    names = [name for name in space.parameters() if name in params]
    if not names:
        return propose(space, params, rng)
    name = rng.choice(names)
    others = [value for value in space.parameters()[name] if value != params[name]]
    return propose(space, {**params, name: rng.choice(others)}, rng)


def check_feasible(space: Space, band: Band) -> None:
    """Raise UserError when no architecture of the space lies in the band."""
    cached_in_band(space, band)
