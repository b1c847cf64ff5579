"""Moves in the parameters of a space: proposals completed, changed, and brought into a band."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from archsearch.blocks import Scalar
from archsearch.space.arch import Arch
from archsearch.space.budget.band import Bounds
from archsearch.space.budget.graph import Params
from archsearch.space.budget.in_band import InBand
from archsearch.space.budget.maker import cached_maker
from archsearch.space.plan import NO_POSITIONS
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


class Change(NamedTuple):
    """One parameter of an architecture set to another of its choices, and what that gives."""

    name: str
    old: Scalar
    new: Scalar
    arch: Arch


def single_changes(space: Space, params: Params) -> Iterator[Change]:
    """Every change of one parameter that `params` has, in the order of the space; those that give an equal architecture are left out.

    What a change brings in, such as the fields of another block, takes the first of its choices.
    """
    maker = cached_maker(space)
    used, arch = maker.complete(params, _first)
    for name, choices in space.parameters().items():
        if name not in used:
            continue
        for value in choices:
            changed = maker.complete({**used, name: value}, _first)[1]
            if changed.arch_id != arch.arch_id:
                yield Change(name, used[name], value, changed)


def _first(choices: Sequence[Scalar]) -> Scalar:
    return choices[0]


def find_params(space: Space, arch: Arch) -> Params | None:
    """Parameters that give this architecture; None where it is none of the space's."""
    if (arch.image_size, arch.in_chans) != (space.plan.image_size, space.plan.in_chans):
        return None
    params, found = cached_maker(space).complete(params_in_space(arch, space), _first)
    return params if found.arch_id == arch.arch_id else None


def params_in_space(arch: Arch, space: Space) -> Params:
    """The parameters of an architecture from elsewhere, such as a paper's, by the names of `space`; names that it lacks are left out.

    Values need not be among the space's choices. Empty for another number of stages.
    """
    plan = space.plan
    if len(arch.stages) != len(plan.stages):
        return {}
    params: Params = {}
    for stage, given in zip(plan.stages, arch.stages, strict=True):
        prefix = f"stages.{stage.number}"
        params |= {f"{prefix}.width": given.width, f"{prefix}.depth": given.depth, f"{prefix}.block": given.block}
        params |= {f"{prefix}.positions": given.positions.kind if given.positions else NO_POSITIONS}
        params |= {stage.entry_name: given.entry.kind}
        plans = {**stage.blocks, **stage.position_plans, **stage.entries}
        for layer in (given.entry, *given.blocks, *([given.positions] if given.positions else [])):
            if layer.kind in plans:
                params |= {name: getattr(layer, field) for field, name in plans[layer.kind].names.items()}
    if isinstance(arch.head, plan.head.layer):
        params |= {name: getattr(arch.head, field) for field, name in plan.head.names.items()}
    names = space.parameters()
    return {name: value for name, value in params.items() if name in names}


def check_feasible(space: Space, bounds: Bounds) -> None:
    """Raise UserError when no architecture of the space lies inside the bounds."""
    cached_in_band(space, bounds)
