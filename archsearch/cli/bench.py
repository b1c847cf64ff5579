"""`archsearch bench`: measure the throughput of single architectures."""

from typing import Any

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.completion import complete_arch
from archsearch.cli.inspect import ARCH_HELP
from archsearch.cli.options import (
    RUNTIMES,
    SizedCommand,
    batch_size_option,
    cpus_option,
    device_option,
    dtype_option,
    image_size_option,
    in_chans_option,
    json_option,
    mode_option,
    number_option,
    runtime_options,
    threads_option,
)
from archsearch.cli.types import MOST_BATCH
from archsearch.errors import shown

# The same as in archsearch.throughput.bench, which loads torch: a sweep up to the device's own limit.
SWEEP_ALL = "max"


class _Limit(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """A positive integer, or `max`, the value of a bare `--sweep`."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or `max`."""
        if value == SWEEP_ALL:
            return SWEEP_ALL
        try:
            return int(click.IntRange(1, MOST_BATCH).convert(value, param, ctx))
        except click.BadParameter:
            self.fail(
                f"got {shown(value)}; write the largest batch size, such as --sweep 64, or put --sweep at the end of the command"
            )


@click.command(cls=SizedCommand, help=f"Measure throughput of architectures, in images/s.\n\n{ARCH_HELP}")
@click.argument("archs", metavar="ARCH...", nargs=-1, required=True, shell_complete=complete_arch)
@device_option
@dtype_option
@mode_option
@batch_size_option
@image_size_option("the architecture's own")
@in_chans_option
@click.option(
    "--against",
    shell_complete=complete_arch,
    metavar="ARCH",
    help="The reference of the ratios; it is timed before and after every block of each architecture.  [default: van_b0]",
)
@number_option(
    "--rounds",
    most=1000,
    default=1,
    help="Measure all N times, in a new order each time; from two on the spread of the ratios is shown.",
)
@click.option(
    "--train", is_flag=True, help="Time a training step, forward, backward and AdamW.  [default: the forward pass]"
)
@click.option(
    "--sweep",
    type=_Limit(),
    is_flag=False,
    flag_value=SWEEP_ALL,
    metavar="[N]",
    help="Time batch sizes 1, 2, 4 ... N until memory runs out.  [default: off; N: 64, on cuda as far as memory goes]",
)
@runtime_options
@click.option(
    "--against-runtime",
    type=RUNTIMES,
    help="Measure all in this runtime too, and print Kendall's tau between the two orders.  [default: one runtime alone]",
)
@threads_option
@cpus_option
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    archs: tuple[str, ...],
    threads: int | None,
    cpus: tuple[int, ...] | None,
    against: str | None,
    against_runtime: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure throughput of architectures, in images/s."""
    from archsearch.cli.arguments import resolve_arch
    from archsearch.cli.progress import status_display
    from archsearch.device import use_cpu
    from archsearch.report import against_runtime_parts, bench_parts, make_console
    from archsearch.report.bench import interrupted_sentence
    from archsearch.system import interrupted_code
    from archsearch.throughput import against_runtime_document, bench_document, bench_task, runtime_options

    use_cpu(threads, cpus)
    found = {text: resolve_arch(text, RESULTS) for text in archs}
    reference = resolve_arch(against, RESULTS) if against else None
    each = runtime_options(options["runtime"], against_runtime, options) if against_runtime else (options,)
    tasks = [bench_task(found, against=reference, say=lambda line: click.echo(line, err=True), **one) for one in each]
    with status_display(make_console(stderr=True)) as say:
        document = (
            against_runtime_document(tasks[0], tasks[-1], say) if against_runtime else bench_document(tasks[0], say)
        )
    parts = against_runtime_parts if against_runtime else bench_parts
    print_result(document, lambda: parts(document), as_json=as_json)
    if document["interrupted"]:
        click.echo(interrupted_sentence(document), err=True)
        ctx.exit(interrupted_code())
    if any(result["error"] for one in document.get("runtimes", [document]) for result in one["results"]):
        ctx.exit(1)
