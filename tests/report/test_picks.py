"""The picks of a report, against rules applied by hand to small runs and by brute force to drawn ones."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.report_runs import SIX, fixed, trial, write_run

from archsearch.cli import main
from archsearch.metrics import TIE_SE
from archsearch.results import Row

Report = Callable[..., Result]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """`archsearch report ...` in a folder of its own, on a pipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["report", *arguments])

    return run


def picks_of(report: Report, *arguments: str) -> dict[str, dict[str, Any]]:
    """The picks of `report --json`, by name."""
    result = report("--json", *arguments)
    assert result.exit_code == 0, result.output
    return {pick["name"]: pick for pick in json.loads(result.stdout)["picks"]}


NAMES = ["best score", "fastest within one standard error", "smallest within one standard error", "knee"]


# Of SIX: 1 has the best score, .80 +- .01; 3 has .79 and is faster and smaller.
def test_the_default_picks_are_those_worked_out_by_hand(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, SIX)
    picks = picks_of(report)
    assert list(picks) == NAMES
    assert [pick["trial"] for pick in picks.values()] == [1, 3, 3, 3]
    best, fastest = picks["best score"], picks["fastest within one standard error"]
    assert "a paper's own model, van_b2" in best["sentence"]
    assert [item["paper"] for item in best["beats"]] == []  # davit_tiny is faster
    assert "a tie, by less than 2 standard errors, with 1 other trial (3)" in best["unresolved"][0]
    (beaten,) = fastest["beats"]
    assert beaten["paper"] == "davit_tiny"
    assert beaten["score_difference"] == pytest.approx(0.09)
    assert beaten["throughput_ratio"] == 1.25
    assert beaten["params_ratio"] == pytest.approx(25_000_000 / 28_360_168)
    assert (beaten["is_score_tie"], beaten["is_speed_tie"]) == (False, False)
    assert "It beats davit_tiny (score +0.090; 1.25 times the img/s; 0.88 times the parameters" in fastest["sentence"]
    assert all(pick["rule"].endswith(".") and pick["reason"] is None for pick in picks.values())


def drawn(rng: random.Random, number: int) -> list[Row]:
    """Rows whose figures are often equal, papers' models among them."""
    rows = []
    for place in range(number):
        score, speed, params = rng.randint(50, 70) / 100, float(rng.randint(10, 30)), 10**6 * rng.randint(10, 30)
        rows.append(
            fixed(place, f"paper{place}", score, speed, params) if place < 3 else trial(place, score, speed, params)
        )
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_picks_follow_their_rules_on_drawn_runs(tmp_path: Path, report: Report, seed: int) -> None:
    rows = drawn(random.Random(seed), 40)
    write_run(tmp_path, rows)
    picks = picks_of(report, "--pick", "score>=best-0.05, params<=20M; smallest", "--pick", "img/s>=best*0.8; best")
    best = max(row["proxy_score"] for row in rows)
    near = [row for row in rows if row["proxy_score"] >= best - 0.01]
    lean = [row for row in rows if row["proxy_score"] >= best - 0.05 and row["params"] <= 20_000_000]
    fast = [row for row in rows if row["throughput_img_s"] >= 0.8 * max(row["throughput_img_s"] for row in rows)]
    expected = [
        max(rows, key=lambda row: (row["proxy_score"], row["throughput_img_s"], -row["params"], -row["trial"])),
        max(near, key=lambda row: (row["throughput_img_s"], row["proxy_score"], -row["params"], -row["trial"])),
        min(near, key=lambda row: (row["params"], -row["proxy_score"], -row["throughput_img_s"], row["trial"])),
        min(
            lean,
            key=lambda row: (row["params"], -row["proxy_score"], -row["throughput_img_s"], row["trial"]),
            default=None,
        ),
        max(fast, key=lambda row: (row["proxy_score"], row["throughput_img_s"], -row["params"], -row["trial"])),
    ]
    found = [pick for name, pick in picks.items() if name != "knee"]
    assert [pick["trial"] for pick in found] == [row and row["trial"] for row in expected]
    for pick, row in zip(found, expected, strict=True):
        if row:
            assert {item["trial"] for item in pick["beats"]} == {each["trial"] for each in rows[:3] if beats(row, each)}


def beats(one: Row, other: Row) -> bool:
    pairs = [
        (one["proxy_score"], other["proxy_score"]),
        (one["throughput_img_s"], other["throughput_img_s"]),
        (-one["params"], -other["params"]),
    ]
    return all(mine >= theirs for mine, theirs in pairs) and any(mine > theirs for mine, theirs in pairs)


# A front over score and speed from (.70, 10) to (.60, 110): the line between is at .66 for 50 images/s.
def test_a_knee_stands_clear_of_the_line_by_more_than_noise(tmp_path: Path, report: Report) -> None:
    def knee(score: float, error: float) -> dict[str, Any]:
        ends = [trial(0, 0.70, 10.0, 10, proxy_score_se=error), trial(1, 0.60, 110.0, 10, proxy_score_se=error)]
        write_run(tmp_path, [*ends, trial(2, score, 50.0, 10, proxy_score_se=error)], name=f"{score}-{error}")
        return picks_of(report, f"{score}-{error}")["knee"]

    # By .035 of a range of .1, so .35 of it. Noise: 2 errors of it and of the line there, and 3 % of the speeds of 100 images/s.
    speeds = math.hypot(0.03 * 50, 0.95 * 0.03 * 10, 0.05 * 0.03 * 110) / 100
    largest = (0.35 - speeds) * 0.1 / TIE_SE / math.sqrt(1 + 0.6**2 + 0.4**2)
    assert knee(0.695, 0.99 * largest)["trial"] == 2
    unclear = knee(0.695, 1.01 * largest)
    assert unclear["trial"] is None
    assert unclear["reason"] in unclear["sentence"]
    assert "trial 2 by 0.35 of the range" in unclear["reason"]
    assert knee(0.62, 0.001)["reason"].startswith("no trial of the front over score and img/s lies above the line")


def test_a_front_of_two_has_no_knee(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [trial(0, 0.7, 10.0, 10), trial(1, 0.6, 20.0, 10)])
    assert picks_of(report)["knee"]["reason"] == "the front over score and img/s has 2 members, and a knee needs three"


def test_without_a_complete_trial_there_are_no_picks(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [trial(0, None, None, 10)], state="failed")
    assert picks_of(report, "--pick", "score>=0.5") == {}
    assert "Which one?" not in report().stdout


def test_runs_without_scores_or_speeds_or_with_one_objective(tmp_path: Path, report: Report) -> None:
    no_score = {"proxy_score": None, "proxy_score_se": None}
    rows = [trial(place, 0.5, 10.0 + place, 1000 + place, **no_score) for place in range(3)]
    write_run(tmp_path, rows, "unscored", ("throughput_img_s", "params"))
    picks = picks_of(report, "unscored", "--pick", "params<=1001", "--pick", "score>=0.5")
    assert [picks[name]["reason"] for name in NAMES[:3]] == ["this run has no proxy score"] * 3
    assert picks["params<=1001"]["trial"] == 1
    assert picks["score>=0.5"]["reason"] == "no complete trial has a figure for score"
    rows = [trial(place, 0.5 + place / 1000, None, 1000 + place) for place in range(3)]
    write_run(tmp_path, rows, "untimed", ("proxy_score", "params"))
    picks = picks_of(report, "untimed", "--pick", "params<=1001")
    assert picks["fastest within one standard error"]["reason"] == "none of these trials was timed"
    assert picks["smallest within one standard error"]["trial"] == 0
    assert picks["params<=1001"]["trial"] == 1, "the best score, where nothing was timed"
    write_run(tmp_path, [trial(0, 0.5, 10.0, 10), trial(1, 0.5, 10.0, 9)], "single", ("proxy_score",))
    picks = picks_of(report, "single")
    assert (picks["best score"]["trial"], picks["knee"]["reason"]) == (1, "this run has one objective")
    assert "Which one?" in report("single").stdout


def test_a_noisy_speed_and_others_as_fast_are_not_called_resolved(tmp_path: Path, report: Report) -> None:
    rows = [
        trial(0, 0.80, 20.0, 10, throughput_noisy=True),
        trial(1, 0.795, 19.8, 9),
        trial(2, 0.795, 10.0, 8),
    ]
    write_run(tmp_path, rows)
    fastest = picks_of(report)["fastest within one standard error"]
    assert fastest["trial"] == 0
    assert "1 other that was to choose from (1) is as fast within noise" in fastest["unresolved"]
    assert "its speed is noisy" in fastest["unresolved"]
    assert "within noise it may be dominated by 1 trial (1)" in fastest["unresolved"]


def test_a_trial_exactly_on_a_bound_keeps_it(tmp_path: Path, report: Report) -> None:
    """.8 - .1 is more than .7 to a computer."""
    write_run(tmp_path, [trial(0, 0.8, 10.0, 30), trial(1, 0.7, 20.0, 20), trial(2, 0.6, 30.0, 10)])
    for text, expected in (("score>=best-0.1", 1), ("score>best-0.1", 0), ("score<=best-0.1; best", 1)):
        assert picks_of(report, "--pick", text)[text]["trial"] == expected
    assert picks_of(report, "--pick", "score<best-0.1; best")["score<best-0.1; best"]["trial"] == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "The run has no fixed trial to compare it with."),
        (("van_b2",), "It beats no paper's model in "),
        (("timm:resnet18",), "It beats no included network in "),
        (("timm:resnet18", "van_b2"), "It beats no paper's model or included network in "),
    ],
)
def test_what_a_pick_is_compared_with_is_called_what_it_is(
    tmp_path: Path, report: Report, names: tuple[str, ...], words: str
) -> None:
    rows = [fixed(number, name, 0.5, 90.0, 5) for number, name in enumerate(names)]
    write_run(tmp_path, [*rows, trial(8, 0.9, 10.0, 30)])
    assert words in picks_of(report)["best score"]["sentence"]


def test_a_trial_outside_the_limits_is_no_pick(tmp_path: Path, report: Report) -> None:
    outside = {"outside": "params"}
    rows = [trial(0, 0.9, 20.0, 10**8, **outside), trial(1, 0.7, 10.0, 10), trial(2, 0.6, 12.0, 9)]
    write_run(tmp_path, rows, extra={"limits": {"params": [None, 10**7]}})
    assert picks_of(report)["best score"]["trial"] == 1


def test_the_report_and_the_text_begin_with_the_picks(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, SIX)
    text = " ".join(report("--pick", "score>=0.5").stdout.split())
    order = [
        "Run one",
        "Which one?",
        "- Best score: trial 1",
        "Front of 3",
        "Fixed trials",
        "Hypervolume",
        "measured on cpu",
    ]
    assert sorted(order, key=text.index) == order
    assert "- Smallest within one standard error: trial 3 again." in text
    assert "- score>=0.5: trial 2," in text
    assert (
        "The fastest of the complete trials with score>=0.5."
        in json.loads(report("--json", "--pick", "score>=0.5").stdout)["picks"][-1]["rule"]
    )


BAD = {
    "": "got nothing",
    "foo": "'foo' is no condition",
    "scor>=1": "did you mean 'score'?",
    "score>=x": "'x' is no number",
    "score>=.5,": "'' is no condition",
    "params<=25": "did you mean 25M?",
    "macs>=best-1se": "only a score has a standard error",
    "score>=.5; fast": "did you mean 'fastest'?",
    "score>=.5;": "one of fastest, smallest, best",
    "latency<=8": "us, ms or s",
    "memory<=2": "MB, GB",
    "score>=best*0": "write a positive factor",
    "score>=nan": "is no number",
    "score>=1e400": "is no number",
    "__import__('os')>=1": "is no condition",
    "params<=" + "9" * 5000: "not a number of parameters",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_expressions_are_one_sentence(tmp_path: Path, report: Report, text: str) -> None:
    write_run(tmp_path, SIX)
    result = report("--pick", text)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: --pick: ")
    assert BAD[text] in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score>=best", 1),
        ("score>=best-1se", 3),
        ("score >= best - 2 se ; fastest", 3),
        ("params<=25M", 2),
        ("params<=best*1.3; best", 3),
        ("macs<=4.6G; smallest", 2),
        ("throughput>25 img/s", 2),
        ("img/s>=25, score>=0.7", 3),
        ("params < best + 1M", 2),
        ("; smallest", 2),
    ],
)
def test_expressions_pick_what_they_say(tmp_path: Path, report: Report, text: str, expected: int) -> None:
    write_run(tmp_path, SIX)
    assert picks_of(report, "--pick", text)[" ".join(text.split())]["trial"] == expected
