"""`archsearch run` without its options: from what was asked to a finished run folder."""

import hashlib
import json
import random
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from archsearch.errors import UserError
from archsearch.proxy import Profile, ProxyTask, choose_profile
from archsearch.results import MANIFEST_FILE, Row, is_timed
from archsearch.samplers import check_sampler
from archsearch.search.config import RunConfig, make_settings
from archsearch.search.engine.driver import Driver
from archsearch.search.engine.listener import Listener, State
from archsearch.search.engine.workers.process import LOG_FILE, ProcessWorker
from archsearch.search.evaluate import refuse_unknown_shape
from archsearch.search.rungs import check_free_rung
from archsearch.search.study.database import shown_url
from archsearch.search.study.store import RunStore
from archsearch.space import Band, Space, choose_papers, draw, load_space, paper
from archsearch.system import Progress, Say, command_line, ignore
from archsearch.throughput import Measurement, find_predictor
from archsearch.units import format_count, format_names

_ID_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What was asked for on the command line; `measuring` are the keywords of `Measurement.resolve`, `training` those of `ProxyTask.resolve`."""

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
    proxy: str | None
    measuring: Mapping[str, Any]
    training: Mapping[str, Any]


class Listen(Protocol):
    """Opens the display of a run."""

    def __call__(
        self, folder: str, what: str, timeout_s: float | None, *, rechecks: bool
    ) -> AbstractContextManager[Listener]:
        """For a run in `folder` that searches `what`, with its time limit, and whether the front is timed again at the end."""


def configure(request: RunRequest, *, say: Say = ignore, progress: Progress = ignore) -> tuple[RunConfig, Path]:
    """The run's identity and its folder; prepares the data. Raises UserError for a request that cannot be met, before the folder is made."""
    if request.storage is not None:
        shown_url(request.storage)  # refuses a bad one
    whole = load_space(request.space)
    space = whole.fixed(request.fix) if request.fix else whole
    papers = choose_papers(request.papers, request.budget_macs, space.plan.image_size)
    check_sampler(request.sampler)
    if request.trials:
        draw(space, Band.around(request.budget_macs, request.tolerance), random.Random(request.seed))
    if request.training["free_rung"] is not None:
        check_free_rung(request.training["free_rung"])
    measurement = Measurement.resolve(**request.measuring, image_size=space.plan.image_size)
    chosen = choose_profile(request.proxy, measurement.device, request.training["data"])
    rungs = _rungs(request, chosen, say)
    task = ProxyTask.resolve(chosen, **request.training, rungs=rungs, say=say, progress=progress)
    if task.unreadable:
        say(f"left out {len(task.unreadable)} unreadable images: {format_names(task.unreadable)}")
    for name in papers:
        refuse_unknown_shape(paper(name), task)
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
        settings=make_settings(measurement, task),
    )
    folder = request.output or request.results_root / default_name(config, space)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: a file, not a folder; choose another name")
    config = replace(config, name=folder.name)
    vars(config)["space"] = space  # the cached property's value: parsed already
    return config, folder


def _rungs(request: RunRequest, chosen: Profile, say: Say) -> tuple[int, ...]:
    """The rungs asked for, or the proxy's own; none where no candidate could be stopped by its score."""
    rungs = chosen.rungs if request.rungs is None else request.rungs
    if len(rungs) < 2:
        return ()
    if "proxy_score" in request.objectives:
        return rungs
    say("no rungs: proxy_score is not among the objectives, so no score can stop a candidate")
    return ()


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


def carry_out(
    request: RunRequest, config: RunConfig, folder: Path, arguments: Sequence[str], *, say: Say, listen: Listen
) -> State:
    """Go on with the run until it has its trials; `interrupted` after Ctrl-C."""
    what = (
        f"{config.space.name} at {format_count(config.budget_macs)} MACs +-{100 * config.tolerance:g}% on {config.measurement.device}, "
        f"{len(config.papers)} fixed and {request.trials} sampled trials"
    )
    predictor = find_predictor(request.results_root, config.measurement, say)
    predict = predictor.predict if predictor else None
    with RunStore.open(folder, config, request.storage, predict=predict) as store:
        for notice in store.notices:
            say(notice)
        refuse_other_threads(folder, store.rows(), config.measurement)
        rechecks = request.recheck and is_timed(config.objectives)
        with listen(str(folder), what, request.timeout_s, rechecks=rechecks) as listener:
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


def refuse_other_threads(folder: Path, rows: Sequence[Row], measurement: Measurement) -> None:
    """Raise UserError where PyTorch would now time on the CPU with another number of threads than the run's trials had.

    With --threads that is a difference of the runs themselves; without, the number comes from the surroundings.
    """
    if measurement.device != "cpu" or measurement.threads is not None:
        return
    now = measurement.num_threads
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
