"""Throughput of single architectures, measured in rounds or over batch sizes: the work of `archsearch bench`."""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from archsearch.device import allow_tf32, conditions, device_lock
from archsearch.errors import RunError, UserError
from archsearch.lock import waiting_line
from archsearch.models import build
from archsearch.space import Arch, reference_arch
from archsearch.system import Say, ignore
from archsearch.throughput.backends.load import check_precision, runtime_facts
from archsearch.throughput.measurement import Measurement
from archsearch.throughput.protocol import Precision, Protocol, Runtime
from archsearch.throughput.telemetry import missing_telemetry
from archsearch.throughput.throughput import InfeasibleError, measure
from archsearch.units import ImageSize, format_sides

SWEEP_ALL = "max"
# Largest batch size of `--sweep max`; on CUDA memory usually ends the sweep earlier.
_LARGEST_SWEPT = {"cuda": 2**16, "cpu": 64, "mps": 64}

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchTask:
    """Architectures to time, by the names they were given by, with a protocol each, and the reference for their ratios.

    Each is measured `rounds` times, or, with `batch_sizes`, once at each of these up to the first that needs too much memory.
    """

    archs: Mapping[str, Arch]
    against: Arch
    device: torch.device
    protocols: Mapping[str, Protocol]
    rounds: int
    batch_sizes: tuple[int, ...] | None

    @cached_property
    def num_measurements(self) -> int:
        """Number of measurements when all succeed."""
        return len(self.archs) * (len(self.batch_sizes) if self.batch_sizes else self.rounds)


def bench_task(
    archs: Mapping[str, Arch],
    *,
    device: str,
    dtype: str | None,
    mode: str | None,
    batch_size: int | None,
    image_size: ImageSize | None,
    in_chans: int | None = None,
    against: Arch | None = None,
    rounds: int = 1,
    train: bool = False,
    sweep: int | str | None = None,
    runtime: Runtime = "torch",
    precision: Precision | None = None,
    calibration_data: str | None = None,
    say: Say = ignore,
) -> BenchTask:
    """The task for these options, checked before anything is timed; number format, mode, sizes and channels are by default the device's and
    each architecture's own.

    `sweep` is the largest batch size of a sweep, or SWEEP_ALL. `runtime` runs the networks, one other than torch in `precision`, with the
    images of the folder `calibration_data` for int8. UserError for options that exclude each other, an absent device or runtime, and an
    image size in pixels that an architecture or the reference cannot take.
    """
    if sweep is not None and batch_size is not None:
        raise UserError(f"--batch-size: got {batch_size}, but --sweep sets the batch sizes; leave one of them out")
    if sweep is not None and rounds > 1:
        raise UserError(f"--rounds: got {rounds}, but --sweep times every batch size once; leave one of them out")
    if train and runtime != "torch":
        raise UserError(f"--train: --runtime {runtime} has no training steps; leave one of them out")
    measurement = Measurement.resolve(
        device=device,
        dtype=dtype,
        mode=mode,
        batch_size=batch_size,
        runtime=runtime,
        precision=precision,
        calibration_data=calibration_data,
        say=say,
    )
    target = measurement.torch_device
    reference = against or reference_arch()
    protocols = {}
    for name, arch in archs.items():
        pixels = image_size or arch.image_size
        _check_size(name, arch, pixels)
        _check_size(f"the reference {_name(reference)}", reference, pixels)
        channels = arch.in_chans if in_chans is None else in_chans
        if runtime != "torch":
            check_precision(runtime, precision or "float32", calibration_data, channels)
        protocols[name] = measurement.protocol(
            image_size=pixels, in_chans=channels, task="train" if train else "forward"
        )
    batch_sizes = None
    if sweep is not None:
        largest = _LARGEST_SWEPT[target.type] if sweep == SWEEP_ALL else int(sweep)
        batch_sizes = (*(2**power for power in range((largest - 1).bit_length())), largest)
    return BenchTask(
        archs=archs, against=reference, device=target, protocols=protocols, rounds=rounds, batch_sizes=batch_sizes
    )


def _check_size(description: str, arch: Arch, pixels: ImageSize) -> None:
    try:
        arch.check(pixels)
    except UserError as error:
        raise UserError(f"{description} at {format_sides(pixels)} px: {error}") from error


def bench_document(task: BenchTask, say: Say = ignore) -> Document:
    """All measurements with the conditions, for JSON; a failed one has an `error` instead of figures. `say` is called with lines of progress.

    Ctrl-C ends it early: the document then has what was measured so far, and `interrupted` is true.
    """
    bench = _Measurements(task, say)
    interrupted = False
    if task.device.type == "cuda":
        allow_tf32()
    try:
        with device_lock(task.device, exclusive=True, on_wait=waiting_line(say)):
            if task.batch_sizes is None:
                bench.measure_rounds()
            else:
                bench.sweep(task.batch_sizes)
    except KeyboardInterrupt:
        interrupted = True
    return {
        "conditions": {
            **conditions(task.device),
            **runtime_facts(next(iter(task.protocols.values())), task.device),
            "reference": _name(task.against),
        },
        "reference": {"name": _name(task.against), "arch_id": task.against.arch_id},
        "rounds": task.rounds,
        "is_sweep": task.batch_sizes is not None,
        "interrupted": interrupted,
        "measured": bench.num_measured,
        "asked": task.num_measurements,
        "telemetry_missing": missing_telemetry(task.device),
        "results": bench.results(),
        "sweep_ends": bench.sweep_ends,
    }


def _name(arch: Arch) -> str:
    return arch.name or arch.arch_id


class _Measurements:
    """The measurements of a task so far: figures and errors by name and batch size, and why each sweep ended."""

    def __init__(self, task: BenchTask, say: Say) -> None:
        self.task, self._say = task, say
        self.num_measured = 0
        self.sweep_ends: dict[str, str] = {}
        self._figures: dict[tuple[str, int], list[Document]] = {}
        self._errors: dict[tuple[str, int], str] = {}
        self._references: dict[tuple[ImageSize, int], nn.Module] = {}

    def measure_rounds(self) -> None:
        """All architectures in the given order, then in a new order each round; one that failed is not measured again.

        In a fixed order each would always start on the heat of the same predecessor.
        """
        names, generator = list(self.task.archs), random.Random(0)
        for number in range(self.task.rounds):
            for name in generator.sample(names, len(names)) if number else names:
                protocol = self.task.protocols[name]
                if (name, protocol.batch_size) in self._errors:
                    continue
                label = f"{name}, round {number + 1} of {self.task.rounds}" if self.task.rounds > 1 else name
                try:
                    self._measure(label, name, protocol)
                except RunError as error:
                    self._errors[name, protocol.batch_size] = str(error)

    def sweep(self, batch_sizes: Sequence[int]) -> None:
        """Each architecture at these batch sizes, up to the first that needs too much memory or fails in another way."""
        for name in self.task.archs:
            for batch_size in batch_sizes:
                protocol = replace(self.task.protocols[name], batch_size=batch_size)
                try:
                    self._measure(f"{name}, batch {batch_size}", name, protocol)
                except InfeasibleError as error:
                    self.sweep_ends[name] = str(error)
                    break
                except RunError as error:
                    self._errors[name, batch_size] = str(error)
                    break

    def _measure(self, label: str, name: str, protocol: Protocol) -> None:
        """One measurement; RunError when it fails."""
        self._say(f"{label}: building")
        size, channels = protocol.image_size, protocol.in_chans
        model = build(self.task.archs[name], image_size=size, in_chans=channels)
        # The stem's weights depend on the channels, and those of some architectures on the size.
        if (size, channels) not in self._references:
            self._references[size, channels] = build(self.task.against, image_size=size, in_chans=channels)

        def say(line: str) -> None:
            self._say(f"{label}: {line}")

        figures = measure(model, protocol, self.task.device, reference=self._references[size, channels], say=say)
        self.num_measured += 1
        self._figures.setdefault((name, protocol.batch_size), []).append(asdict(figures))

    def results(self) -> list[Document]:
        """One result for each architecture and batch size that was measured or failed, architectures in the given order."""
        done = {**self._figures, **self._errors}
        return [
            self._result(name, batch_size)
            for name in self.task.archs
            for batch_size in sorted(size for other, size in done if other == name)
        ]

    def _result(self, name: str, batch_size: int) -> Document:
        """The round with the median ratio (the lower of two middle ones), the relative spread of the rounds' ratios, and all rounds; or the error."""
        arch, protocol = self.task.archs[name], replace(self.task.protocols[name], batch_size=batch_size)
        image = (protocol.image_size, protocol.in_chans)
        cost, reference_cost = arch.cost(*image), self.task.against.cost(*image)
        result = {
            "asked": name,
            "arch_id": arch.arch_id,
            "name": arch.name,
            "macs": cost.macs,
            "params": cost.params,
            "reference_macs": reference_cost.macs,
            "reference_params": reference_cost.params,
            "error": self._errors.get((name, batch_size)),
        }
        if result["error"] is not None:
            return {**result, **asdict(protocol)}
        rounds = self._figures[name, batch_size]
        ratios = [figures["ratio_to_reference"] for figures in rounds]
        middle = statistics.median_low(ratios)
        spread = (max(ratios) - min(ratios)) / middle if len(rounds) > 1 else None
        return {**result, **rounds[ratios.index(middle)], "ratio_spread": spread, "rounds": list(rounds)}
