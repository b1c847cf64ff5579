"""`archsearch audit`: measure how well a proxy orders architectures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from archsearch.cli.app import RESULTS, print_result, resumable
from archsearch.cli.completion import complete_run, offer, offer_list, paper_names, proxy_names
from archsearch.cli.help import Command
from archsearch.cli.options import budget_option, device_option, json_option, number_option, threads_option
from archsearch.cli.types import MacsRanges

_OF_TRAININGS = ("run", "proxy", "data", "num_seeds", "hybrids", "longer")  # parameters without a meaning with --timm


@click.command(cls=Command)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option(
    "--proxy",
    metavar="NAME|FILE",
    shell_complete=offer(proxy_names, files="file"),
    help="A proxy instead of a run's.  [default: the run's]",
)
@click.option(
    "--data", metavar="PATH", help="Images for --proxy, as `archsearch run --data` takes them.  [default: none]"
)
@number_option(
    "--seeds",
    "num_seeds",
    most=1000,
    default=3,
    help="Trainings of each network, with different seeds; two or more show the noise.",
)
@number_option(
    "--hybrids", least=0, most=10_000, default=10, help="Hybrids to train, of the run or else of the default space."
)
@number_option(
    "--longer",
    least=0,
    most=1000,
    default=4,
    help="Compare with trainings of the hybrids that are N times as long; 0 leaves them out.",
)
@budget_option(
    "With --proxy or --timm: multiply-adds around which hybrids are drawn and papers' models chosen.",
    default="4.5GFLOPs",
)
@click.option(
    "--papers",
    default="nearest",
    show_default=True,
    metavar="WHICH",
    shell_complete=offer_list(lambda: ["nearest", "all", "none", *paper_names()]),
    help="Papers' models to compare with their published top-1: nearest, all, none, or names with commas.",
)
@click.option(
    "--timm",
    "bands",
    type=MacsRanges(),
    multiple=True,
    metavar="BANDS",
    help="Instead of a proxy, audit scores without training against the published top-1 of timm's hierarchical networks with so many "
    "multiply-adds, such as 3.5G-6G; several with commas.  [default: none]",
)
@device_option
@threads_option
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where the audit is kept.  [default: its own folder in results/audits]",
)
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    /,
    *,
    run: str | None,
    bands: tuple[tuple[tuple[int, int], ...], ...],
    output: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure how well a proxy orders architectures.

    Trains papers' models and hybrids on the proxy, and compares the order of their scores with the published top-1, with
    longer training, with counting parameters, and with itself under another seed. With --timm nothing is trained: scores
    without training are compared on networks of timm.

    RUN is a run's folder or its name under results/; its own measurements are used.  [default: the latest run]

    The same command goes on where it was interrupted; several at once share the work.
    """
    if bands:
        _audit_against_timm(ctx, [band for group in bands for band in group], output, as_json=as_json)
        return
    if run and (asked["proxy"] or asked["data"]):
        other = f"--proxy {asked['proxy']}" if asked["proxy"] else f"--data {asked['data']}"
        raise click.UsageError(
            f"got the run {run} and {other}; a run has its own proxy and images, so name one of the two"
        )
    from archsearch.cli.arguments import resolve_run
    from archsearch.cli.progress import progress_display
    from archsearch.proxy import AuditRequest
    from archsearch.proxy.audit.audit import audit as carry_out
    from archsearch.report import audit_parts, make_console

    is_proxy = asked["proxy"] or asked["data"]
    request = AuditRequest(run=None if is_proxy else resolve_run(run, RESULTS), **asked)
    with resumable(ctx, "every finished training is kept"), progress_display(make_console(stderr=True)) as display:
        document = carry_out(request, RESULTS, output, say=display.say, progress=display.progress)
    print_result(document, lambda: audit_parts(document), as_json=as_json)


def _audit_against_timm(
    ctx: click.Context, bands: Sequence[tuple[int, int]], output: Path | None, *, as_json: bool
) -> None:
    """No network is trained, so options about trainings are refused."""
    for name in _OF_TRAININGS:
        if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            option = "a run" if name == "run" else f"--{name.removeprefix('num_')}"
            raise click.UsageError(
                f"got --timm and {option}; with --timm no proxy is trained, so leave one of the two out"
            )
    from archsearch.cli.progress import progress_display
    from archsearch.proxy.audit.against_timm import TimmRequest, audit_against_timm
    from archsearch.report import make_console, timm_audit_parts
    from archsearch.space import Band

    asked = {name: ctx.params[name] for name in ("papers", "budget_macs", "device", "threads")}
    request = TimmRequest(bands=[Band(*band) for band in bands], **asked)
    with resumable(ctx, "every network scored is kept"), progress_display(make_console(stderr=True)) as display:
        document = audit_against_timm(request, RESULTS, output, say=display.say, progress=display.progress)
    print_result(document, lambda: timm_audit_parts(document), as_json=as_json)
