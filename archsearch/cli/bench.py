"""`archsearch bench`: throughput of single architectures by the house's protocol."""

import click

from archsearch.cli.app import RESULTS
from archsearch.cli.inspect import ARCH_HELP
from archsearch.cli.options import batch_size_option, device_option, dtype_option, json_option, mode_option


@click.command(help=f"Measure throughput of architectures, in images/s.\n\n{ARCH_HELP}")
@click.argument("archs", metavar="ARCH...", nargs=-1, required=True)
@device_option
@dtype_option
@mode_option
@batch_size_option
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Side of the input in pixels.  [default: the architecture's own]",
)
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    archs: tuple[str, ...],
    device: str,
    dtype: str,
    mode: str,
    batch_size: int | None,
    image_size: int | None,
    as_json: bool,
) -> None:
    """Measure throughput of architectures, in images/s."""
    from archsearch import tables
    from archsearch.benching import bench_document, bench_parts, bench_task
    from archsearch.lookup import resolve_arch

    found = {text: resolve_arch(text, RESULTS) for text in archs}
    task = bench_task(found, device=device, dtype=dtype, mode=mode, batch_size=batch_size, image_size=image_size)
    console = tables.make_console(stderr=True)
    document = bench_document(task, console)
    if as_json:
        click.echo(tables.to_json(document))
    else:
        tables.show(tables.make_console(), *bench_parts(document))
    if any(result["error"] for result in document["results"]):
        ctx.exit(1)
