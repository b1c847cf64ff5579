"""`archsearch run`: search a space inside a budget, up to a Pareto front."""

import functools
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import RESULTS, TIMED_OUT
from archsearch.cli.completion import (
    complete_arch,
    complete_run,
    offer,
    offer_list,
    paper_names,
    proxy_names,
    space_names,
)
from archsearch.cli.options import (
    SizedCommand,
    fix_option,
    image_size_option,
    images_options,
    limit_options,
    measuring_options,
    number_option,
    run_runtime_options,
    seed_option,
    tolerance_option,
)
from archsearch.cli.types import BUDGET_OR_ANY, SECONDS, STALL, Workers
from archsearch.errors import UserError, shown

DEFAULT_TRIALS = 12
# Those of archsearch.samplers.SAMPLERS, which loads torch and Optuna and would make the help slow.
SAMPLER_NAMES = ("known-cost", "tpe", "nsga2", "gp", "random")
FREE_NAMES = ("naswot", "zico", "expressivity", "progressivity", "trainability")
OBJECTIVE_NAMES = ("proxy_score", "throughput_img_s", "params", "macs", "latency_ms", "peak_memory_bytes")


@click.command(cls=SizedCommand)
@click.argument("space", default="hybrid", shell_complete=offer(space_names, files="file"))
@click.option(
    "--budget",
    "budget_macs",
    type=BUDGET_OR_ANY,
    required=True,
    metavar="MACS|any",
    help="Multiply-adds of one image, what vision papers call FLOPs: 4.5GFLOPs, 800M; any for architectures of any cost.",
)
@tolerance_option
@limit_options
@fix_option
@image_size_option("the space's own")
@number_option(
    "--trials", least=0, default=DEFAULT_TRIALS, help="Candidates to sample, in addition to the fixed trials."
)
@click.option(
    "--papers",
    shell_complete=offer_list(lambda: ["nearest", "all", "none", *paper_names()]),
    default="nearest",
    show_default=True,
    metavar="nearest|all|none|NAME,...",
    help="Papers' models to measure first, as fixed trials: of each family the one nearest to the budget, all, none, or by name.",
)
@click.option(
    "--include",
    shell_complete=complete_arch,
    multiple=True,
    metavar="NETWORK",
    help="A network of your own to measure first, as a fixed trial: FILE.toml or FILE.json with one architecture, RUN:TRIAL, an "
    "arch_id, timm:NAME, or package.module:function, whose code is run. Several times for several networks.  [default: none]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=SECONDS,
    metavar="TIME",
    help="Start no new trial after this time, such as 90s, 30m or 2h, less what --recheck and --seeds will take; a run with work left "
    "ends with exit code 124.  [default: none]",
)
@click.option(
    "--stall",
    "stall_s",
    type=STALL,
    metavar="TIME|none",
    help="End a phase that makes no progress for this time, such as 30m; its trial fails. Waiting for the device is no stall.  [default: 20 "
    "times the median of what such phases took, at least 10m, and 1h until one has ended]",
)
@click.option(
    "--data",
    shell_complete=offer(tuple, files="dir"),
    metavar="PATH",
    help="Images to train the proxy on: an image folder, ImageNet's tars, parquet or webdataset shards, hfds/..., a folder that "
    "`archsearch prepare` made.  [default: the embedded Fashion-MNIST subset]",
)
@click.option(
    "--proxy",
    shell_complete=offer(proxy_names, files="file"),
    metavar="NAME|FILE",
    help="How candidates are trained: a profile that `archsearch proxies` lists, or a TOML file like those.  "
    "[default: fashion-mnist; with --data imagenet-short on cuda, else cpu-small]",
)
@images_options("--data")
@measuring_options
@run_runtime_options
@click.option(
    "--workers",
    type=Workers(),
    metavar="N|auto",
    help="Trials that are under way at once: a process each, with a GPU of its own, or on a CPU with cores of its own to train on; timings "
    "have the device alone.  [default: auto, all GPUs, or a core each where an embedded proxy is trained on a CPU]",
)
@number_option(
    "--retries",
    least=0,
    most=100,
    default=2,
    help="Evaluate a trial again up to so many times where its worker was killed from outside, such as for want of memory.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Evaluate on a Ray cluster: auto for that of `ray start`, or HOST:PORT; one worker a GPU, on CPUs one for each --threads cores. "
    "Page clusters of the documentation.  [default: this machine]",
)
@click.option(
    "--device-class",
    metavar="NAME",
    help="Device name to time on, where the cluster has several; workers of others only train.  [default: the first worker's]",
)
@click.option(
    "--recheck/--no-recheck",
    default=True,
    show_default=True,
    help="Time the members of the front again at the end, in another order; the ranking keeps the first figures.",
)
@click.option(
    "--remeasure",
    is_flag=True,
    help="Going on with a run: time its complete trials anew that were timed on another device or otherwise, or were noisy, and rank all "
    "together.  [default: off]",
)
@number_option(
    "--seeds",
    most=1000,
    default=1,
    help="Train the front further, N seeds a member in the mean, the first training included: where its order is least certain, and trials "
    "near it too; the ranking keeps the first scores.",
)
@number_option("--proxy-steps", "steps", most=10**8, help="Training steps of a proxy.  [default: the profile's]")
@click.option(
    "--rungs",
    metavar="N,...",
    help="Where a training may be stopped, in parts of the last number, which is its end; there a candidate that can no longer reach "
    "the front is stopped.  [default: the profile's, such as 1,8]",
)
@click.option("--no-rungs", is_flag=True, help="Train every candidate in full.  [default: with rungs]")
@click.option(
    "--training-free",
    is_flag=True,
    help="Compute training-free scores of every candidate too, which takes seconds each: columns free_*.  [default: off]",
)
@click.option(
    "--free-rung",
    shell_complete=offer(lambda: FREE_NAMES),
    metavar="NAME",
    help="A training-free score that may stop candidates before any training: naswot, zico, expressivity, progressivity or trainability.  [default: none]",
)
@click.option(
    "--objectives",
    shell_complete=offer_list(lambda: OBJECTIVE_NAMES),
    default="proxy_score,throughput_img_s,params",
    show_default=True,
    metavar="NAME,...",
    help="Objectives of the front; allowed are also macs, latency_ms and peak_memory_bytes.",
)
@click.option(
    "--sampler",
    shell_complete=offer(lambda: SAMPLER_NAMES),
    default=SAMPLER_NAMES[0],
    show_default=True,
    metavar="NAME",
    help=f"The sampler that proposes candidates: {', '.join(SAMPLER_NAMES[:-1])} or {SAMPLER_NAMES[-1]}.",
)
@click.option(
    "--from",
    "earlier_runs",
    shell_complete=complete_run,
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FOLDER",
    help="Take the figures of an earlier run: what was measured alike is not measured again, and its scores guide the known-cost sampler. "
    "They are kept in the new run. Several times for several runs.  [default: none]",
)
@click.option(
    "--storage",
    metavar="URL",
    help="Database of the study, such as postgresql://user@host/name.  [default: study.db in the run's folder]",
)
@click.option(
    "--storage-patience",
    "storage_patience_s",
    type=SECONDS,
    default="10m",
    show_default=True,
    metavar="TIME",
    help="How long a PostgreSQL server is waited for that restarts, or that cannot be reached any more.",
)
@click.option(
    "--track",
    metavar="NAME,...",
    help="Also write settings, figures and front for trackers: tensorboard, mlflow, wandb; each needs the extra of its name. Offline, in the run's "
    "folder, unless the tracker's own settings say otherwise.  [default: none]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The run's folder.  [default: results/SPACE-BUDGET-ID, the same for the same request]",
)
@seed_option("Seed of the sampler.")
@click.pass_context
def run(ctx: click.Context, /, **options: Any) -> None:
    """Search a space inside a budget, up to a Pareto front.

    SPACE is a TOML file or a shipped space's name.  [default: hybrid]

    The same command goes on with a run that was interrupted: nothing measured is lost, nothing is measured twice.
    """
    from archsearch.report.tables import make_console

    console = make_console(stderr=True)
    folders: list[Path] = []
    try:
        state = _run(options, console, folders)
    except KeyboardInterrupt:
        state = "interrupted"
    if state == "interrupted":
        from archsearch.system import interrupted_code

        click.echo(_interrupted_sentence(folders), err=True)
        ctx.exit(interrupted_code())
    from archsearch.report import build_report, show, summary_parts
    from archsearch.system import command_line

    parts = summary_parts(build_report(folders[0]))
    show(make_console(), *parts, f"Next: {command_line(['report', str(folders[0])])}")
    if state == "timeout":
        ctx.exit(TIMED_OUT)


def _run(options: dict[str, Any], console: Any, folders: list[Path]) -> str:
    """The run, from loading what it needs to its last state; its folder is added to `folders` as soon as it is known."""
    from archsearch.cli.progress import loading, progress_display
    from archsearch.cores import OthersLoad

    load = OthersLoad(options["measuring"]["cpus"])
    load.mean_cores()  # from now on
    with loading(console, "loading PyTorch and Optuna"):
        from archsearch.cli.live import watching
        from archsearch.search import carry_out, configure

        request = _request(options)
    with progress_display(console, "reading the space and the data") as display:
        config, folder = configure(request, say=display.say, progress=display.progress)
    folders.append(folder)
    listen = functools.partial(watching, console)
    return carry_out(request, config, folder, sys.argv[1:], say=display.say, listen=listen, load=load)


def _interrupted_sentence(folders: list[Path]) -> str:
    """What is kept after Ctrl-C or SIGTERM, what is missing, and how to go on."""
    from archsearch.results import MANIFEST_FILE, missing_words, num_fixed, read_manifest
    from archsearch.system import command_line

    kept = "nothing was measured yet"
    if folders and (folders[0] / MANIFEST_FILE).exists():
        manifest = read_manifest(folders[0])
        asked = manifest["trials"] + num_fixed(manifest)
        missing = missing_words(manifest.get("missing", {}), asked)
        kept = f"every finished measurement is kept in {folders[0]}" + (f"; missing: {missing}" if missing else "")
    return f"interrupted: {kept}; go on with: {command_line(sys.argv[1:])}"


def _request(options: dict[str, Any]) -> Any:
    """The request of these options. Raises UserError for an unknown objective, and for bad rungs."""
    from archsearch.cli.arguments import names_row_or_id, resolve_arch
    from archsearch.results import check_objectives
    from archsearch.search import RunRequest

    options["budget_macs"] = options["budget_macs"] or None  # any
    options["include"] = tuple(
        resolve_arch(text, RESULTS) if names_row_or_id(text) else text for text in options["include"]
    )
    objectives = tuple(name.strip() for name in options.pop("objectives").split(","))
    check_objectives(objectives)
    rungs = _rungs(options.pop("rungs"), options.pop("no_rungs"))
    options["track"] = tuple(name.strip() for name in (options["track"] or "").split(",") if name.strip())
    # An option that is no field of the request is a keyword of `ProxyTask.resolve`.
    names = {field.name for field in fields(RunRequest)}
    asked = {name: value for name, value in options.items() if name in names}
    training = {name: value for name, value in options.items() if name not in names}
    return RunRequest(**asked, training=training, objectives=objectives, rungs=rungs, results_root=RESULTS)


def _rungs(text: str | None, is_off: bool) -> tuple[int, ...] | None:
    """`1,4,16` as numbers, () for --no-rungs, None (the profile's) without either option.

    Raises UserError for anything else, and for both options at once.
    """
    from archsearch.proxy import check_rungs

    if text is not None and is_off:
        raise UserError(f"--rungs: got {shown(text)} together with --no-rungs; leave one of them out")
    if text is None:
        return () if is_off else None
    words = text.split(",")
    if not all(word.strip().isdecimal() and len(word) < 10 for word in words):
        raise UserError(f"--rungs: got {shown(text)}; write whole numbers that increase, such as 1,4,16")
    lengths = tuple(int(word) for word in words)
    check_rungs(lengths)
    return lengths
