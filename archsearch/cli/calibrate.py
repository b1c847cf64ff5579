"""`archsearch calibrate`: time layers and networks of a space, from which `archsearch run` predicts throughput."""

from typing import Any

import click

from archsearch.cli.app import RESULTS, print_result, resumable
from archsearch.cli.completion import offer, space_names
from archsearch.cli.options import (
    SizedCommand,
    budget_option,
    image_size_option,
    json_option,
    measuring_options,
    number_option,
    seed_option,
    tolerance_option,
)


@click.command(cls=SizedCommand)
@click.argument("space", required=False, shell_complete=offer(space_names, files="file"))
@click.option(
    "--space",
    "space_option",
    metavar="SPACE",
    shell_complete=offer(space_names, files="file"),
    help="Another way to name SPACE.  [default: hybrid]",
)
@budget_option("Multiply-adds around which the hybrids are drawn, what vision papers call FLOPs.", default="4.5GFLOPs")
@tolerance_option
@measuring_options
@image_size_option("the space's own")
@number_option("--hybrids", least=4, most=10_000, default=40, help="Whole networks to fit the predictions on.")
@number_option("--held-out", least=3, most=10_000, default=20, help="Whole networks to test the predictions on.")
@number_option(
    "--slopes",
    help="About how many settings of the space's layers to time; others are interpolated.  [default: 800, 150 compiled]",
)
@seed_option("Seed of the hybrids' draw and of the order of measuring.")
@json_option
@click.pass_context
def calibrate(
    ctx: click.Context, /, *, space: str | None, space_option: str | None, as_json: bool, **options: Any
) -> None:
    """Calibrate the prediction of throughput on a device.

    Times layers and hybrids of a space, fits, and tests the predictions on hybrids held out and on the papers' models.

    SPACE is a TOML file or a shipped space's name.  [default: hybrid]

    The same command goes on where it was interrupted. `archsearch run` predicts with the result when it can be trusted.
    """
    if space and space_option:
        raise click.UsageError(f"two spaces were named, {space} and --space {space_option}; name one")
    from archsearch.cli.progress import progress_display
    from archsearch.report import calibration_document, calibration_parts, make_console
    from archsearch.throughput import CalibrateRequest, calibration_plan
    from archsearch.throughput.calibration.calibrate import calibrate as carry_out

    request = CalibrateRequest(space=space or space_option or "hybrid", **options)
    with resumable(ctx, "every finished measurement is kept"), progress_display(make_console(stderr=True)) as display:
        calibration = carry_out(calibration_plan(request, display.say), RESULTS, display.progress)
    document = calibration_document(calibration)
    print_result(document, lambda: calibration_parts(document), as_json=as_json)
