"""Commands that measure nothing: blocks, cost, sample, space, papers, proxies."""

import time
from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.options import (
    SizedCommand,
    budget_option,
    fix_option,
    image_size_option,
    in_chans_option,
    json_option,
    number_option,
    params_option,
    seed_option,
    tolerance_option,
)

ARCH_HELP = """ARCH is a space file of size one, a paper's name, a row of a run (`RUN:TRIAL`, or `:TRIAL` of the latest run; TRIAL is a trial's number or
the first digits of an arch_id), or `-` for an architecture as JSON on stdin."""


@click.command()
@click.option(
    "--check",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run a Python file of layers of your own, and check them on what they build; exit code 1 if one fails.  [default: list]",
)
@json_option
def blocks(file: Path | None, as_json: bool) -> None:
    """List the layers a space can name, or check your own."""
    if file is not None:
        _check_file(file, as_json=as_json)
        return
    from archsearch.report import LAYERS_NOTE, layer_list, layer_tables

    print_result(layer_list(), lambda: [*layer_tables(), LAYERS_NOTE], as_json=as_json)


def _check_file(file: Path, *, as_json: bool) -> None:
    """Check every layer that a file registers. Raises UserError for a file that cannot be used, RunError where a check fails."""
    from archsearch.blocks import load_blocks
    from archsearch.errors import RunError
    from archsearch.models import check_layers
    from archsearch.report import finding_list, finding_table

    findings = check_layers(load_blocks(file))
    print_result(finding_list(findings), lambda: [finding_table(findings)], as_json=as_json)
    failed = [item for item in findings if item.result == "failed"]
    if failed:
        names = ", ".join(f"{item.check} of {item.kind}" for item in failed)
        raise RunError(f"{file}: {len(failed)} of {len(findings)} checks failed: {names}")


@click.command(cls=SizedCommand, help=f"Exact MACs, parameters and activations, layer by layer.\n\n{ARCH_HELP}")
@click.argument("arch")
@image_size_option("the architecture's own")
@in_chans_option
@json_option
def cost(arch: str, as_json: bool, **images: Any) -> None:
    """Exact MACs, parameters and activations of an architecture, layer by layer."""
    from archsearch.cli.arguments import resolve_arch
    from archsearch.report import cost_document, cost_sentence, cost_table

    found = resolve_arch(arch, RESULTS)
    print_result(
        cost_document(found, **images),
        lambda: [cost_table(found, **images), cost_sentence(found, **images)],
        as_json=as_json,
    )


_budget_option = budget_option(
    "Only architectures within --tolerance of it, such as 4.5GFLOPs (multiply-adds).  [default: none]"
)


@click.command(cls=SizedCommand)
@click.argument("space", default="hybrid")
@number_option("-n", "--number", default=10, help="How many architectures.")
@seed_option("Seed of the draw; the same seed draws the same architectures.")
@_budget_option
@tolerance_option
@params_option
@fix_option
@image_size_option("the space's own")
@json_option
def sample(number: int, seed: int, as_json: bool, **options: Any) -> None:
    """Draw random architectures of a space, in a band or anywhere.

    Draws are uniform over the distinct architectures, with replacement. SPACE is a TOML file or a shipped space's name.  [default: hybrid]
    """
    from archsearch.report import SpaceQuery, arch_document, sample_archs, sample_sentence, sample_table

    query = SpaceQuery(**options)
    inside, archs = sample_archs(query, number, seed)
    documents = [arch_document(arch) for arch in archs]
    print_result(documents, lambda: [sample_table(archs), sample_sentence(query, inside)], as_json=as_json)


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
    from archsearch.report import SpaceQuery, space_document, space_parts

    query = SpaceQuery(**options)
    document = space_document(query)
    print_result(document, lambda: space_parts(query, document), as_json=as_json)


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
    from archsearch.cli.progress import progress_display
    from archsearch.errors import RunError
    from archsearch.report import PAPERS_NOTE, check_sentence, make_console, paper_list, paper_table
    from archsearch.space import paper_names

    start, checks = time.monotonic(), None
    if is_check:
        from archsearch.models import recount_all  # loads torch

        with progress_display(make_console(stderr=True)) as display:
            checks = recount_all(paper_names(), display.progress)
    documents = paper_list(checks)
    print_result(documents, lambda: [paper_table(documents), PAPERS_NOTE], as_json=as_json)
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
    from archsearch.report import PROXIES_NOTE, profile_document, profile_list, profile_table, to_json

    if name is not None:
        profile = load_profile(name)
        click.echo(to_json(profile_document(profile)) if as_json else profile_text(name).rstrip())
        return
    documents = profile_list()
    print_result(documents, lambda: [profile_table(documents), PROXIES_NOTE], as_json=as_json)
