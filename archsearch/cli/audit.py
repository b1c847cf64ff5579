"""`archsearch audit`: measure how well a proxy orders architectures."""

from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import RESULTS, print_result, resumable
from archsearch.cli.options import budget_option, device_option, json_option, number_option, threads_option


@click.command()
@click.argument("run", required=False)
@click.option("--proxy", metavar="NAME|FILE", help="A proxy instead of a run's.  [default: the run's]")
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
    "With --proxy: multiply-adds around which hybrids are drawn and papers' models chosen.", default="4.5GFLOPs"
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
def audit(ctx: click.Context, /, *, run: str | None, output: Path | None, as_json: bool, **asked: Any) -> None:
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
    from archsearch.report import audit_parts, make_console

    is_proxy = asked["proxy"] or asked["data"]
    request = AuditRequest(run=None if is_proxy else resolve_run(run, RESULTS), **asked)
    with resumable(ctx, "every finished training is kept"), progress_display(make_console(stderr=True)) as display:
        document = carry_out(request, RESULTS, output, say=display.say, progress=display.progress)
    print_result(document, lambda: audit_parts(document), as_json=as_json)
