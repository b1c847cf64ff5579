"""Limits of a run: a candidate outside one is stopped before it is trained, and the front holds only what keeps all of them."""

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner
from support.runs import FIXED, make_config, make_rung_config, run
from support.stub_evaluators import fraction, measure, noted, written

from archsearch import results
from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.results import Limit
from archsearch.samplers import KnownCostSampler
from archsearch.search import RunConfig, open_run
from archsearch.search.same_run import default_name
from archsearch.search.study.restore import restore_run
from archsearch.space import paper

OBJECTIVES = ("proxy_score", "throughput_img_s")
LIMITS = {"latency_ms": [None, 3.0], "proxy_score": [0.5, None]}
NUMBER = 12


def records(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, null as None."""
    frame = results.read_trials(folder).astype(object)
    rows = frame.where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def report(folder: Path) -> str:
    """What `archsearch report` prints of a run, in one line."""
    found = CliRunner().invoke(main, ["report", str(folder)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return " ".join(found.output.split())


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a limit on the latency and one on the score."""
    root = tmp_path_factory.mktemp("limited")
    run(root / "run", make_config(root / "log", objectives=OBJECTIVES, limits=LIMITS), NUMBER)
    return root


def test_a_candidate_outside_is_stopped_before_its_training(limited: Path) -> None:
    rows = records(limited / "run")
    trained = {words[1] for words in noted(limited / "log") if words[0] == "end" and words[2] == "proxy"}
    states = {"complete": 0, "stopped": 0}
    for row in rows:
        latency = measure("throughput", json.loads(row["arch"]))["latency_ms"]
        is_outside = latency > 3.0
        assert row["state"] == ("stopped" if is_outside and not row["is_fixed"] else "complete")
        assert (written(row["arch"]) in trained) == (row["state"] == "complete")
        states[row["state"]] += 1
        if row["state"] == "stopped":
            assert row["reason"] == f"latency_ms is {latency:.4g} ms, --max-latency allows 3 ms"
            assert (row["proxy_score"], row["rung"], row["outside"]) == (None, 0, "latency_ms")
    assert min(states.values()) >= 3, "both occur"


def test_the_front_holds_only_what_keeps_all_limits(limited: Path) -> None:
    rows = records(limited / "run")
    inside = []
    for row in (row for row in rows if row["state"] == "complete"):
        arch = json.loads(row["arch"])
        latency, score = measure("throughput", arch)["latency_ms"], fraction(arch, "proxy")
        broken = [name for name, is_out in (("latency_ms", latency > 3.0), ("proxy_score", score < 0.5)) if is_out]
        assert row["outside"] == (",".join(broken) or None)
        inside += [] if broken else [(row["trial"], score, row["throughput_img_s"])]
    best = {
        trial
        for trial, *own in inside
        if not any(all(map(float.__le__, own, other)) for _, *other in inside if other != own)
    }
    front = results.read_front(limited / "run")
    assert set(front[front["front_name"] == "objectives"]["trial"]) == best
    assert not set(front["trial"]) - {trial for trial, *_ in inside}
    assert {row["trial"] for row in rows if row["front"] == 0} == best


def test_the_report_says_what_is_outside(limited: Path) -> None:
    rows, text = records(limited / "run"), report(limited / "run")
    assert "band 4.28G to 4.72G, latency_ms up to 3 ms, proxy_score from 0.5; of 14 trials" in text
    low = sum(row["outside"] is not None and row["state"] == "complete" and not row["is_fixed"] for row in rows)
    assert low, "a candidate below the least score"
    assert f"{low} complete candidate{'s are' if low > 1 else ' is'} outside a limit" in text
    assert "which saved" in text or "and limits that saved" in text


def test_constraints_are_in_the_study_for_any_sampler(limited: Path) -> None:
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{limited / 'run' / 'study.db'}")
    for trial, row in zip(study.trials, records(limited / "run"), strict=True):
        expected = {"latency_ms": math.log(row["latency_ms"] / 3.0)}
        if row["proxy_score"] is not None:
            expected["proxy_score"] = math.log(0.5 / row["proxy_score"])
        assert trial.constraints == pytest.approx(expected)


def test_a_limited_run_goes_on_and_is_restored(limited: Path, tmp_path: Path) -> None:
    before = records(limited / "run")
    config = make_config(limited / "log", objectives=OBJECTIVES, limits=LIMITS)
    run(limited / "run", config, NUMBER)  # nothing is left
    assert records(limited / "run") == before
    (limited / "run" / "study.db").unlink()
    assert set(restore_run(limited / "run").changed) <= {"other_cores"}
    with open_run(limited / "run", config) as store:
        assert [row["outside"] for row in store.rows()] == [row["outside"] for row in before]


def test_limits_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    plain = make_config(tmp_path / "log")
    limited = make_config(tmp_path / "log", limits=LIMITS)
    assert RunConfig.from_dict(json.loads(json.dumps(limited.to_dict()))) == limited
    assert default_name(limited, limited.space) != default_name(plain, plain.space)
    assert limited.differences(make_config(tmp_path / "log", limits={**LIMITS, "latency_ms": [None, 4.0]})) == [
        "limits.latency_ms was [None, 3.0], now [None, 4.0]"
    ]
    assert limited.options(plain) == "--max-latency 3ms --min proxy_score=0.5"


def test_rungs_follow_the_limits(tmp_path: Path) -> None:
    config = make_rung_config(tmp_path / "log", objectives=OBJECTIVES, limits={"throughput_img_s": [400.0, None]})
    run(tmp_path / "run", config, 10)
    rows = [row for row in records(tmp_path / "run") if not row["is_fixed"]]
    slow = [row for row in rows if row["throughput_img_s"] < 400]
    assert slow
    assert all((row["state"], row["rung"]) == ("stopped", 0) for row in slow)
    assert all(row["rung"] > 0 for row in rows if row not in slow)


def test_parameters_are_bounded_in_the_band(tmp_path: Path) -> None:
    limits = {"params": [20_000_000, 24_000_000]}
    run(tmp_path / "run", make_config(tmp_path / "log", limits=limits), 8)
    rows = records(tmp_path / "run")
    assert all(20_000_000 <= row["params"] <= 24_000_000 and row["in_band"] for row in rows if not row["is_fixed"])
    for name, row in zip(FIXED, rows, strict=False):
        params = paper(name).cost().params
        assert row["outside"] == (None if 20_000_000 <= params <= 24_000_000 else "params")
    assert [row["outside"] for row in rows[:2]] == ["params", "params"]
    assert not set(results.read_front(tmp_path / "run")["trial"]) & {0, 1}


def test_any_budget_draws_from_the_whole_space(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", budget_macs=None)
    run(tmp_path / "run", config, 8)
    macs = [row["macs"] for row in records(tmp_path / "run") if not row["is_fixed"]]
    assert max(macs) > 1.5 * min(macs)
    assert default_name(config, config.space).startswith("hybrid-any-")
    assert results.read_manifest(tmp_path / "run")["band"] is None
    assert "hybrid at any MACs; of 10 trials 10 complete" in report(tmp_path / "run")


@pytest.mark.parametrize("name", ["known-cost", "tpe", "nsga2", "gp"])
def test_every_sampler_goes_on_with_limits(name: str, tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", objectives=OBJECTIVES, limits=LIMITS, sampler=name, papers=())
    run(tmp_path / "run", config, 12, fixed={})
    assert len(records(tmp_path / "run")) == 12


def test_the_sampler_learns_what_keeps_a_constraint() -> None:
    """Half of the candidates break it, and the best ones by their objectives do: after a few trials nearly none is proposed."""
    table = [{"x": x, "y": y} for x in range(12) for y in range(12)]
    sampler = KnownCostSampler({1: lambda params: float(params["y"])}, table, seed=0, ordered={"x": True, "y": True})
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

    def broken(x: int) -> float:
        return (5.5 - x) / 5.5

    outside = []
    for _ in range(30):
        trial = study.ask()
        x, y = trial.suggest_categorical("x", list(range(12))), trial.suggest_categorical("y", list(range(12)))
        trial.set_constraint("limit", broken(x))
        outside.append(broken(x) > 0)
        if broken(x) > 0:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, (x + 0.1 * y, y))
    assert sum(outside[10:]) <= 6, (
        "those at the very limit: without a model of it nearly all are outside, at random a half"
    )
    best = min(trial.values[0] for trial in study.trials if trial.values)
    assert best <= 6.5


@pytest.mark.parametrize(
    ("limit", "value", "excess", "sentence"),
    [
        (Limit(column="latency_ms", high=8.0), 16.0, math.log(2), "latency_ms is 16 ms, --max-latency allows 8 ms"),
        (
            Limit(column="throughput_img_s", low=900.0),
            450.0,
            math.log(2),
            "throughput_img_s is 450 img/s, --min-throughput asks for 900 img/s",
        ),
        (
            Limit(column="peak_memory_bytes", high=2 * 2**30),
            3 * 2**30,
            math.log(1.5),
            "peak_memory_bytes is 3.00 GiB, --max-memory allows 2.00 GiB",
        ),
        (
            Limit(column="params", low=20e6, high=30e6),
            40e6,
            math.log(4 / 3),
            "params is 40.00M, --params allows 30.00M",
        ),
    ],
)
def test_a_limit_says_what_is_outside(limit: Limit, value: float, excess: float, sentence: str) -> None:
    assert limit.excess(value) == pytest.approx(excess)
    assert limit.explain(value) == sentence


def test_a_space_without_such_architectures_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", limits={"params": [1, 2]})
    with pytest.raises(UserError, match="no architecture has 1 to 2 parameters"):
        run(tmp_path / "run", config, 1)
