"""`archsearch audit`: measure how well a proxy orders architectures."""

import sys
from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import INTERRUPTED, RESULTS
from archsearch.cli.options import MACS, device_option, json_option, threads_option


@click.command()
@click.argument("run", required=False)
@click.option("--proxy", metavar="NAME|FILE", help="A proxy instead of a run's.  [default: the run's]")
@click.option(
    "--data", metavar="PATH", help="Images for --proxy, as `archsearch run --data` takes them.  [default: none]"
)
@click.option(
    "--seeds",
    "num_seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Trainings of each network, with different seeds; two or more show the noise.",
)
@click.option(
    "--hybrids",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="Hybrids to train, of the run or else of the default space.",
)
@click.option(
    "--longer",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    metavar="N",
    help="Compare with trainings of the hybrids that are N times as long; 0 leaves them out.",
)
@click.option(
    "--budget",
    "budget_macs",
    type=MACS,
    default="4.5GFLOPs",
    show_default=True,
    metavar="MACS",
    help="With --proxy: multiply-adds around which hybrids are drawn and papers' models chosen.",
)
@click.option(
    "--papers",
    default="nearest",
    show_default=True,
    metavar="WHICH",
    help="Papers' models to compare with their published top-1: nearest, all, none, or names with commas.",
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
    output: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure how well a proxy orders architectures.

    Trains papers' models and hybrids on the proxy, and compares the order of their scores with the published top-1, with
    longer training, with counting parameters, and with itself under another seed.

    RUN is a run's folder or its name under results/; its own measurements are used.  [default: the latest run]

    The same command goes on where it was interrupted; several at once share the work.
    """
    if run and (asked["proxy"] or asked["data"]):
        other = f"--proxy {asked['proxy']}" if asked["proxy"] else f"--data {asked['data']}"
        raise click.UsageError(
            f"got the run {run} and {other}; a run has its own proxy and images, so name one of the two"
        )
    from archsearch.cli.arguments import resolve_run
    from archsearch.cli.progress import progress_display
    from archsearch.proxy import AuditRequest
    from archsearch.proxy.audit.audit import audit as carry_out
    from archsearch.report import audit_parts, make_console, show, to_json
    from archsearch.system import command_line

    is_proxy = asked["proxy"] or asked["data"]
    request = AuditRequest(run=None if is_proxy else resolve_run(run, RESULTS), **asked)
    try:
        with progress_display(make_console(stderr=True)) as display:
            document = carry_out(request, RESULTS, output, say=display.say, progress=display.progress)
    except KeyboardInterrupt:
        go_on = command_line(sys.argv[1:])
        click.echo(f"interrupted: every finished training is kept; go on with: {go_on}", err=True)
        ctx.exit(INTERRUPTED)
    if as_json:
        click.echo(to_json(document))
    else:
        show(make_console(), *audit_parts(document))
