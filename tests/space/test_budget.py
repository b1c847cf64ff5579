"""Counting and drawing inside a band: exact against brute force, uniform, never outside, and a clear error for an empty band."""

import itertools
import random
import tomllib
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.brute_force import TINY, TOKENS, every, middle, small
from support.zero_weights import build_with_zeros

from archsearch import Cost, UserError, load_space
from archsearch.models import count_fvcore
from archsearch.space import Band, Bounds, InBand, Space, cached_in_band, draw, extremes, mutate, propose, repair


def test_extremes_are_those_of_brute_force() -> None:
    space = Space(tomllib.loads(TINY), "tiny.toml")
    macs = [cost for _, cost in every(space)]
    cheapest, most_expensive = extremes(space)
    assert len(macs) == space.size
    assert (cheapest.cost().macs, most_expensive.cost().macs) == (min(macs), max(macs))


@pytest.mark.slow
def test_extremes_with_tokens_that_travel_are_those_of_brute_force() -> None:
    space = Space(tomllib.loads(TOKENS), "tokens.toml")
    found = every(space)
    assert len(found) == space.size
    cheapest, most_expensive = extremes(space)
    macs = [cost for _, cost in found]
    assert (cheapest.cost().macs, most_expensive.cost().macs) == (min(macs), max(macs))


def _picking(params: dict[str, Any]) -> Any:
    return lambda name, choices: params[name]


def distinct(space: Space) -> dict[str, Cost]:
    """Brute force: the cost of every architecture by arch_id."""
    found: dict[str, Cost] = {}
    for params, _ in every(space):
        arch = space.sample(_picking(params))
        cost = found.setdefault(arch.arch_id, arch.cost())
        assert cost == arch.cost()
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(small, id="small"),
        pytest.param(lambda: Space(tomllib.loads(TINY), "tiny.toml"), id="tiny", marks=pytest.mark.slow),
        pytest.param(lambda: Space(tomllib.loads(TOKENS), "tokens.toml"), id="tokens", marks=pytest.mark.slow),
    ],
)
def counted(request: pytest.FixtureRequest) -> tuple[Space, dict[str, Cost]]:
    space = request.param()
    return space, distinct(space)


def test_counts_are_those_of_brute_force(counted: tuple[Space, dict[str, Cost]]) -> None:
    space, found = counted
    band = middle(cost.macs for cost in found.values())
    params_band = middle((cost.params for cost in found.values()), "parameters", 0.35)
    for macs, params in ((None, None), (band, None), (None, params_band), (band, params_band)):
        costs = [
            cost
            for cost in found.values()
            if (macs is None or macs.contains(cost.macs)) and (params is None or params.contains(cost.params))
        ]
        architectures = InBand(space, macs, params)
        assert (architectures.count, architectures.is_exact) == (len(costs), True)
        assert 0 < len(costs) <= len(found)
    assert len(costs) < len(found) < space.size


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_counts_of_random_parts_of_spaces_are_those_of_brute_force(data: st.DataObject) -> None:
    space = Space(tomllib.loads(data.draw(st.sampled_from([TINY, TOKENS]))), "test.toml")
    while space.size > 200:
        name = data.draw(st.sampled_from(list(space.parameters())))
        space = space.fixed({name: data.draw(st.sampled_from(space.parameters()[name]))})
    found = distinct(space)
    ends = st.tuples(*2 * [st.sampled_from(list(found.values()))])
    macs = Band(*sorted(cost.macs for cost in data.draw(ends)))
    params = Band(*sorted(cost.params for cost in data.draw(ends)))
    costs = [cost for cost in found.values() if macs.contains(cost.macs) and params.contains(cost.params)]
    if costs:
        assert InBand(space, macs, params).count == len(costs)
    else:
        with pytest.raises(UserError, match="no architecture has"):
            InBand(space, macs, params)


def test_counts_with_parameters_fixed_are_those_of_brute_force() -> None:
    space = small().fixed({"stages.1.block": "lsa/gsa", "stages.2.width": "80"})
    found = distinct(space)
    band = middle(cost.macs for cost in found.values())
    assert InBand(space, band).count == sum(band.contains(cost.macs) for cost in found.values())
    _, arch = InBand(space, band).draw(random.Random(0))
    assert (arch.stages[0].block, arch.stages[1].width) in {("lsa/gsa", 80), ("lsa", 80)}


@pytest.mark.parametrize("is_coarse", [False, True])
def test_draws_are_uniform_over_the_distinct_architectures(is_coarse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the coarse case tables of five sums stand for those of a space too large for exact ones."""
    if is_coarse:
        monkeypatch.setattr("archsearch.space.budget.in_band.FEW_ROWS", 3)
        monkeypatch.setattr("archsearch.space.budget.in_band.MOST_ROWS", dict.fromkeys(range(3), 5))
    space = small()
    found = distinct(space)
    band = middle((cost.macs for cost in found.values()), share=0.3)
    params_band = middle((cost.params for cost in found.values()), "parameters", 0.4)
    wanted = {key for key, cost in found.items() if band.contains(cost.macs) and params_band.contains(cost.params)}
    architectures, rng = InBand(space, band, params_band), random.Random(5)
    assert architectures.is_exact is not is_coarse
    assert architectures.count == pytest.approx(len(wanted), rel=0.1 * is_coarse)
    draws = 15 * len(wanted)
    counts = Counter(arch.arch_id for _, arch in architectures.draw_many(draws, rng))
    assert set(counts) <= wanted
    chi2 = sum((counts[key] - 15) ** 2 / 15 for key in wanted)
    assert abs(chi2 - (len(wanted) - 1)) < 4 * (2 * len(wanted)) ** 0.5


@pytest.mark.slow
def test_images_of_other_channels_and_sides_are_counted_at_their_own_cost() -> None:
    text = TINY.replace("image_size = 64", "image_size = [64, 96]\nin_chans = 4")
    space = Space(tomllib.loads(text), "tiny.toml", text)
    found: dict[str, Cost] = {}
    for params, _ in every(space):
        arch = space.sample(lambda name, choices, params=params: params[name])  # type: ignore[misc]  # bound at once
        assert (arch.image_size, arch.in_chans) == ((64, 96), 4)
        found[arch.arch_id] = arch.cost()
    macs = sorted(cost.macs for cost in found.values())
    band = Band(macs[len(macs) // 3], macs[2 * len(macs) // 3])
    inside = InBand(space, band)
    assert inside.count == sum(map(band.contains, macs))
    assert [arch.cost().macs for arch in extremes(space)] == [macs[0], macs[-1]]
    for _, arch in inside.draw_many(20, random.Random(0)):
        assert band.contains(arch.cost().macs)
        assert found[arch.arch_id] == arch.cost()


@pytest.mark.slow
def test_draws_from_the_default_space_are_in_the_band_by_fvcore(request: pytest.FixtureRequest) -> None:
    """Twelve of them, or with `--whole` fifty."""
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    number = 50 if request.config.getoption("--whole") else 12
    for params, arch in cached_in_band(space, Bounds(macs=band)).draw_many(number, random.Random(0)):
        assert band.contains(count_fvcore(build_with_zeros(arch), arch.image_size))
        assert propose(space, params, random.Random(1)) == (params, arch)


def test_repair_keeps_architectures_inside_the_band_and_moves_others_into_it() -> None:
    space, rng = load_space("hybrid"), random.Random(1)
    band = Band.around(4_500_000_000, 0.05)
    moved = 0
    for _ in range(100):
        params, arch = propose(space, {}, rng)
        repaired, inside = repair(space, Bounds(macs=band), params, rng)
        assert band.contains(inside.cost().macs)
        if band.contains(arch.cost().macs):
            assert (repaired, inside) == (params, arch)
        else:
            moved += 1
            shared = sum(repaired.get(name) == value for name, value in params.items())
            assert shared >= len(params) // 3
    assert moved > 50


def test_mutation_changes_one_choice_and_the_names_that_depend_on_it() -> None:
    space, rng = load_space("hybrid"), random.Random(2)
    params, _ = propose(space, {}, rng)
    for _ in range(30):
        moved, _ = mutate(space, params, rng)
        general = [name for name in params if name in moved and moved[name] != params[name]]
        assert len(general) <= 1
        params = moved


@pytest.mark.parametrize(("low", "high"), [(1, 1000), (10**12, 2 * 10**12)])
def test_an_infeasible_band_names_the_cheapest_and_the_most_expensive(low: int, high: int) -> None:
    space = load_space("hybrid")
    cheapest, most_expensive = extremes(space)
    with pytest.raises(UserError) as caught:
        draw(space, Bounds(macs=Band(low, high)), random.Random(0))
    assert cheapest.describe() in str(caught.value)
    assert most_expensive.describe() in str(caught.value)


def test_a_neighbour_differs_in_one_stage_and_stays_in_the_band() -> None:
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.02)
    architectures, rng = cached_in_band(space, Bounds(macs=band)), random.Random(3)
    params, arch = architectures.draw(rng)
    for _ in range(20):
        moved = architectures.near(params, rng)
        assert moved is not None
        assert band.contains(moved[1].cost().macs)
        changed = {name.split(".")[1] for name in {*params, *moved[0]} if params.get(name) != moved[0].get(name)}
        assert changed <= {"1", "kind", "patch", "cross-scale"} or len(changed) == 1
        assert moved[1].arch_id != arch.arch_id
        params, arch = moved


def test_neighbours_are_all_that_there_are() -> None:
    space = small()
    found = distinct(space)
    band = middle(cost.macs for cost in found.values())
    architectures, rng = InBand(space, band), random.Random(0)
    params, arch = architectures.draw(rng)
    reached = {moved[1].arch_id for moved in (architectures.near(params, rng) for _ in range(300)) if moved}
    wanted = set()
    for other, macs in every(space):
        one = space.sample(_picking(other))
        same = [one.stages[index] == arch.stages[index] for index in range(2)]
        if band.contains(macs) and (same[0] or same[1]) and one.arch_id != arch.arch_id:
            wanted.add(one.arch_id)
    assert reached == wanted


def test_shares_of_blocks_are_those_of_brute_force() -> None:
    space = small()
    found = distinct(space)
    band = middle(cost.macs for cost in found.values())
    inside_band: dict[str, dict[str, Any]] = {}
    for params, macs in every(space):
        if band.contains(macs):
            arch = space.sample(_picking(params))
            inside_band.setdefault(arch.arch_id, params)
    for number, shares in enumerate(InBand(space, band).shares(), start=1):
        for block, share in shares.items():
            held = [params.get(f"stages.{number}.block") == block for params in inside_band.values()]
            assert share == pytest.approx(sum(held) / len(held))


def test_a_gap_inside_the_range_names_the_nearest_on_both_sides() -> None:
    space = Space(tomllib.loads(TINY), "tiny.toml")
    macs = sorted(cost for _, cost in every(space))
    low, high = max(itertools.pairwise(macs), key=lambda pair: pair[1] - pair[0])
    with pytest.raises(
        UserError, match=rf"no architecture has .* nearest below has {low} MACs .* nearest above has {high}"
    ):
        draw(space, Bounds(macs=Band(low + 1, high - 1)), random.Random(0))


def test_band_edges_belong_to_it() -> None:
    band = Band.around(4_500_000_000, 0.05)
    assert (band.low, band.high) == (4_275_000_000, 4_725_000_000)
    assert band.contains(band.low)
    assert band.contains(band.high)
    assert not band.contains(band.high + 1)
    assert band.distance(band.low - 7) == 7
