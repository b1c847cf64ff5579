"""Several workers in one run: as many trials at once, each with its own events, and the same trials in the end."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.runs import (
    RecordingListener,
    fixed_archs,
    is_running,
    make_config,
    make_pool,
    make_rung_config,
    run,
    start,
    wait_until,
)
from support.stub_evaluators import noted

from archsearch import results


def spans(log: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """Lines of the log at which each phase of each architecture began and ended."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for place, words in enumerate(noted(log)):
        begin = found.get((words[1], words[2]), (place, place))[0]
        found[words[1], words[2]] = (begin, place)
    return found


def test_as_many_trials_are_under_way_as_there_are_workers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"phase_s": 0.4}
    pool = make_pool(tmp_path)
    listener = run(tmp_path / "run", make_config(tmp_path / "log", settings=settings), 7, worker=pool)
    frame = results.read_trials(tmp_path / "run")
    assert frame["state"].tolist() == ["complete"] * 9
    assert frame["arch_id"].is_unique
    assert {event["worker"] for event in listener.events} == {"cpu 0", "cpu 1", "cpu 2"}
    assert max(tally.under_way for tally in listener.tallies) == 2, "the two others, when one ends"
    assert listener.tallies[-1].workers == 3
    lines = list(spans(tmp_path / "log").values())
    assert max(sum(a <= at <= b for a, b in lines) for at in range(len(lines))) == 3
    assert len(noted(tmp_path / "log")) == 2 * 3 * 9


def test_one_worker_of_a_pool_gives_the_run_of_a_worker_alone(tmp_path: Path) -> None:
    for name, worker in (("alone", None), ("pool", make_pool(tmp_path, 1))):
        run(tmp_path / name, make_config(tmp_path / f"{name}.log", sampler="known-cost"), 4, worker=worker)
    first, second = (results.read_trials(tmp_path / name)["arch_id"].tolist() for name in ("alone", "pool"))
    assert first == second


def test_equal_architectures_wait_for_each_other(tmp_path: Path) -> None:
    arch = fixed_archs()["van_b2"]
    fixed = {"one": arch, "two": arch, "three": arch}
    config = make_config(tmp_path / "log", settings={"phase_s": 0.1})
    run(tmp_path / "run", config, 0, fixed=fixed, worker=make_pool(tmp_path))
    rows = results.read_rows(tmp_path / "run")
    assert [row["reused_from"] for row in rows] == [None, 0, 0]
    assert len(noted(tmp_path / "log")) == 6


def test_rungs_second_timings_and_seeds_on_three_workers(tmp_path: Path) -> None:
    config = make_rung_config(tmp_path / "log", settings={"phase_s": 0.02})
    listener = run(
        tmp_path / "run", config, 8, worker=make_pool(tmp_path), recheck=True, num_seeds=3, listener=RecordingListener()
    )
    rows = results.read_rows(tmp_path / "run")
    front = [row for row in rows if row["front"] == 0]
    assert [row["proxy_seeds"] for row in front] == [3] * len(front)
    assert None not in [row["throughput_again_img_s"] for row in front]
    assert sorted(place for _, place, _, _ in listener.seeds) == list(range(1, 2 * len(front) + 1))
    assert listener.state == "complete"
    # The training goes on where its beginning is in memory.
    pids: dict[str, set[str]] = {}
    for words in noted(tmp_path / "log"):
        if words[0] == "start" and not words[2].startswith(("seed", "again")):
            pids.setdefault(words[1], set()).add(words[3])
    assert all(len(each) == 1 for each in pids.values())


@pytest.mark.parametrize("evaluator", ["evaluate", "misbehave"])
def test_a_trial_that_is_ended_fails_with_the_reason(tmp_path: Path, evaluator: str) -> None:
    class Ending(RecordingListener):
        def progress(self, event: Any) -> None:
            super().progress(event)
            if event["trial"] == 1 and event["phase"] == "throughput":
                pool.end(1, "no progress for 10 min")

    pool = make_pool(tmp_path, 2, evaluator)
    settings = {"phase_s": 0.3, "behaviours": []}
    run(tmp_path / "run", make_config(tmp_path / "log", settings=settings), 1, worker=pool, listener=Ending())
    rows = results.read_rows(tmp_path / "run")
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert rows[1]["reason"] == "no progress for 10 min"
    assert rows[1]["macs_fvcore"] == 1, "the phase before is kept"


def test_a_stuck_phase_is_ended_and_the_trials_of_the_other_worker_go_on(tmp_path: Path) -> None:
    settings = {"behaviours": ["well", "well", "hang"]}
    pool = make_pool(tmp_path, 2, "misbehave")
    config = make_config(tmp_path / "log", settings=settings)
    listener = run(tmp_path / "run", config, 6, worker=pool, stall_s=3.0)
    rows = results.read_rows(tmp_path / "run")
    (stuck,) = [row for row in rows if row["state"] != "complete"]
    assert (stuck["state"], stuck["macs_fvcore"]) == ("failed", 1)
    assert stuck["reason"] == "throughput: no progress for 3s, ended (--stall)"
    assert len(rows) == 8
    assert listener.finished_rows[-1]["trial"] == stuck["trial"], "all others were evaluated meanwhile"


@pytest.mark.slow
def test_a_stuck_second_timing_is_ended_and_tried_again_by_the_next_run(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", settings={"behaviours": ["well", "well", "hang"]})
    listener = run(tmp_path / "run", config, 0, worker=make_pool(tmp_path, 2, "misbehave"), recheck=True, stall_s=3.0)
    reasons = [reason for *_, reason in listener.again if reason is not None]
    assert set(reasons) == {"throughput: no progress for 3s, ended (--stall)"}, "of one, or of both that began at once"
    assert listener.state == "complete"
    assert [row["state"] for row in results.read_rows(tmp_path / "run")] == ["complete"] * 2, (
        "the figures before are kept"
    )
    run(tmp_path / "run", config, 0, worker=make_pool(tmp_path, 2, "misbehave"), recheck=True)
    front = [row for row in results.read_rows(tmp_path / "run") if row["front"] == 0]
    assert None not in [row["throughput_again_img_s"] for row in front]


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_ctrl_c_and_sigterm_stop_all_workers_and_lose_no_finished_phase(
    tmp_path: Path, number: signal.Signals, times: int
) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    driver = start(folder, log, 50, 0.1, "workers=2")
    wait_until(
        lambda: len(noted(log)) >= 16 and len({words[3] for words in noted(log) if words[0] == "start"}) == 2,
        seconds=120,
    )
    for _ in range(times):
        os.killpg(driver.pid, number)
    output, _ = driver.communicate(timeout=20)
    assert (driver.returncode, output) == (0, "interrupted\n")
    lines = noted(log)
    workers = {int(words[3]) for words in lines if words[0] == "start"}
    assert len(workers) == 2
    assert not any(map(is_running, workers))
    rows = results.read_rows(folder)
    columns = ("macs_fvcore", "throughput_img_s", "proxy_score")
    stored = sum(row[name] is not None for row in rows for name in columns)
    ended = sum(words[0] == "end" for words in lines)
    assert ended - 2 <= stored <= ended, "each worker may be between its phase's end and the news of it"
    assert results.read_manifest(folder)["state"] == "interrupted"
