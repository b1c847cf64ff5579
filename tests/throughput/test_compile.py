"""Compiled timings: the defaults of a device, where the compiler cannot run, networks compiled ahead, and those that do not compile."""

import functools
import json
import multiprocessing
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli_stub import evaluate_with_short_timings
from support.runs import one_stage
from support.settings import settings_for

from archsearch.errors import UserError
from archsearch.identity import identity_differences, throughput_identity
from archsearch.models import build_for_timing
from archsearch.space import Arch, Space
from archsearch.throughput import CompilePool, Measurement, pool_size
from archsearch.throughput.timer import compiled, make_inputs, prepared

TEXT = one_stage('width = 32\ndepth = 1\nblock = "mlp"').replace("image_size = 224", "image_size = 32")
TINY = Space(tomllib.loads(TEXT), "tiny.toml", TEXT).sample(lambda name, choices: choices[0])


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has CUDA, as far as the options look."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def usual(device: str, **options: Any) -> tuple[str, str, list[str]]:
    """Number format and mode for a device, and what was said."""
    said: list[str] = []
    found = Measurement.resolve(device=device, say=said.append, **options)
    return found.dtype, found.mode, said


@pytest.mark.usefixtures("cuda")
def test_defaults_are_what_is_deployed_on_the_device() -> None:
    assert usual("cuda") == ("bfloat16", "compile", [])
    assert usual("cuda", dtype="float32", mode="reduce-overhead") == ("float32", "reduce-overhead", [])
    assert usual("cuda", mode="eager") == ("bfloat16", "eager", [])
    assert usual("cpu") == ("float32", "eager", [])


@pytest.mark.usefixtures("cuda")
def test_without_a_compiler_the_default_is_eager_and_a_request_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    dtype, mode, (sentence,) = usual("cuda")
    assert (dtype, mode) == ("bfloat16", "eager")
    assert sentence.endswith("torch.compile cannot run here, since there is no C compiler (gcc or clang)")
    with pytest.raises(
        UserError, match=r"--mode: got 'compile', but torch.compile cannot run here: there is no C compiler"
    ):
        usual("cuda", mode="compile")
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler \(g\+\+ or clang\+\+ or cl\)"):
        usual("cpu", mode="compile")
    assert usual("cpu") == ("float32", "eager", [])


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(
        UserError, match=r"--mode: got 'reduce-overhead', which captures CUDA graphs, but the device is cpu"
    ):
        usual("cpu", mode="reduce-overhead")


def test_figures_with_tf32_are_not_ranked_with_those_without() -> None:
    """Those from before it was allowed, whose conditions say that it was not, have the identity that they had."""
    row = {"device": "cuda", "dtype": "float32", "mode": "eager", "batch_size": 1, "image_size": 224}
    before, now = (throughput_identity(row, {"tf32_matmul": allowed}, "ratio") for allowed in (False, True))
    assert "tf32" not in before
    assert identity_differences(before, now) == "TF32 not allowed then, allowed now"
    assert throughput_identity({**row, "device": "cpu"}, {"tf32_matmul": True}, "ratio").get("tf32") is None


def test_the_pool_has_the_cores_that_a_run_leaves_idle() -> None:
    assert pool_size(Measurement(device="cpu", batch_size=1, threads=2, cpus=(0, 1))) == 0
    assert pool_size(Measurement(device="cpu", batch_size=1, threads=1, cpus=(0, 1))) == 1
    assert pool_size(Measurement(device="cuda", batch_size=1, cpus=tuple(range(12)))) == 3
    assert pool_size(Measurement(device="cuda", batch_size=1, cpus=tuple(range(64)))) == 4


def cache_use(document: Mapping[str, Any]) -> dict[str, int]:
    """What the compiler's cache had of a network's first pass: hits and misses, of this process."""
    torch.set_num_threads(1)
    arch = Arch.from_dict(document)
    protocol = measurement().protocol()
    with prepared(build_for_timing(arch), protocol) as network, torch.inference_mode():
        compiled(network, protocol)(make_inputs(protocol, torch.device("cpu"))[0])
    from torch._dynamo.utils import counters

    return {key: count for key, count in counters["inductor"].items() if key.startswith("fxgraph_cache")}


def measurement() -> Measurement:
    return Measurement(device="cpu", batch_size=1, image_size=32, mode="compile", threads=1)


@pytest.mark.slow
def test_what_was_compiled_ahead_is_in_the_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("an empty cache takes a minute of compilers, for torch's headers alone; --whole runs it")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    pool = CompilePool(measurement(), {}, 1)
    with pool.paused():
        pool.add([TINY.to_dict()])
        assert os.listdir(tmp_path) == []
    pool.claim("another")
    pool.wait()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert executor.submit(cache_use, TINY.to_dict()).result() == {"fxgraph_cache_hit": 1}


@pytest.mark.slow
def test_a_network_that_does_not_compile_is_timed_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such op\nhere")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=refuse))
    events: list[dict[str, Any]] = []
    settings = {**settings_for(), "mode": "compile", "batch_size": 1, "image_size": 32, "phases": ["throughput"]}
    evaluate_with_short_timings(TINY.to_dict(), settings, {}, events.append)
    values = json.loads(json.dumps(events[-1]["values"]))
    assert (values["mode"], values["compile_s"]) == ("eager", None)
    assert values["throughput_img_s"] > 0
    reason = values["conditions"]["compile_error"]
    assert reason.startswith("throughput: the reference cannot be compiled: ")
    assert "no such op" in reason
    assert "timing it eager" in " ".join(event.get("text", "") for event in events)


def test_progress_bars_of_the_compiler_share_no_semaphore() -> None:
    """Of one that a killed worker leaves behind, Python warns on the terminal at the end of the run."""
    program = (
        "import multiprocessing.synchronize as shared; shared.SemLock = None; "
        "from archsearch.throughput import keep_progress_bars_here; keep_progress_bars_here(); "
        "from tqdm import tqdm; print(sum(tqdm(range(3), disable=True)), tqdm.get_lock().acquire())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == ["3", "True"]
