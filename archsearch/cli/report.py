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
    help="Write a page for a browser that needs no network: front, drawn architectures, all trials. Without FILE: report.html in the run's folder, "
    "of several runs comparison.html in the present one.  [default: tables]",
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
    form = "--open" if page is None and in_browser else "--html"
    page = _BESIDE if page is None and in_browser else page
    if as_json + as_csv + (page is not None) > 1:
        raise click.UsageError(f"--json, --csv and {form} exclude each other.")
    from archsearch.cli.arguments import names_trial

    is_trial = len(runs) == 1 and names_trial(runs[0])
    whole = (("--csv", as_csv), ("--pick", bool(picks)), (form, is_trial and page is not None))
    for option in [name for name, is_given in whole if is_given and (is_trial or len(runs) > 1)]:
        raise click.UsageError(f"{option} is for one whole run; name one, or leave {option} out.")
    if is_trial:
        _show_trial(runs[0], as_json=as_json)
    elif len(runs) > 1:
        _compare(runs, page, as_json=as_json, in_browser=in_browser)
    else:
        _show_run(runs[0] if runs else None, picks, page, as_json=as_json, as_csv=as_csv, in_browser=in_browser)


def _show_run(
    run: str | None, picks: Sequence[str], page: str | None, *, as_json: bool, as_csv: bool, in_browser: bool
) -> None:
    """Print one run, or write its page."""
    from archsearch.cli.arguments import resolve_run
    from archsearch.report import build_report, parse_expression, report_parts, to_csv
    from archsearch.results import PAGE_FILE, damage_is_an_error, read_rows

    expressions = list(map(parse_expression, picks))
    folder = resolve_run(run, RESULTS)
    with damage_is_an_error(folder):
        if as_csv:
            click.echo(to_csv(read_rows(folder)), nl=False)
            return
        document = build_report(folder, expressions)
        if page is not None:
            _write_page([(folder, document)], page or str(folder / PAGE_FILE), in_browser=in_browser)
        else:
            print_result(document, lambda: report_parts(document), as_json=as_json)


def _compare(names: Sequence[str], page: str | None, *, as_json: bool, in_browser: bool) -> None:
    """Print the comparison of several runs, or write its page."""
    from archsearch.cli.arguments import resolve_run
    from archsearch.report import build_comparison, build_report, comparison_parts
    from archsearch.results import damage_is_an_error

    folders = [resolve_run(name, RESULTS) for name in names]
    with damage_is_an_error(Path(" or ".join(map(str, folders)))):
        comparison = build_comparison(folders)
        if page is None:
            print_result(comparison, lambda: comparison_parts(comparison), as_json=as_json)
            return
        reports = []
        for folder in folders:
            with damage_is_an_error(folder):
                reports.append((folder, build_report(folder)))
        _write_page(reports, page or "comparison.html", comparison, in_browser=in_browser)


def _show_trial(name: str, *, as_json: bool) -> None:
    """Print one trial of a run."""
    from archsearch.cli.arguments import find_trial
    from archsearch.report import build_candidate, candidate_parts
    from archsearch.results import damage_is_an_error

    folder, number = find_trial(name, RESULTS)
    with damage_is_an_error(folder):
        document = build_candidate(folder, number)
        print_result(document, lambda: candidate_parts(document), as_json=as_json)


def _write_page(
    reports: Sequence[tuple[Path, "Document"]], text: str, comparison: "Document | None" = None, *, in_browser: bool
) -> None:
    """Write the page of one run or several, say where it is, and open it where that was asked for."""
    from archsearch.errors import UserError, shown
    from archsearch.report import write_page
    from archsearch.units import format_bytes

    path = Path(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"--html: got {shown(text)}; a file that ends in .html is allowed, and RUN stands before --html"
        )
    write_page(reports, path, comparison)
    click.echo(f"{path}: {format_bytes(path.stat().st_size)}, one file that needs no network")
    if in_browser:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            click.echo(f"no browser was found here; open {path.resolve()} in one", err=True)
