"""Images per second of a network on one device, and how reliable the figure is.

A reference network is timed before, after and between all blocks of the candidate, and the ratio is the median over blocks of the candidate's rate against
the reference's just before and just after. Ten models twice, minutes apart, one core of a busy server (tests/benchmarks/repeatability.py, without and with a
load of our own): so the ratios changed by 4.7 and 2.7 % (median) and their two orders agreed to a Kendall tau of 0.82 and 0.82; with the reference before
and after all blocks only, by 12.9 and 5.8 %, 0.38 and 0.64; images/s as such changed by 10.8 and 5.4 %.

A figure belongs to its device, batch size, image size, channels, dtype, mode and task: throughputs are never compared or merged
across them. Inputs are in channels_last memory, weights as the network lays them out. TF32, cudnn.benchmark and the
number of threads stay as the caller set them (`device.use_cpu`), and `device.conditions` records them. Nothing else
should run on the device meanwhile: hold `device.device_lock(device, exclusive=True)`.
"""

import copy
import itertools
import statistics
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from archsearch.compiler import cause_of, is_compile_error
from archsearch.device import is_out_of_memory, peak_memory_bytes, reset_peak_memory
from archsearch.errors import RunError, first_line
from archsearch.system import Say, ignore
from archsearch.throughput.protocol import Mode, Precision, Protocol, Runtime, Task, relative_iqr
from archsearch.throughput.telemetry import Telemetry, sampled_telemetry, summarize
from archsearch.throughput.timer import Timer, make_inputs, prepared
from archsearch.units import DType, ImageSize, format_image

T = TypeVar("T")

# What BatchNorm says of a map of one pixel in a batch of one image, in training.
_ONE_VALUE = "Expected more than 1 value per channel"
# What a timing of a reference depends on besides the device.
_CONDITIONS = (
    "dtype",
    "mode",
    "task",
    "batch_size",
    "image_size",
    "in_chans",
    "runtime",
    "precision",
    "calibration_data",
)
# The conditions under which references had their whole warm-up in this process: from then on one block is enough.
_WARMED: weakref.WeakKeyDictionary[nn.Module, set[tuple[object, ...]]] = weakref.WeakKeyDictionary()
# Of references that are compiled, or in another runtime, a copy with its timer, by the conditions: a process makes it once, and not for each candidate.
_COMPILED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Timer]] = weakref.WeakKeyDictionary()


class InfeasibleError(RunError):
    """Not enough memory at this batch size."""


class CompileError(RunError):
    """torch.compile fails for the network, or for the reference."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """One measurement; medians over blocks, spread and drift as fractions (0.03 is 3 %), times in seconds and milliseconds.

    `compile_s` is the first pass, which compiles; shorter where torch.compile finds results in its cache on disk.
    `throttled`: heat or a power brake held the clocks down (see `telemetry`, None without NVML).
    `difference_from_torch`: of the logits of another runtime, the largest as a share of the largest logit.
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
    image_size: ImageSize
    in_chans: int
    dtype: DType
    mode: Mode
    task: Task
    device: str
    measure_s: float
    runtime: Runtime = "torch"
    precision: Precision | None = None
    difference_from_torch: float | None = None


def measure(
    model: nn.Module, protocol: Protocol, device: torch.device, *, reference: nn.Module | None = None, say: Say = ignore
) -> Throughput:
    """Throughput of `model`, a map from (B, C, H, W), with `reference`, if there is one, timed around each of its blocks.

    Forward passes in float32 or by autocast run in the modules themselves, which are moved to `device` and stay there;
    training and pure bfloat16 run in copies. Weights, buffers, training flags and random states are restored.
    `say` is called between timings with a line of progress. InfeasibleError, a RunError, when memory does not suffice at this
    batch size, which is never made smaller; RunError when a network cannot be compiled, or not be trained at that size;
    UserError when one that is to be trained has no parameters or no (B, classes) output.
    """
    began = time.perf_counter()
    if protocol.is_compiled:
        _forget_parts()
    with ExitStack() as stack:
        if protocol.task == "train":  # dropout draws random numbers
            stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        inputs = _guarded("any model", protocol, lambda: make_inputs(protocol, device))
        reference_timer, rate_before = None, None
        if reference is not None:
            say("timing the reference")
            reference_timer, rate_before = _guarded(
                "the reference", protocol, lambda: _time_reference(stack, reference, inputs, protocol, device)
            )
        timing = _guarded(
            "the candidate", protocol, lambda: _time_candidate(model, inputs, protocol, device, reference_timer, say)
        )
    return _report(timing, rate_before, protocol, device, time.perf_counter() - began)


def _forget_parts() -> None:
    """Forget all that was compiled, where a network was compiled in parts: what follows a part is a function that all such networks share.

    The compiler limits the graphs of a function, so that later ones would silently run eager.
    """
    breaks = torch._dynamo.utils.counters["graph_break"]
    if breaks:
        torch.compiler.reset()
        _COMPILED.clear()
        breaks.clear()


def _time_reference(
    stack: ExitStack, reference: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device
) -> tuple[Timer, float]:
    """A timer of the reference and its rate now; warmed up unless that was done in this process under these conditions."""
    conditions = (device, *(getattr(protocol, name) for name in _CONDITIONS))
    if protocol.is_compiled or protocol.runtime != "torch":
        timers = _COMPILED.setdefault(reference, {})
        if conditions not in timers:
            with prepared(copy.deepcopy(reference), protocol) as network:
                timer = Timer(network, inputs, protocol, device)
                timer.warm_up()
                timers[conditions] = timer  # now: one that failed is not kept
        return timers[conditions], timers[conditions].quick_rate()
    timer = Timer(stack.enter_context(prepared(reference, protocol)), inputs, protocol, device)
    warmed = _WARMED.setdefault(reference, set())
    if conditions not in warmed:
        timer.warm_up()
        warmed.add(conditions)
    return timer, timer.quick_rate()


@dataclass(frozen=True, kw_only=True)
class _Rounds:
    """Images per second of the candidate's blocks, and of the reference before the first and after each, one list a round (none without a reference)."""

    rates: list[float]
    references: list[list[float]]
    noisy: bool

    @property
    def ratio(self) -> float | None:
        """Median over blocks of the candidate's rate against the mean of the reference's just before and just after."""
        if not self.references:
            return None
        around = [statistics.fmean(pair) for each in self.references for pair in itertools.pairwise(each)]
        return statistics.median(rate / nearby for rate, nearby in zip(self.rates, around, strict=True))

    @property
    def reference(self) -> float | None:
        """The reference's median."""
        return statistics.median(itertools.chain(*self.references)) if self.references else None

    def drift(self, before: float) -> float:
        """Difference of the reference's rate at the end from that before the candidate's warm-up, as a share of their mean."""
        last = statistics.median(self.references[-1][-max(1, len(self.references[-1]) // 3) :])
        return abs(last - before) / statistics.fmean((last, before))


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """All that was measured of a candidate."""

    rounds: _Rounds
    iterations: int
    warmup_iterations: int
    compile_s: float | None
    peak_memory_bytes: int | None
    telemetry: Telemetry | None
    difference: float | None


def _report(
    timing: _Timing, rate_before: float | None, protocol: Protocol, device: torch.device, measure_s: float
) -> Throughput:
    """The measurement; `rate_before` is the reference's rate before the candidate's warm-up, None without a reference."""
    rounds = timing.rounds
    rate = statistics.median(rounds.rates)
    drift = None if rate_before is None else rounds.drift(rate_before)
    return Throughput(
        throughput_img_s=rate,
        throughput_iqr=relative_iqr(rounds.rates),
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
        in_chans=protocol.in_chans,
        dtype=protocol.dtype,
        mode=protocol.mode,
        task=protocol.task,
        device=device.type,
        measure_s=measure_s,
        runtime=protocol.runtime,
        precision=protocol.precision,
        difference_from_torch=timing.difference,
    )


def _time_candidate(
    model: nn.Module,
    inputs: list[Tensor],
    protocol: Protocol,
    device: torch.device,
    reference_timer: Timer | None,
    say: Say,
) -> _Timing:
    with prepared(model, protocol) as network, closing(Timer(network, inputs, protocol, device)) as timer:
        # Of the peak, the reference and its optimizer's state are not the candidate's; only CUDA's figure is of tensors, others of a process.
        own = itertools.chain(network.parameters(), network.buffers(), inputs)
        own_bytes = sum(tensor.numel() * tensor.element_size() for tensor in own)
        other_bytes = torch.cuda.memory_allocated(device) - own_bytes if device.type == "cuda" else 0
        reset_peak_memory(device)
        say("compiling and warming up" if protocol.is_compiled else "warming up")
        warm_up = timer.warm_up()
        # Now: from here on the reference runs too. On CUDA torch does not know what another runtime takes.
        is_known = protocol.runtime == "torch" or device.type != "cuda"
        peak_bytes = peak_memory_bytes(device) if is_known else None
        per_block = protocol.iterations_per_block(warm_up.seconds_each)
        with sampled_telemetry(device) as readings:
            rounds = _time_rounds(timer, per_block, reference_timer, say)
    return _Timing(
        rounds=rounds,
        iterations=len(rounds.rates) * per_block,
        warmup_iterations=warm_up.iterations,
        compile_s=warm_up.first_s if protocol.is_compiled else None,
        peak_memory_bytes=None if peak_bytes is None else peak_bytes - other_bytes,
        telemetry=summarize(readings),
        difference=timer.difference,
    )


def _time_rounds(timer: Timer, per_block: int, reference_timer: Timer | None, say: Say) -> _Rounds:
    """The first quiet round; all rounds, marked noisy, when none was quiet within `max_s` of the candidate's time."""
    protocol = timer.protocol
    rates: list[float] = []
    references: list[list[float]] = []
    spent_s = 0.0
    while True:
        num_images = per_block * protocol.batch_size
        say(f"timing {protocol.min_blocks} blocks of {num_images} image{'s' * (num_images != 1)}")
        latest, latest_reference = _time_round(timer, per_block, reference_timer)
        # A round stands alone: pooled with a disturbed one before it, it could stay above the limit for ever.
        if relative_iqr(latest) <= protocol.iqr_limit:
            return _Rounds(rates=latest, references=[latest_reference] if latest_reference else [], noisy=False)
        rates += latest
        references += [latest_reference] if latest_reference else []
        round_s = sum(per_block * protocol.batch_size / rate for rate in latest)
        spent_s += round_s
        if spent_s + round_s > protocol.max_s:
            return _Rounds(rates=rates, references=references, noisy=True)


def _time_round(timer: Timer, per_block: int, reference_timer: Timer | None) -> tuple[list[float], list[float]]:
    """Rates of a round's blocks, and of the reference before the first and after each of them."""
    rates: list[float] = []
    references: list[float] = []
    if reference_timer is not None:
        reference_per_block = reference_timer.rewarm()
        references.append(reference_timer.rate(reference_per_block))
    while len(rates) < timer.protocol.min_blocks and not timer.protocol.is_settled(rates):
        rates.append(timer.rate(per_block))
        if reference_timer is not None:
            references.append(reference_timer.rate(reference_per_block))
    return rates, references


def _guarded(network: str, protocol: Protocol, work: Callable[[], T]) -> T:
    """Result of `work`, or RunError when it ran out of memory, or `network` could not be compiled or trained."""
    try:
        return work()
    except (RuntimeError, MemoryError, ValueError) as error:
        images = format_image(protocol.image_size, protocol.in_chans)
        failure: type[RunError] = RunError
        if is_out_of_memory(error):
            failure = InfeasibleError
            verdict = (
                f"is infeasible at batch size {protocol.batch_size}, {images}, {protocol.precision or protocol.dtype}"
            )
        elif is_compile_error(error):
            failure, verdict = CompileError, "cannot be compiled"
        elif _ONE_VALUE in str(error):
            verdict = f"cannot be trained at batch size {protocol.batch_size}, {images}"
        else:
            raise
        reason = first_line(cause_of(error))
    # Outside the handler: through the first error's traceback ours would keep alive the tensors that filled the memory.
    raise failure(f"throughput: {network} {verdict}: {reason}")
