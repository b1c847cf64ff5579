"""Sections of `gpu.py` on archsearch as a whole: throughput measured twice, a search, and the tests that need CUDA."""

import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
from gpu_rows import Row
from gpu_setting import Setting

from archsearch import build, paper
from archsearch.metrics import kendall_tau
from archsearch.space import reference_arch
from archsearch.throughput import Measurement, Protocol, measure

CHECKOUT = Path(__file__).resolve().parents[2]
PHASES = ("count", "throughput", "proxy", "total")
SMOKE_PAPERS = ("van_b0", "pvt_tiny")
SMOKE_SPACE = CHECKOUT / "tests" / "data" / "tiny.toml"
# Before the section ends, for what a run does after its last trial.
_END_S = 10


def order(setting: Setting) -> Iterator[Row]:
    """The fixed trials twice, each time in an order of its own, by the ratio to the reference, which a run ranks."""
    protocol = _protocol(setting)
    reference = build(reference_arch(), image_size=protocol.image_size)
    names, shuffler = list(SMOKE_PAPERS if setting.smoke else setting.models()), random.Random(0)
    ratios: list[dict[str, float]] = [{}, {}]
    row: Row = {"section": "order", "side": "ours", "dtype": protocol.dtype, "mode": protocol.mode}
    row |= {"batch_size": protocol.batch_size, "image_size": protocol.image_size}
    for time, found in zip(("first", "second"), ratios, strict=True):
        shuffler.shuffle(names)
        for name in names:
            model = build(paper(name), image_size=protocol.image_size)
            figures = measure(model, protocol, setting.device, reference=reference)
            found[name] = figures.ratio_to_reference or 0.0
            yield {**row, "what": f"{name}, {time}", "value": found[name], "unit": "of the reference"}
            yield {**row, "what": f"{name}, {time}", "value": figures.measure_s, "unit": "s"}
    first, second = ([found[name] for name in sorted(names)] for found in ratios)
    changes = [abs(after / before - 1) for before, after in zip(first, second, strict=True)]
    yield {**row, "what": "both orders", "value": kendall_tau(first, second), "unit": "tau"}
    yield {**row, "what": "median change", "value": statistics.median(changes), "unit": "share"}


def _protocol(setting: Setting) -> Protocol:
    """That of a run on this device."""
    protocol = Measurement.resolve(device=setting.device_type).protocol()
    if not setting.smoke:
        return protocol
    short = replace(protocol, batch_size=1, image_size=64, warmup_s=0.0, block_s=0.0, min_blocks=2, max_s=0.0)
    return replace(short, min_warmup_iterations=1, min_slow_warmup_iterations=1, mode="eager")


def run(setting: Setting) -> Iterator[Row]:
    """A search of the default space on the embedded images: the seconds of a trial, by phase, and of the whole."""
    with tempfile.TemporaryDirectory() as folder:
        timed = {"section": "run", "what": "whole run", "unit": "s"}
        yield setting.figure(timed, partial(_search_s, Path(folder) / "run", setting))
        yield from trial_rows(Path(folder) / "run" / "trials.parquet")


def _search_s(folder: Path, setting: Setting) -> float:
    """Seconds of the command. RuntimeError with its last line where it fails."""
    what = "hybrid --budget 4.5GFLOPs --trials 4"
    if setting.smoke:
        what = f"{SMOKE_SPACE} --budget 20MFLOPs --tolerance 50% --trials 1 --papers none --proxy-steps 2 --no-rungs"
    command = f"run {what} --no-recheck --device {setting.device_type}".split()
    allowed = ["--timeout", f"{max(1, int(setting.seconds_left - _END_S))}s", "--output", str(folder)]
    before = setting.seconds_left
    done = subprocess.run(
        [sys.executable, "-m", "archsearch", *command, *allowed], capture_output=True, text=True, cwd=folder.parent
    )
    if done.returncode not in (0, 124):  # 124: the time was over with trials left
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return before - setting.seconds_left


def trial_rows(path: Path) -> Iterator[Row]:
    """Medians over the trials of a run that were evaluated, and how many there are of each state."""
    table = pq.read_table(path).to_pylist() if path.exists() else []
    states = [trial["state"] for trial in table]
    for state in sorted({*states, "failed"}):
        yield {"section": "run", "what": f"trials {state}", "value": float(states.count(state)), "unit": "trials"}
    measured = [trial for trial in table if trial["state"] in ("complete", "stopped")]
    for phase in PHASES if measured else ():
        seconds = statistics.median(trial[f"seconds_{phase}"] for trial in measured)
        yield {"section": "run", "what": f"median trial, {phase}", "value": seconds, "unit": "s"}


def cuda_tests(setting: Setting) -> Iterator[Row]:
    """How many of the tests marked `cuda` pass, fail and are skipped."""
    if not setting.is_cuda:
        yield {"section": "cuda-tests", "what": "all", "note": "skipped: no CUDA device"}
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        files = [str(path) for path in (CHECKOUT / "tests").rglob("test_*.py") if "mark.cuda" in path.read_text()]
        # Without the project's own options, which ask for pytest-xdist and leave slow tests out.
        options = ["-o", "addopts=", "-m", "cuda", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=CHECKOUT, stdout=sys.stderr)
        yield from test_rows(report.read_text())


def test_rows(report: str) -> Iterator[Row]:
    """Rows of a report in JUnit's format; names of what failed in the note."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    failed = [case.get("name") or "" for case in cases if _has(case, ("failure", "error"))]
    skipped = sum(_has(case, ("skipped",)) for case in cases)
    counts = {"passed": len(cases) - len(failed) - skipped, "failed": len(failed), "skipped": skipped}
    for what, count in counts.items():
        note = ", ".join(re.sub(r"\s+", " ", name) for name in failed) if what == "failed" and failed else None
        yield {"section": "cuda-tests", "what": what, "value": float(count), "unit": "tests", "note": note}


def _has(case: Any, kinds: Sequence[str]) -> bool:
    return any(case.find(kind) is not None for kind in kinds)
