"""Changes of one choice: all of them and no other, against architectures put together choice by choice."""

import random
import tomllib
from collections.abc import Sequence

import pytest
from support.known_machine import SMALL

from archsearch.blocks import Scalar
from archsearch.space import Arch, Params, Space, find_params, load_space, paper, single_changes

POSITIONS = """
name = "positions"
image_size = 32
num_classes = 10
stem = { kind = "patch", patch = { kernel = 4, pad = false } }
[[stages]]
width = [32, 64]
depth = [1, 2]
block = ["mlp", "hilo"]
positions = ["none", "learned"]
"""


def small() -> Space:
    return Space(tomllib.loads(SMALL), "small.toml", SMALL)


def built(space: Space, given: Params) -> tuple[Params, Arch]:
    """The architecture of some choices, the first one wherever none is given; with all that were made."""
    made: Params = {}

    def pick(name: str, choices: Sequence[Scalar]) -> Scalar:
        made[name] = given[name] if given.get(name) in choices else choices[0]
        return made[name]

    return made, space.sample(pick)


def drawn(space: Space, seed: int) -> tuple[Params, Arch]:
    rng = random.Random(seed)
    made: Params = {}

    def pick(name: str, choices: Sequence[Scalar]) -> Scalar:
        return made.setdefault(name, rng.choice(list(choices)))

    return made, space.sample(pick)


@pytest.mark.parametrize("seed", range(6))
def test_every_change_of_one_choice_is_there_once(seed: int) -> None:
    space = small()
    params, arch = drawn(space, seed)
    expected = {}
    for name in params:
        for value in space.parameters()[name]:
            _, other = built(space, {**params, name: value})
            if value != params[name] and other.arch_id != arch.arch_id:
                expected[name, value] = (other.arch_id, other.cost())
    found = list(single_changes(space, params))
    assert {(each.name, each.new): (each.arch.arch_id, each.arch.cost()) for each in found} == expected
    assert len(found) == len(expected)
    assert all(each.old == params[each.name] for each in found)


@pytest.mark.parametrize("seed", range(6))
def test_the_parameters_of_an_architecture_give_it_again(seed: int) -> None:
    for space in (small(), load_space("hybrid")):
        params, arch = drawn(space, seed)
        found = find_params(space, arch)
        assert found is not None
        assert built(space, found)[1].arch_id == arch.arch_id
        assert all(found[name] == value for name, value in params.items() if name in found)


def test_an_architecture_of_elsewhere_has_no_parameters_here() -> None:
    assert find_params(load_space("hybrid"), paper("davit_tiny")) is None
    assert find_params(small(), paper("davit_tiny")) is None


def test_positions_are_a_choice_like_others() -> None:
    space = Space(tomllib.loads(POSITIONS), "positions.toml", POSITIONS)
    for seed in range(8):
        params, arch = drawn(space, seed)
        assert find_params(space, arch) == params
        assert "stages.1.positions" in {each.name for each in single_changes(space, params)}
