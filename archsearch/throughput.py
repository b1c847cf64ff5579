"""Images per second of a network on one device, forward pass only, and how far the figure is to be trusted.

A figure belongs to its device, batch size, image size, dtype and mode: throughputs are never compared or merged across
them. Inputs are in channels_last memory, weights as the network lays them out. TF32, cudnn.benchmark and the number of
threads stay as the caller set them, and `machine.conditions` notes them down. Nothing else should run on the device
meanwhile: hold `machine.device_lock(device, exclusive=True)`.
"""

import itertools
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self, TypeVar, get_args

import torch
from torch import Tensor, nn

from archsearch.errors import RunError, UserError
from archsearch.machine import is_out_of_memory, peak_memory_bytes, reset_peak_memory, seconds_of

DType = Literal["float32", "bfloat16"]
Mode = Literal["eager", "compile"]
Progress = Callable[[str], None]
T = TypeVar("T")

# Enough that no forward finds its input in a cache it has just warmed itself, few enough to make quickly.
_NUM_INPUTS = 3
# References that had their whole warm-up in this process: beside the next candidate one block wakes them.
_WARMED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# Above this an iteration is its own block, and ten of them would be most of a measurement.
_SLOW_ITERATION_S = 0.1
# A model whose warm-up never agrees with itself is timed after this many times `warmup_s`, and its spread then tells.
_WARMUP_PATIENCE = 2


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a figure is taken. Times in seconds, limits as fractions; UserError on a value that cannot be.

    Warm-up lasts `warmup_s`, `min_warmup_iterations`, and until the last medians lie within `agree` of each other (or
    twice `warmup_s` is over: then the spread tells). Then rounds of `min_blocks` blocks, each of at least
    `block_s`: the first round whose relative IQR is within `iqr_limit` is the figure. When no further round fits into
    `max_s` of timing, all rounds together are the figure, marked noisy.

    Deviation from the house protocol: where an iteration lasts over 0.1 s, `min_slow_warmup_iterations` are enough once
    the medians agree. `for_device` sets 3 on a CPU: caches and clocks have had the protocol's 1 s by then, and ten
    passes of a 0.4 s model would add 2.4 s a candidate. A model that does not agree with itself still gets its ten.
    """

    batch_size: int
    image_size: int = 224
    dtype: DType = "float32"
    mode: Mode = "eager"
    warmup_s: float
    min_warmup_iterations: int = 10
    min_slow_warmup_iterations: int = 10
    block_s: float = 0.05
    min_blocks: int = 15
    max_s: float = 15.0
    iqr_limit: float = 0.03
    agree: float = 0.02
    drift_limit: float = 0.03

    def __post_init__(self) -> None:
        for name, allowed in (("dtype", get_args(DType)), ("mode", get_args(Mode))):
            if getattr(self, name) not in allowed:
                raise UserError(f"throughput {name}: got {getattr(self, name)!r}, allowed are {', '.join(allowed)}")
        for name in ("batch_size", "image_size", "min_warmup_iterations", "min_slow_warmup_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"throughput {name}: got {getattr(self, name)}, allowed is 1 or more")
        for name in ("warmup_s", "block_s", "max_s", "iqr_limit", "agree", "drift_limit"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"throughput {name}: got {getattr(self, name)}, allowed is a finite number, 0 or more")
        if self.min_blocks < 2:
            raise UserError(f"throughput min_blocks: got {self.min_blocks}, allowed is 2 or more, for a spread")

    @classmethod
    def for_device(
        cls,
        device: torch.device,
        *,
        batch_size: int,
        image_size: int = 224,
        dtype: DType = "float32",
        mode: Mode = "eager",
    ) -> Self:
        """House defaults; on a quiet CPU 2 s for a model that takes 30 ms a batch, 5 s for one that takes 0.4 s."""
        is_cpu = device.type == "cpu"
        return cls(
            batch_size=batch_size,
            image_size=image_size,
            dtype=dtype,
            mode=mode,
            warmup_s=1.0 if is_cpu else 2.0,
            min_slow_warmup_iterations=3 if is_cpu else 10,
            min_blocks=9 if is_cpu else 20,
            max_s=4.0 if is_cpu else 15.0,
        )

    def iterations_per_block(self, seconds_each: float) -> int:
        """Iterations of that length which fill a block."""
        return max(1, math.ceil(self.block_s / seconds_each))

    def is_warm(self, done: int, spent_s: float, seconds_each: list[float]) -> bool:
        """Whether the warm-up may end after `done` iterations; `seconds_each` is one's time, block by block."""
        if spent_s < self.warmup_s or len(seconds_each) < 2:
            return False
        agreed = self._agree(seconds_each)
        is_slow = seconds_each[-1] > _SLOW_ITERATION_S
        needed = self.min_slow_warmup_iterations if is_slow and agreed else self.min_warmup_iterations
        return done >= needed and (agreed or spent_s >= _WARMUP_PATIENCE * self.warmup_s)

    def _agree(self, seconds_each: list[float]) -> bool:
        """Whether the median of the last blocks, up to five, is that of as many blocks before them."""
        window = min(5, max(1, len(seconds_each) // 3))
        last = statistics.median(seconds_each[-window:])
        previous = statistics.median(seconds_each[-2 * window : -window])
        return abs(last - previous) <= self.agree * previous


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """One measurement; medians over blocks, spread and drift as fractions (0.03 is 3 %)."""

    throughput_img_s: float
    throughput_iqr: float
    latency_ms: float
    num_blocks: int
    iterations: int
    warmup_iterations: int
    peak_memory_bytes: int | None
    noisy: bool
    reference_img_s: float | None
    ratio_to_reference: float | None
    drift: float | None
    drifted: bool
    batch_size: int
    image_size: int
    dtype: DType
    mode: Mode
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

    Both modules are moved to `device` and stay there; their training flags come back as they were. `progress` is called
    between timings with a line to show. RunError when memory does not suffice at this batch size, which is never made
    smaller.
    """
    began = time.perf_counter()
    say = progress or (lambda line: None)
    if protocol.mode == "compile":
        # Else the compiler's limit of graphs a function, reached after some candidates, leaves the rest eager unsaid.
        torch.compiler.reset()
    references: list[float] = []
    with _evaluating(model, reference):
        inputs = _within_memory("any model", protocol, lambda: _inputs(protocol, device))
        yardstick = None
        if reference is not None:
            say("timing the reference")
            yardstick = _within_memory(
                "the reference", protocol, lambda: _Stopwatch.of(reference, inputs, protocol, device)
            )
            if reference not in _WARMED or protocol.mode == "compile":
                _within_memory("the reference", protocol, yardstick.warm_up)
                _WARMED.add(reference)
            references.append(_within_memory("the reference", protocol, yardstick.quick_rate))
        timing = _within_memory(
            "the candidate", protocol, lambda: _time_candidate(model, inputs, protocol, device, say)
        )
        if yardstick is not None:
            say("timing the reference again")
            references.append(_within_memory("the reference", protocol, yardstick.quick_rate))
    # CUDA's figure counts tensors alone, so the reference waiting beside the candidate is taken off; others' do not.
    idle_bytes = _module_bytes(reference) if reference is not None and device.type == "cuda" else 0
    return _report(timing, references, idle_bytes, protocol, device, time.perf_counter() - began)


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """The candidate's part of a measurement: images per second of every block, and what it took."""

    rates: list[float]
    noisy: bool
    iterations: int
    warmup_iterations: int
    peak_memory_bytes: int | None


def _report(
    timing: _Timing,
    references: list[float],
    idle_bytes: int,
    protocol: Protocol,
    device: torch.device,
    measure_s: float,
) -> Throughput:
    """The measurement, with the candidate set against the mean of the two reference timings if there are any."""
    rate = statistics.median(timing.rates)
    reference_rate = statistics.fmean(references) if references else None
    drift = (max(references) - min(references)) / reference_rate if reference_rate else None
    return Throughput(
        throughput_img_s=rate,
        throughput_iqr=_relative_iqr(timing.rates),
        latency_ms=1000 * protocol.batch_size / rate,
        num_blocks=len(timing.rates),
        iterations=timing.iterations,
        warmup_iterations=timing.warmup_iterations,
        peak_memory_bytes=None if timing.peak_memory_bytes is None else timing.peak_memory_bytes - idle_bytes,
        noisy=timing.noisy,
        reference_img_s=reference_rate,
        ratio_to_reference=rate / reference_rate if reference_rate else None,
        drift=drift,
        drifted=drift is not None and drift > protocol.drift_limit,
        batch_size=protocol.batch_size,
        image_size=protocol.image_size,
        dtype=protocol.dtype,
        mode=protocol.mode,
        device=device.type,
        measure_s=measure_s,
    )


def _time_candidate(
    model: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device, say: Progress
) -> _Timing:
    stopwatch = _Stopwatch.of(model, inputs, protocol, device)
    reset_peak_memory(device)
    say("warming up")
    warmup_iterations, seconds_each = stopwatch.warm_up()
    per_block = protocol.iterations_per_block(seconds_each)
    rates, noisy = _time_rounds(stopwatch, per_block, say)
    return _Timing(
        rates=rates,
        noisy=noisy,
        iterations=len(rates) * per_block,
        warmup_iterations=warmup_iterations,
        peak_memory_bytes=peak_memory_bytes(device),
    )


def _time_rounds(stopwatch: "_Stopwatch", per_block: int, say: Progress) -> tuple[list[float], bool]:
    """Rates of the first quiet round; of all rounds, and True for noisy, when there was no quiet one in `max_s`."""
    protocol = stopwatch.protocol
    rates: list[float] = []
    spent_s = 0.0
    while True:
        say(f"timing {protocol.min_blocks} blocks of {per_block * protocol.batch_size} images")
        start = time.perf_counter()
        latest = [stopwatch.rate(per_block) for _ in range(protocol.min_blocks)]
        round_s = time.perf_counter() - start
        # A round stands alone: pooled with the one disturbed before it, it could stay above the limit for ever.
        if _relative_iqr(latest) <= protocol.iqr_limit:
            return latest, False
        rates += latest
        spent_s += round_s
        if spent_s + round_s > protocol.max_s:
            return rates, True


@dataclass(frozen=True, kw_only=True)
class _Stopwatch:
    """A network on its device with its inputs, ready to be timed."""

    forward: Callable[[Tensor], object]
    inputs: Iterator[Tensor]
    protocol: Protocol
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device) -> Self:
        model.to(device)
        forward = torch.compile(model, dynamic=False) if protocol.mode == "compile" else model
        return cls(forward=forward, inputs=itertools.cycle(inputs), protocol=protocol, device=device)

    def rate(self, iterations: int) -> float:
        """Images per second over one block."""
        return iterations * self.protocol.batch_size / self._seconds(iterations)

    def quick_rate(self) -> float:
        """Images per second of a network warmed up before: one block to wake it, then a third of a round."""
        per_block = self.protocol.iterations_per_block(self._seconds(1))
        self._seconds(per_block)
        return statistics.median(self.rate(per_block) for _ in range(max(2, self.protocol.min_blocks // 3)))

    def warm_up(self) -> tuple[int, float]:
        """Run until the protocol calls it warm; the iterations that took, and the seconds one lasts."""
        # The first pass compiles, chooses algorithms and allocates: its time is not a warm-up's.
        self._seconds(1)
        done, spent_s, seconds_each, per_block = 1, 0.0, list[float](), 1
        while not self.protocol.is_warm(done, spent_s, seconds_each):
            seconds = self._seconds(per_block)
            done += per_block
            spent_s += seconds
            seconds_each.append(seconds / per_block)
            per_block = self.protocol.iterations_per_block(seconds_each[-1])
        return done, statistics.median(seconds_each[-5:])

    def _seconds(self, iterations: int) -> float:
        return seconds_of(lambda: self._run(iterations), self.device)

    def _run(self, iterations: int) -> None:
        is_bfloat16 = self.protocol.dtype == "bfloat16"
        # Here and not around everything: weights moved to the device in inference mode could never be trained again.
        with torch.inference_mode():
            for _ in range(iterations):
                # Entered anew for every pass, as in use: weights are cast every time, not once a block.
                with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bfloat16):
                    self.forward(next(self.inputs))


def _inputs(protocol: Protocol, device: torch.device) -> list[Tensor]:
    """Random-normal images, (B, 3, H, W) in channels_last: zeros would run faster."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (protocol.batch_size, 3, protocol.image_size, protocol.image_size)
    images = (torch.randn(shape, generator=generator, device=device) for _ in range(_NUM_INPUTS))
    return [batch.contiguous(memory_format=torch.channels_last) for batch in images]


@contextmanager
def _evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Eval mode, and every submodule's own training flag back afterwards: some may have been frozen singly."""
    present = [module for module in modules if module is not None]
    flags = [(part, part.training) for module in present for part in module.modules()]
    for module in present:
        module.eval()
    try:
        yield
    finally:
        # Through train(), not the flags alone: a block may override it to drop what it has cached for eval.
        for module in present:
            module.train(next(training for part, training in flags if part is module))
        for part, training in flags:
            part.training = training


def _within_memory(who: str, protocol: Protocol, work: Callable[[], T]) -> T:
    """Result of `work`, or RunError when memory ran out in it."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
    # Outside the handler: through the first error's traceback ours would keep alive the tensors that filled the memory.
    raise RunError(
        f"throughput: {who} is infeasible at batch size {protocol.batch_size}, {protocol.image_size} px, "
        f"{protocol.dtype}: {reason}"
    )


def _relative_iqr(rates: list[float]) -> float:
    quartiles = statistics.quantiles(rates, n=4, method="inclusive")
    return (quartiles[2] - quartiles[0]) / quartiles[1]


def _module_bytes(module: nn.Module) -> int:
    tensors = itertools.chain(module.parameters(), module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
