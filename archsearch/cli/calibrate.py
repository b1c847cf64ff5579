"""`archsearch calibrate`: time layers and networks of a space, from which `archsearch run` predicts throughput."""

import sys
from typing import Any

import click

from archsearch.cli.app import INTERRUPTED, RESULTS
from archsearch.cli.options import (
    MACS,
    image_size_option,
    json_option,
    measuring_options,
    seed_option,
    tolerance_option,
)


@click.command()
@click.argument("space", required=False)
@click.option("--space", "space_option", metavar="SPACE", help="Another way to name SPACE.  [default: hybrid]")
@click.option(
    "--budget",
    "budget_macs",
    type=MACS,
    default="4.5GFLOPs",
    show_default=True,
    metavar="MACS",
    help="Multiply-adds around which the hybrids are drawn, what vision papers call FLOPs.",
)
@tolerance_option
@measuring_options
@image_size_option("the space's own")
@click.option(
    "--hybrids",
    type=click.IntRange(min=4),
    default=40,
    show_default=True,
    metavar="N",
    help="Whole networks to fit the predictions on.",
)
@click.option(
    "--held-out",
    type=click.IntRange(min=3),
    default=20,
    show_default=True,
    metavar="N",
    help="Whole networks to test the predictions on.",
)
@click.option(
    "--slopes",
    type=click.IntRange(min=1),
    metavar="N",
    help="About how many settings of the space's layers to time; others are interpolated.  [default: 800, 150 compiled]",
)
@seed_option("Seed of the hybrids' draw and of the order of measuring.")
@json_option
@click.pass_context
def calibrate(
    ctx: click.Context,
    /,
    *,
    space: str | None,
    space_option: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Calibrate the prediction of throughput on a device.

    Times layers and hybrids of a space, fits, and tests the predictions on hybrids held out and on the papers' models.

    SPACE is a TOML file or a shipped space's name.  [default: hybrid]

    The same command goes on where it was interrupted. `archsearch run` predicts with the result when it can be trusted.
    """
    if space and space_option:
        raise click.UsageError(f"two spaces were named, {space} and --space {space_option}; name one")
    from archsearch.cli.progress import progress_display
    from archsearch.report import calibration_document, calibration_parts, make_console, show, to_json
    from archsearch.system import command_line
    from archsearch.throughput import CalibrateRequest, calibration_plan
    from archsearch.throughput.calibration.calibrate import calibrate as carry_out

    request = CalibrateRequest(space=space or space_option or "hybrid", **options)
    try:
        plan = calibration_plan(request)
        with progress_display(make_console(stderr=True)) as display:
            calibration = carry_out(plan, RESULTS, display.progress)
    except KeyboardInterrupt:
        go_on = command_line(sys.argv[1:])
        click.echo(f"interrupted: every finished measurement is kept; go on with: {go_on}", err=True)
        ctx.exit(INTERRUPTED)
    document = calibration_document(calibration)
    if as_json:
        click.echo(to_json(document))
    else:
        show(make_console(), *calibration_parts(document))
