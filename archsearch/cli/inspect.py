"""Commands that measure nothing: blocks, cost, sample, space, papers, proxies."""

from typing import Any

import click

from archsearch.cli.app import RESULTS
from archsearch.cli.options import MACS, fix_option, json_option, params_option, seed_option, tolerance_option

ARCH_HELP = """ARCH is a space file of size one, a paper's name, a row of a run (`RUN:TRIAL`, or `:TRIAL` of the latest run; TRIAL is a trial's number or
the first digits of an arch_id), or `-` for an architecture as JSON on stdin."""


@click.command()
@json_option
def blocks(as_json: bool) -> None:
    """List the layers a space can name, with their choices."""
    from archsearch.report import LAYERS_NOTE, layer_list, layer_tables, tables

    if as_json:
        click.echo(tables.to_json(layer_list()))
        return
    tables.show(tables.make_console(), *layer_tables(), LAYERS_NOTE)


@click.command(help=f"Exact MACs and parameters, layer by layer.\n\n{ARCH_HELP}")
@click.argument("arch")
@json_option
def cost(arch: str, as_json: bool) -> None:
    """Exact MACs and parameters of an architecture, layer by layer."""
    from archsearch.cli.arguments import resolve_arch
    from archsearch.report import cost_document, cost_sentence, cost_table, tables

    found = resolve_arch(arch, RESULTS)
    if as_json:
        click.echo(tables.to_json(cost_document(found)))
        return
    console = tables.make_console()
    tables.show(console, cost_table(found, console.width), cost_sentence(found))


_budget_option = click.option(
    "--budget",
    "budget_macs",
    type=MACS,
    metavar="MACS",
    help="Only architectures within --tolerance of it, such as 4.5GFLOPs (multiply-adds).  [default: none]",
)


@click.command()
@click.argument("space", default="hybrid")
@click.option(
    "-n",
    "--number",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="How many architectures.",
)
@seed_option("Seed of the draw; the same seed draws the same architectures.")
@_budget_option
@tolerance_option
@params_option
@fix_option
@json_option
def sample(number: int, seed: int, as_json: bool, **options: Any) -> None:
    """Draw random architectures of a space, in a band or anywhere.

    Draws are uniform over the distinct architectures, with replacement. SPACE is a TOML file or a shipped space's name.  [default: hybrid]
    """
    from archsearch.report import SpaceQuery, arch_document, sample_archs, sample_sentence, sample_table, tables

    query = SpaceQuery(**options)
    inside, archs = sample_archs(query, number, seed)
    if as_json:
        click.echo(tables.to_json([arch_document(arch) for arch in archs]))
        return
    tables.show(tables.make_console(), sample_table(archs), sample_sentence(query, inside))


@click.command()
@click.argument("space", default="hybrid")
@_budget_option
@tolerance_option
@params_option
@fix_option
@json_option
def space(as_json: bool, **options: Any) -> None:
    """Count the architectures of a space, and those in a band.

    Prints the ends of its range, the share of every block and the open parameters. SPACE is a TOML file or a shipped space's name.  [default: hybrid]
    """
    from archsearch.report import SpaceQuery, space_document, space_parts, tables

    query = SpaceQuery(**options)
    document = space_document(query)
    if as_json:
        click.echo(tables.to_json(document))
        return
    tables.show(tables.make_console(), *space_parts(query, document))


def _recount() -> dict[str, dict[str, Any]]:
    """Every shipped model counted by fvcore, with a bar on a terminal."""
    from archsearch.cli.progress import progress_display
    from archsearch.models import recount_all
    from archsearch.report import tables
    from archsearch.space import paper_names

    with progress_display(tables.make_console(stderr=True)) as display:
        return recount_all(paper_names(), display.progress)


@click.command()
@click.option(
    "--check",
    "is_check",
    is_flag=True,
    help="Build and recount every model: MACs by fvcore, parameters by tensor; exit code 1 if one differs.  [default: off]",
)
@json_option
def papers(is_check: bool, as_json: bool) -> None:
    """List the papers' models, counted and as published."""
    import time

    from archsearch.errors import RunError
    from archsearch.report import PAPERS_NOTE, check_sentence, paper_list, paper_table, tables

    start = time.monotonic()
    checks = _recount() if is_check else None
    documents = paper_list(checks)
    if as_json:
        click.echo(tables.to_json(documents))
    else:
        tables.show(tables.make_console(), paper_table(documents), PAPERS_NOTE)
    wrong = [document["name"] for document in documents if is_check and not document["check"]["is_equal"]]
    if wrong:
        raise RunError(f"recounted, {len(wrong)} of {len(documents)} models differ: {', '.join(wrong)}")
    if is_check:
        click.echo(check_sentence(documents, time.monotonic() - start), err=as_json)


@click.command()
@click.argument("name", required=False)
@json_option
def proxies(name: str | None, as_json: bool) -> None:
    """List the shipped proxy profiles, or print one's file.

    NAME is one of them, or a file of your own to be checked.  [default: list all]
    """
    from archsearch.proxy import load_profile, profile_text
    from archsearch.report import PROXIES_NOTE, profile_document, profile_list, profile_table, tables

    if name is not None:
        profile = load_profile(name)
        click.echo(tables.to_json(profile_document(profile)) if as_json else profile_text(name).rstrip())
        return
    documents = profile_list()
    if as_json:
        click.echo(tables.to_json(documents))
        return
    tables.show(tables.make_console(), profile_table(documents), PROXIES_NOTE)
