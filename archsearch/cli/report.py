"""`archsearch report`: the front of a run, its trials, and the conditions it was measured under. Starts without torch."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.options import json_option

if TYPE_CHECKING:
    from archsearch.report import Document

_BESIDE = ""  # the value of --html without a file


@click.command()
@click.argument("run", required=False)
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
def report(run: str | None, as_json: bool, as_csv: bool, page: str | None, in_browser: bool) -> None:
    """Show a run: front, fixed trials, dominance, conditions.

    RUN is a run's folder or its name under results/.  [default: the latest run]
    """
    page = _BESIDE if page is None and in_browser else page
    if as_json + as_csv + (page is not None) > 1:
        raise click.UsageError("--json, --csv and --html exclude each other.")
    from archsearch.cli.arguments import resolve_run
    from archsearch.report import build_report, report_parts, to_csv
    from archsearch.results import damage_is_an_error, read_rows

    folder = resolve_run(run, RESULTS)
    with damage_is_an_error(folder):
        if as_csv:
            click.echo(to_csv(read_rows(folder)), nl=False)
            return
        document = build_report(folder)
        if page is not None:
            _write_page(folder, document, page, in_browser=in_browser)
        else:
            print_result(document, lambda: report_parts(document), as_json=as_json)


def _write_page(folder: Path, document: "Document", text: str, *, in_browser: bool) -> None:
    """Write the page of a run, say where it is, and open it where that was asked for."""
    from archsearch.errors import UserError, shown
    from archsearch.report import write_page
    from archsearch.units import format_bytes

    path = Path(text) if text != _BESIDE else folder / "report.html"
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
