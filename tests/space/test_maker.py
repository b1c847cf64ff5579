"""Architectures put together from stages that are kept: the same as those made anew."""

import pickle
import random

import pytest

from archsearch import load_space
from archsearch.blocks import Cost
from archsearch.space import Arch, Band, Bounds, Params, Space, draw, mutate, propose


def cost_of(arch: Arch) -> Cost:
    """Summed layer by layer, without anything kept."""
    return sum((placed.layer.cost(placed.shape) for placed in arch.layers()), Cost())


def make_anew(space: Space, params: Params) -> Arch:
    """The architecture of complete parameters from new stages."""
    return space.sample(lambda name, choices: params[name])


def test_a_walk_of_mutants_has_the_architectures_and_costs_of_their_parameters() -> None:
    space, rng = load_space("hybrid"), random.Random(0)
    params, _ = draw(space, Bounds(macs=Band.around(4_500_000_000, 0.05)), rng)
    for _ in range(300):
        params, arch = mutate(space, params, rng)
        assert arch == make_anew(space, params)
        assert Arch.from_dict(arch.to_dict()).arch_id == arch.arch_id
        assert arch.cost() == cost_of(arch)


def test_the_same_draws_fill_what_is_missing_whatever_was_made_before() -> None:
    space = load_space("hybrid")
    whole, _ = propose(space, {}, random.Random(0))
    part = {name: value for name, value in whole.items() if not name.startswith("stages.2")}
    first = propose(space, part, random.Random(1))
    assert propose(load_space("hybrid"), part, random.Random(1)) == first
    assert propose(space, part, random.Random(1)) == first


@pytest.mark.parametrize("before", [True, False])
def test_numbers_that_are_equal_but_written_otherwise_are_kept_apart(before: bool) -> None:
    space = load_space("hybrid")
    whole, arch = propose(space, {}, random.Random(0))
    other = {name: float(value) if isinstance(value, int) else value for name, value in whole.items()}
    if before:
        propose(space, other, random.Random(0))
    used, again = propose(space, whole, random.Random(0))
    assert [type(value) for value in used.values()] == [type(value) for value in whole.values()]
    assert again.arch_id == arch.arch_id


def test_a_pickled_stage_has_its_fields_alone() -> None:
    """A hash of text is another one in another process."""
    arch = propose(load_space("hybrid"), {}, random.Random(0))[1]
    assert arch.arch_id
    copied = pickle.loads(pickle.dumps(arch))
    assert copied == arch
    assert [set(vars(stage)) for stage in copied.stages] == [{"entry", "blocks", "depth", "positions"}] * 4
