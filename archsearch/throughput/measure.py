"""Images per second of a network on one device, and how far the figure is to be trusted.

The reference is timed before, after and between all blocks of the candidate, and the ratio is the median over blocks of the candidate's rate against the
reference's just before and just after. Ten models twice, minutes apart, one core of a busy server (tests/benchmarks/repeatability.py, without and with a
load of our own): so the ratios changed by 4.7 and 2.7 % (median) and their two orders agreed to a Kendall tau of 0.82 and 0.82; with the reference before
and after all blocks only, by 12.9 and 5.8 %, 0.38 and 0.64; images/s as such changed by 10.8 and 5.4 %.

A figure belongs to its device, batch size, image size, dtype, mode and task: throughputs are never compared or merged
across them. Inputs are in channels_last memory, weights as the network lays them out. TF32, cudnn.benchmark and the
number of threads stay as the caller set them (`machine.use_cpu`), and `machine.conditions` notes them down. Nothing else
should run on the device meanwhile: hold `machine.device_lock(device, exclusive=True)`.
"""

import itertools
import statistics
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from archsearch.device import is_out_of_memory, peak_memory_bytes, reset_peak_memory
from archsearch.errors import RunError
from archsearch.throughput.protocol import Mode, Protocol, Task
from archsearch.throughput.telemetry import Telemetry, summarize, watching
from archsearch.throughput.timer import Stopwatch, make_inputs, prepared
from archsearch.units import DType

__all__ = ["DType", "InfeasibleError", "Mode", "Progress", "Protocol", "Task", "Throughput", "measure"]

Progress = Callable[[str], None]
T = TypeVar("T")

# BatchNorm's words in training, of a map of one pixel in a batch of one image.
_ONE_VALUE = "Expected more than 1 value per channel"
# What references had their whole warm-up for in this process: beside the next candidate one block wakes them.
_WARMED: weakref.WeakKeyDictionary[nn.Module, set[tuple[object, ...]]] = weakref.WeakKeyDictionary()


class InfeasibleError(RunError):
    """Memory does not suffice at this batch size."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """One measurement; medians over blocks, spread and drift as fractions (0.03 is 3 %).

    `compile_s` is the first pass, which compiles; shorter where torch.compile finds its own files of an earlier time.
    `throttled`: heat or a power brake held the clocks down (see `telemetry`, None where NVML tells nothing).
    """

    throughput_img_s: float
    throughput_iqr: float
    latency_ms: float
    num_blocks: int
    iterations: int
    warmup_iterations: int
    compile_s: float | None
    peak_memory_bytes: int | None
    noisy: bool
    reference_img_s: float | None
    ratio_to_reference: float | None
    drift: float | None
    drifted: bool
    throttled: bool
    telemetry: Telemetry | None
    batch_size: int
    image_size: int
    dtype: DType
    mode: Mode
    task: Task
    device: str
    measure_s: float


def measure(
    model: nn.Module,
    protocol: Protocol,
    device: torch.device,
    *,
    reference: nn.Module | None = None,
    progress: Progress | None = None,
) -> Throughput:
    """Throughput of `model`, a map from (B, 3, H, W), timed between two timings of `reference` if there is one.

    Forward passes in float32 or by autocast run in the modules themselves, which are moved to `device` and stay there;
    training and pure bfloat16 run in copies. Weights, buffers, training flags and random states come back as they were.
    `progress` is called between timings with a line to show. InfeasibleError, a RunError, when memory does not suffice at this
    batch size, which is never made smaller; RunError when a network cannot be compiled, or not be trained at that size.
    """
    began = time.perf_counter()
    say = progress or (lambda line: None)
    if protocol.mode == "compile":
        # Else the compiler's limit of graphs a function, reached after some candidates, leaves the rest eager unsaid.
        torch.compiler.reset()
    with ExitStack() as stack:
        _keep_random_state(stack, protocol, device)
        before = None
        inputs = _guarded("any model", protocol, lambda: make_inputs(protocol, device))
        yardstick = None
        if reference is not None:
            say("timing the reference")
            yardstick = _yardstick(stack, reference, inputs, protocol, device)
            before = _guarded("the reference", protocol, yardstick.quick_rate)
        timing = _guarded(
            "the candidate", protocol, lambda: _time_candidate(model, inputs, protocol, device, yardstick, say)
        )
    return _report(timing, before, protocol, device, time.perf_counter() - began)


def _keep_random_state(stack: ExitStack, protocol: Protocol, device: torch.device) -> None:
    """Give the caller's random states back at the end: dropout draws from them in training."""
    if protocol.task == "train":
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))


def _yardstick(
    stack: ExitStack, reference: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device
) -> Stopwatch:
    """The reference ready to be timed, warmed up if it was not yet in this process under these conditions."""
    stopwatch = _guarded(
        "the reference",
        protocol,
        lambda: Stopwatch.of(stack.enter_context(prepared(reference, protocol)), inputs, protocol, device),
    )
    warmed = _WARMED.setdefault(reference, set())
    conditions = (device, protocol.dtype, protocol.task, protocol.batch_size, protocol.image_size)
    if conditions not in warmed or protocol.mode == "compile":
        _guarded("the reference", protocol, stopwatch.warm_up)
        warmed.add(conditions)
    return stopwatch


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """Images per second of every block of the candidate and of the reference around them, and what it took."""

    rounds: "_Rounds"
    iterations: int
    warmup_iterations: int
    compile_s: float | None
    peak_memory_bytes: int | None
    telemetry: Telemetry | None


@dataclass(frozen=True, kw_only=True)
class _Rounds:
    """Rates of the candidate's blocks, and of the reference before the first and after each (none without a reference), a list a round."""

    rates: list[float]
    references: list[list[float]]
    noisy: bool

    @property
    def ratio(self) -> float | None:
        """Median over blocks of the candidate's rate against the mean of the reference's just before and just after."""
        if not self.references:
            return None
        around = [statistics.fmean(pair) for each in self.references for pair in itertools.pairwise(each)]
        return statistics.median(rate / beside for rate, beside in zip(self.rates, around, strict=True))

    @property
    def reference(self) -> float | None:
        """The reference's median."""
        return statistics.median(itertools.chain(*self.references)) if self.references else None

    def drift(self, before: float) -> float:
        """How far the reference's rate at the end lies from the one before the candidate's warm-up, as a share of their mean."""
        last = statistics.median(self.references[-1][-max(1, len(self.references[-1]) // 3) :])
        return abs(last - before) / statistics.fmean((last, before))


def _report(
    timing: _Timing, before: float | None, protocol: Protocol, device: torch.device, measure_s: float
) -> Throughput:
    """The measurement, with the candidate set against the reference if there is one, whose rate `before` all is known then."""
    rounds = timing.rounds
    rate = statistics.median(rounds.rates)
    drift = None if before is None else rounds.drift(before)
    return Throughput(
        throughput_img_s=rate,
        throughput_iqr=_relative_iqr(rounds.rates),
        latency_ms=1000 * protocol.batch_size / rate,
        num_blocks=len(rounds.rates),
        iterations=timing.iterations,
        warmup_iterations=timing.warmup_iterations,
        compile_s=timing.compile_s,
        peak_memory_bytes=timing.peak_memory_bytes,
        noisy=rounds.noisy,
        reference_img_s=rounds.reference,
        ratio_to_reference=rounds.ratio,
        drift=drift,
        drifted=drift is not None and drift > protocol.drift_limit,
        throttled=timing.telemetry is not None and timing.telemetry.is_throttled,
        telemetry=timing.telemetry,
        batch_size=protocol.batch_size,
        image_size=protocol.image_size,
        dtype=protocol.dtype,
        mode=protocol.mode,
        task=protocol.task,
        device=device.type,
        measure_s=measure_s,
    )


def _time_candidate(
    model: nn.Module,
    inputs: list[Tensor],
    protocol: Protocol,
    device: torch.device,
    yardstick: Stopwatch | None,
    say: Progress,
) -> _Timing:
    with prepared(model, protocol) as network:
        stopwatch = Stopwatch.of(network, inputs, protocol, device)
        idle_bytes = _idle_bytes(network, inputs, device)
        reset_peak_memory(device)
        say("compiling and warming up" if protocol.mode == "compile" else "warming up")
        warm_up = stopwatch.warm_up()
        peak_bytes = peak_memory_bytes(device)  # now: from here on the reference runs too
        per_block = protocol.iterations_per_block(warm_up.seconds_each)
        with watching(device) as samples:
            rounds = _time_rounds(stopwatch, per_block, yardstick, say)
    return _Timing(
        rounds=rounds,
        iterations=len(rounds.rates) * per_block,
        warmup_iterations=warm_up.iterations,
        compile_s=warm_up.first_s if protocol.mode == "compile" else None,
        peak_memory_bytes=None if peak_bytes is None else peak_bytes - idle_bytes,
        telemetry=summarize(samples),
    )


def _idle_bytes(network: nn.Module, inputs: list[Tensor], device: torch.device) -> int:
    """What of the device's memory is neither the candidate's nor its inputs: the reference, and its optimizer's state.

    CUDA's figure counts tensors alone, so that can be taken off; the others count a process.
    """
    if device.type != "cuda":
        return 0
    own = itertools.chain(network.parameters(), network.buffers(), inputs)
    return torch.cuda.memory_allocated(device) - sum(tensor.numel() * tensor.element_size() for tensor in own)


def _time_rounds(stopwatch: Stopwatch, per_block: int, yardstick: Stopwatch | None, say: Progress) -> _Rounds:
    """The first quiet round; all rounds, marked noisy, when there was no quiet one in `max_s` of the candidate's time."""
    protocol = stopwatch.protocol
    rates: list[float] = []
    references: list[list[float]] = []
    spent_s = 0.0
    while True:
        say(f"timing {protocol.min_blocks} blocks of {per_block * protocol.batch_size} images")
        latest, beside = _time_round(stopwatch, per_block, yardstick)
        # A round stands alone: pooled with the one disturbed before it, it could stay above the limit for ever.
        if _relative_iqr(latest) <= protocol.iqr_limit:
            return _Rounds(rates=latest, references=[beside] if beside else [], noisy=False)
        rates += latest
        references += [beside] if beside else []
        round_s = sum(per_block * protocol.batch_size / rate for rate in latest)
        spent_s += round_s
        if spent_s + round_s > protocol.max_s:
            return _Rounds(rates=rates, references=references, noisy=True)


def _time_round(stopwatch: Stopwatch, per_block: int, yardstick: Stopwatch | None) -> tuple[list[float], list[float]]:
    """Rates of a round's blocks, and of the reference before the first and after each of them."""
    blocks = stopwatch.protocol.min_blocks
    if yardstick is None:
        return [stopwatch.rate(per_block) for _ in range(blocks)], []
    of_reference = yardstick.wake()
    rates, references = [], [yardstick.rate(of_reference)]
    for _ in range(blocks):
        rates.append(stopwatch.rate(per_block))
        references.append(yardstick.rate(of_reference))
    return rates, references


def _guarded(who: str, protocol: Protocol, work: Callable[[], T]) -> T:
    """Result of `work`, or RunError when memory ran out in it or the compiler gave up."""
    try:
        return work()
    except (RuntimeError, MemoryError, ValueError) as error:
        kind = InfeasibleError if is_out_of_memory(error) else RunError
        if kind is InfeasibleError:
            verdict = f"is infeasible at batch size {protocol.batch_size}, {protocol.image_size} px, {protocol.dtype}"
        elif _is_of_compiler(error):
            verdict = "cannot be compiled"
        elif _ONE_VALUE in str(error):
            verdict = f"cannot be trained at batch size {protocol.batch_size}, {protocol.image_size} px"
        else:
            raise
        reason = _reason(error)
    # Outside the handler: through the first error's traceback ours would keep alive the tensors that filled the memory.
    raise kind(f"throughput: {who} {verdict}: {reason}")


def _is_of_compiler(error: BaseException) -> bool:
    """Whether torch.compile raised it; by its modules, whose import takes over a second where nothing is compiled."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


def _reason(error: BaseException) -> str:
    """First line of an error, or of the one inside it that made the compiler give up."""
    inner = getattr(error, "inner_exception", error)
    return next(iter(str(inner).splitlines()), type(inner).__name__)


def _relative_iqr(rates: list[float]) -> float:
    quartiles = statistics.quantiles(rates, n=4, method="inclusive")
    return (quartiles[2] - quartiles[0]) / quartiles[1]
