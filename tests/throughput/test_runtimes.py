"""`bench --runtime`: the same network in other runtimes, its logits, threads and precision, and what is refused before anything is timed."""

import functools
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from archsearch import paper
from archsearch.cli import main
from archsearch.errors import RunError, UserError
from archsearch.identity import identity_digest, throughput_identity
from archsearch.metrics import kendall_tau
from archsearch.report import against_runtime_parts, show
from archsearch.throughput import (
    Measurement,
    Protocol,
    against_runtime_document,
    bench_document,
    bench_task,
    measure,
    runtime_options,
)
from archsearch.throughput.backends.load import calibration_batches, load, runtime_facts
from archsearch.throughput.timer import make_inputs

CPU = torch.device("cpu")
QUICK = functools.partial(Protocol, warmup_s=0.0, block_s=0.001, max_s=0.0, min_blocks=2, min_warmup_iterations=2)
RUNTIMES = ("onnxruntime", "openvino")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the runtimes


class Small(nn.Module):
    """Something to quantise: a convolution, a product and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 32, 4, stride=4), nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 10)."""
        logits: Tensor = self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))
        return logits


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Any:
    """The name of a runtime that is installed."""
    for name in ("onnxscript", request.param):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    return request.param


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Six pictures in two folders, of several shapes."""
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "pictures" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40 + number, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return str(tmp_path / "pictures")


@pytest.fixture
def threads() -> Iterator[None]:
    """Torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def protocol_of(runtime: Any, precision: Any = "float32", **how: Any) -> Protocol:
    return QUICK(batch_size=4, image_size=32, runtime=runtime, precision=precision, **how)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_runtime_gives_torchs_logits_in_its_precision(runtime: Any, precision: Any) -> None:
    network, protocol = Small().train(), protocol_of(runtime, precision)
    inputs = make_inputs(protocol, CPU)
    backend, difference = load(network, inputs, protocol)
    got = backend.logits()
    backend.run(5)
    backend.close()
    with torch.no_grad():
        wanted = network.eval()(inputs[0])
    apart = float((got - wanted).abs().max() / wanted.abs().max())
    assert difference == pytest.approx(apart, rel=1e-3, abs=1e-6)
    assert apart < {"float32": 1e-5, "float16": 2e-2}[precision]


@pytest.mark.slow
def test_int8_is_near_torch_and_not_the_same(runtime: Any, pictures: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("nncf")
    protocol = protocol_of(runtime, "int8", calibration_data=pictures)
    backend, difference = load(Small(), make_inputs(protocol, CPU), protocol)
    backend.run(2)
    backend.close()
    assert 1e-4 < difference < 0.3


def test_calibration_takes_every_picture_in_full_batches(pictures: str) -> None:
    batches = calibration_batches(protocol_of("onnxruntime", "int8", calibration_data=pictures))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 32, 32)] * 2  # six, and the first two again
    assert torch.equal(batches[1][2:], batches[0][:2])
    assert len({tuple(image.flatten().tolist()) for image in torch.cat(batches)}) == 6
    assert batches[0].is_contiguous()
    assert abs(float(torch.cat(batches).mean())) < 1  # normalised


def test_a_measurement_says_its_runtime_and_leaves_the_network_alone(runtime: Any) -> None:
    network = Small().train()
    figures = measure(network, protocol_of(runtime), CPU, reference=Small())
    assert (figures.runtime, figures.precision, figures.mode) == (runtime, "float32", "eager")
    assert figures.throughput_img_s > 0
    assert figures.ratio_to_reference is not None
    assert figures.difference_from_torch is not None
    assert network.training
    assert measure(network, protocol_of("torch", None), CPU).difference_from_torch is None


def test_a_runtime_has_as_many_threads_as_torch(runtime: Any, threads: None) -> None:
    asked = []
    for number in (1, 2):
        torch.set_num_threads(number)
        protocol = protocol_of(runtime)
        backend: Any = load(Small(), make_inputs(protocol, CPU), protocol)[0]
        if runtime == "onnxruntime":
            has = backend._session.get_session_options().intra_op_num_threads
        else:
            has = backend._compiled.get_property("INFERENCE_NUM_THREADS")
        backend.close()
        asked.append((runtime_facts(protocol, CPU)["runtime_threads"], has))
    assert asked == [(1, 1), (2, 2)]


class Stubborn(Small):
    """Other logits in the file than in the network: a file keeps what was so when it was traced."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice as large where nothing is traced."""
        return super().forward(x) * (1 if torch.compiler.is_exporting() else 2)


def test_a_network_that_computes_something_else_is_no_figure(runtime: Any) -> None:
    protocol = protocol_of(runtime)
    with pytest.raises(RunError, match="other logits"):
        load(Stubborn(), make_inputs(protocol, CPU), protocol)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "mode": ({"runtime": "onnxruntime", "mode": "compile"}, "--mode"),
    "dtype": ({"runtime": "onnxruntime", "dtype": "bfloat16"}, "--dtype"),
    "train": ({"runtime": "onnxruntime", "train": True}, "--train"),
    "mps": ({"runtime": "onnxruntime", "device": "mps"}, "--device"),
    "provider": ({"runtime": "onnxruntime", "device": "cuda"}, "CUDAExecutionProvider"),
    "openvino on cuda": ({"runtime": "openvino", "device": "cuda"}, "--device"),
    "int8 without pictures": ({"runtime": "onnxruntime", "precision": "int8"}, "--calibration-data"),
    "pictures without int8": ({"runtime": "onnxruntime", "calibration_data": "."}, "--precision int8"),
    "no pictures": ({"runtime": "onnxruntime", "precision": "int8", "calibration_data": "EMPTY"}, "no images"),
    "precision of torch": ({"precision": "float16"}, "--dtype"),
    "calibration of torch": ({"calibration_data": "."}, "--calibration-data"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_make_no_sense_with_a_runtime_are_refused(name: str, tmp_path: Path) -> None:
    options, words = BAD[name]
    for package in ("onnxscript", options.get("runtime", "torch")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if name == "provider" and torch.cuda.is_available():
        pytest.skip("there may be the provider")
    options = {key: str(tmp_path) if value == "EMPTY" else value for key, value in options.items()}
    given = {"device": "auto", "dtype": None, "mode": None, "batch_size": 1, "image_size": 32}
    with pytest.raises(UserError, match=words):
        bench_task({"van_b0": paper("van_b0")}, **{**given, **options})


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorrt" else find(name))
    result = CliRunner().invoke(main, ["bench", "van_b0", "--runtime", "tensorrt"], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "pip install 'archsearch[tensorrt]'" in result.stderr
    with pytest.raises(UserError, match=r"archsearch\[tensorrt\]"):
        Measurement.resolve(runtime="tensorrt")


def test_options_of_a_comparison_go_to_the_runtime_that_has_them() -> None:
    options = {"mode": "compile", "dtype": None, "precision": "int8", "calibration_data": "here", "runtime": "torch"}
    first, second = runtime_options("torch", "openvino", options)
    assert (first["runtime"], first["mode"], first["precision"], first["calibration_data"]) == (
        "torch",
        "compile",
        None,
        None,
    )
    assert (second["runtime"], second["mode"], second["precision"]) == ("openvino", None, "int8")
    both = runtime_options("onnxruntime", "openvino", options)
    assert [each["mode"] for each in both] == ["compile", "compile"]  # to be refused
    for wrong in ({"sweep": 4}, {"train": True}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            runtime_options("torch", "openvino", {**options, **wrong})
    with pytest.raises(UserError, match="--against-runtime"):
        runtime_options("torch", "torch", options)


def test_identities_differ_by_runtime_and_torchs_are_what_they_were() -> None:
    row = {"device": "cpu", "dtype": "float32", "mode": "eager", "batch_size": 2, "image_size": 224}
    conditions = {"device_name": "A", "threads": 1, "torch": "2.14.1"}
    torchs = throughput_identity(row, conditions, "figure")
    assert identity_digest(
        throughput_identity(row, {**conditions, "runtime": "torch", "precision": None}, "figure")
    ) == (identity_digest(torchs))
    others = [
        {"runtime": "onnxruntime", "runtime_version": "1.32.0", "precision": "float32"},
        {"runtime": "onnxruntime", "runtime_version": "1.32.0", "precision": "int8"},
        {"runtime": "onnxruntime", "runtime_version": "1.33.0", "precision": "int8"},
        {"runtime": "openvino", "runtime_version": "1.32.0", "precision": "float32"},
    ]
    found = [identity_digest(throughput_identity(row, {**conditions, **other}, "figure")) for other in others]
    assert len({identity_digest(torchs), *found}) == 5


@pytest.fixture
def _short_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "for_device", lambda device, **given: QUICK(**given))


@pytest.mark.usefixtures("_short_protocol")
def test_two_runtimes_stand_side_by_side() -> None:
    """Of torch twice, which needs no export; an architecture that failed in one of them is named and not compared."""
    given: dict[str, Any] = {"device": "cpu", "dtype": None, "mode": None, "batch_size": 1, "image_size": 32}
    task = bench_task({name: paper(name) for name in ("van_b0", "pvt_tiny")}, **given)
    document = against_runtime_document(task, task)
    sides = [{each["asked"]: each["ratio_to_reference"] for each in one["results"]} for one in document["runtimes"]]
    same = (sides[0]["van_b0"] > sides[0]["pvt_tiny"]) == (sides[1]["van_b0"] > sides[1]["pvt_tiny"])
    assert document["kendall_tau"] == (1 if same else -1)
    assert (document["measured"], document["asked"], document["interrupted"]) == (4, 4, False)
    document["runtimes"][1]["results"][0]["error"] = "it failed"
    stream = io.StringIO()
    show(Console(file=stream, width=120), *against_runtime_parts(document))
    printed = stream.getvalue()
    assert "van_b0 in torch: it failed" in printed
    assert [line.split()[0] for line in printed.split("\n\n")[0].splitlines()[2:]] == ["pvt_tiny"]
    assert printed.count("measured on cpu") == 2


@pytest.mark.usefixtures("_short_protocol")
def test_ctrl_c_before_anything_in_the_second_runtime_leaves_the_figures_of_the_first() -> None:
    given: dict[str, Any] = {"device": "cpu", "dtype": None, "mode": None, "batch_size": 1, "image_size": 32}
    task = bench_task({"van_b0": paper("van_b0")}, **given)
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        if sum(line.endswith(": building") for line in said) == 2:
            raise KeyboardInterrupt

    document = against_runtime_document(task, task, interrupt)
    assert [len(each["results"]) for each in document["runtimes"]] == [1, 0]
    stream = io.StringIO()
    show(Console(file=stream, width=120), *against_runtime_parts(document))
    rate = document["runtimes"][0]["results"][0]["throughput_img_s"]
    (row,) = [line.split() for line in stream.getvalue().splitlines() if re.match(r"van_b0 +\d", line)]
    assert row[1].rstrip("~!") == f"{rate:.1f}"
    assert "Kendall" not in stream.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("_short_protocol")
def test_bench_against_a_runtime_prints_both_and_the_tau_of_their_orders() -> None:
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    words = ["bench", "van_b0", "pvt_tiny", "--runtime", "torch", "--against-runtime", "onnxruntime", "--device", "cpu"]
    result = CliRunner().invoke(main, [*words, "--image-size", "32", "--batch-size", "1", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    one, other = document["runtimes"]
    assert [each["conditions"]["runtime"] for each in (one, other)] == ["torch", "onnxruntime"]
    assert other["conditions"]["runtime_providers"] == ["CPUExecutionProvider"]
    assert [each["precision"] for each in other["results"]] == ["float32"] * 2
    ratios = [[each["ratio_to_reference"] for each in side["results"]] for side in (one, other)]
    assert document["kendall_tau"] == kendall_tau(*ratios)
    assert document["compared"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("_short_protocol")
def test_a_network_of_ours_is_timed_in_a_runtime_beside_its_reference(runtime: Any) -> None:
    given: dict[str, Any] = {"device": "cpu", "dtype": None, "mode": None, "batch_size": 2, "image_size": 32}
    task = bench_task({"van_b0": paper("van_b0")}, runtime=runtime, rounds=1, **given)
    document = bench_document(task)
    (result,) = document["results"]
    assert result["error"] is None
    assert result["difference_from_torch"] < 1e-4
    assert document["conditions"]["runtime"] == runtime
    assert document["conditions"]["runtime_version"]


@pytest.mark.slow
def test_openvino_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    """Its telemetry would: in a process of its own, since it writes when it is imported."""
    pytest.importorskip("openvino", reason="needs openvino")
    program = (
        "import torch\nfrom torch import nn\n"
        "from archsearch.throughput import Protocol, measure\n"
        "from archsearch.throughput.backends.load import runtime_facts\n"
        "network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(8 * 64, 10))\n"
        "protocol = Protocol(batch_size=1, image_size=32, warmup_s=0.0, max_s=0.0, min_blocks=2, runtime='openvino', precision='float32')\n"
        "assert runtime_facts(protocol, torch.device('cpu'))['runtime_version']\n"
        "print(measure(network, protocol, torch.device('cpu')).throughput_img_s > 0)\n"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=os.environ | home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr
    assert not (tmp_path / "intel").exists()
