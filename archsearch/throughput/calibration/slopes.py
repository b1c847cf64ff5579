"""Milliseconds that one layer adds to a network, and images per second of whole networks."""

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from archsearch.device import seconds_of
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.calibration.sites import Site
from archsearch.throughput.protocol import Mode, Protocol
from archsearch.throughput.timer import Stopwatch, make_inputs
from archsearch.units import DType

_SHORT, _LONG = 1, 5  # layers in the two chains
_SAMPLE_S = {"cpu": 0.004, "cuda": 0.01, "mps": 0.02}  # a timed sample lasts at least this long
_MIN_ROUNDS, _MAX_ROUNDS = 5, 25
_PATIENCE_S, _LEAST_ROUNDS = 0.8, 3  # after this time fewer rounds will do
_ENOUGH = 0.015  # standard error of a slope, as a share of it ...
_ENOUGH_MS = 0.01  # ... or in milliseconds, where that is more: nothing beside the 30 ms and more of a network
_LEAST_MS = 1e-3  # of a layer so cheap that noise made it negative


@dataclass(frozen=True, kw_only=True)
class Slope:
    """What one layer more costs, in milliseconds a batch; `error` is its standard error, `rounds` the differences it is the median of."""

    ms: float
    error: float
    rounds: int


class Chain(nn.Module):
    """Layers one after the other where each takes what the one before gives, else all on the same input."""

    def __init__(self, layers: list[nn.Module], *, is_chained: bool) -> None:
        super().__init__()
        self.layers, self.is_chained = nn.ModuleList(layers), is_chained

    def forward(self, x: Tensor) -> list[Tensor]:
        """The last output, or all of them: what nobody reads a compiler would leave out."""
        if not self.is_chained:
            return [layer(x) for layer in self.layers]
        for layer in self.layers:
            x = layer(x)
        return [x]


def time_slope(site: Site, key: CalibrationKey) -> Slope:
    """Chains of 1 and 5 equal layers with weights of their own, timed in turn; the slope between them, without what the chains share.

    Short - long - short: a machine that slowly gets slower or faster meanwhile adds nothing to the difference.
    """
    device, sample_s = torch.device(key.device), _SAMPLE_S[key.device]
    if key.mode == "compile":
        torch.compiler.reset()
    first = site.layer.build(site.shape).to(memory_format=torch.channels_last)
    layers = [first, *(copy.deepcopy(first) for _ in range(_LONG - 1))]  # initialising can take longer than timing
    is_chained = site.layer.role == "block"
    x = _input(site, key)
    short, long = (_timer(Chain(layers[:count], is_chained=is_chained), x, key, device) for count in (_SHORT, _LONG))
    short(1)  # both compile, choose algorithms and allocate here
    seconds = long(1)
    if seconds < sample_s:
        seconds = long(max(1, int(sample_s / max(seconds, 1e-6))))
    iterations = max(1, math.ceil(sample_s / max(seconds, 1e-6)))
    slopes: list[float] = []
    spent_s, before = 0.0, short(iterations)
    while not _is_enough(slopes, spent_s):
        middle, after = long(iterations), short(iterations)
        slopes.append(1000 * (middle - (before + after) / 2) / (_LONG - _SHORT))
        spent_s += iterations * (middle + after)
        before = after
    return Slope(ms=max(statistics.median(slopes), _LEAST_MS), error=_error(slopes), rounds=len(slopes))


class Yardstick:
    """The reference network, timed for a moment beside every slope: what it says of the machine's speed then is taken out of the slope."""

    def __init__(self, reference: nn.Module, key: CalibrationKey) -> None:
        self._device, self._batch_size = torch.device(key.device), key.batch_size
        protocol = network_protocol(key)
        network = copy.deepcopy(reference).eval()
        if key.dtype == "bfloat16":
            network.to(torch.bfloat16)
        self._run = Stopwatch.of(network, make_inputs(protocol, self._device), protocol, self._device).run
        self._iterations = 1
        self._seconds(), self._seconds()
        self._iterations = max(1, math.ceil(_SAMPLE_S[self._device.type] / max(self._seconds(), 1e-6)))

    def img_s(self) -> float:
        """The faster of two: one that was interrupted, or found its caches cold, says nothing."""
        return self._batch_size / min(self._seconds(), self._seconds())

    def _seconds(self) -> float:
        return seconds_of(lambda: self._run(self._iterations), self._device) / self._iterations


def _is_enough(slopes: list[float], spent_s: float) -> bool:
    if spent_s >= _PATIENCE_S or len(slopes) >= _MAX_ROUNDS:
        return len(slopes) >= _LEAST_ROUNDS
    return len(slopes) >= _MIN_ROUNDS and _error(slopes) <= max(_ENOUGH * statistics.median(slopes), _ENOUGH_MS)


def _error(slopes: list[float]) -> float:
    """Standard error of a median, from the interquartile range: one disturbed round says nothing."""
    quartiles = statistics.quantiles(slopes, n=4, method="inclusive")
    return 1.25 * (quartiles[2] - quartiles[0]) / 1.35 / math.sqrt(len(slopes))


def _input(site: Site, key: CalibrationKey) -> Tensor:
    """Random-normal activations in channels_last memory, in the number format in which a network's would arrive."""
    generator = torch.Generator(key.device).manual_seed(0)
    x = torch.randn((key.batch_size, *site.shape.tensor), generator=generator, device=key.device)
    x = x.to(torch.bfloat16 if key.dtype == "bfloat16" else torch.float32)
    return x.contiguous(memory_format=torch.channels_last)


def _timer(chain: Chain, x: Tensor, key: CalibrationKey, device: torch.device) -> Callable[[int], float]:
    """Seconds of one pass, as the mean over so many."""
    chain.eval()
    if key.dtype == "bfloat16":
        chain.to(torch.bfloat16)
    run = Stopwatch.of(chain, [x], network_protocol(key), device).run
    return lambda iterations: seconds_of(lambda: run(iterations), device) / iterations


def network_protocol(key: CalibrationKey) -> Protocol:
    """How whole networks are timed: leaner than a figure of record, since sixty of them average in the fit."""
    protocol = Protocol.for_device(
        torch.device(key.device),
        batch_size=key.batch_size,
        image_size=key.image_size,
        dtype=cast(DType, key.dtype),
        mode=cast(Mode, key.mode),
    )
    is_cpu = key.device == "cpu"
    return replace(
        protocol,
        warmup_s=0.3 if is_cpu else 1.0,
        min_warmup_iterations=3 if is_cpu else 10,
        min_slow_warmup_iterations=2 if is_cpu else 10,
        min_blocks=6 if is_cpu else 10,
        max_s=3.0 if is_cpu else 5.0,
        iqr_limit=0.05,
    )
