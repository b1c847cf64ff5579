"""`archsearch prepare`: decode a data set once, into a folder that every run maps into memory."""

from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import resumable
from archsearch.cli.help import Command
from archsearch.cli.options import images_options, number_option, seed_option
from archsearch.cli.types import MOST_CORES, SHARE
from archsearch.errors import UserError, shown


def _parse_classes(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdecimal() or len(value) > 9 or int(value) < 2:
        raise UserError(f"--classes: got {shown(value)}; allowed is all, or a number from 2 to 999999999")
    return int(value)


@click.command(cls=Command)
@click.argument("source", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--check",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Only check a prepared folder: every hash, count and label.  [default: prepare]",
)
@click.option(
    "--size",
    type=click.IntRange(8, 1024),
    default=144,
    show_default=True,
    metavar="PX",
    help="Height and width of the stored squares; 1.125 times the pixels to train at leaves room for crops.",
)
@click.option(
    "--classes",
    callback=_parse_classes,
    default="all",
    show_default=True,
    metavar="N|all",
    help="Number of classes, drawn by --seed.",
)
@number_option("--per-class", most=10**9, help="At most N training images of each class.  [default: all]")
@click.option(
    "--share", type=SHARE, metavar="SHARE", help="Share of the training images, of every class.  [default: all]"
)
@click.option(
    "--val-share",
    type=SHARE,
    metavar="SHARE",
    help="Share of the training split held out for validation, of every class.  [default: 10%, at most 10,000 images]",
)
@images_options("SOURCE")
@seed_option("Seed of every draw.")
@number_option("--workers", most=MOST_CORES, help="Threads that decode.  [default: one for each core that may be used]")
@click.pass_context
def prepare(ctx: click.Context, /, *, source: str | None, out: Path | None, check: Path | None, **options: Any) -> None:
    """Decode images once, for all later runs.

    SOURCE is an ImageFolder, a folder of class folders, one with the ILSVRC2012 tars, parquet or webdataset shards, or a
    name that timm's readers know, such as hfds/NAME. OUT is the folder to write; runs take it by --data OUT.

    The same command goes on where it was interrupted. The splits that a source has beside --train-split stay untouched
    unless --val-split names one.
    """
    if check is None and (source is None or out is None):
        raise click.UsageError("SOURCE and OUT are needed, or --check OUT")
    if check is not None and source is not None:
        raise click.UsageError("--check takes a prepared folder and no SOURCE")
    from archsearch.cli.progress import progress_display
    from archsearch.data.prepare import PrepareRequest
    from archsearch.data.prepare import check as check_folder
    from archsearch.data.prepare import prepare as carry_out
    from archsearch.report import make_console

    if check is not None:
        click.echo(check_folder(check))
        return
    assert source is not None
    assert out is not None
    request = PrepareRequest(source=source, out=out, **options)
    kept = "the images decoded so far are kept"
    with resumable(ctx, kept), progress_display(make_console(stderr=True)) as display:
        sentences = carry_out(request, say=display.say, progress=display.progress)
    click.echo(sentences)
