"""`archsearch calibrate`: measure once what the throughput of a space's architectures is predicted from."""

import sys

import click

from archsearch.cli.app import INTERRUPTED, RESULTS
from archsearch.cli.options import (
    MACS,
    batch_size_option,
    cpus_option,
    device_option,
    dtype_option,
    image_size_option,
    json_option,
    mode_option,
    seed_option,
    threads_option,
    tolerance_option,
)


@click.command()
@click.argument("space", required=False)
@click.option("--space", "space_option", metavar="SPACE", help="Another way to name SPACE.  [default: hybrid]")
@click.option(
    "--budget",
    type=MACS,
    default="4.5GFLOPs",
    show_default=True,
    metavar="MACS",
    help="Multiply-adds around which the hybrids are drawn, what vision papers call FLOPs.",
)
@tolerance_option
@device_option
@dtype_option
@mode_option
@batch_size_option
@image_size_option("the space's own")
@threads_option
@cpus_option
@click.option(
    "--hybrids",
    type=click.IntRange(min=4),
    default=40,
    show_default=True,
    metavar="N",
    help="Whole networks to fit on.",
)
@click.option(
    "--held-out",
    type=click.IntRange(min=3),
    default=20,
    show_default=True,
    metavar="N",
    help="Whole networks to judge the predictions by.",
)
@click.option(
    "--slopes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Settings of the space's layers to time, about; others are interpolated.  [default: 800, 150 compiled]",
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
    budget: float,
    tolerance: float,
    image_size: int | None,
    hybrids: int,
    held_out: int,
    slopes: int | None,
    seed: int,
    as_json: bool,
    **measuring: str | int | None,
) -> None:
    """Calibrate the prediction of throughput on a device.

    Times layers and hybrids of a space, fits, and judges the result on hybrids held out and on the papers' models.

    SPACE is a TOML file or a shipped space's name.  [default: hybrid]

    The same command goes on where it was interrupted. `archsearch run` predicts with the result when it can be trusted.
    """
    if space and space_option:
        raise click.UsageError(f"two spaces were named: {space} and, by --space, {space_option}; name one")
    from archsearch.cli.progress import progress_display
    from archsearch.report import tables
    from archsearch.report.calibration import calibration_document, calibration_parts
    from archsearch.system import command_line
    from archsearch.throughput.calibration import calibrate as calibrating

    request = calibrating.CalibrateRequest(
        space=space or space_option or "hybrid",
        budget_macs=int(budget),
        tolerance=tolerance,
        hybrids=hybrids,
        held_out=held_out,
        slopes=slopes,
        seed=seed,
        image_size=image_size,
        measuring=measuring,
    )
    try:
        plan = calibrating.calibration_plan(request)
        with progress_display(tables.make_console(stderr=True)) as display:
            calibration = calibrating.calibrate(plan, RESULTS, display.progress)
    except KeyboardInterrupt:
        go_on = command_line(sys.argv[1:])
        click.echo(f"interrupted: every finished measurement is kept; go on with: {go_on}", err=True)
        ctx.exit(INTERRUPTED)
    document = calibration_document(calibration)
    if as_json:
        click.echo(tables.to_json(document))
    else:
        tables.show(tables.make_console(), *calibration_parts(document))
