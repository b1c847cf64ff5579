"""Options that several commands share."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from archsearch.cli.help import Command
from archsearch.cli.types import MACS, MOST_BATCH, MOST_CORES, SHARE, CpuList, Device, ParamsRange, Quantity, Sides
from archsearch.errors import UserError, shown
from archsearch.units import (
    MOST_CHANNELS,
    parse_bytes,
    parse_milliseconds,
    parse_rate,
)

Function = TypeVar("Function", bound=Callable[..., Any])


class SizedCommand(Command):
    """A command whose --image-size may also be written as two numbers: `--image-size 192 256`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it, the two numbers joined."""
        joined: list[str] = []
        for arg in args:
            if arg.isdecimal() and joined[-2:-1] == ["--image-size"] and joined[-1].isdecimal():
                joined[-1] += f"x{arg}"
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


def number_option(
    *names: str, least: int = 1, most: int = 10**6, default: int | None = None, help: str
) -> Callable[[Function], Function]:
    """A whole number; without a default of its own, `help` says what is taken. `most` is a bound on slips, far above any use."""
    number = click.IntRange(min=least, max=most)
    return click.option(*names, type=number, default=default, show_default=default is not None, metavar="N", help=help)


def budget_option(help: str, *, default: str | None = None) -> Callable[[Function], Function]:
    """`--budget MACS`."""
    shown: dict[str, Any] = {"default": default, "show_default": True} if default else {}
    return click.option("--budget", "budget_macs", type=MACS, metavar="MACS", help=help, **shown)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.  [default: a table]")
tolerance_option = click.option(
    "--tolerance",
    type=SHARE,
    default="5%",
    show_default=True,
    metavar="SHARE",
    help="How far from the budget a candidate's MACs may lie, either way: a percentage or a fraction.",
)


device_option = click.option(
    "--device",
    type=Device(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where the networks run; auto takes cuda, else mps, else cpu. Certain GPUs alone: cuda:1,cuda:3.",
)


DTYPES = click.Choice(["float32", "bfloat16", "amp_bfloat16"])
dtype_option = click.option(
    "--dtype",
    type=DTYPES,
    help="Number format: bfloat16 throughout, or amp_bfloat16, by autocast over float32 weights.  [default: bfloat16 on cuda, else float32]",
)
mode_option = click.option(
    "--mode",
    type=click.Choice(["eager", "compile", "reduce-overhead"]),
    help="Time the network in eager mode, compiled by torch.compile, as it is deployed (the two order networks differently), or on cuda "
    "compiled into CUDA graphs, for latency at batch 1.  [default: compile on cuda, else eager]",
)
RUNTIMES = click.Choice(["torch", "onnxruntime", "openvino", "tensorrt"])
batch_size_option = number_option(
    "--batch-size", most=MOST_BATCH, help="Images of a timed forward pass.  [default: 2 on cpu, 128 on cuda, 32 on mps]"
)
threads_option = number_option(
    "--threads",
    most=MOST_CORES,
    help="Threads PyTorch computes with on the CPU.  [default: its own choice, mostly the cores there are]",
)
decoders_option = number_option(
    "--workers",
    least=0,
    most=MOST_CORES,
    help="Processes that decode images; 0 decodes in the main process.  [default: the number of cores, at most 16, fewer for few images]",
)
cpus_option = click.option(
    "--cpus",
    type=CpuList(),
    metavar="LIST",
    help="Logical cores to run on, such as 0,2-3; Linux only.  [default: all this process may use]",
)


def _parse_fixed(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` pairs as a dictionary."""
    found: dict[str, str] = {}
    for text in value:
        name, sign, chosen = (part.strip() for part in text.partition("="))
        if not (name and sign and chosen):
            raise UserError(f"--fix: got {shown(text)}; write NAME=VALUE, such as --fix stages.2.block=hilo")
        if found.setdefault(name, chosen) != chosen:
            raise UserError(f"--fix: {name} is fixed to {found[name]} and to {chosen}; a parameter takes one value")
    return found


fix_option = click.option(
    "--fix",
    multiple=True,
    callback=_parse_fixed,
    metavar="NAME=VALUE",
    help="Fix a parameter, such as stages.2.block=hilo; may be given again. `archsearch space` lists the names.  [default: none]",
)
params_option = click.option(
    "--params",
    type=ParamsRange(),
    metavar="LOW-HIGH",
    help="Only architectures with so many parameters, such as 20M-30M.  [default: any number]",
)


def _parse_floors(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, float]:
    """`NAME=VALUE` pairs as a dictionary."""
    found: dict[str, float] = {}
    for text in value:
        name, _, number = (part.strip() for part in text.partition("="))
        try:
            floor = float(number)
        except ValueError:
            floor = math.nan
        if name != "proxy_score" or not 0 < floor < 1:
            raise UserError(
                f"--min: got {shown(text)}; write proxy_score=SHARE, a share between 0 and 1, such as proxy_score=0.7"
            )
        found[name] = max(floor, found.get(name, 0.0))
    return found


# Of the options below: the column that each limits, and whether it is its least or its most.
LIMIT_OPTIONS = {
    "min_throughput": ("throughput_img_s", True),
    "max_latency": ("latency_ms", False),
    "max_memory": ("peak_memory_bytes", False),
    "max_train_memory": ("train_memory_bytes", False),
}


def limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The limits of a run, handed to the command as one mapping `limits`: [least, most] by column."""

    @functools.wraps(function)
    def command(*arguments: Any, **given: Any) -> Any:
        params, floors = given.pop("params"), given.pop("floors")
        limits: dict[str, list[float | None]] = {"params": list(params)} if params else {}
        for option, (column, is_least) in LIMIT_OPTIONS.items():
            if (value := given.pop(option)) is not None:
                limits[column] = [value, None] if is_least else [None, value]
        limits |= {name: [floor, None] for name, floor in floors.items()}
        return function(*arguments, limits=limits, **given)

    def option(name: str, kind: click.ParamType, metavar: str, help: str) -> Callable[[Function], Function]:  # type: ignore[type-arg]  # as above
        return click.option(name, type=kind, metavar=metavar, help=f"{help}  [default: no limit]")

    rest = "A candidate outside is stopped before its training."
    return _apply(
        params_option,
        option(
            "--max-latency",
            Quantity("latency", parse_milliseconds),
            "TIME",
            f"Longest forward pass of a batch of --batch-size, such as 8ms. {rest}",
        ),
        option("--min-throughput", Quantity("rate", parse_rate), "IMG/S", f"Least images per second. {rest}"),
        option(
            "--max-memory",
            Quantity("memory", parse_bytes),
            "BYTES",
            f"Most memory of a timed forward pass, weights included, such as 2GB. {rest}",
        ),
        option(
            "--max-train-memory",
            Quantity("memory", parse_bytes),
            "BYTES",
            "Most memory that training the whole network with AdamW takes on a GPU at --batch-size, by what a step saves, such as 24GB; known "
            f"before anything is timed. {rest}",
        ),
        click.option(
            "--min",
            "floors",
            multiple=True,
            callback=_parse_floors,
            metavar="proxy_score=SHARE",
            help="Least score of the front's members.  [default: none]",
        ),
    )(command)


def _apply(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in the order of the help."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def measuring_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Measurement.resolve` but for the image size, handed to the command as one mapping `measuring`."""

    @functools.wraps(function)
    def command(*arguments: Any, **given: Any) -> Any:
        names = ("device", "dtype", "mode", "batch_size", "threads", "cpus")
        return function(*arguments, measuring={name: given.pop(name) for name in names}, **given)

    options = (device_option, dtype_option, mode_option, batch_size_option, threads_option, cpus_option)
    return _apply(*options)(command)


def run_runtime_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`runtime_options`, added to the mapping `measuring` of `measuring_options`, which stands above it."""

    @functools.wraps(function)
    def command(*arguments: Any, measuring: dict[str, Any], **given: Any) -> Any:
        own = {name: given.pop(name) for name in ("runtime", "precision", "calibration_data")}
        return function(*arguments, measuring={**measuring, **own}, **given)

    return runtime_options(command)


def runtime_options(function: Function) -> Function:
    """`--runtime`, `--precision` and `--calibration-data`."""
    return _apply(
        click.option(
            "--runtime",
            type=RUNTIMES,
            default="torch",
            show_default=True,
            help="What runs the networks: torch, or where they are shipped, from ONNX files; each needs the extra of its name. "
            "Figures belong to their runtime.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["float32", "float16", "int8"]),
            help="Number format in a runtime other than torch; int8 by its own static quantisation.  [default: float32]",
        ),
        click.option(
            "--calibration-data",
            metavar="FOLDER",
            help="Pictures from which int8 takes the ranges of its numbers, anywhere below the folder.  [default: none]",
        ),
    )(function)


def images_options(source: str) -> Callable[[Function], Function]:
    """`--train-split`, `--val-split` and `--max-unreadable` of the images given by `source`, such as `--data`."""
    return _apply(
        click.option(
            "--train-split", default="train", show_default=True, metavar="NAME", help=f"Split of {source} to train on."
        ),
        click.option(
            "--val-split",
            metavar="NAME",
            help=f"Split of {source} to score on.  [default: images held out of the training split]",
        ),
        click.option(
            "--max-unreadable",
            type=SHARE,
            default="1%",
            show_default=True,
            metavar="SHARE",
            help="Share of a split's images that may be unreadable; these are named and left out.",
        ),
    )


def seed_option(what: str) -> Callable[[Function], Function]:
    """`--seed N`; `what` is its help."""
    return number_option("--seed", least=0, most=2**31 - 1, default=0, help=what)


def image_size_option(default: str) -> Callable[[Function], Function]:
    """`--image-size PX|HxW`; `default` says which size is taken without it."""
    text = f"Size of the input in pixels: a side, or height x width such as 192x256.  [default: {default}]"
    return click.option("--image-size", type=Sides(), metavar="PX|HxW", help=text)


in_chans_option = number_option(
    "--in-chans", most=MOST_CHANNELS, help="Channels of the input.  [default: the architecture's own, mostly 3]"
)
