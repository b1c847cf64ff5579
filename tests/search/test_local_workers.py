"""The workers on this machine: how many by default, which cores or GPUs each has, and the same scores whatever their number."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from support.runs import make_config, one_stage

from archsearch import device
from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.search import ProcessWorker, RunConfig
from archsearch.search.engine.workers import local

EMBEDDED = {"proxy": {"source": {"kind": "fashion-mnist"}, "recipe": {"steps": 4, "batch_size": 2}}}
ON_DATA = {"proxy": {"source": {"kind": "data"}, "recipe": {"steps": 4, "batch_size": 2}}}
SPACE = one_stage('width = [64, 96]\ndepth = [1, 2, 3]\nblock = ["mlp", "lka"]').replace(
    "image_size = 224", "image_size = 64"
)
RUN = ("run", "small.toml", "--budget", "20M", "--tolerance", "90%", "--papers", "none", "--batch-size", "1")
QUICK = ("--proxy-steps", "6", "--rungs", "1,2", "--trials", "4", "--sampler", "random", "--no-recheck")


def config(settings: dict[str, Any], **more: Any) -> RunConfig:
    return make_config(Path("/dev/null"), settings={**settings, **more})


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "affinity", lambda: [0, 1, 2, 3])


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("settings", "jobs", "expected"),
    [
        (EMBEDDED, 22, 4),
        (EMBEDDED, 3, 3),
        (EMBEDDED, 0, 1),
        ({**EMBEDDED, "threads": 1}, 22, 1),
        ({**EMBEDDED, "cpus": [1, 3]}, 22, 2),
        (ON_DATA, 22, 1),
    ],
)
def test_a_cpu_has_a_worker_a_core_for_small_proxies(
    settings: dict[str, Any], jobs: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_available_bytes", lambda: 2**40)
    assert local.count_workers(None, config(settings), jobs) == expected
    monkeypatch.setattr(local, "_available_bytes", lambda: 2**20)
    assert local.count_workers(None, config(settings), jobs) == 1
    with pytest.raises(UserError, match=r"--workers: got 5, but there are \d cores"):
        local.count_workers(5, config(settings), jobs)


@pytest.mark.usefixtures("four_cores")
def test_workers_share_the_cores_disjointly(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(local, "ProcessWorker", lambda log, **options: made.append(options))
    local.local_workers(Path("log"), config(EMBEDDED), 3)
    assert [worker["own_settings"]["training"] for worker in made] == [
        {"threads": 1, "cpus": [0, 1]},
        {"threads": 1, "cpus": [2]},
        {"threads": 1, "cpus": [3]},
    ]
    assert [worker["name"] for worker in made] == ["cpu 0,1", "cpu 2", "cpu 3"]
    made.clear()
    local.local_workers(Path("log"), config(ON_DATA), 2)
    assert [worker["own_settings"]["training"] for worker in made] == [
        {"threads": 2, "cpus": [0, 1]},
        {"threads": 2, "cpus": [2, 3]},
    ]
    made.clear()
    local.local_workers(Path("log"), config(ON_DATA), 1)
    local.local_workers(Path("log"), config(EMBEDDED), 1)
    assert [worker["own_settings"]["training"] for worker in made] == [None, {"threads": 1, "cpus": None}]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs as far as PyTorch says."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    device._see_only.cache_clear()


@pytest.mark.usefixtures("gpus")
def test_each_worker_sees_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    members: list[SimpleNamespace] = []

    def make(log: Path, **options: Any) -> SimpleNamespace:
        made.append(options)
        members.append(SimpleNamespace(can_time=True, capacity=1))
        return members[-1]

    monkeypatch.setattr(local, "ProcessWorker", make)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ("one", "other")[index])
    asked = config(EMBEDDED, device="cuda")
    assert local.count_workers(None, asked, 22) == 4
    assert device.pick_device("cuda:3,cuda:1").type == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))
    assert device.pick_device("cuda:3,cuda:1").type == "cuda", "a second time it changes nothing"
    assert local.count_workers(None, asked, 22) == 2
    local.local_workers(Path("log"), asked, 2)
    assert [worker["environment"] for worker in made] == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert [member.can_time for member in members] == [True, False], "another GPU only trains"
    local.local_workers(Path("log"), asked, 2, device_class="other")
    assert [member.can_time for member in members[2:]] == [False, True]
    with pytest.raises(UserError, match="--device-class: got 'third', but the GPUs here are one, other"):
        local.local_workers(Path("log"), asked, 2, device_class="third")
    with pytest.raises(UserError, match="--workers: got 3, but there are 2 GPUs"):
        local.count_workers(3, asked, 22)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("text", ["cuda:4", "cuda:", "cuda:1,2", "cuda:-1"])
def test_absent_gpus_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="this machine has cuda:0, cuda:1, cuda:2, cuda:3; write one or several"):
        device.pick_device(text)


def environment_of(arch: dict[str, Any], settings: dict[str, Any], done: Any, emit: Callable[[Any], None]) -> None:
    emit({"event": "progress", "phase": os.environ.get("CUDA_VISIBLE_DEVICES"), "text": settings["workers"]})


def test_a_process_has_its_environment_and_settings(tmp_path: Path) -> None:
    worker = ProcessWorker(
        tmp_path / "log",
        f"{__name__}:environment_of",
        environment={"CUDA_VISIBLE_DEVICES": "GPU-7"},
        own_settings={"workers": 2},
    )
    from archsearch.search import Job

    worker.submit(Job(trial=0, arch={}, settings={"workers": 1}, done={}))
    events: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (events and events[-1]["event"] == "done"):
        events += worker.events(1.0)
    worker.close()
    assert [(event.get("phase"), event.get("text")) for event in events] == [("GPU-7", 2), (None, None)]


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SPACE)
    evaluator = "support.cli_stub:evaluate_with_short_timings"
    monkeypatch.setattr(local, "ProcessWorker", partial(ProcessWorker, evaluator=evaluator))
    return lambda *arguments: CliRunner().invoke(main, arguments)


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_scores_are_the_same_bits_whatever_the_number_of_workers(cli: Cli) -> None:
    frames = {}
    for number in (1, 2):
        done = cli(*RUN, *QUICK, "--workers", str(number), "--output", f"w{number}")
        assert done.exit_code == 0, done.output
        frames[number] = pd.read_parquet(f"w{number}/trials.parquet").set_index("arch_id")
    assert (frames[1]["state"] == "complete").any()
    assert sorted(frames[1].index) == sorted(frames[2].index), "the random sampler asks nobody"
    complete = [name for name in frames[1].index if {frame["state"][name] for frame in frames.values()} == {"complete"}]
    assert len(complete) >= 1
    for column in ("proxy_score", "proxy_train_loss"):
        assert frames[1].loc[complete, column].tolist() == frames[2].loc[complete, column].tolist()


@pytest.mark.parametrize(
    "words", [("--workers", "0"), ("--workers", "many"), ("--workers", "9999"), ("--device", "cuda:77")]
)
def test_what_there_is_not_is_one_sentence_before_anything_is_made(cli: Cli, words: tuple[str, str]) -> None:
    done = cli(*RUN, *QUICK, *words, "--output", "out")
    assert done.exit_code == 2
    assert words[1] in done.output
    assert not Path("out").exists()
