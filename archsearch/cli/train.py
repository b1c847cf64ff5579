"""`archsearch train`: the full training of an architecture, and what it reached beside what is published."""

from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import RESULTS, print_result, resumable
from archsearch.cli.completion import complete_arch, offer, paper_names
from archsearch.cli.inspect import ARCH_HELP
from archsearch.cli.options import (
    SizedCommand,
    decoders_option,
    device_option,
    image_size_option,
    json_option,
    number_option,
    seed_option,
    threads_option,
)
from archsearch.cli.types import MOST_BATCH

_HELP = f"""Train an architecture by a paper's recipe, to the end.

WHAT is an ARCH. {ARCH_HELP} OUT is a folder: the same command goes on there where it was stopped, however that was. Several GPUs or machines: start it by
torchrun, `torchrun --nproc-per-node 8 -m archsearch train ...`.

Fine-tuning is the same command with --init-from and images of other classes."""


@click.command(cls=SizedCommand, help=_HELP, short_help="Train an architecture by a paper's recipe, to the end.")
@click.argument("what", shell_complete=complete_arch)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="The images: all that `archsearch prepare` takes, with a split to validate on, or a folder that it made.",
)
@click.option("--train-split", default="train", show_default=True, metavar="NAME", help="Split of --data to train on.")
@click.option("--val-split", metavar="NAME", help="Split of --data to validate on.  [default: val, else validation]")
@click.option(
    "--recipe",
    metavar="PAPER|FILE",
    help="A paper's recipe, by the name of the paper or one of its models, or a TOML file.  [default: the paper whose blocks it shares most]",
)
@number_option("--epochs", most=10**6, help="Epochs in all; warm-up keeps its share.  [default: the recipe's]")
@number_option(
    "--batch-size", most=MOST_BATCH, help="Images of a step, over all processes together.  [default: the recipe's]"
)
@click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(0, 1000, min_open=True),
    metavar="RATE",
    help="Peak learning rate.  [default: the recipe's, in proportion to the batch]",
)
@image_size_option("the architecture's own")
@number_option("--num-classes", most=10**6, help="Classes of the classifier.  [default: the data's]")
@click.option(
    "--init-from",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Start from a checkpoint of archsearch or a paper's official one: layers of the same kind and shape are copied.  [default: initial weights]",
)
@click.option(
    "--teacher",
    shell_complete=offer(paper_names, files="file"),
    metavar="NAME",
    help="Distil from a paper's model, a checkpoint file of archsearch, or timm:NAME.  [default: no teacher]",
)
@click.option(
    "--teacher-weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The teacher's weights.  [default: timm's published ones]",
)
@click.option(
    "--distillation",
    type=click.Choice(["soft", "hard"]),
    default="soft",
    show_default=True,
    help="Follow the teacher's shares of all classes, or the class that it takes for the right one.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Number format; bfloat16 by autocast over float32 weights.  [default: bfloat16 on cuda, else float32]",
)
@click.option(
    "--mode",
    type=click.Choice(["eager", "compile"]),
    default="eager",
    show_default=True,
    help="Run the steps as they are, or compiled by torch.compile.",
)
@number_option(
    "--checkpoint-every", most=10**9, default=1000, help="Write a checkpoint every N steps, and after each epoch."
)
@click.option("--tensorboard", is_flag=True, help="Write events for TensorBoard to OUT/tensorboard.  [default: off]")
@seed_option("Seed of the weights, the order of the images, and their augmentation.")
@device_option
@threads_option
@decoders_option
@json_option
@click.pass_context
def train(ctx: click.Context, /, what: str, threads: int | None, as_json: bool, **options: Any) -> None:
    """Train an architecture by a paper's recipe, to the end."""
    from archsearch.cli.arguments import resolve_arch
    from archsearch.cli.progress import progress_display
    from archsearch.device import use_cpu
    from archsearch.report import make_console, train_parts
    from archsearch.training import TrainRequest
    from archsearch.training import train as carry_out

    use_cpu(threads)
    request = TrainRequest(what=what, arch=resolve_arch(what, RESULTS), **options)
    with resumable(ctx, "a checkpoint was written"), progress_display(make_console(stderr=True), "starting") as display:
        document = carry_out(request, say=display.say, progress=display.progress)
    if document["is_first"]:
        print_result(document, lambda: train_parts(document), as_json=as_json)
