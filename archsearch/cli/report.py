"""`archsearch report`: the front of a run, its trials, and the conditions it was measured under. Starts without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.completion import complete_run_or_trial
from archsearch.cli.help import Command
from archsearch.cli.options import json_option

if TYPE_CHECKING:
    from archsearch.report import Document

_BESIDE = ""  # the value of --html without a file


@click.command(cls=Command)
@click.argument("runs", metavar="[RUN]...", nargs=-1, shell_complete=complete_run_or_trial)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print the trials as CSV on stdout.  [default: tables]")
@click.option(
    "--html",
    "page",
    is_flag=False,
    flag_value=_BESIDE,
    metavar="[FILE.html]",
    help="Write a page for a browser that needs no network: front, drawn architectures, all trials. Without FILE: report.html in the run's folder.  "
    "[default: tables]",
)
@click.option("--open", "in_browser", is_flag=True, help="Write that page and open it in the browser.  [default: off]")
@click.option(
    "--pick",
    "picks",
    multiple=True,
    metavar="EXPRESSION",
    help='Pick one more trial, such as "score>=best-1se, params<=25M; fastest" (page results).  [default: four picks]',
)
def report(
    runs: Sequence[str], as_json: bool, as_csv: bool, page: str | None, in_browser: bool, picks: Sequence[str]
) -> None:
    """Show a run: front, fixed trials, dominance, conditions.

    RUN is a run's folder or its name under results/. RUN:TRIAL, or :TRIAL of the latest run, shows one trial: drawn, with its costs and what a
    change of one choice would do. Several runs are compared: fronts, hypervolumes on one scale, seeds of one request.  [default: the latest run]
    """
    page = _BESIDE if page is None and in_browser else page
    if as_json + as_csv + (page is not None) > 1:
        raise click.UsageError("--json, --csv and --html exclude each other.")
    from archsearch.cli.arguments import names_trial

    others = [name for name, value in (("--csv", as_csv), ("--html", page is not None), ("--pick", picks)) if value]
    if len(runs) > 1 or (runs and names_trial(runs[0])):
        if others:
            raise click.UsageError(f"{others[0]} is for one whole run; name one, or leave {others[0]} out.")
        show = _compare if len(runs) > 1 else _show_trial
        show(runs, as_json=as_json)
    else:
        _show_run(runs[0] if runs else None, picks, page, as_json=as_json, as_csv=as_csv, in_browser=in_browser)


def _show_run(
    run: str | None, picks: Sequence[str], page: str | None, *, as_json: bool, as_csv: bool, in_browser: bool
) -> None:
    """Print one run, or write its page."""
    from archsearch.cli.arguments import resolve_run
    from archsearch.report import build_report, parse_expression, report_parts, to_csv
    from archsearch.results import damage_is_an_error, read_rows

    expressions = list(map(parse_expression, picks))
    folder = resolve_run(run, RESULTS)
    with damage_is_an_error(folder):
        if as_csv:
            click.echo(to_csv(read_rows(folder)), nl=False)
            return
        document = build_report(folder, expressions)
        if page is not None:
            _write_page(folder, document, page, in_browser=in_browser)
        else:
            print_result(document, lambda: report_parts(document), as_json=as_json)


def _compare(names: Sequence[str], *, as_json: bool) -> None:
    """Print the comparison of several runs."""
    from archsearch.cli.arguments import resolve_run
    from archsearch.report import build_comparison, comparison_parts

    document = build_comparison([resolve_run(name, RESULTS) for name in names])
    print_result(document, lambda: comparison_parts(document), as_json=as_json)


def _show_trial(names: Sequence[str], *, as_json: bool) -> None:
    """Print one trial of a run."""
    from archsearch.cli.arguments import find_trial
    from archsearch.report import build_candidate, candidate_parts, make_console
    from archsearch.results import damage_is_an_error

    folder, number = find_trial(names[0], RESULTS)
    with damage_is_an_error(folder):
        document = build_candidate(folder, number)
        print_result(document, lambda: candidate_parts(document, make_console().width), as_json=as_json)


def _write_page(folder: Path, document: "Document", text: str, *, in_browser: bool) -> None:
    """Write the page of a run, say where it is, and open it where that was asked for."""
    from archsearch.errors import UserError, shown
    from archsearch.report import write_page
    from archsearch.results import PAGE_FILE
    from archsearch.units import format_bytes

    path = Path(text) if text != _BESIDE else folder / PAGE_FILE
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"--html: got {shown(text)}; a file that ends in .html is allowed, and RUN stands before --html"
        )
    write_page([(folder, document)], path)
    click.echo(f"{path}: {format_bytes(path.stat().st_size)}, one file that needs no network")
    if in_browser:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            click.echo(f"no browser was found here; open {path.resolve()} in one", err=True)
