"""Sections of `gpu.py` on whole networks: the compiler's cache, forward passes, training steps, latency."""

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal

import timm
import torch
from clock import Work
from gpu_rows import Row
from gpu_setting import PRELOADED, Setting
from rivals import TIMM, Side, make
from torch import Tensor, nn
from torch.nn import functional

from archsearch import build, paper
from archsearch.device import peak_memory_bytes, reset_peak_memory
from archsearch.errors import first_line
from archsearch.proxy import load_profile, shrink
from archsearch.proxy.training.compiled import compiled_blocks
from archsearch.space import reference_arch

Layout = Literal["channels_last", "contiguous"]
Mode = Literal["eager", "compile", "compile-blocks", "reduce-overhead"]

PROFILE = "imagenet-short"
NUM_CLASSES = 1000
# What a process that compiles a network holds of the GPU at batch 128: context, weights, activations of one pass.
_BYTES_PER_COMPILATION = 5 * 2**30


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network, how it is run, and on what images."""

    name: str
    side: Side
    batch_size: int
    image_size: int
    task: Literal["forward", "train"] = "forward"
    dtype: Literal["float32", "bfloat16", "amp_bfloat16"] = "bfloat16"
    mode: Mode = "eager"
    layout: Layout = "channels_last"

    def row(self, section: str, unit: str, what: str | None = None) -> Row:
        """Its row, the value still to come."""
        conditions = {name: getattr(self, name) for name in ("side", "dtype", "mode", "layout")}
        sizes = {"batch_size": self.batch_size, "image_size": self.image_size}
        return {"section": section, "what": what or self.name, **conditions, **sizes, "unit": unit}


def forward_jobs(setting: Setting, modes: Iterable[Mode], dtype: Any = "bfloat16") -> Iterator[Job]:
    """Ours and timm's counterparts first, which are compared; timm's in both layouts, as either may be the faster."""
    sizes: dict[str, Any] = {"batch_size": setting.batch_size, "image_size": setting.image_size, "dtype": dtype}
    names = setting.models()
    for mode in modes:
        for name in sorted(names, key=lambda name: name not in TIMM):
            yield Job(name=name, side="ours", mode=mode, **sizes)
            if _is_compared(name, mode, setting):
                yield Job(name=name, side="timm", mode=mode, layout="contiguous", **sizes)
                yield Job(name=name, side="timm", mode=mode, **sizes)


def _is_compared(name: str, mode: Mode, setting: Setting) -> bool:
    """Whether timm has it; with --smoke eager alone, as capturing a graph takes seconds."""
    return name in TIMM and not (setting.smoke and mode != "eager")


def network(job: Job) -> nn.Module:
    """In float32, without stochastic depth; for training the small copy that proxies train, and timm's network at its size."""
    if job.task == "forward":
        return make(job.side, job.name, job.image_size)
    if job.side == "ours":
        return build(shrink(paper(job.name), load_profile(PROFILE).scale, NUM_CLASSES))
    # 4 of 7: the share of a map that a window covers stays, as in our small copies.
    sized: dict[str, Any] = {"img_size": job.image_size, "window_size": 4} if job.name.startswith("swin") else {}
    return timm.create_model(TIMM[job.name], drop_path_rate=0.0, **sized)


def work_of(job: Job, setting: Setting) -> Work:
    """One pass of a job, on the device."""
    model = network(job).to(setting.device)
    images = torch.randn(job.batch_size, 3, job.image_size, job.image_size, device=setting.device)
    if job.layout == "channels_last":
        # Ours lay their weights out themselves.
        model = model.to(memory_format=torch.channels_last) if job.side == "timm" else model
        images = images.contiguous(memory_format=torch.channels_last)
    if job.dtype == "bfloat16":
        model, images = model.bfloat16(), images.bfloat16()
    model.train(job.task == "train")
    make_work = _training_step if job.task == "train" else _forward
    return make_work(model, _compiled(model, job, setting), images, job)


def _compiled(model: nn.Module, job: Job, setting: Setting) -> Callable[[Tensor], Tensor]:
    if job.mode == "eager":
        return model
    if job.mode == "compile-blocks":
        backend = {"backend": "eager"} if setting.smoke else {}
        for block, forward in compiled_blocks(model, **backend).items():
            block.forward = forward  # for good: the network is this job's alone
        return model
    mode = None if job.mode == "compile" else job.mode
    # With --smoke the graph is captured and run as it is: the compiler takes most of a minute on a core.
    compiled: Any = torch.compile(model, dynamic=False, backend="eager") if setting.smoke else torch.compile(
        model, dynamic=False, mode=mode
    )  # fmt: skip
    return compiled  # type: ignore[no-any-return]  # a module, called as one


def _forward(model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, job: Job) -> Work:
    def forward() -> None:
        with torch.inference_mode(), _autocast(job, images):
            run(images)

    return forward


def _training_step(model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, job: Job) -> Work:
    """Forward, cross-entropy, backward, fused AdamW, as the proxy's."""
    labels = torch.randint(NUM_CLASSES, (len(images),), device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with _autocast(job, images):
            loss = functional.cross_entropy(run(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _autocast(job: Job, images: Tensor) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=job.dtype == "amp_bfloat16")


def rates(section: str, jobs: Iterable[Job], setting: Setting) -> Iterator[Row]:
    """Images per second of each job; of a compiled one also the seconds of its first pass, of a training its peak memory."""
    for job in jobs:
        torch.compiler.reset()  # the compiler limits the graphs of a function, and models share theirs
        gc.collect()  # what it kept of the network before
        reset_peak_memory(setting.device)
        first_s: list[float] = []
        yield setting.figure(job.row(section, "img/s"), partial(_rate, job, setting, first_s))
        if first_s and job.mode != "eager":
            yield {**job.row(section, "s"), "value": first_s[0]}
        if first_s and job.task == "train":
            yield {**job.row(section, "GiB"), "value": (peak_memory_bytes(setting.device) or 0) / 2**30}


def _rate(job: Job, setting: Setting, first_s: list[float]) -> float:
    """Images per second; the first pass's seconds are added to `first_s`."""
    work = work_of(job, setting)
    seconds = first_pass_s(work, setting)
    rate = job.batch_size / setting.median_seconds(work)
    first_s.append(seconds)
    return rate


def first_pass_s(work: Work, setting: Setting) -> float:
    """Wall-clock seconds of a first pass, which compiles."""
    start = time.perf_counter()
    work()
    if setting.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compile_cache(setting: Setting) -> Iterator[Row]:
    """Seconds of every network's compilation, all at once: a processor each, as many as the GPU's memory holds."""
    jobs = list(forward_jobs(setting, ("compile",)))
    if not setting.smoke:  # a run times it beside every candidate
        reference = reference_arch().name
        assert reference
        jobs.append(replace(jobs[0], name=reference))
    yield from filled("compile-cache", jobs, setting)


def filled(section: str, jobs: list[Job], setting: Setting) -> Iterator[Row]:
    """A row for each compilation as it ends, and the time of all."""
    room = torch.cuda.mem_get_info()[1] // _BYTES_PER_COMPILATION if setting.is_cuda else 1
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    begin = time.perf_counter()
    with ProcessPoolExecutor(max(1, min(os.cpu_count() or 1, room, len(jobs))), mp_context=context) as pool:
        futures = {pool.submit(_compile, job, setting): job for job in jobs}
        for future in as_completed(futures):
            yield setting.figure(futures[future].row(section, "s"), future.result)
    yield {"section": section, "what": "all at once", "value": time.perf_counter() - begin, "unit": "s"}


def _compile(job: Job, setting: Setting) -> float:
    """Seconds of the first pass. RuntimeError with one line, as not every compiler error can be sent to another process."""
    try:
        return first_pass_s(work_of(job, setting), setting)
    except Exception as error:
        raise RuntimeError(first_line(error)) from None


def forward(setting: Setting) -> Iterator[Row]:
    """bfloat16 eager, then compiled; what is compared with timm's comes first in each."""
    yield from rates("forward", forward_jobs(setting, ("eager", "compile")), setting)


def autocast(setting: Setting) -> Iterator[Row]:
    """Autocast, eager and compiled: the compiler's cache is filled for it between the two."""
    yield from rates("autocast", forward_jobs(setting, ("eager",), "amp_bfloat16"), setting)
    compiled = list(forward_jobs(setting, ("compile",), "amp_bfloat16"))
    if not setting.smoke:
        yield from filled("autocast", compiled, setting)
    yield from rates("autocast", compiled, setting)


def _training_jobs(setting: Setting, mode: Mode) -> Iterator[Job]:
    batch_size, image_size = 1 if setting.smoke else 1024, load_profile(PROFILE).scale.image_size
    sizes: dict[str, Any] = {"batch_size": batch_size, "image_size": image_size}
    sizes |= {"task": "train", "dtype": "amp_bfloat16", "mode": mode}
    for name in sorted(setting.models(), key=lambda name: name not in TIMM):
        yield Job(name=name, side="ours", **sizes)
        if _is_compared(name, mode, setting):
            yield Job(name=name, side="timm", layout="contiguous", **sizes)
            yield Job(name=name, side="timm", **sizes)


def train(setting: Setting) -> Iterator[Row]:
    """Training steps by autocast at batch 1,024 and 128 px, eager."""
    yield from rates("train", _training_jobs(setting, "eager"), setting)


def train_compiled(setting: Setting) -> Iterator[Row]:
    """The same compiled, then ours block by block, each from a cold cache: several at once do not fit into a GPU's memory."""
    yield from rates("train-compiled", _training_jobs(setting, "compile"), setting)
    blocks = (replace(job, mode="compile-blocks") for job in _training_jobs(setting, "eager") if job.side == "ours")
    yield from rates("train-compiled", blocks, setting)


def latency(setting: Setting) -> Iterator[Row]:
    """Milliseconds of one image in bfloat16, eager; then compiled with CUDA graphs."""
    modes: tuple[Mode, ...] = ("eager", "reduce-overhead")
    for mode in modes:
        for name in setting.models():
            job = Job(name=name, side="ours", mode=mode, batch_size=1, image_size=setting.image_size)
            torch.compiler.reset()
            yield setting.figure(job.row("latency", "ms"), partial(_latency_ms, job, setting))


def _latency_ms(job: Job, setting: Setting) -> float:
    return 1000 / _rate(job, setting, [])
