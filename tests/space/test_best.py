"""Scores that are sums over layers: the best architectures of a band, quantiles and tilted draws, against brute force."""

import math
import random
import tomllib
import zlib
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from support.brute_force import TINY, TOKENS, every, middle, small

from archsearch import Arch, UserError, load_space
from archsearch.space import Band, InBand, Placed, Score, Space
from archsearch.space.budget.graph import Integers, Node, space_graph
from archsearch.space.budget.ranges import RangeTable

# Three stages, of which the second and third halve or keep the map; a rectangular image of four channels.
CHAIN = """
name = "chain"
image_size = [64, 96]
in_chans = 4
[stem]
kind = "overlapping"
[[stages]]
width = [16, 32]
depth = [1, 2]
block = ["lka", "mlp"]
mlp_ratio = 2
mlp = { conv = false }
lka = { kernel = 21 }
[[stages]]
width = [32, 48]
depth = [1, 3]
downsample = ["patch", "overlapping"]
patch = { norm = "before", pad = false }
block = "lka"
mlp_ratio = [2, 4]
lka = { kernel = [9, 21] }
[[stages]]
width = 64
depth = 1
downsample = "patch"
patch = { norm = ["before", "after"], pad = false }
block = ["mlp", "lka"]
mlp_ratio = 2
lka = { kernel = 21 }
[head]
kind = "pool"
"""


def tokens() -> Space:
    """A part of TOKENS in which a stage may take the messengers of the one before: 768 parameter sets."""
    return Space(tomllib.loads(TOKENS), "tokens.toml").fixed(
        {"stages.1.depth": 2, "stages.1.msg.shuffle": 1, "stages.2.learned.side": 0}
    )


def blocks_only() -> Space:
    """A part of TINY without a choice of width or entry, whose blocks alternate."""
    return Space(tomllib.loads(TINY), "tiny.toml").fixed(
        {"stem.kind": "patch", "stages.1.width": 32, "stages.2.width": 64, "stages.2.downsample": "overlapping"}
    )


SPACES = {
    "tiny": small,
    "tokens": tokens,
    "chain": lambda: Space(tomllib.loads(CHAIN), "chain.toml"),
    "blocks": blocks_only,
}


def random_score(placed: Placed) -> float:
    """A number between -1 and 1 that differs between layers and places, and is equal for layers that do the same."""
    text = f"{placed.path} {placed.layer.kind} {placed.cost} {placed.shape}"
    return zlib.crc32(text.encode()) / 2**31 - 1


def num_params(placed: Placed) -> int:
    """A score with equal sums."""
    return placed.cost.params


def num_hilo(placed: Placed) -> bool:
    """A score with few values."""
    return placed.layer.kind in ("lka", "sra")


def total(score: Score, arch: Arch) -> float:
    return sum(map(score, arch.layers()))


class Listed(NamedTuple):
    """A space with all its architectures by arch_id."""

    space: Space
    archs: dict[str, Arch]

    def bands(self) -> tuple[Band, Band]:
        costs = [arch.cost() for arch in self.archs.values()]
        return middle(cost.macs for cost in costs), middle((cost.params for cost in costs), "parameters", 0.35)

    def inside(self, band: Band | None, params_band: Band | None) -> dict[str, Arch]:
        def fits(arch: Arch) -> bool:
            cost = arch.cost()
            fits_params = params_band is None or params_band.contains(cost.params)
            return fits_params and (band is None or band.contains(cost.macs))

        return {key: arch for key, arch in self.archs.items() if fits(arch)}


@pytest.fixture(scope="module", params=SPACES)
def listed(request: pytest.FixtureRequest) -> Listed:
    space = SPACES[request.param]()
    archs = (space.sample(lambda name, choices, params=params: params[name]) for params, _ in every(space))  # type: ignore[misc]  # bound at once
    return Listed(space, {arch.arch_id: arch for arch in archs})


@pytest.mark.parametrize("bounded", ["", "macs", "params", "macs params"])
def test_the_best_are_those_of_brute_force(listed: Listed, bounded: str) -> None:
    band, params_band = listed.bands()
    bands = (band if "macs" in bounded else None, params_band if "params" in bounded else None)
    archs = listed.inside(*bands)
    inside = InBand(listed.space, *bands)
    for score, k in ((random_score, 1), (random_score, 7), (num_params, 20), (num_hilo, len(archs) + 5)):
        wanted = {key: total(score, arch) for key, arch in archs.items()}
        ordered = sorted(wanted.values(), reverse=True)
        found = inside.best(score, k)
        ids = [one.arch.arch_id for one in found]
        assert [one.score for one in found] == pytest.approx(ordered[:k], abs=1e-9)
        assert [one.score for one in found] == pytest.approx([wanted[key] for key in ids], abs=1e-9)
        assert len(set(ids)) == len(ids) == min(k, len(archs))
        surely = {key for key, number in wanted.items() if number > found[-1].score + 1e-9}
        assert surely <= set(ids) <= set(archs)
        for one in found:
            assert one.arch == listed.space.sample(lambda name, choices, params=one.params: params[name])  # type: ignore[misc]  # bound at once


def test_equal_scores_are_in_the_order_of_their_ids_and_the_same_every_time(listed: Listed) -> None:
    inside = InBand(listed.space, listed.bands()[0])
    found = inside.best(num_hilo, 40)
    assert found == sorted(found, key=lambda one: (-one.score, one.arch.arch_id))
    assert len({one.score for one in found}) < len(found)
    assert InBand(listed.space, listed.bands()[0]).best(num_hilo, 40) == found
    # A tenth of every layer: sums of the same number of layers are equal, in whatever order they are added.
    tenths = inside.best(lambda _: 0.1, 40)
    assert tenths == sorted(tenths, key=lambda one: (-len(list(one.arch.layers())), one.arch.arch_id))


def test_quantiles_are_those_of_brute_force(listed: Listed) -> None:
    bands, shares = listed.bands(), [0.01, 0.25, 0.5, 0.9]
    numbers = sorted(total(random_score, arch) for arch in listed.inside(*bands).values())
    for share, quantile in zip(shares, InBand(listed.space, *bands).quantiles(random_score, shares), strict=True):
        assert quantile == pytest.approx(next(x for i, x in enumerate(numbers, 1) if i >= share * len(numbers)))


def test_quantiles_of_a_large_space_are_drawn(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archsearch.space.budget.in_band._MOST_LISTED", 10)
    monkeypatch.setattr("archsearch.space.budget.in_band._DRAWN", 1000)
    band, shares = listed.bands()[0], [0.1, 0.5, 0.9]
    numbers = [total(random_score, arch) for arch in listed.inside(band, None).values()]
    for share, quantile in zip(shares, InBand(listed.space, band).quantiles(random_score, shares), strict=True):
        below = [np.mean(np.array(numbers) < quantile - 1e-9), np.mean(np.array(numbers) <= quantile + 1e-9)]
        assert below[0] - 0.05 <= share <= below[1] + 0.05


@pytest.mark.parametrize("tables", ["exact", "coarse", "two bands", "no band"])
def test_tilted_draws_have_their_distribution(
    listed: Listed, tables: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """In the coarse case tables in large units stand for those of a space too large for exact ones."""
    if tables == "coarse":
        monkeypatch.setattr("archsearch.space.budget.in_band.FEW_ROWS", 3)
    macs, params = listed.bands()
    bands = (macs if tables != "no band" else None, params if tables == "two bands" else None)
    check_distribution(listed, bands, random_score, request)


def test_a_tilt_may_lead_out_of_the_band_of_parameters(listed: Listed, request: pytest.FixtureRequest) -> None:
    """Then draws are made at a price of parameters, and kept by their number. Beyond the upper end, and with `--whole` below the lower one."""
    costs = [arch.cost() for arch in listed.archs.values()]
    macs, params = (sorted(getattr(cost, name) for cost in costs) for name in ("macs", "params"))
    third = len(costs) // 3
    for sign in (1, -1) if request.config.getoption("--whole") else (1,):
        params_band = Band(params[0], params[third]) if sign > 0 else Band(params[-third], params[-1])
        slope = sign * 12 / (params[-1] - params[0])

        def tilt(placed: Placed, slope: float = slope) -> float:
            return slope * placed.cost.params + random_score(placed) / 4

        check_distribution(listed, (Band(macs[0], macs[-10]), params_band), tilt, request)


def check_distribution(
    listed: Listed, bands: tuple[Band | None, Band | None], tilt: Score, request: pytest.FixtureRequest
) -> None:
    """400 draws are in proportion to exp(tilt), by a chi-square test; with `--whole` 3000."""
    archs = listed.inside(*bands)
    weights = {key: math.exp(total(tilt, arch)) for key, arch in archs.items()}
    assert max(weights.values()) > 10 * min(weights.values())
    draws, whole = 3000 if request.config.getoption("--whole") else 400, sum(weights.values())
    drawn = InBand(listed.space, *bands).draw_many(draws, random.Random(5), tilt)
    counts = Counter(arch.arch_id for _, arch in drawn)
    assert set(counts) <= set(archs)
    assert abs(chi_square_z(counts, {key: draws * weight / whole for key, weight in weights.items()})) < 4


def chi_square_z(counts: Counter[str], expected: dict[str, float]) -> float:
    """The chi-square statistic in standard deviations from its mean, of cells of neighbours in order of what is expected, each but the last with 5 or more."""
    cells = [(0, 0.0)]
    for key in sorted(expected, key=lambda key: -expected[key]):
        if cells[-1][1] >= 5:
            cells.append((0, 0.0))
        cells[-1] = (cells[-1][0] + counts[key], cells[-1][1] + expected[key])
    freedom = len(cells) - 1
    statistic = sum((seen - number) ** 2 / number for seen, number in cells)
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("is_coarse", [False, True])
def test_a_steep_tilt_draws_the_best(listed: Listed, is_coarse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the weight lies outside the band, where the tilt leads."""
    if is_coarse:
        monkeypatch.setattr("archsearch.space.budget.in_band.FEW_ROWS", 3)
    inside = InBand(listed.space, listed.bands()[0])
    macs = [arch.cost().macs for arch in listed.archs.values()]

    def steep(placed: Placed) -> float:
        return placed.cost.macs * 400 / (max(macs) - min(macs))

    best = inside.best(steep)[0].score
    found = [total(steep, arch) for _, arch in inside.draw_many(100, random.Random(0), steep)]
    assert np.median(found) > best - 5
    assert max(found) <= best + 1e-9


def test_the_ends_of_the_default_space_are_those_of_a_pareto_front(request: pytest.FixtureRequest) -> None:
    """The least parameters; the most, which the page on Python prints, with `--whole`."""
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    for sign in (-1, 1) if request.config.getoption("--whole") else (-1,):

        def score(placed: Placed, sign: int = sign) -> float:
            return sign * placed.cost.params

        (best,) = InBand(space, band).best(score)
        cost = best.arch.cost()
        assert band.contains(cost.macs)
        assert best.score == sign * cost.params == params_of_front(space, band, sign)


def params_of_front(space: Space, band: Band, sign: int) -> int:
    """The most sign * params inside, by the front of partial paths with few sign * MACs and many sign * params, step by step from the image.

    It looks at one end of the band alone, so the last path must be inside.
    """
    graph, end = space_graph(space), band.high if sign > 0 else -band.low
    fronts = {graph.start: np.zeros((1, 2), np.int64)}
    for step in graph.steps:
        parts: dict[Node, list[Integers]] = {}
        for near, ends in step.items():
            for far, options in ends.items():
                parts.setdefault(far, []).append((fronts[near][:, None] + sign * options.costs).reshape(-1, 2))
        joined = {far: np.concatenate(found) for far, found in parts.items()}
        ordered = {far: rows[np.lexsort((-rows[:, 1], rows[:, 0]))] for far, rows in joined.items()}
        above = {far: np.maximum.accumulate(rows[:, 1]) for far, rows in ordered.items()}
        fronts = {far: rows[np.diff(above[far], prepend=-(2**62)) > 0] for far, rows in ordered.items()}
    (front,) = fronts.values()
    macs, params = front[front[:, 0] <= end][-1].tolist()
    assert band.contains(sign * macs)
    return int(params)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (math.nan, r"score of stem \(patch\): nan; a finite number is allowed"),
        (-math.inf, r"score of stem \(patch\): -inf; a finite number is allowed"),
        (None, r"score of stem \(patch\): None; a finite number is allowed"),
        (1e308, "score: the sum over an architecture's layers is not finite; make the scores smaller"),
    ],
)
def test_scores_that_are_no_numbers_are_refused(given: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        InBand(small(), None).best(lambda _: given)


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = InBand(small(), None)
    with pytest.raises(UserError, match="k is 0; whole numbers from 1 are allowed"):
        inside.best(num_params, 0)
    with pytest.raises(UserError, match="share 1: between 0 and 1 are allowed"):
        inside.quantiles(num_params, [0.5, 1])
    with pytest.raises(UserError, match=r"tilt: its sums span .*; up to 600 are allowed, so multiply it by"):
        inside.draw(random.Random(0), num_params)
    monkeypatch.setattr("archsearch.space.budget.in_band._MOST_ROWS_OF_BEST", 5)
    with pytest.raises(UserError, match=r"tiny.toml: too many architectures to find the best exactly; fix some"):
        InBand(small(), Band(0, 10**9)).best(num_params)


@pytest.mark.parametrize("reduce", [np.add, np.maximum])
def test_slices_are_reduced_as_one_by_one(reduce: np.ufunc) -> None:
    rng = np.random.default_rng(0)
    for number in range(1, 40):
        values = rng.random(number) * 10.0 ** rng.integers(-200, 200, number)
        start, stop = np.array([(a, b) for a in range(number + 1) for b in range(a, number + 1)]).T
        wanted = [reduce.reduce(values[a:b], initial=0.0) for a, b in zip(start, stop, strict=True)]
        np.testing.assert_allclose(RangeTable(values, reduce, 0.0).over(start, stop), wanted, rtol=1e-14)
