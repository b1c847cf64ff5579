"""Timing single architectures one after the other, in rounds or over batch sizes: the measurements of `archsearch bench`."""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from archsearch.device import conditions, device_lock
from archsearch.errors import RunError, UserError
from archsearch.models.build import build
from archsearch.space.arch import Arch
from archsearch.space.papers import reference_arch
from archsearch.system import Say, ignore
from archsearch.throughput.measure import InfeasibleError, measure
from archsearch.throughput.measurement import Measurement
from archsearch.throughput.protocol import Protocol
from archsearch.throughput.telemetry import why_silent

SWEEP_ALL = "max"
# Batch sizes are doubled up to here: where memory does not end a sweep on CUDA this does, and elsewhere it is the default.
_LARGEST_SWEPT = {"cuda": 2**16, "cpu": 64, "mps": 64}

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchTask:
    """What to time, by the name it was asked for, against which reference, and how.

    `rounds` measures all of them so many times. `batch_sizes` instead times each at these, up to the first too large.
    """

    archs: Mapping[str, Arch]
    against: Arch
    device: torch.device
    protocols: Mapping[str, Protocol]
    rounds: int
    batch_sizes: tuple[int, ...] | None

    @cached_property
    def num_measurements(self) -> int:
        """How many there are when all succeed."""
        return len(self.archs) * (len(self.batch_sizes) if self.batch_sizes else self.rounds)


def bench_task(
    archs: Mapping[str, Arch],
    *,
    device: str,
    dtype: str,
    mode: str,
    batch_size: int | None,
    image_size: int | None,
    against: Arch | None = None,
    rounds: int = 1,
    train: bool = False,
    sweep: int | str | None = None,
) -> BenchTask:
    """Checked before anything is timed; UserError for an absent device or a size that an architecture cannot take."""
    _check_combination(batch_size, rounds, sweep)
    measurement = Measurement.resolve(device=device, dtype=dtype, mode=mode, batch_size=batch_size)
    target = measurement.torch_device
    reference = against or reference_arch()
    protocols = {}
    for name, arch in archs.items():
        pixels = image_size or arch.image_size
        _check_size(name, arch, pixels)
        _check_size(f"the reference {_name(reference)}", reference, pixels)
        protocols[name] = measurement.protocol(image_size=pixels, task="train" if train else "forward")
    return BenchTask(
        archs=archs,
        against=reference,
        device=target,
        protocols=protocols,
        rounds=rounds,
        batch_sizes=None if sweep is None else _batch_sizes(sweep, target),
    )


def _check_combination(batch_size: int | None, rounds: int, sweep: int | str | None) -> None:
    if sweep is not None and batch_size is not None:
        raise UserError(f"--batch-size: got {batch_size}, but --sweep sets the batch sizes; leave one of them out")
    if sweep is not None and rounds > 1:
        raise UserError(f"--rounds: got {rounds}, but --sweep times every batch size once; leave one of them out")


def _check_size(who: str, arch: Arch, pixels: int) -> None:
    try:
        arch.check(pixels)
    except UserError as error:
        raise UserError(f"{who} at {pixels} px: {error}") from error


def _batch_sizes(sweep: int | str, device: torch.device) -> tuple[int, ...]:
    """1, 2, 4 ... and the largest."""
    largest = _LARGEST_SWEPT[device.type] if sweep == SWEEP_ALL else int(sweep)
    return (*(2**power for power in range((largest - 1).bit_length())), largest)


def bench_document(task: BenchTask, say: Say = ignore) -> Document:
    """Every measurement with the conditions; one that fails has its `error` instead of figures. `say` hears what is being done.

    Ctrl-C ends it early: what was measured until then is there, and `interrupted` is true.
    """
    bench = _Bench(task)
    interrupted = False
    say("waiting for the device")
    try:
        with device_lock(task.device, exclusive=True):
            bench.measure_all(say)
    except KeyboardInterrupt:
        interrupted = True
    where = conditions(task.device)
    return {
        "conditions": {**where, "reference": _name(task.against)},
        "reference": {"name": _name(task.against), "arch_id": task.against.arch_id},
        "rounds": task.rounds,
        "is_sweep": task.batch_sizes is not None,
        "interrupted": interrupted,
        "measured": bench.num_measured,
        "asked": task.num_measurements,
        "telemetry_missing": why_silent(task.device),
        "results": bench.results(),
        "sweep_ends": bench.sweep_ends,
    }


def _name(arch: Arch) -> str:
    return arch.name or arch.arch_id


class _Bench:
    """The measurements of a task as they come in."""

    def __init__(self, task: BenchTask) -> None:
        self.task = task
        self.num_measured = 0
        self.sweep_ends: dict[str, str] = {}
        self._figures: dict[tuple[str, int], list[Document]] = {}
        self._errors: dict[tuple[str, int], str] = {}
        self._references: dict[int, nn.Module] = {}

    def measure_all(self, say: Say) -> None:
        """In the order asked for, then, with rounds, in a new order each: whoever always comes after the same one inherits its heat."""
        names = list(self.task.archs)
        generator = random.Random(0)
        if self.task.batch_sizes is not None:
            for name in names:
                self._sweep(name, self.task.batch_sizes, say)
            return
        for number in range(self.task.rounds):
            for name in generator.sample(names, len(names)) if number else names:
                if (name, self.task.protocols[name].batch_size) in self._errors:
                    continue
                label = f"{name}, round {number + 1} of {self.task.rounds}" if self.task.rounds > 1 else name
                self._measure(label, name, self.task.protocols[name], say)

    def _sweep(self, name: str, batch_sizes: Sequence[int], say: Say) -> None:
        for batch_size in batch_sizes:
            protocol = replace(self.task.protocols[name], batch_size=batch_size)
            try:
                self._measure(f"{name}, batch {batch_size}", name, protocol, say)
            except InfeasibleError as error:
                self.sweep_ends[name] = str(error)
            if name in self.sweep_ends or (name, batch_size) in self._errors:
                return

    def _measure(self, label: str, name: str, protocol: Protocol, say: Say) -> None:
        """One measurement; a failure is kept as a sentence, but out of memory in a sweep is its end and goes on up."""
        say(f"{label}: building")
        model = build(self.task.archs[name], image_size=protocol.image_size)
        try:
            figures = measure(
                model,
                protocol,
                self.task.device,
                reference=self._reference(protocol.image_size),
                progress=lambda line: say(f"{label}: {line}"),
            )
        except RunError as error:
            if isinstance(error, InfeasibleError) and self.task.batch_sizes is not None:
                raise
            self._errors[name, protocol.batch_size] = str(error)
        else:
            self.num_measured += 1
            self._figures.setdefault((name, protocol.batch_size), []).append(asdict(figures))

    def _reference(self, image_size: int) -> nn.Module:
        """The reference for this input, which some architectures are built for."""
        if image_size not in self._references:
            self._references[image_size] = build(self.task.against, image_size=image_size)
        return self._references[image_size]

    def results(self) -> list[Document]:
        """One result for each architecture and batch size that was measured or failed, in the order asked for."""
        done = {**self._figures, **self._errors}
        return [
            self._result(name, batch_size)
            for name in self.task.archs
            for batch_size in sorted(size for other, size in done if other == name)
        ]

    def _result(self, name: str, batch_size: int) -> Document:
        arch, protocol = self.task.archs[name], replace(self.task.protocols[name], batch_size=batch_size)
        cost, of_reference = arch.cost(protocol.image_size), self.task.against.cost(protocol.image_size)
        result = {
            "asked": name,
            "arch_id": arch.arch_id,
            "name": arch.name,
            "macs": cost.macs,
            "params": cost.params,
            "reference_macs": of_reference.macs,
            "reference_params": of_reference.params,
            "error": self._errors.get((name, batch_size)),
        }
        if result["error"] is not None:
            return {**result, **asdict(protocol)}
        return {**result, **_settled(self._figures[name, batch_size])}


def _settled(rounds: Sequence[Document]) -> Document:
    """The round with the median ratio (the lower of two middle ones), how far the rounds' ratios spread around it, and all of them."""
    ratios = [figures["ratio_to_reference"] for figures in rounds]
    middle = statistics.median_low(ratios)
    chosen = rounds[ratios.index(middle)]
    spread = (max(ratios) - min(ratios)) / middle if len(rounds) > 1 else None
    return {**chosen, "ratio_spread": spread, "rounds": list(rounds)}
