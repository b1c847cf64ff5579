"""Timing slopes, the milliseconds that one more layer adds to a batch, and the protocol for whole networks."""

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from archsearch.device import device_seconds
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.calibration.sites import Site
from archsearch.throughput.protocol import Mode, Protocol
from archsearch.throughput.timer import Timer, make_inputs
from archsearch.units import DType

_SHORT, _LONG = 1, 5  # number of layers in the two chains
_SAMPLE_S = {"cpu": 0.004, "cuda": 0.01, "mps": 0.02}  # a timed sample lasts at least this long
_MIN_ROUNDS, _MAX_ROUNDS = 5, 25
_LATE_S, _LATE_ROUNDS = 0.8, 3  # after this time fewer rounds are enough
_MAX_ERROR = 0.015  # standard error of a slope, as a share of it ...
_MAX_ERROR_MS = 0.01  # ... or in milliseconds, where that is more: negligible against the 30 ms or more of a network
_LEAST_MS = 1e-3  # for a layer so cheap that noise made its slope negative


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Time that one more layer adds, in ms a batch: the median of `rounds` differences, with its standard error."""

    ms: float
    error: float
    rounds: int


class Chain(nn.Module):
    """Layers in sequence if `is_chained`, else all on the same input, as their output has another shape than their input."""

    def __init__(self, layers: list[nn.Module], *, is_chained: bool) -> None:
        super().__init__()
        self.layers, self.is_chained = nn.ModuleList(layers), is_chained

    def forward(self, x: Tensor) -> list[Tensor]:
        """The last output, or all of them: a compiler would remove layers whose output is unused."""
        if not self.is_chained:
            return [layer(x) for layer in self.layers]
        for layer in self.layers:
            x = layer(x)
        return [x]


def time_slope(site: Site, key: CalibrationKey) -> Slope:
    """The slope of a layer: the difference between chains of 1 and 5 such layers, each with its own weights, per layer.

    The chains are timed in the order short, long, short, so that a steady change of the machine's speed cancels out.
    """
    device, sample_s = torch.device(key.device), _SAMPLE_S[key.device]
    if key.mode != "eager":
        torch.compiler.reset()
    first = site.layer.build(site.shape).to(memory_format=torch.channels_last)
    layers = [
        first,
        *(copy.deepcopy(first) for _ in range(_LONG - 1)),
    ]  # copied, as initialising can take longer than timing
    is_chained = site.layer.role == "block"
    # Random-normal activations, in the number format of activations in a network.
    generator = torch.Generator(key.device).manual_seed(0)
    x = torch.randn((key.batch_size, *site.shape.tensor), generator=generator, device=key.device)
    x = x.to(torch.bfloat16 if key.dtype == "bfloat16" else torch.float32).contiguous(memory_format=torch.channels_last)
    chains = (Chain(layers[:count], is_chained=is_chained) for count in (_SHORT, _LONG))
    short, long = (_pass_timer(chain, x, key, device) for chain in chains)
    short(1)  # the first pass of both compiles, chooses algorithms and allocates
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


class ReferenceSpeed:
    """The reference network, timed briefly after every slope, to correct the slope for the machine's speed at that time."""

    def __init__(self, reference: nn.Module, key: CalibrationKey) -> None:
        self._device, self._batch_size = torch.device(key.device), key.batch_size
        protocol = network_protocol(key)
        network = copy.deepcopy(reference).eval()
        if key.dtype == "bfloat16":
            network.to(torch.bfloat16)
        self._run = Timer(network, make_inputs(protocol, self._device), protocol, self._device).run
        self._iterations = 1
        self._seconds(), self._seconds()
        self._iterations = max(1, math.ceil(_SAMPLE_S[self._device.type] / max(self._seconds(), 1e-6)))

    def img_s(self) -> float:
        """Images per second, the faster of two timings: the other may have been interrupted or started with cold caches."""
        return self._batch_size / min(self._seconds(), self._seconds())

    def _seconds(self) -> float:
        return device_seconds(lambda: self._run(self._iterations), self._device) / self._iterations


def _is_enough(slopes: list[float], spent_s: float) -> bool:
    """Whether the standard error is small enough, or no more rounds are allowed."""
    if spent_s >= _LATE_S or len(slopes) >= _MAX_ROUNDS:
        return len(slopes) >= _LATE_ROUNDS
    return len(slopes) >= _MIN_ROUNDS and _error(slopes) <= max(_MAX_ERROR * statistics.median(slopes), _MAX_ERROR_MS)


def _error(slopes: list[float]) -> float:
    """Standard error of the median, from the interquartile range, which one disturbed round hardly changes."""
    quartiles = statistics.quantiles(slopes, n=4, method="inclusive")
    return 1.25 * (quartiles[2] - quartiles[0]) / 1.35 / math.sqrt(len(slopes))


def _pass_timer(chain: Chain, x: Tensor, key: CalibrationKey, device: torch.device) -> Callable[[int], float]:
    """A function that times so many passes and returns the mean seconds of one."""
    chain.eval()
    if key.dtype == "bfloat16":
        chain.to(torch.bfloat16)
    run = Timer(chain, [x], network_protocol(key), device).run
    return lambda iterations: device_seconds(lambda: run(iterations), device) / iterations


def network_protocol(key: CalibrationKey) -> Protocol:
    """The protocol for whole networks: shorter than the default, since the fit averages over sixty networks."""
    protocol = Protocol.for_device(
        torch.device(key.device),
        batch_size=key.batch_size,
        image_size=key.image_size,
        in_chans=key.in_chans,
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
