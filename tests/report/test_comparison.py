"""The comparison of several runs: against moocore's hypervolume, dominance by brute force, SciPy's interval, and figures worked out by hand."""

import json
import random
import statistics
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner, Result
from support.made_runs import stored_page
from support.report_runs import PROXY_ID, fixed, trial, write_run

from archsearch.cli import main
from archsearch.report import run_document
from archsearch.results import Row, read_manifest, write_manifest

Report = Callable[..., Result]
SIGNS = {"proxy_score": -1.0, "throughput_img_s": -1.0, "params": 1.0}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """`archsearch report ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, width: int = 200) -> Result:
        return CliRunner().invoke(main, ["report", *arguments], env={"COLUMNS": str(width)})

    return run


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def shown(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def some_rows(seed: int, number: int = 40, start: int = 0) -> list[Row]:
    """Random trials whose arch_ids begin at `start`."""
    rng = random.Random(seed)
    rows = [
        trial(place, round(rng.random(), 2), round(rng.uniform(10, 60), 1), rng.randrange(10, 40) * 10**6)
        for place in range(number)
    ]
    return [{**row, "arch_id": f"{start + row['trial']:012x}"} for row in rows]


def values(rows: Sequence[Row], names: Sequence[str] = tuple(SIGNS)) -> np.ndarray[Any, Any]:
    return np.array([[SIGNS[name] * row[name] for name in names] for row in rows])


def dominates(one: Row, other: Row) -> bool:
    first, second = values([one, other])
    return bool((first <= second).all() and (first < second).any())


def front(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not any(dominates(other, row) for other in rows)]


def test_volumes_fronts_shares_and_coverage_are_those_of_slow_ways(tmp_path: Path, report: Report) -> None:
    rows = {"A": some_rows(1), "B": some_rows(2, start=100), "C": some_rows(3, 25, start=200)}
    for label, own in rows.items():
        write_run(tmp_path, [*own, trial(99, None, None, 1)], name=f"run-{label}")
    found = document(report("run-A", "run-B", "run-C", "--json"))
    everything = [(label, row) for label, own in rows.items() for row in own]
    points = values([row for _, row in everything])
    low, high = points.min(axis=0), points.max(axis=0)
    joint = {
        (label, row["trial"]) for label, row in everything if not any(dominates(other, row) for _, other in everything)
    }
    by_label = {run["label"]: run for run in found["runs"]}
    for label, own in rows.items():
        scaled = (values(front(own)) - low) / (high - low)
        assert by_label[label]["hypervolume"] == pytest.approx(moocore.hypervolume(scaled, ref=[1.1] * 3), rel=1e-12)
        assert by_label[label]["front"] == len(front(own))
        part = sum(owner == label for owner, _ in joint)
        assert by_label[label]["joint"] == {"members": part, "alone": part, "share": part / len(joint)}
        best = max(own, key=lambda row: row["proxy_score"])
        assert by_label[label]["best_score"]["value"] == best["proxy_score"]
        assert by_label[label]["best_speed"]["value"] == max(row["throughput_img_s"] for row in own)
    members = [(one["run"], one["trial"]) for member in found["joint_front"] for one in member["on_front"]]
    assert set(members) == joint
    assert len(members) == len(joint)
    scores = [member["proxy_score"] for member in found["joint_front"]]
    assert scores == sorted(scores, reverse=True)
    counted = {(each["by"], each["of"]): (each["dominated"], each["members"]) for each in found["coverage"]}
    assert counted == {
        (by, of): (
            sum(any(dominates(one, other) for one in rows[by]) for other in front(rows[of])),
            len(front(rows[of])),
        )
        for by, of in permutations(rows, 2)
    }
    assert found["hypervolume"]["bounds"]["params"] == {"min": low[2], "max": high[2]}
    assert "all these runs' complete trials" in shown(report("run-A", "run-B"))


def test_several_seeds_of_one_request_are_one_group_with_mean_and_spread(tmp_path: Path, report: Report) -> None:
    names: list[str] = []
    for sampler in ("random", "known-cost"):
        for seed in range(3):
            name = f"{sampler}-{seed}"
            rows = some_rows(seed + 10 * (sampler == "random"), start=1000 * len(names))
            write_run(tmp_path, rows, name=name, extra={"sampler": sampler, "seed": seed})
            names.append(name)
    found = document(report(*names, "--json"))
    volumes = {run["label"]: run["hypervolume"] for run in found["runs"]}
    one, other = found["groups"]
    assert (one["runs"], one["seeds"], one["differs"]) == (["A", "B", "C"], [0, 1, 2], {"sampler": "random"})
    samples = [[volumes[label] for label in group["runs"]] for group in (one, other)]
    for group, sample in zip((one, other), samples, strict=True):
        spread = {
            "n": 3,
            "mean": pytest.approx(statistics.fmean(sample)),
            "sd": pytest.approx(statistics.stdev(sample)),
        }
        assert group["hypervolume"] == spread
    (difference,) = found["group_differences"]
    oracle = scipy.stats.ttest_ind(samples[1], samples[0], equal_var=False)
    low, high = oracle.confidence_interval(0.95)
    assert (difference["low"], difference["high"]) == (pytest.approx(low), pytest.approx(high))
    assert difference["is_resolved"] == (oracle.pvalue < 0.05)
    text = shown(report(*names))
    assert "sampler known-cost" in text
    assert ("not resolved, so no order is claimed" in text) == (not difference["is_resolved"])


def test_a_space_is_the_same_whatever_its_comments_and_its_place(tmp_path: Path, report: Report) -> None:
    texts = ("width = [1, 2]\nname = 'x'\n", "# wider\nname = 'x'\nwidth = [1, 2]\n", "name = 'x'\nwidth = [2, 1]\n")
    for place, text in enumerate(texts):
        space = {"name": f"{place}/x.toml", "sha256": str(place) * 64}
        folder = write_run(tmp_path, some_rows(place), name=f"seed-{place}", extra={"seed": place, "space": space})
        (folder / "space.toml").write_text(text)
    found = document(report("seed-0", "seed-1", "seed-2", "--json"))
    assert [group["runs"] for group in found["groups"]] == [["A", "B"], ["C"]]
    names = [group["differs"]["space"] for group in found["groups"]]
    assert all(name.startswith("x.toml (digest ") for name in names)
    assert names[0] != names[1]


def test_runs_that_took_from_others_are_no_seeds_of_one_request(tmp_path: Path, report: Report) -> None:
    taken = {"run": "earlier", "folder": "results/earlier", "begun_at": "2026-01-01T00:00:00+00:00", "trials": 7}
    taken |= {"taken_at": "2026-01-02T00:00:00+00:00", "proxy_id": "p", "timings": 3, "scores": 2, "order": None}
    extras: list[dict[str, Any]] = [{}, {"taken_from": []}, {"taken_from": [taken]}]
    for seed, extra in enumerate(extras):
        write_run(tmp_path, some_rows(seed), name=f"seed-{seed}", extra={"seed": seed, **extra})
    found = document(report("seed-0", "seed-1", "seed-2", "--json"))
    assert [group["runs"] for group in found["groups"]] == [["A", "B"], ["C"]]
    (setting,) = (each for each in found["differences"] if each["setting"] == "from")
    assert setting["values"] == [
        {"value": None, "runs": ["A", "B"]},
        {"value": ["earlier of 2026-01-01T00:00:00+00:00"], "runs": ["C"]},
    ]


def test_single_runs_are_not_ordered_and_copies_and_repeated_seeds_are_said(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, some_rows(1), name="one")
    write_run(tmp_path, some_rows(2, start=100), name="two", extra={"sampler": "random"})
    assert "no order of these runs is claimed" in shown(report("one", "two"))
    write_run(tmp_path, some_rows(1), name="copy", extra={"study": "one"})
    text = shown(report("one", "copy", "two"))
    assert "A B: copies of one run" in text
    assert "A B: a seed is there more than once" in text
    assert document(report("one", "copy", "--json"))["copies"] == [["A", "B"]]


def test_runs_of_a_group_that_have_not_ended_are_named(tmp_path: Path, report: Report) -> None:
    for seed, state in enumerate(("complete", "interrupted")):
        write_run(tmp_path, some_rows(seed), name=state, state=state, extra={"seed": seed})
    assert "B: not complete; with more trials hypervolumes grow" in shown(report("complete", "interrupted"))


def test_scores_of_two_proxies_are_not_compared_and_the_rest_is(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, some_rows(1), name="one")
    other = PROXY_ID.replace("400steps", "50steps")
    rows = [{**row, "proxy_id": other} for row in some_rows(2, start=100)]
    write_run(tmp_path, rows, name="two", extra={"proxy_id": other})
    found = document(report("one", "two", "--json"))
    assert list(found["objectives"]) == ["throughput_img_s", "params"]
    assert found["not_compared"] == {"proxy_score": "the proxy_id differs: 400steps in A; 50steps in B"}
    assert all(
        one["proxy_score"] is None for each in found["measured_in_several"]["architectures"] for one in each["measured"]
    )
    scaled = values(some_rows(1) + rows, ["throughput_img_s", "params"])
    low, high = scaled.min(axis=0), scaled.max(axis=0)
    volume = moocore.hypervolume((scaled[:40] - low) / (high - low), ref=[1.1, 1.1])
    assert found["runs"][0]["hypervolume"] == pytest.approx(volume, rel=1e-12)
    text = shown(report("one", "two"))
    assert "best score" not in text
    assert "best img/s" in text
    assert "10.00M-39.00M" in text, "exact costs are shown"


def on(threads: int, **changes: Any) -> dict[str, Any]:
    return {"conditions": json.dumps({"threads": threads, "reference": "van_b0"}), **changes}


def test_speeds_of_other_conditions_are_not_compared_and_what_differs_is_said(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [row | on(1) for row in some_rows(1)], name="one")
    write_run(tmp_path, [row | on(2) for row in some_rows(2, start=100)], name="two")
    found = document(report("one", "two", "--json"))
    assert list(found["objectives"]) == ["proxy_score", "params"]
    assert found["not_compared"] == {"throughput_img_s": "B: threads 1 in A, 2 in B"}
    text = shown(report("one", "two"))
    assert "throughput_img_s is not compared: B: threads 1 in A, 2 in B." in text
    assert "best img/s" not in text


def test_ratios_of_runs_with_other_rates_of_the_reference_are_compared_at_one_rate(
    tmp_path: Path, report: Report
) -> None:
    def timed(number: int, ratio: float, rate: float, arch: int) -> Row:
        figures = {"throughput_ratio": ratio, "throughput_raw_img_s": 1.0, "latency_ms": 1000 / (rate * ratio)}
        return trial(number, 0.5, rate * ratio, 10 + number, arch_id=f"{arch:012x}", **on(1), **figures)

    # B's reference ran at 20 images/s where A's ran at 10: its figures are twice as large for the same ratios.
    write_run(tmp_path, [timed(0, 2.0, 10.0, 0), timed(1, 4.0, 10.0, 1)], name="one")
    write_run(tmp_path, [timed(0, 2.0, 20.0, 0), timed(1, 3.0, 20.0, 2)], name="two")
    found = document(report("one", "two", "--json"))
    assert found["reference_rates"] == {"A": 10.0, "B": 20.0}
    assert [run["best_speed"]["value"] for run in found["runs"]] == [40.0, 30.0]
    (shared,) = found["measured_in_several"]["architectures"]
    assert [one["throughput_img_s"] for one in shared["measured"]] == [20.0, 20.0]
    assert found["measured_in_several"]["speeds"]["largest"] == 0.0
    assert "at the rate that it had in A (10.0 img/s)" in shown(report("one", "two"))


def test_only_shared_objectives_are_compared(tmp_path: Path, report: Report) -> None:
    rows = [{**row, "latency_ms": 1.0} for row in some_rows(1)]
    write_run(tmp_path, rows, name="one", objectives=("params", "proxy_score"))
    write_run(tmp_path, rows, name="two", objectives=("latency_ms", "proxy_score"), extra={"study": "x"})
    write_run(tmp_path, rows, name="three", objectives=("latency_ms",), extra={"study": "y"})
    found = document(report("one", "two", "--json"))
    assert list(found["objectives"]) == ["proxy_score"]
    assert found["not_compared"] == {
        "params": "an objective of A only",
        "latency_ms": "an objective of B only",
    }
    found = document(report("one", "three", "--json"))
    assert (found["objectives"], found["joint_front"], found["coverage"]) == ({}, [], [])
    assert found["runs"][0]["costs"]["params"] == [
        min(row["params"] for row in rows),
        max(row["params"] for row in rows),
    ]
    assert "compared in nothing" in shown(report("one", "three"))


def test_fixed_trials_of_both_runs_stand_side_by_side_and_check_the_conditions(tmp_path: Path, report: Report) -> None:
    def paper_rows(score: float, speed: float) -> list[Row]:
        return [
            {**fixed(0, "davit_tiny", score, speed, 28_360_168), "arch_id": "d" * 12},
            {**fixed(1, "van_b2", 0.80, 15.0, 26_580_000), "arch_id": "e" * 12},
        ]

    taken = trial(2, 0.1, 99.0, 5, arch_id="f" * 12)
    write_run(tmp_path, [*paper_rows(0.70, 20.0), taken], name="one")
    again = {**taken, "throughput_img_s": 11.0, "taken_from": json.dumps({"proxy": "one:2"})}
    write_run(tmp_path, [*paper_rows(0.76, 21.0), again], name="two")
    shared = document(report("one", "two", "--json"))["measured_in_several"]
    assert [each["paper"] for each in shared["architectures"]] == ["davit_tiny", "van_b2", None]
    assert [one["proxy_score"] for one in shared["architectures"][0]["measured"]] == [0.70, 0.76]
    # 0.06 is 4 standard errors of a difference of two scores of 0.01; what was taken from the other run is no second measurement.
    assert shared["pairs"] == 2
    assert (shared["scores"]["largest"], shared["scores"]["beyond_noise"]) == (pytest.approx(0.06), 1)
    assert (shared["speeds"]["largest"], shared["speeds"]["beyond_drift"]) == (pytest.approx(1 - 20 / 21), 1)
    text = shown(report("one", "two"))
    assert "davit_tiny 0.700 0.760 20.0 21.0" in text


def test_an_architecture_of_both_runs_is_one_member_and_covers_nothing_of_itself(
    tmp_path: Path, report: Report
) -> None:
    write_run(tmp_path, [trial(0, 0.70, 20.0, 10), trial(1, 0.90, 30.0, 20)], name="one")
    write_run(tmp_path, [trial(0, 0.70, 20.5, 10)], name="two")
    found = document(report("one", "two", "--json"))
    assert [member["on_front"] for member in found["joint_front"]] == [
        [{"run": "A", "trial": 1}],
        [{"run": "B", "trial": 0}],
    ]
    assert [run["joint"]["alone"] for run in found["runs"]] == [1, 1]
    assert [each["dominated"] for each in found["coverage"]] == [0, 0]
    write_run(tmp_path, [trial(0, 0.70, 20.0, 10)], name="equal")
    found = document(report("one", "equal", "--json"))
    assert found["joint_front"][1]["on_front"] == [{"run": "A", "trial": 0}, {"run": "B", "trial": 0}]
    assert [(run["joint"]["members"], run["joint"]["alone"]) for run in found["runs"]] == [(2, 1), (1, 0)]


def test_what_noise_alone_may_have_decided_is_told_from_what_it_cannot(tmp_path: Path, report: Report) -> None:
    # Scores have a standard error of 0.01: 0.71 is no better than 0.70 beyond the noise, 0.80 is; speeds differ by half.
    write_run(tmp_path, [trial(0, 0.71, 30.0, 10), trial(1, 0.80, 30.0, 20)], name="better")
    rows = [trial(0, 0.70, 20.0, 10, arch_id="a" * 12), trial(1, 0.75, 20.0, 20, arch_id="b" * 12)]
    write_run(tmp_path, rows, name="worse")
    found = document(report("better", "worse", "--json"))
    over = next(each for each in found["coverage"] if each["by"] == "A")
    assert (over["members"], over["dominated"], over["beyond_noise"]) == (2, 2, 1)
    assert [member["unresolved_by"] for member in found["joint_front"]] == [[], []]
    write_run(tmp_path, [trial(0, 0.70, 30.5, 9, arch_id="c" * 12)], name="near")
    (_, member, _) = document(report("better", "near", "--json"))["joint_front"]
    assert member["unresolved_by"] == [{"run": "B", "trial": 0}]
    assert "0.710+-0.010?" in shown(report("better", "near"))


def test_a_run_that_is_named_by_a_dot_has_its_name(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = write_run(tmp_path, some_rows(1), name="one"), write_run(tmp_path, some_rows(2), name="two")
    monkeypatch.chdir(folder)
    assert [run["run"] for run in document(report(".", str(other), "--json"))["runs"]] == ["one", "two"]
    assert report(".", str(other), "--html", str(tmp_path / "both.html")).exit_code == 0
    assert [run["run"] for run in stored_page(tmp_path / "both.html")["comparison"]["runs"]] == ["one", "two"]
    assert run_document(Path())["run"] == "one"


def test_what_was_asked_otherwise_is_listed(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, some_rows(1), name="one")
    folder = write_run(tmp_path, some_rows(2, start=100), name="two", extra={"tolerance": 0.1, "seed": 3})
    manifest = read_manifest(folder)
    write_manifest({**manifest, "versions": {"torch": "2.13.0"}}, folder)
    found = {each["setting"]: each["values"] for each in document(report("one", "two", "--json"))["differences"]}
    assert found["tolerance"] == [{"value": 0.05, "runs": ["A"]}, {"value": 0.1, "runs": ["B"]}]
    assert set(found) == {"tolerance", "seed", "versions.torch", "versions.archsearch"}
    assert "tolerance 0.05 in A, 0.1 in B; seed 0 in A, 3 in B" in shown(report("one", "two"))


def test_runs_that_cannot_be_compared_are_one_sentence(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, some_rows(1), name="one")
    two = write_run(tmp_path, some_rows(2), name="two")
    for arguments, words in (
        (("one", "one"), "is given twice"),
        (("one", "two", "results/one"), "is given twice"),
        (("one", "tow"), "did you mean 'two'?"),
        (("one", "two", "--csv"), "--csv"),
    ):
        result = report(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    manifest = read_manifest(two)
    damages: list[dict[str, Any]] = [
        {"objectives": 3},
        {"settings": None},
        {"space": {}},
        {"papers": None},
        {"include": [1]},
    ]
    for damage in damages:
        write_manifest({**manifest, **damage}, two)
        result = report("one", "two")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), damage
        assert "results/two" in result.stderr
    write_manifest({**manifest, "versions": 3}, two)  # which the page reads, and the comparison does not
    result = report("one", "two", "--html")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: results/two: ")
    assert not (tmp_path / "comparison.html").exists()
    (two / "trials.parquet").unlink()
    assert "results/two/trials.parquet" in report("one", "two").stderr


def test_a_run_without_a_finished_trial_has_no_volume(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, some_rows(1), name="one")
    write_run(tmp_path, [trial(0, None, None, 10)], name="failed")
    write_run(tmp_path, [], name="none")
    found = document(report("one", "failed", "none", "--json"))
    assert found["not_compared"]["throughput_img_s"] == "B and C have no timing"
    assert [run["hypervolume"] is None for run in found["runs"]] == [False, True, True]
    assert [run["best_score"] is None for run in found["runs"]] == [False, True, True]
    shown(report("one", "failed", "none"))
    shown(report("failed", "none"))


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_word_is_broken_at_any_width(width: int, tmp_path: Path, report: Report) -> None:
    names = [f"hybrid-4.5G-{number}a2b3c" for number in range(3)]
    for number, name in enumerate(names):
        write_run(tmp_path, some_rows(number, start=100 * number), name=name, extra={"seed": number})
    result = report(*names, width=width)
    assert result.exit_code == 0
    for word in (*names, "hypervolume", "Coverage:"):
        assert word in result.stdout.split() or f"{word}," in result.stdout.split(), word
    assert max(map(len, result.stdout.splitlines())) <= width
