"""Calibrations as files and from the command line: damaged and foreign files are refused, measurements are never lost."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from support.known_machine import KEY, SMALL, known_calibration, measurements, small_plan

from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.throughput import CalibrationKey, Measurement, calibration_path, load_calibration, save_calibration
from archsearch.throughput.calibration import collect, slopes
from archsearch.throughput.calibration.collect import measure_plan, partial_path
from archsearch.throughput.calibration.file import read_rows, write_rows
from archsearch.throughput.calibration.sites import Site
from archsearch.throughput.calibration.slopes import time_slope


def test_a_calibration_is_restored_from_its_file(tmp_path: Path) -> None:
    plan, calibration = known_calibration(tmp_path)
    assert load_calibration(tmp_path, KEY) is None
    save_calibration(calibration)
    found = load_calibration(tmp_path, KEY)
    assert found is not None
    assert found.path == tmp_path / "calibration" / KEY.file_name
    for task in plan.networks:
        assert found.predict(task.arch) == pytest.approx(calibration.predict(task.arch))
    rare = next(site for site in plan.space_sites if site not in plan.sites)
    assert found.slopes(rare) == pytest.approx(calibration.slopes(rare))
    assert (found.tau, found.mape, found.fit) == (calibration.tau, calibration.mape, calibration.fit)
    assert found.band == plan.band
    assert load_calibration(tmp_path, replace(KEY, batch_size=4)) is None


def test_a_file_that_is_no_calibration_is_reported_in_one_sentence(tmp_path: Path) -> None:
    _, calibration = known_calibration(tmp_path)
    save_calibration(calibration)
    path = calibration.path
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PAR1" + bytes(100)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged or unreadable .*delete it"):
            load_calibration(tmp_path, KEY)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="no calibration"):
        load_calibration(tmp_path, KEY)
    path.write_bytes(whole)
    rows, about = read_rows(path)
    changes: list[dict[str, Any]] = [{"fit": {}}, {"key": {"device": 1}}, {"fit": {**about["fit"], "form": "of clay"}}]
    for changed in changes:
        write_rows(rows, {**about, **changed}, path)
        with pytest.raises(UserError, match="damaged, or of another version"):
            load_calibration(tmp_path, KEY)
    unknown = [{**row, "layer": row["layer"] and row["layer"].replace('"mlp"', '"golem"')} for row in rows]
    write_rows(unknown, about, path)
    with pytest.raises(UserError, match="golem"):
        load_calibration(tmp_path, KEY)
    write_rows(rows, {**about, "key": asdict(replace(KEY, threads=7))}, path)
    with pytest.raises(UserError, match="other conditions"):
        load_calibration(tmp_path, KEY)


def test_keys_of_other_conditions_have_other_files() -> None:
    changes: list[dict[str, Any]] = [
        {"device": "cuda", "threads": None},
        {"device_name": "Abacus 9001"},
        {"dtype": "bfloat16"},
        {"mode": "compile"},
        {"batch_size": 3},
        {"image_size": 64},
        {"image_size": (32, 64)},
        {"in_chans": 4},
        {"threads": 2},
        {"torch": "2.10.0"},
    ]
    names = {replace(KEY, **change).file_name for change in changes} | {KEY.file_name}
    assert len(names) == len(changes) + 1
    assert KEY.file_name == "cpu-abacus-tm-9000-float32-eager-batch2-32px-1threads-torch2.9.0_cpu.parquet"
    assert "in_chans" not in KEY.to_dict()
    for key in (KEY, replace(KEY, image_size=(32, 64), in_chans=4)):
        assert CalibrationKey.from_dict(json.loads(json.dumps(key.to_dict()))) == key
    settings = {"device": "cpu", "dtype": "float32", "mode": "eager", "batch_size": 2, "image_size": 32}
    unusual = Measurement.from_dict({**settings, "image_width": 64, "in_chans": 4})
    assert CalibrationKey.for_this_machine(unusual).file_name.startswith("cpu-")
    assert "-32x64px-4channels-" in CalibrationKey.for_this_machine(unusual).file_name
    assert Measurement.from_dict(unusual.to_dict()) == unusual
    assert Measurement.from_dict(settings).to_dict().keys().isdisjoint({"image_width", "in_chans"})
    assert CalibrationKey.for_this_machine(Measurement.from_dict({**settings, "threads": 3})).threads == 3
    assert CalibrationKey.for_this_machine(Measurement.from_dict({**settings, "cpus": [0]})).threads == 1
    assert CalibrationKey.for_this_machine(Measurement.from_dict(settings)).device_name


def test_measurements_of_another_plan_are_refused(tmp_path: Path) -> None:
    plan = small_plan()
    path = calibration_path(tmp_path, plan.key)
    write_rows(measurements(plan)[:3], {"identity": small_plan(seed=5).identity}, partial_path(path))
    with pytest.raises(UserError, match=r"another, unfinished calibration, of seed 5; .*delete the file"):
        measure_plan(plan, path)


def test_finished_measurements_are_not_made_again(tmp_path: Path) -> None:
    plan = small_plan()
    path = calibration_path(tmp_path, plan.key)
    rows = measurements(plan)
    write_rows(rows, {"identity": plan.identity}, partial_path(path))
    reports: list[tuple[float, float]] = []
    again = measure_plan(plan, path, lambda done, total, text: reports.append((done, total)))
    ((done, total),) = reports
    assert done == total
    assert [row["value"] for row in again] == [row["value"] for row in rows]


@pytest.mark.slow
def test_an_interrupted_calibration_is_continued(tmp_path: Path) -> None:
    plan = small_plan(hybrids=4, held_out=3)
    path = calibration_path(tmp_path, plan.key)
    reports: list[float] = []

    def stop_after(measurements: int, done: float) -> None:
        reports.append(done)
        if len(reports) > measurements:  # the first reports what was done earlier
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_plan(plan, path, lambda done, total, text: stop_after(3, done))
    kept, _ = read_rows(partial_path(path))
    assert len(kept) == 3
    before = reports[-1]
    reports.clear()
    with pytest.raises(KeyboardInterrupt):
        measure_plan(plan, path, lambda done, total, text: stop_after(2, done))
    assert reports[0] == before
    rows, _ = read_rows(partial_path(path))
    assert rows[:3] == kept
    assert len(rows) == 5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "amp_bfloat16"])
def test_wider_layers_take_longer(dtype: str) -> None:
    """Sixteen times the multiply-adds: far more than a busy machine can hide."""
    sites = {site.shape.channels: site for site in plan_sites("mlp")}
    narrow, wide = (time_slope(sites[width], replace(KEY, dtype=dtype)) for width in (32, 512))
    assert 0 < narrow.ms < wide.ms
    assert wide.rounds >= 5


def plan_sites(kind: str) -> list[Site]:
    """One layer at two widths."""
    site = next(site for site in small_plan().sites if site.layer.kind == kind)
    return [Site(site.layer, site.shape._replace(channels=width)) for width in (32, 512)]


@pytest.mark.slow
def test_calibrate_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slope and network of the plan is timed, each in tenths of a second."""
    short: dict[str, Any] = {"warmup_s": 0.05, "max_s": 0.3, "block_s": 0.01, "iqr_limit": 10.0}
    monkeypatch.setattr(slopes, "_LATE_S", 0.05)
    monkeypatch.setattr(collect, "network_protocol", lambda key: replace(slopes.network_protocol(key), **short))
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL)
    arguments = "calibrate small.toml --budget 3M --tolerance 60% --device cpu --hybrids 4 --held-out 3 --slopes 30 --json".split()
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert len(document["networks"]) == 7
    assert document["slopes"] == document["space_settings_timed"] < document["space_settings"]
    assert {kind["kind"] for kind in document["kinds"]} == {"mlp", "hilo", "lsa", "gsa", "lka"}
    assert document["scores"]["held_out"]["count"] == 3
    assert document["scores"]["paper"] is None
    (file,) = Path("results/calibration").iterdir()
    assert str(file) == document["file"]
    calibration = load_calibration(Path("results"), CalibrationKey.from_dict(document["key"]))
    assert calibration is not None
    assert calibration.tau == pytest.approx(document["scores"]["held_out"]["tau"]["value"])


def test_calibrate_refuses_impossible_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL)
    for arguments, sentence in (
        ("small.toml --budget 4.5G", "no architecture has"),
        ("small.toml --image-size 8", "larger than the map"),
        ("small.toml --cpus 4711 --budget 3M", "4711"),
        ("--space davit_tiny", "needed"),
        ("small.toml --space davit_tiny", "two spaces were named"),
    ):
        result = CliRunner().invoke(main, ["calibrate", *arguments.split(), "--device", "cpu"])
        assert result.exit_code == 2, (arguments, result.output)
        assert sentence in result.stderr
        assert not Path("results").exists()
