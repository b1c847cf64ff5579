"""`archsearch run`: the main job, from a space file to a Pareto front."""

import functools
import sys
from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import INTERRUPTED, RESULTS
from archsearch.cli.options import (
    MACS,
    SECONDS,
    batch_size_option,
    cpus_option,
    device_option,
    dtype_option,
    fix_option,
    images_options,
    mode_option,
    seed_option,
    threads_option,
    tolerance_option,
)
from archsearch.errors import UserError

DEFAULT_TRIALS = 12
# Those of archsearch.samplers.SAMPLERS, which a help text cannot wait for: it imports torch and Optuna.
SAMPLER_NAMES = ("known-cost", "tpe", "nsga2", "gp", "random")

# Options that `Measurement.resolve` and `ProxyTask.resolve` take under these names.
_MEASURING = ("device", "dtype", "mode", "batch_size", "threads", "cpus")
_TRAINING = ("training_free", "free_rung", "data", "train_split", "val_split", "max_unreadable")


@click.command()
@click.argument("space", default="hybrid")
@click.option(
    "--budget",
    type=MACS,
    required=True,
    metavar="MACS",
    help="Multiply-adds of one image, what vision papers call FLOPs: 4.5GFLOPs, 800M.",
)
@tolerance_option
@fix_option
@click.option(
    "--trials",
    type=click.IntRange(min=0),
    default=DEFAULT_TRIALS,
    show_default=True,
    metavar="N",
    help="Sampled candidates, beside the fixed trials.",
)
@click.option(
    "--papers",
    default="nearest",
    show_default=True,
    metavar="nearest|all|none|NAME,...",
    help="Papers' models to measure first, as fixed trials: of each family the one nearest to the budget, all, none, or by name.",
)
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="TIME",
    help="Start no new trial after this time, such as 90s, 30m or 2h; what --recheck does still follows.  [default: none]",
)
@click.option(
    "--data",
    metavar="PATH",
    help="Images to train the proxy on: an image folder, ImageNet's tars, parquet or webdataset shards, hfds/..., a folder that "
    "`archsearch prepare` made.  [default: the embedded Fashion-MNIST subset]",
)
@click.option(
    "--proxy",
    metavar="NAME|FILE",
    help="How candidates are trained: a profile that `archsearch proxies` lists, or a TOML file like them.  "
    "[default: fashion-mnist; with --data imagenet-short on cuda, else cpu-small]",
)
@images_options("--data")
@device_option
@dtype_option
@mode_option
@batch_size_option
@threads_option
@cpus_option
@click.option(
    "--recheck/--no-recheck",
    default=True,
    show_default=True,
    help="Time the members of the front again at the end, in another order; the first figures stay the ranked ones.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Train the members of the front with so many seeds, the first training counted; the first scores stay the ranked ones.",
)
@click.option(
    "--proxy-steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Training steps of a proxy.  [default: the profile's]",
)
@click.option(
    "--rungs",
    metavar="N,...",
    help="Where a training pauses to be judged, in parts of the last number, its end; a candidate that can no longer matter is "
    "stopped there.  [default: the profile's, such as 1,8]",
)
@click.option("--no-rungs", is_flag=True, help="Train every candidate in full at once.  [default: with rungs]")
@click.option(
    "--training-free",
    is_flag=True,
    help="Work out training-free scores of every candidate too (seconds each): columns free_*, and features for the known-cost "
    "sampler.  [default: off]",
)
@click.option(
    "--free-rung",
    metavar="NAME",
    help="A training-free score to judge by before any training: naswot, zico, expressivity, progressivity or trainability.  [default: none]",
)
@click.option(
    "--objectives",
    default="proxy_score,throughput_img_s,params",
    show_default=True,
    metavar="NAME,...",
    help="What spans the front; also macs, latency_ms, peak_memory_bytes.",
)
@click.option(
    "--sampler",
    default=SAMPLER_NAMES[0],
    show_default=True,
    metavar="NAME",
    help=f"How candidates are proposed: {', '.join(SAMPLER_NAMES[:-1])} or {SAMPLER_NAMES[-1]}.",
)
@click.option(
    "--storage",
    metavar="URL",
    help="Database of the study, such as postgresql://user@host/name.  [default: study.db in the run's folder]",
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
    from archsearch.cli.live import watching
    from archsearch.cli.progress import progress_display
    from archsearch.report import tables
    from archsearch.search import run as running

    request = _request(options)
    console = tables.make_console(stderr=True)
    folder = None
    try:
        with progress_display(console) as display:
            config, folder = running.configure(request, say=display.say, progress=display.progress)
        listen = functools.partial(watching, console)
        state = running.carry_out(request, config, folder, sys.argv[1:], say=display.say, listen=listen)
    except KeyboardInterrupt:
        state = "interrupted"
    if state == "interrupted" or folder is None:
        click.echo(running.interrupted_sentence(folder, sys.argv[1:]), err=True)
        ctx.exit(INTERRUPTED)
    _show_front(folder)


def _request(options: dict[str, Any]) -> Any:
    """The request of these options. Raises UserError for an unknown objective, and for rungs with and without."""
    from archsearch.results import check_objectives
    from archsearch.search.run import RunRequest

    objectives = tuple(name.strip() for name in options["objectives"].split(","))
    check_objectives(objectives)
    return RunRequest(
        **{
            key: options[key]
            for key in (
                "space",
                "tolerance",
                "papers",
                "sampler",
                "seed",
                "trials",
                "storage",
                "output",
                "recheck",
                "seeds",
            )
        },
        budget_macs=round(options["budget"]),
        timeout_s=options["timeout"],
        objectives=objectives,
        rungs=_rungs(options["rungs"], options["no_rungs"]),
        fix=options["fixed"],
        results_root=RESULTS,
        proxy=options["proxy"],
        measuring={key: options[key] for key in _MEASURING},
        training={"steps": options["proxy_steps"], **{key: options[key] for key in _TRAINING}},
    )


def _rungs(text: str | None, is_off: bool) -> tuple[int, ...] | None:
    """`1,4,16` as numbers, none where they are off, None (the profile's) where nothing is said.

    Raises UserError for anything else, and for yes and no at once.
    """
    from archsearch.proxy.training.recipe import check_rungs

    if text is not None and is_off:
        raise UserError(f"--rungs: got {text!r} together with --no-rungs; leave one of them out")
    if text is None:
        return () if is_off else None
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--rungs: got {text!r}; write whole numbers that increase, such as 1,4,16")
    lengths = tuple(int(word) for word in words)
    check_rungs(lengths)
    return lengths


def _show_front(folder: Path) -> None:
    """The front, what the score is, and the next command."""
    from archsearch.report import tables
    from archsearch.report.run import build_report
    from archsearch.report.run_tables import summary_parts
    from archsearch.system import command_line

    tables.show(
        tables.make_console(), *summary_parts(build_report(folder)), f"Next: {command_line(['report', str(folder)])}"
    )
