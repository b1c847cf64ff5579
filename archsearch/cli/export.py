"""`archsearch export`: an architecture for timm, onnxruntime, torch alone, or as one safetensors or TOML file."""

from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.completion import complete_arch
from archsearch.cli.inspect import ARCH_HELP
from archsearch.cli.options import SizedCommand, image_size_option, in_chans_option, json_option, number_option
from archsearch.cli.types import MOST_BATCH
from archsearch.errors import shown


class _Batch(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """A number of images, or `dynamic`."""

    name = "batch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As it was written."""
        if value != "dynamic" and not (str(value).isdecimal() and 1 <= int(str(value)[:9]) <= MOST_BATCH):
            self.fail(f"{shown(str(value))} is neither dynamic nor a whole number from 1 to {MOST_BATCH}.", param, ctx)
        return str(value)


@click.command(
    cls=SizedCommand,
    help="Write a network for timm, ONNX, torch alone, or as one file.\n\nWhat is written is loaded again and compared with the network in torch "
    f"before it takes its place. OUT is a file, or for timm and all a folder.\n\n{ARCH_HELP.replace('ARCH', 'WHAT', 1)}",
)
@click.argument("what", shell_complete=complete_arch)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format",
    type=click.Choice(["timm", "onnx", "pt2", "safetensors", "toml", "all"]),
    help="timm: a folder for timm.create_model and model hubs; onnx: for onnxruntime and others; pt2: for torch without archsearch; safetensors: for "
    "archsearch.load; toml: the architecture alone; all: a folder with each.  [default: by OUT's ending, timm without one]",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of archsearch.save or an earlier export, or a paper's official checkpoint.  [default: initial weights, not trained]",
)
@image_size_option("the weights' or the architecture's own")
@number_option(
    "--num-classes",
    help="Classes; another number than the weights' has a new, untrained classifier.  [default: the weights' or the architecture's own]",
)
@in_chans_option
@click.option(
    "--batch",
    type=_Batch(),
    metavar="dynamic|N",
    help="Images of a forward pass of onnx and pt2: any number, or N alone.  [default: dynamic]",
)
@click.option("--force", is_flag=True, help="Replace OUT where it exists.  [default: refuse]")
@json_option
def export(what: str, out: Path, as_json: bool, **options: Any) -> None:
    """Write a network for timm, ONNX, torch alone, or as one file."""
    from archsearch.cli.arguments import resolve_trial
    from archsearch.models import export_document, export_task
    from archsearch.report import export_parts, make_console, model_card, run_facts

    arch, place = resolve_trial(what, RESULTS)
    task = export_task(arch, out, **options)
    facts = run_facts(*place) if place else None
    console = make_console(stderr=True)
    document = export_document(
        task, lambda document: model_card(document, facts), lambda line: console.print(line, soft_wrap=True)
    )
    print_result(document | {"run": facts}, lambda: export_parts(document), as_json=as_json)
