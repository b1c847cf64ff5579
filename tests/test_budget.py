"""Sampling inside a band: never outside, honest when nothing is there, exact about the ends of the range."""

import itertools
import random
import tomllib
from typing import Any

import pytest

from archsearch import UserError, load_space
from archsearch.budget import Band, draw, extremes, mutate, propose, repair
from archsearch.space import Space

TINY = """
name = "tiny"
image_size = 64
[stem]
kind = ["patch", "cross-scale"]
cross-scale = { num_kernels = [2, 3] }
[[stages]]
width = [32, 48]
depth = [1, 2, 3]
block = ["lka", "lsa/gsa", "mlp"]
head_dim = 16
mlp_ratio = [2, 4]
lsa = { window = 7 }
gsa = { reduction = [2, 4] }
lka = { kernel = [9, 21] }
[[stages]]
width = [64, 80]
depth = [1, 2]
downsample = ["patch", "overlapping"]
patch = { norm = "before", pad = false }
block = ["mlp", "lka"]
mlp_ratio = 3
mlp = { conv = false }
lka = { kernel = 21 }
[head]
kind = "pool"
"""


def every(space: Space) -> list[tuple[dict[str, Any], int]]:
    """Brute force: all parameter sets of a space with their MACs, by walking the conditional choices depth first."""
    found: list[tuple[dict[str, Any], int]] = []
    open_lists: list[dict[str, Any]] = [{}]
    while open_lists:
        fixed = open_lists.pop()
        pending: list[tuple[str, Any]] = []
        used: dict[str, Any] = {}

        def pick(
            name: str,
            choices: Any,
            fixed: dict[str, Any] = fixed,
            used: dict[str, Any] = used,
            pending: list[Any] = pending,
        ) -> Any:
            if name not in fixed:
                pending.append((name, choices))
            used[name] = fixed.get(name, choices[0])
            return used[name]

        arch = space.sample(pick)
        if pending:
            name, choices = pending[0]
            open_lists.extend({**fixed, name: value} for value in choices)
        else:
            found.append((used, arch.cost().macs))
    return found


def test_extremes_are_those_of_brute_force() -> None:
    space = Space(tomllib.loads(TINY), "tiny.toml")
    macs = [cost for _, cost in every(space)]
    cheapest, dearest = extremes(space)
    assert len(macs) == space.size
    assert (cheapest.cost().macs, dearest.cost().macs) == (min(macs), max(macs))


TOKENS = """
name = "tokens"
image_size = 64
[stem]
kind = "patch"
patch = { kernel = 4, pad = false }
[[stages]]
width = 32
depth = [1, 2]
block = ["msg", "wmsa/swmsa", "msg/mlp"]
head_dim = 16
mlp_ratio = 2
msg = { window = [4, 8], shuffle = [1, 2] }
wmsa = { window = 4 }
swmsa = { window = 4 }
mlp = { conv = false }
[[stages]]
width = [32, 48]
depth = 2
downsample = ["messenger", "merging"]
block = ["msg", "sra"]
head_dim = 16
mlp_ratio = 2
msg = { window = [4, 8], shuffle = 1 }
sra = { reduction = [1, 2] }
positions = ["none", "learned"]
learned = { side = [0, 7] }
[[stages]]
width = 64
depth = [1, 2]
downsample = ["messenger", "patch"]
patch = { norm = "before", pad = false }
block = ["sra", "msa"]
head_dim = 16
mlp_ratio = 2
msa = { bias = false }
sra = { reduction = 1 }
positions = "learned"
learned = { class_token = true }
[head]
kind = "token"
"""


def test_extremes_with_tokens_that_travel_are_those_of_brute_force() -> None:
    space = Space(tomllib.loads(TOKENS), "tokens.toml")
    found = every(space)
    assert len(found) == space.size
    cheapest, dearest = extremes(space)
    macs = [cost for _, cost in found]
    assert (cheapest.cost().macs, dearest.cost().macs) == (min(macs), max(macs))


@pytest.mark.slow
def test_draws_are_in_the_band_and_uniform_over_it() -> None:
    space = Space(tomllib.loads(TINY), "tiny.toml")
    brute = every(space)
    band = Band(sorted(cost for _, cost in brute)[len(brute) // 4], sorted(cost for _, cost in brute)[len(brute) // 2])
    inside = [repr(sorted(params.items())) for params, cost in brute if band.contains(cost)]
    rng = random.Random(5)
    counts = dict.fromkeys(inside, 0)
    draws = 4000
    for _ in range(draws):
        params, arch = draw(space, band, rng)
        assert band.contains(arch.cost().macs)
        counts[repr(sorted(params.items()))] += 1
    # A parameter set of a smaller conditional branch is drawn more often: compare with the walk's own probabilities.
    weights = {
        repr(sorted(params.items())): _probability(space, params) for params, cost in brute if band.contains(cost)
    }
    total = sum(weights.values())
    chi2 = sum(
        (counts[key] - draws * weight / total) ** 2 / (draws * weight / total) for key, weight in weights.items()
    )
    assert chi2 < len(weights) + 4 * (2 * len(weights)) ** 0.5


def _probability(space: Space, params: dict[str, Any]) -> float:
    probability = 1.0
    for name in params:
        probability /= len(space.parameters()[name])
    return probability


def test_repair_keeps_what_is_inside_and_moves_what_is_not() -> None:
    space, rng = load_space("hybrid"), random.Random(1)
    band = Band.around(4_500_000_000, 0.05)
    moved = 0
    for _ in range(100):
        params, arch = propose(space, {}, rng)
        repaired, inside = repair(space, band, params, rng)
        assert band.contains(inside.cost().macs)
        if band.contains(arch.cost().macs):
            assert (repaired, inside) == (params, arch)
        else:
            moved += 1
            shared = sum(repaired.get(name) == value for name, value in params.items())
            assert shared >= len(params) // 3
    assert moved > 50


def test_mutation_changes_one_choice_and_what_hangs_on_it() -> None:
    space, rng = load_space("hybrid"), random.Random(2)
    params, _ = propose(space, {}, rng)
    for _ in range(30):
        moved, _ = mutate(space, params, rng)
        general = [name for name in params if name in moved and moved[name] != params[name]]
        assert len(general) <= 1
        params = moved


@pytest.mark.parametrize(("low", "high"), [(1, 1000), (10**12, 2 * 10**12)])
def test_an_infeasible_band_names_the_cheapest_and_the_dearest(low: int, high: int) -> None:
    space = load_space("hybrid")
    cheapest, dearest = extremes(space)
    with pytest.raises(UserError) as caught:
        draw(space, Band(low, high), random.Random(0))
    assert cheapest.describe() in str(caught.value)
    assert dearest.describe() in str(caught.value)


def test_a_gap_inside_the_range_gives_up_honestly() -> None:
    space = Space(tomllib.loads(TINY), "tiny.toml")
    macs = sorted(cost for _, cost in every(space))
    low, high = max(itertools.pairwise(macs), key=lambda pair: pair[1] - pair[0])
    with pytest.raises(UserError, match="none of 1000 random architectures"):
        draw(space, Band(low + 1, high - 1), random.Random(0), limit=1000)


def test_band_edges_belong_to_it() -> None:
    band = Band.around(4_500_000_000, 0.05)
    assert (band.low, band.high) == (4_275_000_000, 4_725_000_000)
    assert band.contains(band.low)
    assert band.contains(band.high)
    assert not band.contains(band.high + 1)
    assert band.distance(band.low - 7) == 7
