"""`archsearch run` without its options: from what was asked to a finished run folder."""

import contextlib
import hashlib
import json
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from archsearch.cli.live import watching as watching_run
from archsearch.cli.progress import prepare_progress
from archsearch.device import pick_device
from archsearch.errors import UserError
from archsearch.proxy.task import choose_proxy
from archsearch.results import MANIFEST_FILE, Row, is_due
from archsearch.samplers import make_sampler
from archsearch.search.config import RunConfig, make_settings
from archsearch.search.engine.driver import Driver
from archsearch.search.engine.listener import State
from archsearch.search.engine.workers.process import LOG_FILE, ProcessWorker
from archsearch.search.evaluate import refuse_unknown_shape
from archsearch.search.study.store import RunStore
from archsearch.space.budget import Band, draw
from archsearch.space.papers import choose_papers, paper
from archsearch.space.space import Space, load_space
from archsearch.system import command_line
from archsearch.throughput.calibration.predictor import find_predictor
from archsearch.units import format_count

_NAMES_SHOWN = 5
_ID_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What was asked for on the command line; `measuring` are the keywords of `make_settings`."""

    space: str
    budget_macs: int
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
    seeds: int
    rungs: tuple[int, ...] | None  # None: the proxy's own
    fix: Mapping[str, Any]
    measuring: Mapping[str, Any]


def configure(request: RunRequest, console: Console) -> RunConfig:
    """The run's identity; prepares the data. Raises UserError for anything asked for that cannot be."""
    space = load_space(request.space)
    whole, space = space, space.fixed(request.fix) if request.fix else space
    rungs = _rungs(request, console)
    papers = choose_papers(request.papers, request.budget_macs, space.plan.image_size)
    band = Band.around(request.budget_macs, request.tolerance)
    make_sampler(request.sampler, space, band, request.seed, frozenset)
    if request.trials:
        draw(space, band, random.Random(request.seed))  # what cannot be is refused before a folder is made
    config = RunConfig(
        name="",
        space_name=request.space,
        space_text=whole.text,
        budget_macs=request.budget_macs,
        tolerance=request.tolerance,
        objectives=request.objectives,
        sampler=request.sampler,
        seed=request.seed,
        papers=papers,
        rungs=rungs,
        fix=request.fix,
        settings=_settings(request, rungs, space, console),
    )
    for name in papers:
        refuse_unknown_shape(paper(name), config.settings)
    folder = request.output or request.results_root / default_name(config, space)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: a file, not a folder; choose another name")
    return replace(config, name=folder.name)


def folder_of(request: RunRequest, config: RunConfig) -> Path:
    """Where the run lies."""
    return request.output or request.results_root / config.name


def _rungs(request: RunRequest, console: Console) -> tuple[int, ...]:
    """The rungs asked for, or the proxy's own; none where no candidate could be stopped by its score."""
    asked = request.measuring
    chosen = choose_proxy(asked["proxy"], pick_device(asked["device"]).type, asked["data"])
    rungs = chosen.rungs if request.rungs is None else request.rungs
    if len(rungs) < 2:
        return ()
    if "proxy_score" in request.objectives:
        return rungs
    console.print("no rungs: proxy_score is not among the objectives, so no score can stop a candidate", soft_wrap=True)
    return ()


def _settings(request: RunRequest, rungs: Sequence[int], space: Space, console: Console) -> dict[str, Any]:
    data = request.measuring["data"]
    with prepare_progress(console, f"the images of {data}") if data else contextlib.nullcontext() as watch:
        settings = make_settings(**request.measuring, image_size=space.plan.image_size, rungs=rungs, watch=watch)
    unreadable = settings.get("proxy_unreadable", [])
    if unreadable:
        more = f" and {len(unreadable) - _NAMES_SHOWN} more" if len(unreadable) > _NAMES_SHOWN else ""
        console.print(
            f"left out {len(unreadable)} unreadable images: {', '.join(unreadable[:_NAMES_SHOWN])}{more}",
            soft_wrap=True,
        )
    return settings


def default_name(config: RunConfig, space: Space) -> str:
    """`hybrid-4.5G-1a2b3c`: the same request gives the same name, any other condition another one."""
    said = config.to_dict() | {"name": "", "space_name": "", "space_text": tomllib.loads(config.space_text)}
    said["settings"] = _without_none(said["settings"])
    # A run without them has the name that it had before there were any.
    said = {key: value for key, value in said.items() if value or key not in ("rungs", "fix")}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:_ID_DIGITS]
    budget = format_count(config.budget_macs)
    number, unit = (budget[:-1], budget[-1]) if budget[-1].isalpha() else (budget, "")
    return f"{space.name}-{float(number):g}{unit}-{digest}"


def _without_none(value: Any) -> Any:
    """Settings of a later version that are left open, so that a name stays what it was."""
    if not isinstance(value, dict):
        return value
    return {key: _without_none(item) for key, item in value.items() if item is not None}


def carry_out(request: RunRequest, config: RunConfig, console: Console, arguments: Sequence[str]) -> State:
    """Go on with the run until it has its trials; `interrupted` after Ctrl-C."""
    folder = folder_of(request, config)
    what = (
        f"{config.space.name} at {format_count(config.budget_macs)} MACs +-{100 * config.tolerance:g}% on {config.settings['device']}, "
        f"{len(config.papers)} fixed and {request.trials} sampled trials"
    )
    predictor = find_predictor(request.results_root, config.settings, console)
    foresee = predictor.predict if predictor else None
    with RunStore.open(folder, config, request.storage, foresee=foresee) as store:
        refuse_other_threads(folder, store.rows(), config.settings)
        rechecks = request.recheck and is_due(config.objectives)
        with watching_run(console, str(folder), what, request.timeout_s, rechecks=rechecks) as listener:
            driver = Driver(
                config,
                store,
                ProcessWorker(folder / LOG_FILE),
                listener,
                command=["archsearch", *arguments],
                recheck=request.recheck,
                num_seeds=request.seeds,
                predictor=predictor,
            )
            return driver.run(request.trials, request.timeout_s)


def refuse_other_threads(folder: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Raise UserError where PyTorch would now time on the CPU with another number of threads than the run's trials had.

    With --threads that is a difference of the runs themselves; without, the number comes from the surroundings.
    """
    if settings["device"] != "cpu" or settings.get("threads") is not None:
        return
    cpus = settings.get("cpus")
    now = torch.get_num_threads() if cpus is None else min(torch.get_num_threads(), len(cpus))
    for row in rows:
        then = json.loads(row["conditions"] or "{}").get("threads")
        if then is not None and then != now:
            raise UserError(
                f"{folder}: its trials were timed with {then} threads, and PyTorch would use {now} now (OMP_NUM_THREADS, or the "
                f"cores this process may run on); give it {then} again, or use another --output"
            )


def interrupted_sentence(folder: Path | None, arguments: Sequence[str]) -> str:
    """What is kept after Ctrl-C, and how to go on."""
    kept = (
        f"every finished measurement is kept in {folder}"
        if folder and (folder / MANIFEST_FILE).exists()
        else "nothing was measured yet"
    )
    return f"interrupted: {kept}; go on with: {command_line(arguments)}"
