"""Timing checked on networks that sleep: the time of a pass is then known on every machine."""

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self, get_args

import pytest
import torch
from torch import Tensor, nn

from archsearch.device import conditions, device_lock, pick_device
from archsearch.errors import RunError, UserError
from archsearch.throughput import InfeasibleError, Protocol, Task, measure
from archsearch.throughput.telemetry import missing_telemetry
from archsearch.units import DType

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
# Loose limits: these tests are about what is counted and reported, on machines that may be busy.
QUICK = Protocol(
    batch_size=4,
    image_size=8,
    warmup_s=0.02,
    block_s=0.02,
    min_blocks=5,
    max_s=0.3,
    iqr_limit=0.5,
    agree=0.5,
    drift_limit=0.5,
)
# Within this limit every first round counts: on a busy machine a second one makes passes that `iterations` leaves out.
ONE_ROUND = dataclasses.replace(QUICK, iqr_limit=100.0)


class Sleeper(nn.Module):
    """A network whose passes take the given seconds in turn."""

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.seconds = list(seconds)
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds[self.passes % len(self.seconds)])
        self.passes += 1
        return images


class Log:
    """Inputs and settings of a network's passes, shared by its copies: measurements that change weights work in a copy."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.settings: list[tuple[bool, bool, torch.dtype, torch.dtype]] = []
        self.weights: list[Tensor] = []

    def __deepcopy__(self, memo: object) -> Self:
        return self


class Recorder(nn.Module):
    """A network that records its inputs and settings."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.dropout = nn.Dropout(0.5)
        self.log = Log()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.linear(self.dropout(self.frozen(images)))
        self.log.images.append(images)
        self.log.weights.append(self.linear.weight.detach().clone())
        self.log.settings.append(
            (self.training, torch.is_inference_mode_enabled(), self.linear.weight.dtype, out.dtype)
        )
        return out.mean((1, 2))


class Full(nn.Module):
    """A network that fails with the given message."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message = message

    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError(self.message)


def test_a_network_of_known_speed_has_that_throughput() -> None:
    figure = measure(Sleeper(0.02), QUICK, CPU)
    known = QUICK.batch_size / 0.02
    assert 0.7 * known <= figure.throughput_img_s <= 1.05 * known
    assert figure.latency_ms == pytest.approx(1000 * QUICK.batch_size / figure.throughput_img_s)
    assert (figure.batch_size, figure.image_size, figure.dtype, figure.mode, figure.device) == (
        4,
        8,
        "float32",
        "eager",
        "cpu",
    )
    assert (figure.reference_img_s, figure.ratio_to_reference, figure.drift, figure.drifted) == (
        None,
        None,
        None,
        False,
    )


def test_reported_counts_match_the_passes_made() -> None:
    model = Sleeper(0.004)
    figure = measure(model, ONE_ROUND, CPU)
    assert figure.warmup_iterations >= 10
    assert figure.warmup_iterations + figure.iterations == model.passes
    assert figure.iterations >= figure.num_blocks * 2
    assert figure.measure_s >= 0.004 * model.passes


def test_slower_networks_have_lower_throughput() -> None:
    rates = [measure(Sleeper(seconds), QUICK, CPU).throughput_img_s for seconds in (0.002, 0.006, 0.018)]
    assert rates == sorted(rates, reverse=True)


def test_slow_networks_on_a_cpu_warm_up_in_fewer_passes() -> None:
    protocol = Protocol.for_device(CPU, batch_size=1, image_size=8)
    slow = dataclasses.replace(protocol, warmup_s=0.2, min_blocks=2, iqr_limit=1.0, agree=0.5)
    assert 3 <= measure(Sleeper(0.11), slow, CPU).warmup_iterations < 10
    strict = dataclasses.replace(slow, min_slow_warmup_iterations=10)
    assert measure(Sleeper(0.11), strict, CPU).warmup_iterations == 10


def test_a_warm_up_whose_times_never_agree_ends_after_at_least_ten_passes() -> None:
    protocol = dataclasses.replace(QUICK, agree=0.0, min_slow_warmup_iterations=3)
    assert 10 <= measure(Sleeper(0.002, 0.012), protocol, CPU).warmup_iterations < 100


def test_inputs_are_random_rotated_and_channels_last() -> None:
    model = Recorder()
    state = torch.get_rng_state()
    measure(model, QUICK, CPU)
    assert torch.equal(state, torch.get_rng_state())
    seen = model.log.images[:9]
    assert {images.shape for images in model.log.images} == {(4, 3, 8, 8)}
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in seen)
    assert all(0.8 < images.std() < 1.2 and abs(images.mean()) < 0.2 for images in seen)
    assert not any(torch.equal(seen[i], seen[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(torch.equal(images, seen[i % 3]) for i, images in enumerate(seen))


FORMATS: dict[DType, tuple[torch.dtype, torch.dtype, torch.dtype]] = {  # inputs, weights, what a matrix product gives
    "float32": (torch.float32, torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "amp_bfloat16": (torch.float32, torch.float32, torch.bfloat16),
}


@pytest.mark.parametrize("dtype", FORMATS)
def test_passes_run_in_eval_and_inference_mode_and_in_the_dtype_of_the_protocol(dtype: DType) -> None:
    model = Recorder()
    measure(model, dataclasses.replace(QUICK, dtype=dtype), CPU)
    inputs, weights, products = FORMATS[dtype]
    assert {images.dtype for images in model.log.images} == {inputs}
    assert set(model.log.settings) == {(False, True, weights, products)}


@pytest.mark.parametrize("dtype", FORMATS)
def test_training_steps_move_the_weights_of_a_copy_in_train_mode(dtype: DType) -> None:
    model = Recorder()
    figure = measure(model, dataclasses.replace(ONE_ROUND, dtype=dtype, task="train"), CPU)
    _, weights, products = FORMATS[dtype]
    labels_pass, *steps = model.log.settings
    assert not labels_pass[0]
    assert set(steps) == {(True, False, weights, products)}
    assert len(steps) == figure.warmup_iterations + figure.iterations
    assert (figure.task, figure.dtype) == ("train", dtype)
    if dtype != "bfloat16":  # whose numbers are too coarse for a rate this small
        assert not any(torch.equal(one, other) for one, other in itertools.pairwise(model.log.weights[1:9]))


@pytest.mark.parametrize("task", get_args(Task))
@pytest.mark.parametrize("dtype", FORMATS)
def test_network_and_reference_keep_their_values(dtype: DType, task: Task) -> None:
    networks = [Recorder(), Recorder()]
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    state = torch.get_rng_state()
    measure(networks[0], dataclasses.replace(QUICK, dtype=dtype, task=task), CPU, reference=networks[1])
    assert torch.equal(state, torch.get_rng_state())
    for network, values in zip(networks, before, strict=True):
        after = network.state_dict()
        assert {name: value.dtype for name, value in after.items()} == {
            name: value.dtype for name, value in values.items()
        }
        assert all(torch.equal(after[name], values[name]) for name in values)
        assert all(weight.grad is None for weight in network.parameters())
        assert (network.training, network.frozen.training) == (True, False)
        assert len(network.log.settings) > 10


def test_the_bfloat16_copy_has_no_float32_values_cached_for_eval() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.kept: Tensor | None = None

        def train(self, mode: bool = True) -> Self:
            self.kept = None
            return super().train(mode)

        def forward(self, images: Tensor) -> Tensor:
            self.kept = self.linear.weight * 2 if self.kept is None else self.kept
            return images @ self.kept

    model = Cached().eval()
    with torch.no_grad():
        model(torch.ones(1, 8))
    measure(model, dataclasses.replace(QUICK, dtype="bfloat16"), CPU)
    assert not model.training


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (Sleeper(0.0), "no parameters to train"),
        (nn.Conv2d(3, 8, 3), r"output is \(4, 8, 6, 6\), not \(B, classes\)"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(network: nn.Module, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        measure(network, dataclasses.replace(QUICK, task="train"), CPU)


def test_a_map_of_one_pixel_in_a_batch_of_one_cannot_be_trained() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 8), nn.BatchNorm2d(8), nn.Flatten())
    with pytest.raises(RunError, match="the candidate cannot be trained at batch size 1, 8 px"):
        measure(network, dataclasses.replace(QUICK, batch_size=1, task="train"), CPU)


@pytest.mark.parametrize("training", [True, False])
def test_training_flags_are_restored_and_the_network_stays_trainable(training: bool) -> None:
    model = Recorder().train(training)
    model.frozen.eval()
    measure(model, QUICK, CPU)
    assert (model.training, model.linear.training, model.frozen.training) == (training, training, False)
    model.linear(torch.ones(8)).sum().backward()
    assert model.linear.weight.grad is not None


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
        "MPS backend out of memory (MPS allocated: 9 GB)",
    ],
)
def test_running_out_of_memory_makes_the_candidate_infeasible(message: str) -> None:
    model = Full(message)
    with pytest.raises(InfeasibleError, match="the candidate is infeasible at batch size 4, 8 px, float32") as caught:
        measure(model, QUICK, CPU)
    assert caught.value.__context__ is None
    assert model.training
    with pytest.raises(RunError, match="the reference is infeasible"):
        measure(Sleeper(0.001), QUICK, CPU, reference=model)


def test_what_is_infeasible_in_a_runtime_is_so_in_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("archsearch.throughput.timer.load", full)
    protocol = dataclasses.replace(QUICK, runtime="onnxruntime", precision="float16")
    with pytest.raises(InfeasibleError, match="the candidate is infeasible at batch size 4, 8 px, float16: no room"):
        measure(Sleeper(0.001), protocol, CPU)


def test_a_batch_that_the_allocator_refuses_is_infeasible() -> None:
    with pytest.raises(RunError, match="infeasible at batch size 1000000"):
        measure(Sleeper(0.001), dataclasses.replace(QUICK, batch_size=10**6, image_size=10**4), CPU)


def test_other_errors_of_a_network_are_raised_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        measure(Full("shapes do not fit"), QUICK, CPU)


def test_jittery_passes_are_timed_again_and_marked_noisy() -> None:
    protocol = dataclasses.replace(QUICK, block_s=1e-6, iqr_limit=0.03)
    lines: list[str] = []
    figure = measure(Sleeper(0.002, 0.012), protocol, CPU, say=lines.append)
    assert figure.noisy
    assert figure.throughput_iqr > 0.5
    assert figure.num_blocks == figure.iterations > protocol.min_blocks
    assert lines.count("timing 5 blocks of 4 images") == figure.num_blocks // protocol.min_blocks
    assert not measure(Sleeper(0.01), QUICK, CPU).noisy


def test_a_round_whose_first_blocks_agree_ends_early() -> None:
    protocol = dataclasses.replace(QUICK, min_blocks=15, settled_blocks=4, iqr_limit=0.9)
    settled = measure(Sleeper(0.005), protocol, CPU, reference=Sleeper(0.002))
    assert (settled.num_blocks, settled.noisy) == (4, False)
    assert settled.ratio_to_reference == pytest.approx(0.4, rel=0.3)
    unsettled = measure(Sleeper(0.002, 0.012), dataclasses.replace(protocol, block_s=1e-6), CPU)
    assert unsettled.num_blocks >= 15


def test_a_disturbed_round_is_left_out_once_a_quiet_one_follows() -> None:
    # Eleven passes of warm-up and the first round of five jitter; what follows does not.
    model = Sleeper(*[0.005, 0.025] * 8, *[0.02] * 1000)
    protocol = dataclasses.replace(QUICK, warmup_s=0.0, block_s=1e-6, agree=9.0, iqr_limit=0.3, max_s=2.0)
    figure = measure(model, protocol, CPU)
    assert (figure.noisy, figure.num_blocks, figure.warmup_iterations) == (False, 5, 10)
    assert model.passes > 15
    assert 0.7 * 200 <= figure.throughput_img_s <= 1.05 * 200


def test_the_reference_is_timed_on_both_sides_of_every_block_and_gives_the_ratio() -> None:
    order: list[str] = []

    class Named(Sleeper):
        def forward(self, images: Tensor) -> Tensor:
            order.append(f"{self.seconds[0]}")
            return super().forward(images)

    figure = measure(Named(0.01), QUICK, CPU, reference=Named(0.02))
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    # Before all and the warm-up, then around each block of each round.
    assert turns[:2] == ["0.02", "0.01"]
    assert turns[2:] == ["0.02", "0.01"] * ((len(turns) - 3) // 2) + ["0.02"]
    assert (len(turns) - 3) // 2 >= figure.num_blocks >= QUICK.min_blocks
    assert figure.reference_img_s == pytest.approx(4 / 0.02, rel=0.3)
    assert figure.ratio_to_reference == pytest.approx(2, rel=0.3)
    assert not figure.drifted


def test_the_ratio_is_to_the_reference_around_each_block() -> None:
    """Both slow down fourfold in the middle of a round: rates scatter, the ratio stays."""

    class Shared(Sleeper):
        passes_of_all = 0

        def forward(self, images: Tensor) -> Tensor:
            Shared.passes_of_all += 1
            slowdown = 4 if Shared.passes_of_all > 40 else 1
            time.sleep(self.seconds[0] * slowdown)
            return images

    protocol = dataclasses.replace(
        QUICK, warmup_s=0.0, block_s=1e-6, agree=9.0, iqr_limit=0.0, max_s=0.0, min_blocks=11
    )
    figure = measure(Shared(0.01), protocol, CPU, reference=Shared(0.005))
    assert figure.noisy
    assert figure.drifted
    assert figure.throughput_iqr > 0.5
    assert figure.ratio_to_reference == pytest.approx(0.5, rel=0.2)


def test_a_reference_that_slows_down_meanwhile_marks_the_figure_drifted() -> None:
    reference = Sleeper(0.005)

    class Heater(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            reference.seconds[0] = 0.02
            return images

    figure = measure(Heater(), QUICK, CPU, reference=reference)
    assert figure.drifted
    # 800 and 200 images a second, against their mean.
    assert figure.drift == pytest.approx(600 / 500, rel=0.2)


def test_peak_memory_is_that_of_this_measurement_only() -> None:
    class Hog(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.ones(2**24).sum()

    hungry, modest = measure(Hog(), QUICK, CPU), measure(Sleeper(0.001), QUICK, CPU)
    if sys.platform != "linux":
        pytest.skip("only Linux can forget a process's memory peak")
    assert hungry.peak_memory_bytes is not None
    assert modest.peak_memory_bytes is not None
    assert 2**25 < hungry.peak_memory_bytes - modest.peak_memory_bytes < 2**28


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"dtype": "float16"}, "dtype: got 'float16', allowed are float32, bfloat16, amp_bfloat16"),
        ({"task": "backward"}, "task: got 'backward', allowed are forward, train"),
        ({"mode": "fast"}, "mode: got 'fast', allowed are eager, compile"),
        ({"warmup_s": float("nan")}, "warmup_s: got nan"),
        ({"max_s": -1.0}, "max_s: got -1.0"),
        ({"min_blocks": 1}, "min_blocks: got 1"),
        ({"settled_blocks": 1}, "settled_blocks: got 1"),
    ],
)
def test_protocols_with_values_out_of_range_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(QUICK, **change)  # type: ignore[arg-type]  # bad values are the point


@pytest.mark.slow
def test_more_networks_than_the_compilers_limit_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    eager: list[int] = []

    class Telltale(nn.Module):
        def __init__(self, scale: int) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, images: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                eager.append(self.scale)
            return images * self.scale

    # One by the whole compiler; then, by its front end alone, one network more than its limit of graphs for a function.
    reference, graphs = Telltale(9), torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    with torch._dynamo.config.patch(recompile_limit=2):
        for scale in range(4):
            if scale == 1:
                monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
            figure = measure(Telltale(scale), dataclasses.replace(QUICK, mode="compile"), CPU, reference=reference)
            assert (figure.mode, eager) == ("compile", [])
            assert figure.compile_s is not None
            assert 0 < figure.compile_s < figure.measure_s
    assert graphs["unique_graphs"] - before == 4 + 1  # the reference once


def test_networks_that_are_compiled_in_parts_are_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a part is a function that they share, with one limit of graphs."""
    eager: list[int] = []

    class InParts(nn.Module):
        def __init__(self, scale: int) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, images: Tensor) -> Tensor:
            images = images * self.scale
            torch._dynamo.graph_break()
            if not torch.compiler.is_compiling():
                eager.append(self.scale)
            return images * self.scale

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    reference = InParts(9)
    with torch._dynamo.config.patch(recompile_limit=2):
        for scale in range(4):
            measure(InParts(scale), dataclasses.replace(QUICK, mode="compile"), CPU, reference=reference)
    assert eager == []


@pytest.mark.slow
def test_a_missing_compiler_is_reported_in_one_sentence() -> None:
    protocol = dataclasses.replace(QUICK, mode="compile")
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        pytest.raises(RunError, match=r"^throughput: the candidate cannot be compiled: .*no-such-compiler"),
    ):
        measure(nn.Sequential(nn.Sigmoid(), nn.Tanh()), protocol, CPU)


def test_auto_is_the_fastest_device_present() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto") == torch.device(best)
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_absent_device_is_reported_with_an_alternative(name: str) -> None:
    if torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(
        UserError, match=rf"device: got '{name}', but PyTorch .* finds only .*cpu here; use '\w+' or 'auto'$"
    ):
        pick_device(name)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match="device: got 'gpu', allowed are auto, cpu, cuda, mps"):
        pick_device("gpu")


def test_conditions_are_plain_values_that_describe_the_machine() -> None:
    noted = conditions(CPU)
    assert noted["device"] == "cpu"
    assert noted["torch"] == torch.__version__
    assert noted["threads"] == torch.get_num_threads()
    assert noted["device_name"] == noted["host_cpu"]
    assert noted["host_cpu"]
    assert str(noted["date"]).endswith("+00:00")
    assert noted["driver"] is noted["cuda"] is None
    assert json.loads(json.dumps(noted)) == noted


HOLDER = """
import os, sys, time, torch
from archsearch.device import device_lock
print("asking", flush=True)
with device_lock(torch.device("cpu"), exclusive=sys.argv[1] == "timing"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
os._exit(0)  # At once: libraries take time to exit, and the tests depend on when a lock is released.
"""


@pytest.fixture
def lock_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of lock files for this process and those it starts: locks of real runs are elsewhere."""
    monkeypatch.setenv("ARCHSEARCH_LOCK_DIR", str(tmp_path))
    return tmp_path


def start_holder(kind: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.usefixtures("lock_directory")
def test_a_lock_excludes_until_its_holder_dies() -> None:
    with start_holder("timing", 30) as first:
        wait_for(first, "asking")
        wait_for(first, "held")
        with start_holder("timing", 0) as second:
            wait_for(second, "asking")
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=1)
            first.send_signal(signal.SIGKILL)
            wait_for(second, "held")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.usefixtures("lock_directory")
def test_trainings_share_a_device_but_not_with_a_timing() -> None:
    with contextlib.ExitStack() as stack:
        with device_lock(CPU, exclusive=False):
            training = stack.enter_context(start_holder("training", 0))
            wait_for(training, "asking")
            wait_for(training, "held")  # before anything wants to time: one that asks later waits behind it
            timing = stack.enter_context(start_holder("timing", 0))
            wait_for(timing, "asking")
            with pytest.raises(subprocess.TimeoutExpired):
                timing.wait(timeout=1)
        wait_for(timing, "held")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_lock_file_that_is_a_link_is_not_followed(lock_directory: Path) -> None:
    (lock_directory / "archsearch-cpu-0.lock").symlink_to(lock_directory / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"), device_lock(CPU, exclusive=True):
        pass


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: the event clock exists only there")
@pytest.mark.parametrize("dtype", FORMATS)
def test_a_gpu_is_timed_by_its_own_clock(dtype: DType) -> None:
    device = pick_device("cuda")
    small, large = nn.Conv2d(3, 64, 3), nn.Sequential(nn.Conv2d(3, 64, 3), *(nn.Conv2d(64, 64, 3) for _ in range(20)))
    protocol = dataclasses.replace(QUICK, batch_size=64, image_size=128, dtype=dtype)
    fast, slow = (measure(model, protocol, device, reference=nn.Conv2d(3, 8, 3)) for model in (small, large))
    assert fast.throughput_img_s > 2 * slow.throughput_img_s
    assert fast.peak_memory_bytes is not None
    # At least its inputs and its output, far less than the whole GPU.
    assert 64 * 67 * 126 * 126 * 2 < fast.peak_memory_bytes < 2**32
    noted = conditions(device)
    assert noted["device_name"] == torch.cuda.get_device_name()
    assert (noted["driver"] is None) == (missing_telemetry(device) is not None)
    with device_lock(device, exclusive=True):
        pass
