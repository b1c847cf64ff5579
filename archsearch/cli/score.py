"""`archsearch score`: training-free scores of single architectures."""

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.completion import complete_arch
from archsearch.cli.help import Command
from archsearch.cli.inspect import ARCH_HELP
from archsearch.cli.options import device_option, json_option, number_option, seed_option, threads_option
from archsearch.cli.types import MOST_BATCH


@click.command(cls=Command, help=f"Training-free scores of architectures; no accuracy.\n\n{ARCH_HELP}")
@click.argument("archs", metavar="ARCH...", nargs=-1, required=True, shell_complete=complete_arch)
@number_option("--batch-size", least=2, most=MOST_BATCH, default=8, help="Random images in one batch.")
@device_option
@threads_option
@seed_option("Seed of the weights and the images.")
@json_option
def score(archs: tuple[str, ...], batch_size: int, device: str, threads: int | None, seed: int, as_json: bool) -> None:
    """Training-free scores of architectures; no accuracy."""
    from archsearch.cli.arguments import resolve_arch
    from archsearch.device import pick_device, use_cpu
    from archsearch.report import FREE_NOTE, make_console, score_list, score_table

    use_cpu(threads)
    found = {text: resolve_arch(text, RESULTS) for text in archs}
    console = make_console(stderr=True)
    documents = score_list(
        found,
        batch_size=batch_size,
        seed=seed,
        device=pick_device(device).type,
        progress=lambda name: console.print(f"scoring {name}", soft_wrap=True),
    )
    print_result(documents, lambda: [score_table(documents), FREE_NOTE], as_json=as_json)
