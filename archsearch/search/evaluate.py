"""One candidate from architecture to row, in a worker process: exact count, measured throughput, proxy score; each phase is told as soon as it is through."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from archsearch.data.dataset import ProxyData
from archsearch.device import conditions, device_lock, is_out_of_memory, use_cpu
from archsearch.errors import RunError, UserError
from archsearch.models.build import build
from archsearch.models.count import count_fvcore
from archsearch.proxy.shrink import Profile, shrink
from archsearch.proxy.task import load_proxy
from archsearch.proxy.training.recipe import Recipe
from archsearch.proxy.training.train import Progress, Training, start_training
from archsearch.proxy.training_free import scores as free_scores
from archsearch.search.rungs import FREE_PHASE, FREE_SCORES, RUNG_PHASE, SEED_PHASE, Rung, rungs_of
from archsearch.space.arch import Arch
from archsearch.space.papers import REFERENCE, reference_arch
from archsearch.throughput.measure import measure
from archsearch.throughput.protocol import Protocol
from archsearch.version import __version__

Event = dict[str, Any]
Emit = Callable[[Event], None]

PHASES = ("count", "throughput", "proxy")


def evaluate(
    arch_document: Mapping[str, Any], settings: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]], emit: Emit
) -> None:
    """Run the phases that are not in `done`, emitting progress and, after each phase, its columns.

    They are `count`, `throughput` and `proxy`, unless settings["phases"] names others; `again` is the throughput anew, `free` the training-free scores,
    `proxy@50` the proxy's training up to step 50, one of settings["proxy"]["rungs"], from which `proxy` goes on, and `seed@2` the
    whole training with the second of other seeds.
    Raises RunError with the reason when the counts disagree, the candidate does not fit into memory or its training diverges.
    """
    use_cpu(settings.get("threads"), settings.get("cpus"))
    arch = Arch.from_dict(arch_document)
    device = torch.device(settings["device"])
    if _training_of(arch, settings) not in _paused:
        _paused.clear()  # it was stopped: its memory is not to weigh on what is measured now
    full = cache(lambda: build(arch))  # counted, then timed
    phases: dict[str, Callable[[], dict[str, Any]]] = {
        "count": lambda: _count(arch, full()),
        "throughput": lambda: _throughput(full(), settings, device, emit),
        "again": lambda: _again(full(), settings, device, emit),
        FREE_PHASE: lambda: _free(arch, settings, device),
        **{rung.phase: partial(_proxy, arch, rung, settings, device, emit) for rung in rungs_of(settings)},
    }
    for phase in settings.get("phases", PHASES):
        if phase in done:
            continue
        if phase.startswith(SEED_PHASE):
            phases[phase] = partial(_seed, arch, phase, settings, device, emit)
        emit({"event": "progress", "phase": phase})
        start = time.perf_counter()
        try:
            values = phases[phase]()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(f"{phase}: out of memory on {device.type}") from error
        if phase in PHASES or phase.startswith(RUNG_PHASE):
            values[f"seconds_{phase.partition('@')[0]}"] = time.perf_counter() - start
        emit({"event": "phase", "phase": phase, "values": values})


def _count(arch: Arch, model: nn.Module) -> dict[str, Any]:
    """fvcore's count of the built model and its parameters; both must equal the exact cost."""
    cost = arch.cost()
    counted, params = count_fvcore(model, arch.image_size), sum(parameter.numel() for parameter in model.parameters())
    if (counted, params) != (cost.macs, cost.params):
        raise RunError(
            f"the built model has {counted} MACs and {params} parameters, the exact cost says {cost.macs} and {cost.params}"
        )
    return {"macs_fvcore": counted, "archsearch_version": __version__, "torch_version": torch.__version__}


def _throughput(model: nn.Module, settings: Mapping[str, Any], device: torch.device, emit: Emit) -> dict[str, Any]:
    """Images/s of the full architecture at its own input size, between two timings of the reference."""
    protocol = Protocol.for_device(
        device,
        batch_size=settings["batch_size"],
        image_size=settings["image_size"],
        dtype=settings["dtype"],
        mode=settings["mode"],
    )
    with device_lock(device, exclusive=True):
        reference = _reference(device.type)
        figures = measure(
            model,
            protocol,
            device,
            reference=reference,
            progress=lambda text: emit({"event": "progress", "phase": "throughput", "text": text}),
        )
    where = conditions(device)
    return {
        "throughput_img_s": figures.throughput_img_s,
        "throughput_iqr": figures.throughput_iqr,
        "latency_ms": figures.latency_ms,
        "throughput_noisy": figures.noisy,
        "throughput_ratio": figures.ratio_to_reference,
        "throughput_drift": figures.drift,
        "peak_memory_bytes": figures.peak_memory_bytes,
        "device_name": where.get("device_name"),
        "conditions": {
            **where,
            "reference": REFERENCE,
            "reference_img_s": figures.reference_img_s,
            "drifted": figures.drifted,
            "throttled": figures.throttled,
            "telemetry": None if figures.telemetry is None else asdict(figures.telemetry),
        },
    }


def _again(model: nn.Module, settings: Mapping[str, Any], device: torch.device, emit: Emit) -> dict[str, Any]:
    """The same measurement another time, under names of its own: the first figure stays the ranked one."""
    values = _throughput(model, settings, device, lambda event: emit({**event, "phase": "again"}))
    return {
        "throughput_again_img_s": values["throughput_img_s"],
        "throughput_again_iqr": values["throughput_iqr"],
        "throughput_again_ratio": values["throughput_ratio"],
        "conditions": values["conditions"],
    }


def _free(arch: Arch, settings: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The training-free scores; one that is not defined is left out."""
    with device_lock(device, exclusive=False):
        found = free_scores(arch, seed=settings["proxy"]["recipe"]["seed"], device=device)
    return {f"{FREE_PHASE}_{name}": found[name] for name in FREE_SCORES if math.isfinite(found[name])}


@cache
def _reference(device: str) -> nn.Module:
    torch.manual_seed(0)
    return build(reference_arch()).to(device)


@cache
def _proxy_data(source: str) -> ProxyData:
    """The data of this worker, read once for all its trials; `source` is JSON."""
    return load_proxy(json.loads(source))


# The training that waits for the decision whether it goes on, under what it is a training of; there is never more than one.
_paused: dict[str, Training] = {}


def _proxy(arch: Arch, rung: Rung, settings: Mapping[str, Any], device: torch.device, emit: Emit) -> dict[str, Any]:
    """Train the small version of the architecture up to this rung: on from the last one where this process has it, else from the start.

    Every candidate gets the same seed, order and augmentation.
    """
    what = _training_of(arch, settings)
    training = _paused.pop(what, None) or _start_training(arch, settings["proxy"], device)
    training.progress = lambda progress: emit(_told(progress, rung))
    with device_lock(device, exclusive=False):
        score = training.advance(rung.steps)
    if rung.place < rung.total:
        _paused[what] = training
    return {
        "proxy_score": score.score,
        "proxy_score_se": score.standard_error,
        "proxy_id": rung.proxy_id,
        "proxy_train_loss": score.train_loss,
        "proxy_retried": score.retried,
        "proxy_loader_images_s": score.loader_images_s,
        "proxy_step_images_s": score.step_images_s,
        "proxy_micro_batch": score.micro_batch,
    }


def _seed(arch: Arch, phase: str, settings: Mapping[str, Any], device: torch.device, emit: Emit) -> dict[str, Any]:
    """The whole training once more, from other weights and in another order."""
    full = replace(rungs_of(settings)[-1], phase=phase, place=1, total=1)
    number = int(phase.removeprefix(SEED_PHASE))
    training = _start_training(arch, settings["proxy"], device, more_seed=number)
    training.progress = lambda progress: emit(_told(progress, full))
    with device_lock(device, exclusive=False):
        score = training.advance(full.steps)
    return {"proxy_score": score.score, "proxy_score_se": score.standard_error}


def _training_of(arch: Arch, settings: Mapping[str, Any]) -> str:
    return json.dumps([arch.to_dict(), settings.get("proxy"), settings["device"]], sort_keys=True)


def _start_training(arch: Arch, proxy: Mapping[str, Any], device: torch.device, more_seed: int = 0) -> Training:
    recipe = Recipe(**proxy["recipe"])
    recipe = replace(recipe, seed=recipe.seed + more_seed)
    return start_training(arch, _proxy_data(json.dumps(proxy["source"])), Profile(**proxy["profile"]), recipe, device)


def _told(progress: Progress, rung: Rung) -> Event:
    return {
        "event": "progress",
        "phase": rung.phase,
        "rung": rung.place,
        "rungs": rung.total,
        "step": progress.step,
        "steps": progress.steps,
        "images_s": progress.images_s,
        "loss": progress.loss,
    }


def refuse_unknown_shape(arch: Arch, settings: Mapping[str, Any]) -> None:
    """Raise UserError when the proxy cannot hold this architecture; called before a run starts."""
    try:
        shrink(arch, Profile(**settings["proxy"]["profile"]), settings["proxy_classes"])
    except UserError as error:
        raise UserError(f"{arch.name or arch.arch_id}: {error}") from error
