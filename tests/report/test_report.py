"""The report of small runs made through `archsearch.results`, against figures worked out by hand."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from support.report_runs import PROXY_ID, SIX, trial, write_run

from archsearch.cli import main
from archsearch.identity import with_throughput_ids
from archsearch.results import SCHEMA, Row, read_manifest, write_manifest

Report = Callable[..., Result]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """`archsearch report ...` in a folder of its own, 100 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["report", *arguments])

    return run


def strict(text: str) -> Any:
    """JSON that has no NaN or Infinity."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


# Trial 3 beats davit_tiny in everything, van_b2 beats trial 4; 5 failed; 6 is 3 again.
def test_front_dominance_and_failures_are_those_worked_out_by_hand(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, SIX)
    document = strict(report("--json").stdout)
    assert [row["trial"] for row in document["front"]] == [1, 3, 2]  # best score first, the repeat not again
    by_paper = {row["paper"]: row for row in document["fixed"]}
    assert [item["trial"] for item in by_paper["davit_tiny"]["dominated_by"]] == [3]
    assert [item["trial"] for item in by_paper["davit_tiny"]["dominates"]] == []
    assert [item["trial"] for item in by_paper["van_b2"]["dominates"]] == [4]
    assert by_paper["davit_tiny"]["published"]["top1"] == 82.8
    assert by_paper["davit_tiny"]["published"]["params_m"] == 28.3
    assert [(row["trial"], row["reason"]) for row in document["failed"]] == [(5, "throughput: out of memory on cpu")]
    counts = {"asked": 8, "complete": 6, "stopped": 0, "failed": 1, "running": 0, "fixed": 2, "reused": 1}
    assert document["trials"] == counts


def test_scores_within_two_standard_errors_are_ties(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, SIX)
    front = strict(report("--json").stdout)["front"]
    # The difference of two scores of standard error 0.01 has 0.0141: 0.80 and 0.79 tie, 0.60 stands alone.
    assert {row["trial"]: row["score_ties"] for row in front} == {1: [3], 3: [1], 2: []}


def test_hypervolume_is_that_of_moocore(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, SIX)
    volume = strict(report("--json").stdout)["hypervolume"]
    values = np.array(
        [[-0.70, -20, 28_360_168], [-0.80, -15, 26_580_000], [-0.60, -40, 2e7], [-0.79, -25, 2.5e7], [-0.75, -10, 3e7]]
    )
    scaled = (values - values.min(axis=0)) / (values.max(axis=0) - values.min(axis=0))
    assert volume["value"] == pytest.approx(moocore.hypervolume(scaled, ref=[1.1, 1.1, 1.1]))
    assert volume["bounds"]["throughput_img_s"] == {"min": 10.0, "max": 40.0}
    assert "1.1" in volume["normalisation"]


def test_the_text_says_what_the_score_is_and_is_not(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, SIX)
    text = " ".join(report().stdout.split())
    assert "2000 validation images of fashion-mnist-12k" in text
    assert "400 training steps" in text
    assert "not ImageNet accuracy" in text
    assert PROXY_ID in text
    assert "davit_tiny is dominated by trial 3." in text
    assert "van_b2 dominates trial 4." in text
    assert "measured on cpu (a test's CPU), float32, eager, batch 4, 224 px, 2 threads" in text


def _trained(number: int, seconds: float, other_cores: float) -> Row:
    """A trial that trained on 3,200 images in so many seconds, while others used so many of two cores."""
    curve = [{"steps": 50, "seconds": seconds / 2}, {"steps": 100, "seconds": seconds / 2}]
    beside = {"other_cores": other_cores, "conditions": json.dumps({"host_cores": 2, "threads": 2})}
    trained = {"train_images": 3200, "learning_curve": json.dumps(curve)}
    return trial(number, 0.6 + number / 100, 20.0 - number, 20_000_000, **beside, **trained)


def test_a_busy_machine_and_a_training_that_it_slowed_down_are_named(tmp_path: Path, report: Report) -> None:
    seconds = {0: 32.0, 1: 40.0, 2: 25.6, 3: 320.0, 4: 32.0}
    write_run(tmp_path, [_trained(number, each, 1.5) for number, each in seconds.items()])
    text = " ".join(report().stdout.split())
    assert "The machine was busy beside 5 of 5 trials: other processes used 1.5 of 2 cores (median)" in text
    assert "--threads 1" in text
    slow = "Far slower than the run's other trainings (100 img/s) were those of trial 3: 10 to 10 img/s."
    assert slow in text
    write_run(tmp_path, [_trained(number, each, 0.1) for number, each in seconds.items()], name="quiet")
    text = " ".join(report("results/quiet").stdout.split())
    assert "busy" not in text
    assert "Far slower" not in text


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_cut(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    write_run(tmp_path, SIX)
    lines = report().stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line == line.rstrip() for line in lines)
    assert any("0.790+-0.010=" in line and "25.00M" in line for line in lines)
    assert "…" not in "".join(lines)


def test_noisy_and_drifted_figures_are_marked(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [trial(0, 0.5, 40.0, 10, throughput_noisy=True), trial(1, 0.6, 30.0, 10, throughput_drift=0.2)])
    text = report().stdout
    assert "40.0~" in text
    assert "30.0!" in text


def test_a_run_without_a_finished_trial(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [trial(0, None, None, 10, state="running", reason=None)], state="running")
    document = strict(report("--json").stdout)
    assert (document["front"], document["hypervolume"]) == ([], None)
    assert [row["trial"] for row in document["running"]] == [0]
    assert "No trial is complete yet" in report().stdout


def test_a_run_without_any_trial(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [], state="interrupted")
    assert report().exit_code == 0
    assert strict(report("--json").stdout)["trials"]["complete"] == 0
    assert report("--csv").stdout.splitlines() == [",".join(SCHEMA.names)]


def test_a_run_of_failures_shows_their_reasons(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [trial(0, None, None, 10), trial(1, None, None, 10)], state="failed")
    text = " ".join(report().stdout.split())
    assert "there is no front: all 2 that ended failed" in text
    assert text.count("out of memory on cpu") == 2


def test_a_single_complete_trial_has_a_hypervolume(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [trial(0, 0.5, 40.0, 10)], objectives=("proxy_score", "params"))
    assert strict(report("--json").stdout)["hypervolume"]["value"] == pytest.approx(1.1**2)


def test_csv_is_the_trials_table(tmp_path: Path, report: Report) -> None:
    folder = write_run(tmp_path, SIX)
    frame = pd.read_csv(io.StringIO(report("--csv").stdout), parse_dates=["started_at"])
    truth = pd.read_parquet(folder / "trials.parquet")
    assert list(frame.columns) == list(truth.columns)
    for column in ("trial", "state", "is_fixed", "macs", "proxy_score", "arch"):
        assert frame[column].equals(truth[column].astype(frame[column].dtype)), column
    assert (frame["started_at"] == truth["started_at"]).all()
    assert ",3," in report("--csv").stdout.splitlines()[-1]  # a whole number stays one beside missing ones


def test_a_report_loads_no_torch(tmp_path: Path, report: Report) -> None:
    rates = {"proxy_loader_images_s": 1000.0, "proxy_step_images_s": 900.0}
    folder = write_run(tmp_path, [*SIX, trial(7, 0.5, 12.0, 10, **rates)])
    program = (
        "import sys; from archsearch.cli import main\n"
        "main(['report', *sys.argv[1:]], standalone_mode=False)\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'optuna'} & set(sys.modules)), file=sys.stderr)"
    )
    for form in ([], ["--json"], ["--csv"]):
        command = [sys.executable, "-c", program, str(folder), *form]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "[]"
        assert len(done.stdout) > 1000


def test_the_latest_run_is_the_default_and_names_and_paths_find_others(tmp_path: Path, report: Report) -> None:
    first = write_run(tmp_path, SIX, name="first")
    write_run(tmp_path, SIX, name="second")
    assert strict(report("--json").stdout)["run"] == "second"
    assert strict(report("first", "--json").stdout)["run"] == "first"
    assert strict(report(str(first), "--json").stdout)["run"] == "first"


def test_bad_runs_are_one_sentence(tmp_path: Path, report: Report) -> None:
    result = report()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "holds no run" in result.stderr
    folder = write_run(tmp_path, SIX, name="clothing")
    result = report("clothin")
    assert result.exit_code == 2
    assert "did you mean 'clothing'?" in result.stderr
    (folder / "trials.parquet").write_bytes(b"PAR1 and nothing else")
    result = report()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert str(Path("results/clothing/trials.parquet")) in result.stderr
    (folder / "manifest.json").write_text("{")
    assert report().exit_code == 2
    assert report("--json", "--csv").exit_code == 2


def test_where_most_timings_are_noisy_the_first_line_says_so_and_what_to_do(tmp_path: Path, report: Report) -> None:
    rows = [trial(number, 0.5, 20.0 + number, 10, throughput_noisy=number < 3) for number in range(6)]
    write_run(tmp_path, rows, name="half")
    assert strict(report("half", "--json").stdout)["noisy"] is None
    write_run(tmp_path, [*rows, trial(6, 0.5, 9.0, 10, throughput_noisy=True)], name="most")
    assert strict(report("most", "--json").stdout)["noisy"] == {"trials": 4, "timed": 7}
    first, _, rest = " ".join(report("most").stdout.split()).partition(" Run most")
    assert first.startswith("The order by speed is not to be used: 4 of 7 timings are noisy")
    assert "`archsearch run --remeasure`" in first
    assert rest
    write_run(tmp_path, [*rows, trial(6, 0.5, 9.0, 10, throughput_noisy=True)], name="counts", objectives=("params",))
    assert strict(report("counts", "--json").stdout)["noisy"] is None


def test_a_run_that_an_earlier_version_went_on_with_elsewhere_is_not_ranked_across_the_two(
    tmp_path: Path, report: Report
) -> None:
    def on(device: str) -> dict[str, Any]:
        return {"device_name": device, "conditions": json.dumps({"device_name": device, "threads": 2})}

    rows = [trial(number, 0.5 + 0.1 * number, 9000.0, 10, **on("A100")) for number in range(3)]
    rows += [trial(number, 0.5, 20.0 + number, 10, **on("H100")) for number in range(3, 5)]
    folder = write_run(tmp_path, [*rows, trial(5, None, None, 10)])
    table = pq.read_table(folder / "trials.parquet")
    pq.write_table(table.select(table.column_names[: table.column_names.index("run")]), folder / "trials.parquet")
    document = strict(report("--json").stdout)
    assert [row["trial"] for row in document["front"]] == [4]
    assert document["pair_fronts"]["proxy_score/throughput_img_s"] == [4]
    assert document["pair_fronts"]["proxy_score/macs"] == [0, 1, 2], "no speed in it"
    assert document["hypervolume"]["trials"] == 2
    assert [(each["trials"], each["differences"]) for each in document["left_out"]] == [
        (3, "device A100 there, H100 here")
    ]
    text = " ".join(report().stdout.split())
    assert "Left out: 3 complete trials that were timed otherwise (device A100 there, H100 here)" in text
    assert "speed is ranked by images/s as timed" in text


@pytest.mark.parametrize("named", ["manifest", "rows"])
def test_a_failed_trial_without_a_timing_leaves_no_timed_one_out(tmp_path: Path, report: Report, named: str) -> None:
    """Its identity is none, as that in a manifest of an earlier version is."""
    on = {"device_name": "A100", "conditions": json.dumps({"device_name": "A100", "threads": 2})}
    rows = with_throughput_ids([trial(number, 0.5 + 0.1 * number, 20.0, 10, **on) for number in range(5)])
    known = {"throughput_id": rows[0]["throughput_id"]} if named == "manifest" else {}
    write_run(tmp_path, [*rows, trial(5, None, None, 10)], extra=known)
    document = strict(report("--json").stdout)
    assert document["throughput_id"] == rows[0]["throughput_id"]
    assert document["left_out"] == []
    assert document["ranked_figure"]
    assert "Left out" not in report().stdout


def test_the_tau_is_that_of_the_ranked_figure(tmp_path: Path, report: Report) -> None:
    """Rows of an earlier version: images/s as timed in the opposite order the second time, though the ratios repeat."""
    rows = [
        timed_again(number, ratio, ratio, throughput_img_s=100 * ratio, throughput_again_img_s=900 - 100 * ratio)
        for number, ratio in enumerate((4.0, 3.0, 2.0))
    ]
    write_run(tmp_path, rows)
    assert strict(report("--json").stdout)["again"]["tau"] == -1.0


def timed_again(number: int, ratio: float, again: float, spread: float = 0.01, **changes: Any) -> Row:
    """A member of a front of three, with both of its ratios to the reference."""
    row = trial(number, 0.5 + 0.1 * number, 100 * ratio, 10 + number, throughput_ratio=ratio, throughput_iqr=spread)
    figures = {"throughput_again_img_s": 100 * again, "throughput_again_ratio": again, "throughput_again_iqr": spread}
    return {**row, **figures, "throughput_change": again / ratio - 1, **changes}


def test_the_second_measurement_of_the_front_is_judged_and_marked(tmp_path: Path, report: Report) -> None:
    # Ratios 4, 3, 2 and then 3.96, 2, 3: one of three pairs in another order, tau 1/3; changes of 1 %, a third and a half.
    rows = [timed_again(0, 4.0, 3.96), timed_again(1, 3.0, 2.0), timed_again(2, 2.0, 3.0)]
    write_run(tmp_path, [*rows, trial(3, 0.9, 100.0, 99)])
    again = strict(report("--json").stdout)["again"]
    assert again.pop("median_change") == pytest.approx(1 / 3)
    assert again.pop("tau") == pytest.approx(1 / 3)
    assert again == {"members": 4, "measured": 3, "swapped": [[1, 2]], "changed": [1, 2], "limit": 0.03}
    text = " ".join(report().stdout.split())
    assert "3 of 4 members" in text
    assert "Kendall tau between the two orders 0.33; trials 1 and 2 changed places beyond their spread." in text
    assert "300.0*" in text
    assert "200.0*" in text
    assert "400.0*" not in text


def test_orders_that_the_spread_explains_and_runs_without_a_second_measurement(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, [timed_again(0, 4.0, 3.9, 0.1), timed_again(1, 3.9, 4.0, 0.1)], name="wide")
    assert strict(report("wide", "--json").stdout)["again"]["swapped"] == []
    assert "no two changed places" in " ".join(report("wide").stdout.split())
    folder = write_run(tmp_path, SIX, name="older")
    table = pq.read_table(folder / "trials.parquet")
    pq.write_table(table.select(table.column_names[: table.column_names.index("arch") + 1]), folder / "trials.parquet")
    document = strict(report("older", "--json").stdout)
    assert (document["again"], document["predicted"]) == (None, None)
    assert "timed again at the end, in" not in " ".join(report("older").stdout.split())


def test_the_error_of_predictions_is_printed(tmp_path: Path, report: Report) -> None:
    rows = [trial(n, 0.5, 100.0, 10, throughput_predicted_img_s=value) for n, value in enumerate((90.0, 120.0, 104.0))]
    folder = write_run(tmp_path, [*rows, trial(3, 0.5, 100.0, 10)])
    source = {"file": "results/calibration/here.parquet", "kendall_tau": 0.95, "mape": 0.041}
    write_manifest({**read_manifest(folder), "calibration": source}, folder)
    predicted = strict(report("--json").stdout)["predicted"]
    assert (predicted["trials"], predicted["median_error"]) == (3, pytest.approx(0.1))
    text = " ".join(report().stdout.split())
    assert "off by 10.0% (median of 3 trials); every figure here is measured" in text
    assert "here.parquet: mean error 4.1%, Kendall tau 0.95 on hybrids held out" in text


def stopped(number: int, rung: int, score: float) -> Row:
    """A trial that was stopped after this rung."""
    why = f"after {25 * 4 ** (rung - 1)} of 400 training steps: trial 1 is no worse in params, and its next score 0.700 is beyond 0.500"
    values = {"rung": rung, "rung_score": score, "rung_score_se": 0.01, "rung_proxy_id": "fashion-mnist-12k@short"}
    return trial(number, None, 12.0, 29_000_000, state="stopped", reason=why, **values)


TRAINING = {
    "rungs": [25, 100, 400],
    "images_spent": 30_000,
    "images_not_spent": 70_000,
    "seconds_spent": 120.0,
    "seconds_not_spent": 300.0,
    "trials": 10,
    "stopped": 6,
}


def test_stopped_trials_are_listed_by_rung_and_are_in_no_front(tmp_path: Path, report: Report) -> None:
    rows = [*SIX, *(stopped(number, 1, 0.9) for number in range(7, 12)), stopped(12, 2, 0.31)]
    folder = write_run(tmp_path, rows, extra={"training": TRAINING})
    document = strict(report("--json").stdout)
    assert (document["trials"]["stopped"], document["trials"]["failed"]) == (6, 1)
    assert [row["trial"] for row in document["front"]] == [1, 3, 2]
    assert [row["trial"] for row in document["stopped"]] == [7, 8, 9, 10, 11, 12]
    assert document["training"] == TRAINING
    assert not set(pq.read_table(folder / "front.parquet").to_pandas()["trial"]) & set(range(7, 13))
    shown = " ".join(report().stdout.split())
    assert "6 complete (1 reused), 6 stopped early, 1 failed" in shown
    assert (
        "Training: 30.00K images in 2m00s, with rungs at 25, 100 of 400 steps, which saved 70.00K images (70% of what the same "
        "candidates would have taken, about 5m00s)." in shown
    )


def test_runs_from_before_there_were_rungs_say_nothing_of_them(tmp_path: Path, report: Report) -> None:
    write_run(tmp_path, SIX, "before")
    assert "Training:" not in report("before").stdout
    assert strict(report("before", "--json").stdout)["training"] is None


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"image_size": 32, "width_divisor": 4}, "that a small copy of the network (32 px, widths 1/4) gets right"),
        ({"image_size": 64, "width_divisor": 1}, "that the network in its full widths (64 px) gets right"),
        ({}, "that a small copy of the network gets right"),
    ],
)
def test_the_meaning_of_a_score_says_what_was_trained(
    tmp_path: Path, report: Report, profile: dict[str, int], words: str
) -> None:
    folder = write_run(tmp_path, SIX)
    manifest = read_manifest(folder)
    manifest["settings"]["proxy"]["profile"] = profile
    write_manifest(manifest, folder)
    assert words in strict(report("--json").stdout)["score"]["meaning"]
