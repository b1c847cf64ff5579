"""What the displays say of a run on several workers."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.runs import make_rung_config

from archsearch.cli.live import LiveListener, PlainListener
from archsearch.cli.workers import failure_kind
from archsearch.search import Tally, TimeLeft


def row(trial: int, **more: Any) -> dict[str, Any]:
    architecture = "sda/lda 64x2 - sda/lda 192x4 - window/channel 384x10 - sda/lda 640x3"
    common = {"trial": trial, "paper": None, "architecture": architecture, "macs": 4_600_000_000, "params": 28_000_000}
    figures = {"throughput_img_s": None, "proxy_score": None}
    return {**common, **figures, "state": "running", "is_fixed": False, "reused_from": None, **more}


def play(watch: LiveListener | PlainListener, workers: int) -> None:
    """One failed trial, then one on each worker but the last: every fourth waits for the device."""
    tally = Tally(ended=11, failed=2, total=200, front_size=6, workers=workers)
    failed = row(10, state="failed", reason="the worker process was killed (signal 9, SIGKILL), probably out of memory")
    watch.trial_started(failed, tally)
    watch.trial_finished(failed, tally)
    for place in range(workers - 1):
        event = {"event": "progress", "phase": "proxy@100", "trial": 20 + place, "worker": f"cuda:{place}"}
        watch.trial_started(row(20 + place), tally)
        training = {"rung": 2, "rungs": 3, "step": 60, "steps": 400, "images_s": 812.4}
        watch.progress({**event, **({"waiting": "process 7"} if place % 4 == 3 else training)})


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("workers", [2, 8, 64])
def test_the_panel_has_a_line_for_each_worker_that_fits(tmp_path: Path, width: int, workers: int) -> None:
    panel = LiveListener("results/one", "hybrid", TimeLeft(make_rung_config(tmp_path / "log")), height=lambda: 24)
    play(panel, workers)
    console = Console(file=io.StringIO(), width=width, record=True, markup=False)
    console.print(panel.render())
    shown = console.export_text()
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 24
    assert f"{workers} workers: {workers - 1} at work, 1 free; {190 - workers} trials wait" in shown
    assert "2: 1 killed, 1 earlier" in shown
    assert any(line.split()[:5] == ["cuda:0", "training", "2/3", "15%", "0s"] for line in lines)
    assert sum("cuda:" in line for line in lines) == min(workers - 1, 15)
    assert ("and 48 more" in shown) == (workers == 64)
    assert any(line.split()[:2] == ["cuda:3", "waiting"] for line in lines) == (workers > 2)


def test_the_heartbeat_tells_what_the_workers_do_in_one_line(tmp_path: Path) -> None:
    plain = PlainListener(Console(file=io.StringIO()), TimeLeft(make_rung_config(tmp_path / "log")))
    play(plain, 9)
    words = plain.describe()
    assert words.startswith("now: 9 workers: 8 at work, 1 free; 181 trials wait, ")
    assert "; 6 training, 2 waiting; failed 2: 1 killed, 1 earlier; " in words
    assert "\n" not in words


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("the worker process was killed (signal 9, SIGKILL), probably because the machine ran out of memory", "killed"),
        ("the worker process crashed (signal 11, SIGSEGV); worker.log may say more", "crashed"),
        ("proxy: no progress for 12m00s, ended (--stall)", "stalled"),
        ("throughput: out of memory on cuda", "out of memory"),
        ("throughput: stages.1: ValueError: no", "other"),
    ],
)
def test_failures_are_grouped_by_what_their_reasons_say(reason: str, kind: str) -> None:
    assert failure_kind(reason) == kind
