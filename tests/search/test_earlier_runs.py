"""Figures of earlier runs in a new one: what is used again, what is measured, and what the run says of it."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.postgres import postgres
from support.runs import InProcessWorker, RecordingListener, make_config, make_rung_config, one_stage, run
from support.stub_evaluators import noted, on_machine, written

from archsearch import results
from archsearch.errors import UserError
from archsearch.report import build_report
from archsearch.report.caveats import taken_sentence
from archsearch.search import RunConfig, open_run, restore_run
from archsearch.search.earlier_runs import read_donors

A, B = ({"device_name": name, "threads": 1, "torch": "2.11.0", "reference": "van_b0"} for name in ("Abacus", "Bead"))
FIGURES = ["proxy_score", "throughput_img_s", "throughput_raw_img_s", "throughput_ratio", "macs_fvcore"]
OTHER_PROXY = {"proxy_id": "another"}


def on(machine: Mapping[str, Any], folder: Path, config: RunConfig, trials: int, **options: Any) -> RecordingListener:
    """Go on with the run on a machine of these conditions."""
    Path(config.settings["log"]).with_name("machine.json").write_text(json.dumps({"conditions": machine}))
    return run(folder, config, trials, worker=InProcessWorker(on_machine), here=machine, **options)


def rows_of(folder: Path) -> pd.DataFrame:
    return results.read_trials(folder)


def measured(log: Path) -> set[tuple[str, str]]:
    """(arch_id, phase) of all that was measured, by the log of the stub."""
    return {(words[1], words[2]) for words in noted(log) if words[0] == "start"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run of two papers and three candidates on machine A."""
    on(A, tmp_path / "old", make_config(tmp_path / "old_log"), 3)
    return tmp_path / "old"


def test_what_was_measured_alike_is_not_measured_again(tmp_path: Path, old: Path) -> None:
    folder, config = tmp_path / "new", make_config(tmp_path / "log")
    # The same seed draws the same candidates; the last two are new.
    on(A, folder, config, 5, earlier=[old])
    before, rows = rows_of(old), rows_of(folder)
    shared = rows.head(5)
    assert shared["arch_id"].tolist() == before["arch_id"].tolist()
    pd.testing.assert_frame_equal(shared[FIGURES], before[FIGURES])
    for row in shared.to_dict("records"):
        assert json.loads(row["taken_from"]) == dict.fromkeys(("count", "throughput", "proxy"), f"test:{row['trial']}")
        assert (row["seconds_total"], row["state"]) == (0.0, "complete")
    assert rows["taken_from"][5:].isna().all()
    new = {written(text) for text in rows["arch"].tolist()[5:]}
    assert measured(tmp_path / "log") == {(arch, phase) for arch in new for phase in ("count", "throughput", "proxy")}
    # They are ranked together: the taken figures are of one rate with those measured here.
    assert rows["throughput_id"].nunique() == 1
    rates = rows["throughput_img_s"] / rows["throughput_ratio"]
    assert rates.max() == pytest.approx(rates.min(), rel=1e-12)
    assert build_report(folder)["training"]["images_spent"] == 2 * 400 * 32


def test_the_old_folder_may_be_gone_and_need_not_be_named_again(tmp_path: Path, old: Path) -> None:
    folder, config = tmp_path / "new", make_config(tmp_path / "log")
    before = rows_of(old)
    on(A, folder, config, 0, earlier=[old])
    shutil.move(old, tmp_path / "elsewhere")
    on(A, folder, config, 1)
    on(A, folder, config, 2, earlier=[old])
    on(A, folder, config, 3, earlier=[tmp_path / "elsewhere"])
    shutil.rmtree(tmp_path / "elsewhere")
    on(A, folder, config, 3, earlier=[old])
    pd.testing.assert_frame_equal(rows_of(folder)[FIGURES], before[FIGURES])
    assert measured(tmp_path / "log") == set()
    assert [one["timings"] for one in results.read_manifest(folder)["taken_from"]] == [5]


def test_of_another_machine_or_another_proxy_only_the_rest_is_used_again(tmp_path: Path, old: Path) -> None:
    other_seed = {"proxy": {"recipe": {"steps": 400, "batch_size": 32, "seed": 1}}}
    cases: list[tuple[str, dict[str, Any], dict[str, Any], set[str]]] = [
        ("machine", B, {}, {"throughput"}),
        ("proxy", A, OTHER_PROXY, {"proxy"}),
        ("seed", A, other_seed, {"proxy"}),
    ]
    for name, machine, settings, again in cases:
        log = tmp_path / f"{name}_log"
        on(machine, tmp_path / name, make_config(log, settings=settings), 3, earlier=[old])
        assert {phase for _, phase in measured(log)} == again
        assert len(measured(log)) == 5
        for text in rows_of(tmp_path / name)["taken_from"]:
            assert json.loads(text).keys() == {"count", "throughput", "proxy"} - again


def test_with_rungs_what_is_known_of_a_training_is_used_again(tmp_path: Path, old: Path) -> None:
    rungs = tmp_path / "rungs"
    on(A, rungs, make_rung_config(tmp_path / "rungs_log"), 12)
    stopped = rows_of(rungs)
    assert (stopped["state"] == "stopped").any()
    on(A, tmp_path / "again", make_rung_config(tmp_path / "again_log"), 12, earlier=[rungs])
    again = rows_of(tmp_path / "again")
    assert measured(tmp_path / "again_log") == set()
    assert again["state"].tolist() == stopped["state"].tolist()
    assert again["learning_curve"].notna().all()
    assert (again["train_images"] == 0).all()
    # A run without rungs knows the end of a training alone: nothing is left that could be stopped.
    on(A, tmp_path / "end", make_rung_config(tmp_path / "end_log"), 3, earlier=[old])
    end = rows_of(tmp_path / "end")
    assert measured(tmp_path / "end_log") == set()
    assert end["proxy_score"].tolist() == rows_of(old)["proxy_score"].tolist()
    assert set(end["state"]) == {"complete"}


def test_timed_anew_a_trial_has_its_own_timing(tmp_path: Path, old: Path) -> None:
    folder, config = tmp_path / "new", make_config(tmp_path / "log")
    on(A, folder, config, 3, earlier=[old])
    on(B, folder, config, 3, remeasure=True)
    assert all(json.loads(text).keys() == {"count", "proxy"} for text in rows_of(folder)["taken_from"])


def test_the_report_says_what_was_taken_and_how_well_it_orders(tmp_path: Path) -> None:
    old, folder = tmp_path / "old", tmp_path / "new"
    on(A, old, make_config(tmp_path / "old_log"), 12)
    config = make_config(tmp_path / "log", settings=OTHER_PROXY, seed=1, sampler="known-cost")
    on(A, folder, config, 4, earlier=[old])
    (taken,) = build_report(folder)["taken_from"]
    assert (taken["run"], taken["trials"], taken["timings"], taken["scores"]) == ("test", 14, 2, 0)
    order = taken["order"]
    assert order["trials"] == 6
    assert -1 <= order["tau"] <= 1
    assert order["standard_error"] == pytest.approx(math.sqrt(2 * 17 / (9 * 6 * 5)))
    assert taken_sentence({**taken, "order": {**order, "tau": 0.5}}) == (
        f"2 timings and 0 scores of {old} used again; its scores order this run's 6 trials measured here by tau 0.50 +-0.35."
    )


def test_a_restored_study_keeps_what_its_rows_say(tmp_path: Path, old: Path) -> None:
    folder = tmp_path / "new"
    on(A, folder, make_config(tmp_path / "log"), 3, earlier=[old])
    before = rows_of(folder)
    (folder / "study.db").unlink()
    assert restore_run(folder).changed == ()
    # The earlier run itself is not in the rows: named again, it is taken again.
    on(A, folder, make_config(tmp_path / "log"), 4)
    on(A, folder, make_config(tmp_path / "log"), 4, earlier=[old])
    pd.testing.assert_frame_equal(rows_of(folder)[["taken_from", *FIGURES]].head(5), before[["taken_from", *FIGURES]])
    assert [one["timings"] for one in results.read_manifest(folder)["taken_from"]] == [5]


def test_what_cannot_be_taken_is_refused_in_one_sentence(tmp_path: Path, old: Path) -> None:
    config = make_config(tmp_path / "log")
    (tmp_path / "empty").mkdir()
    for folder, words in [
        (tmp_path / "nowhere", "holds no run; name the folder of another run"),
        (tmp_path / "empty", "holds no run; name the folder of another run"),
        (old, "is the run itself"),
    ]:
        with pytest.raises(UserError, match=f"^--from {folder}: {words}"):
            read_donors([folder], config, old)
    on(A, tmp_path / "none", config, 0, fixed={})
    with pytest.raises(UserError, match="has no finished trial"):
        read_donors([tmp_path / "none"], config, tmp_path / "new")
    small = make_config(tmp_path / "log", space_text=one_stage('width = 8\ndepth = [1, 2]\nblock = "mlp"'), papers=())
    with pytest.raises(UserError, match="has nothing in common with hybrid"):
        read_donors([old], small, tmp_path / "new")


def test_a_damaged_run_is_refused(tmp_path: Path, old: Path) -> None:
    (old / "trials.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a readable parquet file"):
        read_donors([old], make_config(tmp_path / "log"), tmp_path / "new")


def test_a_donor_is_stored_once_and_whole(tmp_path: Path, old: Path) -> None:
    config = make_config(tmp_path / "log")
    donors = read_donors([old, old], config, tmp_path / "new")
    assert len(donors) == 1
    with open_run(tmp_path / "new", config, donors=donors) as store:
        assert store.donors == donors
    with open_run(tmp_path / "new", config, donors=donors) as store:
        assert store.donors == donors


def test_on_postgresql_too_and_after_the_old_run_has_gone(tmp_path: Path, old: Path) -> None:
    folder = tmp_path / "new"
    before = rows_of(old)
    with postgres() as url:
        config = make_config(tmp_path / "log")
        on(A, folder, config, 4, earlier=[old], storage_url=url)
        shutil.rmtree(old)
        on(A, folder, config, 5, storage_url=url)
        rows = rows_of(folder)
        assert results.read_manifest(folder)["taken_from"][0]["timings"] == 5
    pd.testing.assert_frame_equal(rows.head(5)[FIGURES], before[FIGURES])
    new = {written(text) for text in rows["arch"].tolist()[5:]}
    assert {arch for arch, _ in measured(tmp_path / "log")} == new
