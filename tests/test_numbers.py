"""Units, dominance, fronts and hypervolume."""

import math
import random

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from archsearch import UserError
from archsearch.metrics import dominates, front_ranks, hypervolume, is_dominated
from archsearch.units import (
    format_bytes,
    format_count,
    format_seconds,
    parse_bytes,
    parse_count_range,
    parse_macs,
    parse_milliseconds,
    parse_rate,
    parse_seconds,
    parse_share,
)


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("4.5GFLOPs", 4_500_000_000),
        ("4.5G", 4_500_000_000),
        ("4.5 gflops", 4_500_000_000),
        ("800MMACs", 800_000_000),
        ("4500000000", 4_500_000_000),
    ],
)
def test_budgets(text: str, macs: int) -> None:
    assert parse_macs(text) == macs


@pytest.mark.parametrize(
    "text", ["", "lots", "-4.5G", "0G", "0", "4.5GB", "1e9", "nan", "4,5G", "0.0000000001", "9" * 400, "2000T"]
)
def test_budgets_that_do_not_parse(text: str) -> None:
    with pytest.raises(UserError, match="--budget"):
        parse_macs(text)


def test_a_number_without_its_unit_gets_it_as_a_hint() -> None:
    with pytest.raises(UserError, match=r"--budget: '4\.5' multiply-adds are no network's; did you mean 4\.5G\?"):
        parse_macs("4.5")
    with pytest.raises(UserError, match=r"did you mean 5%\?"):
        parse_share("5")
    for text in ("20-30", "20-30M"):
        with pytest.raises(UserError, match=r"did you mean 20M-30M\?"):
            parse_count_range(text)
    assert parse_count_range("0-30M") == (0, 30_000_000)


def test_limits_as_people_type_them() -> None:
    assert [parse_milliseconds(text) for text in ("8ms", "0.5 s", "800us")] == [8.0, 500.0, pytest.approx(0.8)]
    assert [parse_bytes(text) for text in ("2GB", "2GiB", "512 MiB", "1500B")] == [2 * 10**9, 2**31, 2**29, 1500]
    assert [parse_rate(text) for text in ("900", "12.5img/s")] == [900.0, 12.5]
    for parse, texts in (
        (parse_milliseconds, ("8", "0ms", "-1ms", "soon", "8m", "nan")),
        (parse_bytes, ("2", "0GB", "-1GB", "2G", "much")),
        (parse_rate, ("0", "-1", "fast", "1e400")),
    ):
        for text in texts:
            with pytest.raises(UserError, match=f"{text!r} is not a"):
                parse(text)


def test_shares_and_durations() -> None:
    assert parse_share("5%") == 0.05
    assert parse_share("0.05") == 0.05
    assert parse_seconds("2h") == 7200
    assert parse_seconds("90s") == 90
    assert parse_seconds("1.5m") == 90
    for text in ("-5%", "100%", "five", "1.5", "nan"):
        with pytest.raises(UserError):
            parse_share(text)
    for text in ("0s", "-1h", "2", "soon", "9" * 400 + "d", "9999d"):
        with pytest.raises(UserError):
            parse_seconds(text)


def test_formats() -> None:
    assert format_count(4_540_244_736) == "4.54G"
    assert format_count(28_360_168) == "28.36M"
    assert format_count(12) == "12"
    assert format_seconds(3.2) == "3s"
    assert format_seconds(75) == "1m15s"
    assert format_seconds(4210) == "1h10m"
    assert format_bytes(1536 * 1024**2) == "1.50 GiB"


def _points(seed: int, count: int, objectives: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.round(rng.random((count, objectives)), 2 if seed % 2 else 6)  # rounded ones have ties


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_and_hypervolume_agree_with_moocore(objectives: int, seed: int) -> None:
    points = _points(seed, 30, objectives)
    ranks = front_ranks(points)
    assert (ranks == moocore.pareto_rank(points)).all()
    assert math.isclose(
        hypervolume(points, np.full(objectives, 1.1)), moocore.hypervolume(points, ref=[1.1] * objectives), rel_tol=1e-9
    )


@settings(derandomize=True, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25), st.randoms()
)
def test_ranks_do_not_depend_on_the_order(rows: list[tuple[int, int, int]], rng: random.Random) -> None:
    points = np.array(rows, dtype=float)
    order = list(range(len(rows)))
    rng.shuffle(order)
    assert (front_ranks(points)[order] == front_ranks(points[order])).all()
    for row, rank in zip(points, front_ranks(points), strict=True):
        assert (rank == 0) == (not any(dominates(other, row) for other in points))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_the_dominated_of_many_rows_are_those_of_moocore(width: int) -> None:
    """With ties and rows that repeat."""
    values = np.random.default_rng(0).integers(0, 40, (2_000, width)).astype(np.float64)
    assert (is_dominated(values) == ~moocore.is_nondominated(values, keep_weakly=True)).all()


def test_hypervolume_of_nothing_is_nothing() -> None:
    assert hypervolume(np.empty((0, 2)), np.array([1.0, 1.0])) == 0
    assert hypervolume(np.array([[2.0, 2.0]]), np.array([1.0, 1.0])) == 0
