"""`archsearch run` without its options: from what was asked to a finished run folder."""

import contextlib
import random
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from archsearch.blocks import register_file
from archsearch.cores import OthersLoad, busy_advice, is_busy
from archsearch.device import allow_tf32, conditions
from archsearch.errors import UserError
from archsearch.identity import RAW_FIGURE, Identity, identity_differences, identity_digest, row_identity
from archsearch.proxy import Profile, ProxyTask, choose_profile
from archsearch.results import DEVICE_OBJECTIVES, LOG_FILE, Row, compile_error
from archsearch.samplers import check_sampler
from archsearch.search.config import RunConfig, make_bounds, make_settings
from archsearch.search.earlier_runs import read_donors
from archsearch.search.engine.driver import Driver
from archsearch.search.engine.listener import Listener, State
from archsearch.search.engine.time_left import TimeLeft
from archsearch.search.engine.workers.local import count_workers, local_workers
from archsearch.search.engine.workers.ray import RayWorkers
from archsearch.search.engine.workers.ray_connection import connect
from archsearch.search.evaluate import refuse_unknown_shape
from archsearch.search.include import include
from archsearch.search.rungs import check_free_rung
from archsearch.search.same_run import find_run
from archsearch.search.study.address import check_url
from archsearch.search.study.opening import open_run
from archsearch.search.study.store import RunStore
from archsearch.search.trackers.tracking import check_trackers, tracking
from archsearch.space import Arch, Bounds, Space, choose_papers, draw, load_space, paper
from archsearch.system import Progress, Say, command_line, ignore
from archsearch.throughput import Calibration, Measurement, find_predictor, runtime_facts
from archsearch.units import ImageSize, format_image, format_names

_DRAWN = 16  # architectures of which the proxy must be able to train one


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What was asked for on the command line; `measuring` are the keywords of `Measurement.resolve`, `training` those of `ProxyTask.resolve`."""

    space: str
    budget_macs: int | None  # None: any
    tolerance: float
    papers: str
    objectives: tuple[str, ...]
    sampler: str
    seed: int
    trials: int
    timeout_s: float | None
    storage: str | None
    output: Path | None
    results_root: Path
    recheck: bool
    remeasure: bool
    seeds: int
    rungs: tuple[int, ...] | None  # None: the proxy's own
    fix: Mapping[str, Any]
    proxy: str | None
    measuring: Mapping[str, Any]
    training: Mapping[str, Any]
    image_size: ImageSize | None = None  # None: the space's own
    workers: int | None = None  # None: as many as there are devices
    retries: int = 2
    storage_patience_s: float = 600.0
    stall_s: float | None = None  # inf: never; None: by phase
    ray: str | None = None  # address of a Ray cluster that evaluates, None: this machine does
    device_class: str | None = None
    earlier_runs: tuple[Path, ...] = ()  # folders of runs to take figures from
    limits: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # [least, most] by column
    include: tuple[str | Arch, ...] = ()  # networks of one's own, as `search.include.include` takes them
    track: tuple[str, ...] = ()  # names of trackers


class Listen(Protocol):
    """Opens the display of a run."""

    def __call__(self, folder: str, what: str, clock: TimeLeft) -> AbstractContextManager[Listener]:
        """For a run in `folder` that searches `what`; what the listener hears, it tells the clock."""


def configure(request: RunRequest, *, say: Say = ignore, progress: Progress = ignore) -> tuple[RunConfig, Path]:
    """The run's identity and its folder; prepares the data. Raises UserError for a request that cannot be met, before the folder is made."""
    check_trackers(request.track)
    if request.storage is not None:
        check_url(request.storage)
    whole = load_space(request.space).resized(request.image_size)
    for file in whole.block_files:
        say(f"ran {file.path}, which brings {', '.join(layer.kind for layer in register_file(file))}")
    space = whole.fixed(request.fix) if request.fix else whole
    image_size, in_chans = space.plan.image_size, space.plan.in_chans
    check_sampler(request.sampler)
    rng, bounds = random.Random(request.seed), make_bounds(request.budget_macs, request.tolerance, request.limits)
    drawn = [draw(space, bounds, rng)[1] for _ in range(_DRAWN)] if request.trials else []
    usual_macs = request.budget_macs or _usual_macs(space, drawn, rng)
    papers = choose_papers(request.papers, usual_macs, image_size, in_chans)
    if request.training["free_rung"] is not None:
        check_free_rung(request.training["free_rung"])
    measuring = _measuring(request)
    measurement = Measurement.resolve(**measuring, image_size=image_size, in_chans=in_chans, say=say)
    chosen = choose_profile(request.proxy, measurement.device, request.training["data"])
    rungs = _rungs(request, chosen, say)
    task = ProxyTask.resolve(chosen, **request.training, rungs=rungs, say=say, progress=progress)
    if task.unreadable:
        say(f"left out {len(task.unreadable)} unreadable images: {format_names(task.unreadable)}")
    if not papers and request.papers != "none":
        say(f"no fixed trials: no paper's model is for images of {format_image(image_size, in_chans)}")
    _say_of_channels(image_size, in_chans, say)
    for name in papers:
        refuse_unknown_shape(paper(name), task)
    _check_trainable(drawn, task, say)
    included = include(
        request.include, space, task, image_size=request.image_size, ray=request.ray is not None, say=say
    )
    config = RunConfig(
        name="",
        space_name=request.space,
        space_text=whole.text,
        budget_macs=request.budget_macs,
        tolerance=request.tolerance,
        limits=request.limits,
        objectives=request.objectives,
        sampler=request.sampler,
        seed=request.seed,
        papers=papers,
        rungs=rungs,
        fix=request.fix,
        blocks={file.name: file.text for file in included.files},
        include=included.documents,
        settings=make_settings(measurement, task),
    )
    _count_workers(request, config)
    folder = request.output or find_run(request.results_root, config, space, say)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: a file, not a folder; choose another name")
    config = replace(config, name=folder.name)
    vars(config)["space"] = space  # the cached property's value: parsed already
    return config, folder


def _usual_macs(space: Space, drawn: Sequence[Arch], rng: random.Random) -> int:
    """The MACs that papers' models are to be near where there is no budget: the median of some random candidates."""
    archs = drawn or [draw(space, Bounds(), rng)[1] for _ in range(_DRAWN)]
    return round(statistics.median(arch.cost().macs for arch in archs))


def _count_workers(request: RunRequest, config: RunConfig) -> int:
    """Of this machine; on a cluster its nodes decide."""
    if request.ray is not None:
        return request.workers or 0
    return count_workers(request.workers, config, config.num_fixed + request.trials)


def _measuring(request: RunRequest) -> dict[str, Any]:
    """The keywords of `Measurement.resolve`; on a Ray cluster its device. Raises UserError where that cannot be reached."""
    if request.ray is None:
        return dict(request.measuring)
    if request.measuring["cpus"] is not None:
        raise UserError("--cpus: names cores of this machine, and --ray uses others; take --threads instead")
    device = connect(request.ray, request.measuring["device"])
    return {**request.measuring, "device": device, "is_elsewhere": True}


def _say_of_channels(image_size: ImageSize, in_chans: int, say: Say) -> None:
    """What of a candidate is for images of other channels, and what is not."""
    if in_chans != 3:
        say(
            f"costs and throughput are for images of {format_image(image_size, in_chans)}; the proxy trains copies whose stem takes "
            "the 3 channels of its own images"
        )


def _check_trainable(archs: Sequence[Arch], task: ProxyTask, say: Say) -> None:
    """Say for how many of these architectures there is no small copy; UserError where there is one for none: every trial would fail."""
    refusals: list[UserError] = []
    for arch in archs:
        try:
            refuse_unknown_shape(arch, task)
        except UserError as error:
            refusals.append(error)
    if refusals:
        reason = f"cannot train {len(refusals)} of {len(archs)} architectures drawn from the space, the first of them {refusals[0]}"
        if len(refusals) == len(archs):
            raise UserError(f"--proxy: this one {reason}")
        say(f"the proxy {reason}; their trials will fail")


def _rungs(request: RunRequest, chosen: Profile, say: Say) -> tuple[int, ...]:
    """The rungs asked for, or the proxy's own; none where no candidate could be stopped by its score."""
    rungs = chosen.rungs if request.rungs is None else request.rungs
    if len(rungs) < 2:
        return ()
    if "proxy_score" in request.objectives:
        return rungs
    say("no rungs: proxy_score is not among the objectives, so no score can stop a candidate")
    return ()


def carry_out(
    request: RunRequest,
    config: RunConfig,
    folder: Path,
    arguments: Sequence[str],
    *,
    say: Say,
    listen: Listen,
    load: OthersLoad | None = None,
) -> State:
    """Go on with the run until it has its trials; `timeout` where its time limit came first, `interrupted` after Ctrl-C or SIGTERM."""
    what = (
        f"{config.space.name} {config.budget_text} on {config.measurement.device}, "
        f"{config.num_fixed} fixed and {request.trials} sampled trials"
    )
    # Calibrations are of this machine.
    calibration = None if request.ray else find_predictor(request.results_root, config.measurement, say)
    predictor = None if calibration is None else RankedPredictor(calibration)
    predict = predictor.predict if predictor else None
    donors = read_donors(request.earlier_runs, config, folder)
    patience_s = request.storage_patience_s
    # Before the run's folder is made: a cluster that cannot work on it leaves nothing behind.
    cluster = None if request.ray is None else _ray_workers(request, config, say)
    with contextlib.ExitStack() as stack:
        if cluster is not None:
            stack.callback(cluster.close)
        store = stack.enter_context(
            open_run(folder, config, request.storage, predict=predict, donors=donors, patience_s=patience_s, say=say)
        )
        config = store.config
        for notice in store.notices:
            say(notice)
        _measure_here(store, request, predictor, arguments, say, cluster)
        if store.rows():
            say(f"going on with {folder}")
        if load is not None and cluster is None and (busy := _busy_sentence(load, config.measurement)):
            say(busy)
        clock = TimeLeft(
            config, store.rows(), timeout_s=request.timeout_s, rechecks=request.recheck, num_seeds=request.seeds
        )
        command = ["archsearch", *arguments]
        with (
            listen(str(folder), what, clock) as display,
            tracking(request.track, store, display, command, say) as listener,
        ):
            driver = Driver(
                config,
                store,
                cluster
                or local_workers(
                    folder / LOG_FILE, config, _count_workers(request, config), device_class=request.device_class
                ),
                listener,
                command=command,
                recheck=request.recheck,
                remeasure=request.remeasure,
                num_seeds=request.seeds,
                predictor=predictor,
                retries=request.retries,
                stall_s=request.stall_s,
            )
            return driver.run(request.trials, request.timeout_s)


def _ray_workers(request: RunRequest, config: RunConfig, say: Say) -> RayWorkers:
    """The workers of the cluster asked for."""
    assert request.ray is not None
    settings = config.settings
    return RayWorkers(
        request.ray,
        device=settings["device"],
        threads=settings["threads"],
        limit=request.workers,
        device_class=request.device_class,
        folder=settings["proxy"]["source"].get("prepared"),
        say=say,
    )


def _busy_sentence(load: OthersLoad, measurement: Measurement) -> str | None:
    """What to say of a machine that others use too, by their use since `load` began; None on a quiet one, and where the CPU does not compute."""
    others, threads = load.mean_cores(own_threads=1), measurement.num_threads
    if measurement.device != "cpu" or others is None or not is_busy(others, load.cores, threads):
        return None
    return (
        f"this machine is busy: other processes use {others:.1f} of {load.cores} cores, and this run computes with {threads} "
        f"thread{'s' * (threads != 1)}. {busy_advice(threads)}"
    )


class RankedPredictor:
    """Predicts what a run ranks: a calibration's images/s, at the run's rate of the reference."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration, self.source = calibration, calibration.source
        self.reference_img_s = calibration.reference_img_s
        self._scale = 1.0

    def use_rate(self, rate: float | None) -> None:
        """Predict for a run with this rate of the reference in images/s; None where none is fixed yet, or images/s as timed are ranked."""
        self._scale = rate / self.reference_img_s if rate and self.reference_img_s else 1.0

    def predict(self, arch: Arch) -> float | None:
        """Images/s of the architecture, or None if it cannot be predicted."""
        images_s = self._calibration.predict(arch)
        return None if images_s is None else self._scale * images_s


def _measure_here(
    store: RunStore,
    request: RunRequest,
    predictor: RankedPredictor | None,
    arguments: Sequence[str],
    say: Say,
    cluster: RayWorkers | None = None,
) -> None:
    """Tell the store where it times from now on, if it has timings or predictions to compare with, and say which it cannot rank with those."""
    timed = [row for row in store.rows() if row["throughput_id"] is not None]
    if not timed and predictor is None and not store.donors:
        return  # before the device's name is read, which initialises CUDA
    measurement = store.config.measurement
    if cluster is not None:
        here = cluster.conditions(store.config.settings)
    else:
        if measurement.device == "cuda":
            allow_tf32()  # as the worker does, whose conditions these are
        here = {**conditions(measurement.torch_device), "threads": measurement.num_threads}
        if measurement.other_runtime:
            here |= runtime_facts(measurement.protocol(), measurement.torch_device)
    usual_rate = predictor.reference_img_s if predictor else None
    store.measure_here(here, remeasure=request.remeasure, usual_rate=usual_rate)
    if predictor:
        predictor.use_rate(store.timings.rate)
    identity = store.timings.identity
    if identity and not request.remeasure and not DEVICE_OBJECTIVES.isdisjoint(store.config.objectives):
        again = command_line([*arguments, "--remeasure"])
        sentences = [other_timings_sentence(store.folder, timed, identity, again), raw_sentence(identity, again)]
        for sentence in filter(None, sentences):
            say(sentence)


def other_timings_sentence(folder: Path, rows: Sequence[Row], identity: Identity, again: str) -> str | None:
    """How many of a run's timed rows cannot be ranked with this identity, what differs, and the two ways on; None where all can.

    `again` is the command that times them anew.
    """
    # Those that were timed eager since they do not compile would be again.
    complete = [row for row in rows if row["state"] == "complete" and not compile_error(row)]
    others = {row["throughput_id"]: row for row in complete if row["throughput_id"] != identity_digest(identity)}
    if not others:
        return None
    number = sum(row["throughput_id"] in others for row in complete)
    what = format_names([identity_differences(row_identity(row), identity) for row in others.values()], 2, "; or ")
    return (
        f"{folder}: {number} of its {len(complete)} complete trials were timed otherwise ({what}) and are not ranked with what is timed "
        f"now; `{again}` times them anew here, seconds each, and ranks all together, or begin another run with another --output"
    )


def raw_sentence(identity: Identity, again: str) -> str | None:
    """Says that a run ranks images/s as timed, as earlier versions did; None for one that does not."""
    if identity["figure"] != RAW_FIGURE:
        return None
    return (
        "this run ranks images/s as timed, as the version that began it did, and they repeat less well than ratios to the reference; "
        f"`{again}` times its trials anew and ranks the ratios"
    )
