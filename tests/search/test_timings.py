"""A run on more than one machine, and figures as timed and as ranked; evaluated in this process, on machines that a file describes."""

import json
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import moocore
import numpy as np
import optuna
import pandas as pd
import pytest
from support.runs import InProcessWorker, RecordingListener, make_config, make_rung_config, run
from support.stub_evaluators import REFERENCE, arch_id, fraction, not_compiled, noted, on_machine

from archsearch import results
from archsearch.identity import RAW_FIGURE, identity_digest, ratio_figure, row_identity, throughput_identity
from archsearch.report import build_report
from archsearch.report.repeatability import not_compiled_sentence
from archsearch.search import RunConfig, open_run, restore_run
from archsearch.search.run import RankedPredictor, other_timings_sentence, raw_sentence
from archsearch.space import Arch, paper
from archsearch.throughput import Calibration

A, B = ({"device_name": name, "threads": 1, "torch": "2.11.0", "reference": "van_b0"} for name in ("Abacus", "Bead"))


def on(machine: dict[str, Any], folder: Path, config: RunConfig, trials: int, **options: Any) -> RecordingListener:
    """Go on with the run on a machine of these conditions."""
    known = {name: options.pop(name) for name in ("speed", "load", "salt", "noisy") if name in options}
    Path(config.settings["log"]).with_name("machine.json").write_text(json.dumps({"conditions": machine, **known}))
    return run(folder, config, trials, worker=InProcessWorker(on_machine), here=machine, **options)


def front_of(frame: pd.DataFrame) -> set[int]:
    """The trials that no other of these dominates, by another library."""
    values = frame[["proxy_score", "throughput_img_s", "params"]].to_numpy(float) * [-1, -1, 1]
    return set(frame["trial"][moocore.is_nondominated(values, keep_weakly=True)])


def fronts(folder: Path) -> tuple[set[int], set[int], set[int]]:
    """The run's front in trials.parquet, in front.parquet and in the report."""
    trials, front = results.read_trials(folder), results.read_front(folder)
    return (
        set(trials.loc[trials["front"] == 0, "trial"]),
        set(front.loc[front["front_name"] == "objectives", "trial"]),
        {row["trial"] for row in build_report(folder)["front"]},
    )


def told(folder: Path) -> list[list[float]]:
    """The values that Optuna holds."""
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.values for trial in study.trials]


def test_trials_of_another_machine_are_not_ranked_with_those_of_this_one(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log")
    on(A, folder, config, 4)
    first = results.read_trials(folder)
    assert fronts(folder) == (front_of(first),) * 3
    on(B, folder, config, 8, speed=100.0, salt="other")
    both = results.read_trials(folder)
    new = both.iloc[len(first) :]
    assert both.iloc[: len(first)].drop(columns="front").equals(first.drop(columns="front"))
    assert both["throughput_id"].nunique() == 2
    assert fronts(folder) == (front_of(new),) * 3
    assert results.read_manifest(folder)["conditions"]["device_name"] == "Bead"
    assert set(results.read_manifest(folder)) >= {"throughput_id"}
    speeds = results.read_front(folder).query("front_name == 'proxy_score/throughput_img_s'")
    assert set(speeds["trial"]) <= set(new["trial"])
    report = build_report(folder)
    (other,) = report["left_out"]
    assert (other["trials"], other["differences"]) == (len(first), "device Abacus there, Bead here")
    assert report["hypervolume"]["trials"] == len(new)
    assert report["fixed"] == []
    assert on(A, folder, config, 8).started == []
    assert fronts(folder) == (front_of(first),) * 3
    on(A, folder, config, 9)
    old = results.read_trials(folder).query("throughput_id == @first.throughput_id[0]")
    assert len(old) == len(first) + 1
    assert fronts(folder) == (front_of(old),) * 3


@pytest.mark.slow
def test_kept_trials_timed_anew_are_ranked_with_the_others_and_nothing_is_lost(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log")
    on(A, folder, config, 4, recheck=True)
    first, values = results.read_trials(folder), told(folder)
    listener = on(B, folder, config, 6, remeasure=True, speed=3.0, salt="other", recheck=True)
    assert listener.remeasured == [(trial, trial + 1, 6, None) for trial in range(6)]
    both = results.read_trials(folder)
    assert both["throughput_id"].nunique() == 1
    archs = [json.loads(text) for text in both["arch"]]
    ratios = np.array([(100 + 900 * fraction(arch, "other")) / REFERENCE for arch in archs])
    assert both["throughput_ratio"].tolist() == ratios.tolist()
    assert fronts(folder) == (front_of(both),) * 3
    assert both.loc[both["front"] == 0, "throughput_again_img_s"].notna().all()
    assert build_report(folder)["left_out"] == []
    assert told(folder)[: len(first)] == values, "what was told to the sampler stays stored"
    unchanged = ["throughput_img_s", "throughput_again_img_s", "throughput_id", "conditions", "proxy_score"]
    on(A, folder, config, 7)
    back = results.read_trials(folder)
    assert back.iloc[: len(first)][unchanged].equals(first[unchanged])
    assert on(B, folder, config, 7, remeasure=True, salt="other").remeasured == [(8, 1, 1, None)]


@pytest.mark.slow
def test_noisy_trials_are_timed_anew_until_they_are_quiet(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log")
    on(A, folder, config, 2, noisy=True)
    assert build_report(folder)["noisy"] == {"trials": 4, "timed": 4}
    assert len(on(A, folder, config, 2, noisy=True, remeasure=True).remeasured) == 4
    assert len(on(A, folder, config, 2, remeasure=True).remeasured) == 4
    assert on(A, folder, config, 2, remeasure=True).remeasured == []
    assert not results.read_trials(folder)["throughput_noisy"].any()
    assert build_report(folder)["noisy"] is None


@pytest.mark.slow
def test_on_a_busy_machine_the_order_is_that_of_the_ratios(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log")
    on(A, folder, config, 6, load=10.0)
    on(A, folder, config, 12, load=10.0, recheck=True)
    frame = results.read_trials(folder)
    rate = frame["throughput_raw_img_s"][0] / frame["throughput_ratio"][0]
    assert np.allclose(frame["throughput_img_s"], frame["throughput_ratio"] * rate, rtol=1e-12)
    assert np.allclose(frame["latency_ms"], 1000 / frame["throughput_img_s"], rtol=1e-12)
    assert frame["throughput_raw_img_s"].rank().tolist() != frame["throughput_ratio"].rank().tolist()
    assert frame["throughput_img_s"].rank().tolist() == frame["throughput_ratio"].rank().tolist()
    assert fronts(folder) == (front_of(frame),) * 3
    again = frame.dropna(subset="throughput_again_img_s")
    assert np.allclose(again["throughput_again_img_s"], again["throughput_img_s"], rtol=1e-12)
    assert not np.allclose(again["throughput_again_raw_img_s"], again["throughput_raw_img_s"], rtol=0.01)
    assert build_report(folder)["again"]["tau"] == 1.0


def _as_an_earlier_version_left_it(folder: Path) -> None:
    """Timings with images/s as timed alone, a second one without its identity in the key, and no rate."""
    with sqlite3.connect(folder / "study.db") as database:
        for kind in ("trial", "study"):
            table, number = f"{kind}_system_attributes", f"{kind}_system_attribute_id"
            for row, key, text in database.execute(f"select {number}, key, value_json from {table}").fetchall():
                values = json.loads(text)
                if key.startswith("archsearch:reference:"):
                    database.execute(f"delete from {table} where {number} = ?", (row,))
                elif key == "archsearch:phase:throughput":
                    values["throughput_img_s"] = values.pop("throughput_raw_img_s")
                elif key.startswith("archsearch:again:"):
                    values["throughput_again_img_s"] = values.pop("throughput_again_raw_img_s")
                    key = key.rpartition(":")[0]
                changed = (key, json.dumps(values), row)
                database.execute(f"update {table} set key = ?, value_json = ? where {number} = ?", changed)


def test_a_run_of_an_earlier_version_keeps_its_figures_until_it_is_timed_anew(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log")
    on(A, folder, config, 3, load=10.0, recheck=True)
    raw = results.read_trials(folder)["throughput_raw_img_s"].tolist()
    _as_an_earlier_version_left_it(folder)
    on(A, folder, config, 6, load=10.0)
    frame = results.read_trials(folder)
    assert frame["throughput_img_s"].tolist()[: len(raw)] == raw
    assert frame["throughput_raw_img_s"].isna().all(), "all of it is ranked as it was told"
    assert frame["throughput_id"].nunique() == 1
    assert fronts(folder) == (front_of(frame),) * 3
    assert frame["throughput_again_img_s"].notna().any()
    assert len(on(A, folder, config, 6, remeasure=True).remeasured) == len(frame)
    anew = results.read_trials(folder)
    assert anew["throughput_img_s"].rank().tolist() == anew["throughput_ratio"].rank().tolist()
    assert anew["throughput_raw_img_s"].notna().all()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["known-cost", "tpe"])
def test_the_sampler_sees_no_speed_of_another_machine(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log", sampler=sampler)
    on(A, folder, config, 3)
    with open_run(folder, config) as store:
        store.measure_here(B)
        seen: list[optuna.Study] = []
        propose = store._sampler.propose

        def watched(study: optuna.Study, number: int) -> object:
            seen.append(study)
            return propose(study, number)

        monkeypatch.setattr(store._sampler, "propose", watched)
        assert store.propose() is not None
    hidden = seen[0].get_trials(deepcopy=False)
    assert [trial.values for trial in hidden] == [None] * 5
    rows = results.read_trials(folder)
    scores = [{"0": score, "2": params} for score, params in zip(rows["proxy_score"], rows["params"], strict=True)]
    if sampler == "known-cost":
        assert [trial.user_attrs["measured"] for trial in hidden] == scores, "its scores still count"
    assert seen[0].get_trials(states=[optuna.trial.TrialState.COMPLETE]) == []
    assert all(values is not None for values in told(folder))


@pytest.mark.slow
def test_no_trial_is_stopped_by_one_of_another_machine(tmp_path: Path) -> None:
    objectives = ("proxy_score", "throughput_img_s")
    folder, config = tmp_path / "run", make_rung_config(tmp_path / "log", objectives=objectives)
    on(A, folder, config, 12, speed=100.0)
    before = len(results.read_trials(folder))
    on(B, folder, config, 30)
    reasons = results.read_trials(folder)["reason"].iloc[before:].dropna()
    stopped_by = [int(found[1]) for reason in reasons if (found := re.search(r": trial (\d+) ", reason))]
    assert stopped_by
    assert min(stopped_by) >= before


@pytest.mark.slow
def test_a_trial_that_was_timed_elsewhere_when_it_was_interrupted_is_timed_here(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log", papers=())
    on(A, folder, config, 1)
    with open_run(folder, config) as store:
        proposal = store.propose()
        assert proposal
        number = store.start(proposal)["trial"]
        values = {"throughput_img_s": 5.0, "throughput_ratio": 0.5, "conditions": A}
        store.record_phase(number, "throughput", values)
    on(B, folder, config, 2, salt="other")
    row = results.read_rows(folder)[number]
    assert row["throughput_ratio"] == (100 + 900 * fraction(json.loads(row["arch"]), "other")) / REFERENCE
    on(A, folder, config, 3)
    assert results.read_rows(folder)[number]["throughput_ratio"] == 0.5


def test_what_cannot_be_ranked_is_said_in_a_sentence_with_the_two_ways_on() -> None:
    settings = {"device": "cpu", "dtype": "float32", "mode": "eager", "batch_size": 2, "image_size": 224}
    row = {**settings, "state": "complete", "throughput_raw_img_s": 20.0, "torch_version": "2.11.0"}
    then = {**row, "conditions": json.dumps({**A, "threads": 7})}
    then["throughput_id"] = identity_digest(row_identity(then))
    here = throughput_identity(settings, A, ratio_figure("van_b0"))
    sentence = other_timings_sentence(
        Path("run"), [then, {**then, "state": "failed"}], here, "archsearch run --remeasure"
    )
    assert sentence
    for words in ("1 of its 1", "(threads 7 then, 1 now)", "`archsearch run --remeasure`", "another --output"):
        assert words in sentence
    same = {**row, "conditions": json.dumps(A), "throughput_id": identity_digest(here)}
    assert other_timings_sentence(Path("run"), [same], here, "") is None
    assert raw_sentence(here, "") is None
    assert "images/s as timed" in (raw_sentence({**here, "figure": RAW_FIGURE}, "") or "")


class _Calibration:
    """Predicts 40 images/s where the reference does 100."""

    source: Mapping[str, Any] = {}
    reference_img_s = 100.0

    def predict(self, arch: Arch) -> float | None:
        return 40.0


def test_predictions_are_told_at_the_rate_of_the_reference_that_the_run_ranks_by(tmp_path: Path) -> None:
    predictor = RankedPredictor(cast(Calibration, _Calibration()))
    assert predictor.predict(paper("van_b0")) == 40.0
    predictor.use_rate(50.0)  # a run that fixed its rate on a busy machine
    assert predictor.predict(paper("van_b0")) == 20.0
    folder, config = tmp_path / "run", make_config(tmp_path / "log", papers=())
    with open_run(folder, config) as store:
        store.measure_here(A, usual_rate=predictor.reference_img_s)
        proposal = store.propose()
        assert proposal
        number = store.start(proposal)["trial"]
        store.record_phase(number, "throughput", {"throughput_img_s": 7.0, "throughput_ratio": 0.4, "conditions": A})
        assert store.rows()[number]["throughput_img_s"] == 40.0, "a new run takes the calibration's rate"


@pytest.mark.slow
def test_without_a_timed_objective_all_trials_are_ranked_together(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", make_config(tmp_path / "log", objectives=("proxy_score", "params"))
    on(A, folder, config, 3)
    on(B, folder, config, 6)
    frame = results.read_trials(folder)
    values = frame[["proxy_score", "params"]].to_numpy(float) * [-1, 1]
    assert set(frame.loc[frame["front"] == 0, "trial"]) == set(
        frame["trial"][moocore.is_nondominated(values, keep_weakly=True)]
    )
    assert build_report(folder)["left_out"] == []


def test_networks_that_do_not_compile_are_ranked_among_themselves(tmp_path: Path) -> None:
    """They are timed eager and marked; the run's identity stays that of compiled ones, nothing of them is measured twice, and none is left out."""
    folder, config = tmp_path / "run", make_rung_config(tmp_path / "log", settings={"mode": "compile"})
    eager = arch_id(paper("van_b2").to_dict())
    machine = {"conditions": A, "eager": [eager]}
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    for trials in (4, 6):
        run(folder, config, trials, worker=InProcessWorker(not_compiled), here=A, recheck=True)
    frame, report = results.read_trials(folder), build_report(folder)
    assert frame["mode"].tolist() == ["eager"] + ["compile"] * 7
    assert frame["throughput_id"].nunique() == 2
    compiled = frame[(frame["mode"] == "compile") & (frame["state"] == "complete")]
    assert fronts(folder) == (front_of(compiled),) * 3
    assert report["throughput_id"] == compiled["throughput_id"].iloc[0]
    assert (report["left_out"], [each["trial"] for each in report["not_compiled"]]) == ([], [0])
    assert "do not compile: trial 0 (the first because: " in not_compiled_sentence(report["not_compiled"])
    assert report["not_compiled"][0]["reason"].endswith("cannot be compiled: no such op")
    rows = results.read_rows(folder)
    assert other_timings_sentence(folder, rows, row_identity(rows[1]), "again") is None
    starts = [words[1:3] for words in noted(tmp_path / "log") if words[0] == "start"]
    assert starts.count([eager, "throughput"]) == 1
    # Where no objective is of a device, all are ranked together.
    assert len(results.ranked(rows, ["proxy_score", "params"])) == len(rows)
    with open_run(folder, config) as store:
        store.measure_here(A, remeasure=True)
        assert 0 not in [row["trial"] for row in store.left_to_remeasure()]
    (folder / "study.db").unlink()
    assert restore_run(folder).changed == ()


def test_a_worker_that_compiles_hears_what_comes_next(tmp_path: Path) -> None:
    """The fixed models that are left and, on a GPU, the sampler's next candidate; nothing in a run that times eager networks."""
    ids = [arch_id(paper(name).to_dict()) for name in ("van_b2", "davit_tiny")]
    (tmp_path / "machine.json").write_text(json.dumps({"conditions": A, "eager": []}))
    for mode, ahead in {"compile": [[ids[1]], [], []], "eager": [[], [], []]}.items():
        config = make_config(tmp_path / f"log-{mode}", settings={"mode": mode})
        run(tmp_path / mode, config, 1, worker=InProcessWorker(not_compiled), here=A)
        assert heard_ahead(tmp_path / f"log-{mode}") == ahead
    on_gpu = {**A, "device_name": "a GPU"}
    (tmp_path / "machine.json").write_text(json.dumps({"conditions": on_gpu, "eager": []}))
    config = make_config(tmp_path / "log-gpu", settings={"mode": "compile", "device": "cuda"})
    for trials in (2, 3):
        run(tmp_path / "gpu", config, trials, worker=InProcessWorker(not_compiled), here=on_gpu)
    evaluated = [arch_id(json.loads(arch)) for arch in results.read_trials(tmp_path / "gpu")["arch"]]
    assert len(set(evaluated)) == 2 + 3
    # Each before its turn, and none behind the last that was asked for.
    assert heard_ahead(tmp_path / "log-gpu") == [evaluated[1:2], evaluated[2:3], evaluated[3:4], [], []]


def heard_ahead(log: Path) -> list[list[str]]:
    return [words[2:] for words in noted(log) if words[0] == "ahead"]
