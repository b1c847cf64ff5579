"""The evaluation of one candidate in a worker: exact count, throughput, proxy score; each phase is emitted as soon as it ends."""

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from archsearch.blocks import BlockFile
from archsearch.device import affinity, conditions, device_lock, is_out_of_memory, use_cpu
from archsearch.errors import ArchsearchError, RunError, UserError, first_line
from archsearch.lock import Held
from archsearch.models import GivenNetwork, build_for_timing, count_fvcore, count_known, failing_layer, read_network
from archsearch.proxy import (
    LoadedData,
    ProxyScore,
    ProxyTask,
    Training,
    TrainingProgress,
    shrink,
    start_training,
    train_step_bytes,
)
from archsearch.proxy.training_free import scores as free_scores
from archsearch.search.engine.workers.base import Emit
from archsearch.search.rungs import AGAIN_PHASE, FREE_PHASE, FREE_SCORES, PHASES, RUNG_PHASE, SEED_PHASE, Rung, rungs_of
from archsearch.space import REFERENCE, Arch, reference_arch, register_files
from archsearch.system import Say
from archsearch.throughput import (
    CompileError,
    CompilePool,
    Measurement,
    Throughput,
    keep_progress_bars_here,
    measure,
    pool_size,
    runtime_facts,
)
from archsearch.units import sides
from archsearch.version import __version__


def evaluate(
    arch_document: Mapping[str, Any], settings: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]], emit: Emit
) -> None:
    """Measure the phases that are not in `done`; an `Evaluator` (see `engine.workers.base`).

    The phases are those of settings["phases"], by default `count`, `throughput` and `proxy`. Further ones are `again` (the throughput
    another time), `free` (the training-free scores), `proxy@50` (the proxy's training up to step 50, one of its rungs, from which a
    later rung or `proxy` continues) and `seed@2` (the whole training with another seed, the second of these).
    Where networks are timed compiled, those of the architectures settings["ahead"] are compiled meanwhile, by other processes.
    Raises RunError with the reason when the counts disagree, the candidate does not fit into memory or its training diverges.
    """
    measurement = Measurement.from_dict(settings)
    measurement.use_device()
    register_files(BlockFile(name, text) for name, text in settings.get("blocks", {}).items())
    arch = read_network(arch_document)
    device = measurement.torch_device
    task = ProxyTask.from_dict(settings) if settings.get("proxy") else None
    rungs = rungs_of(settings)
    # A paused training of another architecture is one that was stopped, and its memory would count in the next measurement.
    _paused[:] = [each for each in _paused if (each.arch, each.task, each.device) == (arch, task, device)]
    # The network that is counted and timed.
    full = cache(lambda: arch.build() if isinstance(arch, GivenNetwork) else build_for_timing(arch))
    phases: dict[str, Callable[[], dict[str, Any]]] = {
        "count": lambda: _count(arch, full, task, settings, emit),
        "throughput": lambda: _throughput(full(), measurement, emit),
        "again": lambda: _measure_again(full(), measurement, emit),
    }
    if measurement.is_compiled:
        keep_progress_bars_here()
        _compile_ahead(settings, measurement, arch, emit)
    if task is not None:
        phases[FREE_PHASE] = lambda: _training_free(arch, task, device, settings, emit)
        phases |= {rung.phase: partial(_train, arch, task, rung, device, settings, emit) for rung in rungs}
    for phase in settings.get("phases", PHASES):
        if phase in done:
            continue
        if phase.startswith(SEED_PHASE) and task is not None:
            again = replace(rungs[-1], phase=phase, place=1, total=1)
            phases[phase] = partial(_train_seed, arch, task, again, device, settings, emit)
        emit({"event": "progress", "phase": phase})
        start = time.perf_counter()
        _waits.clear()
        with _explained(phase, device):
            values = phases[phase]()
        if phase in PHASES or phase.startswith(RUNG_PHASE):
            values[f"seconds_{phase.partition('@')[0]}"] = time.perf_counter() - start - sum(_waits)
        emit({"event": "phase", "phase": phase, "values": values, "waited_s": sum(_waits)})


@contextlib.contextmanager
def _explained(phase: str, device: torch.device) -> Iterator[None]:
    """Around a phase: an error inside its network becomes one line that says where, and goes to the log with its traceback."""
    try:
        yield
    except ArchsearchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise RunError(f"{phase}: out of memory on {device.type}") from error
        place = failing_layer(error)
        if place is None:
            raise
        traceback.print_exception(error)
        raise RunError(f"{phase}: {place}: {type(error).__name__}: {first_line(error)}") from error


# Processes that compile the architectures that come next; at most one pool, of this worker.
_pools: list[CompilePool] = []


def _compile_ahead(
    settings: Mapping[str, Any], measurement: Measurement, arch: Arch | GivenNetwork, emit: Emit
) -> None:
    """Have the architectures of settings["ahead"] compiled from now on, and leave this one to its own measurement."""
    ahead, size = settings.get("ahead", ()), pool_size(measurement)
    # The cores are shared; on a CPU they are those that the others train on.
    if (workers := settings.get("workers", 1)) > 1:
        size = max(1, size // workers) if measurement.device == "cuda" else 0
    if not _pools and ahead and size:
        _pools.append(CompilePool(measurement, settings.get("blocks", {}), size))
    for pool in _pools:
        pool.claim(arch.arch_id, lambda text: emit({"event": "progress", "phase": "throughput", "text": text}))
        pool.add(ahead)


# Seconds that the current phase has waited for the device.
_waits: list[float] = []


@contextlib.contextmanager
def _holding(device: torch.device, phase: str, emit: Emit, *, exclusive: bool) -> Iterator[Held]:
    """Hold the device for a phase. A wait for it is reported, and does not count as time of the phase."""

    def tell(holder: str) -> None:
        emit({"event": "progress", "phase": phase, "waiting": holder})

    with device_lock(device, exclusive=exclusive, on_wait=tell) as held:
        try:
            yield held
        finally:
            _waits.append(held.waited_s)


@contextlib.contextmanager
def _sharing(device: torch.device, phase: str, settings: Mapping[str, Any], emit: Emit) -> Iterator[Held]:
    """Hold the device together with other workers, on this worker's own cores where it has such: settings["training"]."""
    with _holding(device, phase, emit, exclusive=False) as held:
        own, threads, cores = settings.get("training"), torch.get_num_threads(), affinity()
        if own is None:
            yield held
            return
        use_cpu(own["threads"], own["cpus"])
        try:
            yield held
        finally:
            use_cpu(threads, cores if own["cpus"] is not None else None)


def _count(
    arch: Arch | GivenNetwork,
    full: Callable[[], nn.Module],
    task: ProxyTask | None,
    settings: Mapping[str, Any],
    emit: Emit,
) -> dict[str, Any]:
    """fvcore's count of the built model and its parameters; both must equal the exact cost. Refuses what has no small copy before it is timed."""
    if task is not None and isinstance(arch, Arch):
        shrink(arch, task.scale, task.num_classes)
    cost = arch.cost()
    with _sharing(torch.device("cpu"), "count", settings, emit):  # where nothing is timed at that moment
        model = full()
        images = (arch.image_size, arch.in_chans)
        counted = count_fvcore(model, *images) if isinstance(arch, Arch) else count_known(model, *images)[0]
        params = sum(parameter.numel() for parameter in model.parameters())
        needed: dict[str, Any] = {}
        if "train_memory_bytes" in settings.get("limits", ()):
            shape = (settings["batch_size"], arch.in_chans, *sides(arch.image_size))
            needed["train_memory_bytes"] = train_step_bytes(model, shape, settings["dtype"])
    if (counted, params) != (cost.macs, cost.params):
        raise RunError(
            f"the built model has {counted} MACs and {params} parameters, the exact cost says {cost.macs} and {cost.params}"
        )
    return {"macs_fvcore": counted, "archsearch_version": __version__, "torch_version": torch.__version__, **needed}


def _throughput(model: nn.Module, measurement: Measurement, emit: Emit, phase: str = "throughput") -> dict[str, Any]:
    """Images/s of the full architecture at its own input size, between two timings of the reference."""
    device = measurement.torch_device
    with _nothing_compiled(device), _holding(device, phase, emit, exclusive=True):
        figures, problem = _measure(
            model, measurement, lambda text: emit({"event": "progress", "phase": phase, "text": text})
        )
    where = conditions(device) | (runtime_facts(measurement.protocol(), device) if measurement.other_runtime else {})
    return {
        "throughput_img_s": figures.throughput_img_s,
        "throughput_iqr": figures.throughput_iqr,
        "latency_ms": figures.latency_ms,
        "throughput_noisy": figures.noisy,
        "throughput_ratio": figures.ratio_to_reference,
        "throughput_drift": figures.drift,
        "peak_memory_bytes": figures.peak_memory_bytes,
        "compile_s": figures.compile_s,
        **({"mode": figures.mode} if problem else {}),
        "device_name": where.get("device_name"),
        "conditions": {
            **where,
            **measurement.unusual_images,
            "reference": REFERENCE,
            "reference_img_s": figures.reference_img_s,
            "drifted": figures.drifted,
            "throttled": figures.throttled,
            "telemetry": None if figures.telemetry is None else asdict(figures.telemetry),
            **({"compile_error": problem} if problem else {}),
            **({"difference_from_torch": figures.difference_from_torch} if measurement.other_runtime else {}),
        },
    }


@contextlib.contextmanager
def _nothing_compiled(device: torch.device) -> Iterator[None]:
    """Compile nothing ahead inside, where the CPU is what is timed; the cores that a GPU's host spends on it are idle ones."""
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for pool in _pools if device.type == "cpu" else ():
            stack.enter_context(pool.paused())
        _waits.append(time.perf_counter() - start)
        yield


def _measure(model: nn.Module, measurement: Measurement, say: Say) -> tuple[Throughput, str | None]:
    """The figures; of a network that does not compile those of eager passes, and the reason."""
    device, problem = measurement.torch_device, None
    reference = _reference(device.type, measurement.in_chans)
    try:
        return measure(model, measurement.protocol(), device, reference=reference, say=say), None
    except CompileError as error:
        problem = str(error)
    say("timing it eager, since it does not compile")
    eager = replace(measurement, mode="eager").protocol()
    return measure(model, eager, device, reference=reference, say=say), problem


def _measure_again(model: nn.Module, measurement: Measurement, emit: Emit) -> dict[str, Any]:
    """The throughput another time, in columns of its own: the first figure stays the ranked one."""
    values = _throughput(model, measurement, emit, AGAIN_PHASE)
    return {
        "throughput_again_img_s": values["throughput_img_s"],
        "throughput_again_iqr": values["throughput_iqr"],
        "throughput_again_ratio": values["throughput_ratio"],
        **{name: values[name] for name in ("mode", "conditions") if name in values},
    }


def _training_free(
    arch: Arch | GivenNetwork, task: ProxyTask, device: torch.device, settings: Mapping[str, Any], emit: Emit
) -> dict[str, Any]:
    """The training-free scores that are finite; none of a network whose blocks are not known."""
    if isinstance(arch, GivenNetwork):
        return {}
    with _sharing(device, FREE_PHASE, settings, emit):
        found = free_scores(arch, seed=task.recipe.seed, device=device)
    return {f"{FREE_PHASE}_{name}": found[name] for name in FREE_SCORES if math.isfinite(found[name])}


@cache
def _reference(device: str, in_chans: int) -> nn.Module:
    return build_for_timing(replace(reference_arch(), in_chans=in_chans)).to(device)


_data = LoadedData()  # of this worker


@dataclass(frozen=True, kw_only=True)
class _Paused:
    """A training that waits for the driver's decision whether it goes on."""

    arch: Arch | GivenNetwork
    task: ProxyTask
    device: torch.device
    training: Training


# At most one; during an evaluation only one of the same architecture.
_paused: list[_Paused] = []


def _train(
    arch: Arch | GivenNetwork,
    task: ProxyTask,
    rung: Rung,
    device: torch.device,
    settings: Mapping[str, Any],
    emit: Emit,
) -> dict[str, Any]:
    """Train the proxy of the architecture up to this rung, continuing from the rung before if this process has it, else from the start.

    Every candidate gets the same seed, order and augmentation.
    """
    _data.of(task)  # which refuses a paused training too, where the images have been exchanged
    with _sharing(device, rung.phase, settings, emit) as held:
        training = _paused.pop().training if _paused else _start_training(arch, task, device)
        score = _advance(training, rung, held, emit)
    if rung.place < rung.total:
        _paused.append(_Paused(arch=arch, task=task, device=device, training=training))
    return {
        "proxy_score": score.score,
        "proxy_score_se": score.standard_error,
        "proxy_id": rung.proxy_id,
        "proxy_train_loss": score.train_loss,
        "proxy_retried": score.retried,
        "proxy_loader_images_s": score.loader_images_s,
        "proxy_step_images_s": score.step_images_s,
        "proxy_micro_batch": score.micro_batch,
        "proxy_peak_memory_bytes": score.peak_memory_bytes,
    }


def _train_seed(
    arch: Arch | GivenNetwork,
    task: ProxyTask,
    rung: Rung,
    device: torch.device,
    settings: Mapping[str, Any],
    emit: Emit,
) -> dict[str, Any]:
    """The whole training with another seed, so other weights and another order; the phase `seed@2` adds 2 to the recipe's seed."""
    with _sharing(device, rung.phase, settings, emit) as held:
        training = _start_training(arch, task, device, more_seed=int(rung.phase.removeprefix(SEED_PHASE)))
        score = _advance(training, rung, held, emit)
    return {"proxy_score": score.score, "proxy_score_se": score.standard_error}


def _start_training(arch: Arch | GivenNetwork, task: ProxyTask, device: torch.device, more_seed: int = 0) -> Training:
    recipe = replace(task.recipe, seed=task.recipe.seed + more_seed)
    return start_training(arch, _data.of(task), task.scale, recipe, device)


def _advance(training: Training, rung: Rung, held: Held, emit: Emit) -> ProxyScore:
    """Train up to the steps of a rung, emitting progress; on a CPU no step is computed while another process times something."""

    def report(progress: TrainingProgress) -> None:
        place = {"phase": rung.phase, "rung": rung.place, "rungs": rung.total}
        emit({"event": "progress", **place, **asdict(progress)})

    training.progress = report
    training.step_aside = held.step_aside if training.device.type == "cpu" else None
    return training.advance(rung.steps)


def refuse_unknown_shape(arch: Arch, task: ProxyTask) -> None:
    """Raise UserError when the proxy cannot be made of this architecture; called before a run starts."""
    try:
        shrink(arch, task.scale, task.num_classes)
    except UserError as error:
        raise UserError(f"{arch.name or arch.arch_id}: {error}") from error
