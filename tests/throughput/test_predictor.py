"""A run predicts throughput with the calibration of its own conditions: found, trusted or not, damaged, absent."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from archsearch import Arch, load_space
from archsearch.space import Band, Bounds, draw
from archsearch.throughput import (
    Calibration,
    CalibrationKey,
    Measurement,
    calibration_path,
    find_predictor,
    fit_calibration,
    save_calibration,
)
from archsearch.throughput.calibration.file import SCHEMA
from archsearch.throughput.calibration.sites import unique_sites

SETTINGS = {"device": "cpu", "dtype": "float32", "mode": "eager", "batch_size": 2, "image_size": 224, "threads": 1}
EMPTY: dict[str, Any] = {**dict.fromkeys(SCHEMA.names), "reference_img_s": 10.0, "error": 0.0}


@pytest.fixture(scope="module")
def archs() -> list[Arch]:
    """Twelve hybrids of the default space."""
    space, rng = load_space("hybrid"), random.Random(0)
    return [draw(space, Bounds(macs=Band.around(4_500_000_000, 0.05)), rng)[1] for _ in range(12)]


def img_s(arch: Arch) -> float:
    """On a machine whose time is exactly proportional to MACs."""
    return 1e11 / arch.cost().macs


def make_calibration(root: Path, archs: list[Arch], noise: float) -> Calibration:
    """Slopes of that machine, and whole networks measured on it with relative noise of at most `noise`."""
    rng, batch = random.Random(0), SETTINGS["batch_size"]
    assert isinstance(batch, int)
    rows: list[dict[str, Any]] = []
    for site in unique_sites(archs):
        ms = 1000 * batch * site.layer.cost(site.shape).macs / 1e11
        row = {"record": "slope", "group": "block", "name": site.layer.kind, "value": ms, "unit": "ms"}
        rows.append({**EMPTY, **row, "layer": json.dumps(site.to_dict())})
    for number, arch in enumerate(archs):
        group = "held_out" if number % 2 else "train"
        value = img_s(arch) * (1 + noise * rng.uniform(-1, 1))
        row = {"record": "network", "group": group, "name": str(number), "value": value, "unit": "img/s"}
        network = {"arch": json.dumps(arch.to_dict()), "arch_id": arch.arch_id, "macs": arch.cost().macs}
        rows.append({**EMPTY, **row, **network})
    key = CalibrationKey.for_this_machine(Measurement.from_dict(SETTINGS))
    about = {"identity": {"budget_macs": 4_500_000_000, "tolerance": 0.05}}
    calibration = fit_calibration(rows, key, calibration_path(root, key), about)
    save_calibration(calibration)
    return calibration


def find(root: Path, **changes: Any) -> tuple[Calibration | None, str]:
    """The predictor, and the lines of progress."""
    lines: list[str] = []
    return find_predictor(root, Measurement.from_dict({**SETTINGS, **changes}), lines.append), "\n".join(lines)


def test_a_trusted_calibration_of_these_conditions_predicts(tmp_path: Path, archs: list[Arch]) -> None:
    calibration = make_calibration(tmp_path, archs, noise=0.0)
    predictor, output = find(tmp_path)
    assert predictor is not None
    assert output == ""
    assert predictor.source["file"] == str(calibration.path)
    assert predictor.source["kendall_tau"] == pytest.approx(1.0)
    assert predictor.predict(archs[1]) == pytest.approx(img_s(archs[1]), rel=0.02)
    assert find(tmp_path, batch_size=4) == find(tmp_path, threads=2) == (None, "")


def test_a_calibration_that_cannot_be_trusted_is_not_used_and_one_sentence_says_why(
    tmp_path: Path, archs: list[Arch]
) -> None:
    assert find(tmp_path) == (None, "")
    calibration = make_calibration(tmp_path, archs, noise=0.9)
    predictor, output = find(tmp_path)
    assert predictor is None
    assert output.startswith(f"throughput is not predicted by {calibration.path}: ")
    assert f"Kendall tau of only {calibration.tau:.2f}" in output
    calibration.path.write_bytes(b"PAR1 and nothing else")
    predictor, output = find(tmp_path)
    assert predictor is None
    assert output.startswith("throughput is not predicted: ")
    assert output.count("\n") == 0
