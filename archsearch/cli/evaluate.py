"""`archsearch evaluate`: the accuracy of an official checkpoint on validation images, beside the published one."""

from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import print_result
from archsearch.cli.completion import offer, paper_names
from archsearch.cli.help import Command
from archsearch.cli.options import DTYPES, decoders_option, device_option, json_option, number_option
from archsearch.cli.types import MOST_BATCH, Sides
from archsearch.units import ImageSize, sides


def _both_sides(ctx: click.Context, param: click.Parameter, value: ImageSize | None) -> tuple[int, int] | None:
    """A size as height and width."""
    return None if value is None else sides(value)


@click.command(cls=Command)
@click.argument("name", shell_complete=offer(paper_names))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The official weights, .pth or .safetensors, as the paper's repository publishes them.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="A folder of validation images, CLASS/IMAGE, or one with such a folder named val or validation.",
)
@click.option(
    "--resolution",
    type=Sides(),
    callback=_both_sides,
    metavar="N|HxW",
    help="Size of the input in pixels; images are resized in proportion.  [default: the paper's own]",
)
@number_option(
    "--batch-size", most=MOST_BATCH, help="Images of a forward pass.  [default: 16 on cpu, 128 on cuda, 32 on mps]"
)
@device_option
@click.option(
    "--dtype",
    type=DTYPES,
    default="float32",
    show_default=True,
    help="Number format: bfloat16 throughout, or amp_bfloat16, by autocast over float32 weights.",
)
@decoders_option
@json_option
@click.pass_context
def evaluate(ctx: click.Context, /, name: str, checkpoint: Path, data: Path, as_json: bool, **options: Any) -> None:
    """Measure top-1 and top-5 of a paper's official checkpoint.

    NAME is a paper's model (`archsearch papers` lists them). Images are resized, cropped and normalised as in that paper's evaluation, so that
    ImageNet's validation set gives the published figure.
    """
    from archsearch.cli.progress import progress_display
    from archsearch.models import check_complete, evaluate_document, evaluate_task
    from archsearch.models.validation.checkpoint import interrupted_sentence
    from archsearch.report import evaluate_parts, make_console
    from archsearch.system import interrupted_code

    task = evaluate_task(name, checkpoint, data, **options)
    with progress_display(make_console(stderr=True)) as display:
        document = evaluate_document(task, say=display.say, progress=display.progress)
    print_result(document, lambda: evaluate_parts(document), as_json=as_json)
    if document["interrupted"]:
        click.echo(interrupted_sentence(document), err=True)
        ctx.exit(interrupted_code())
    check_complete(document)
