"""`archsearch report`: the front of a run, its trials, and the conditions it was measured under. Starts without torch."""

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.options import json_option


@click.command()
@click.argument("run", required=False)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print the trials as CSV on stdout.  [default: tables]")
@click.option(
    "--pick",
    "picks",
    multiple=True,
    metavar="EXPRESSION",
    help='Pick one more trial, such as "score>=best-1se, params<=25M; fastest" (page results).  [default: four picks]',
)
def report(run: str | None, as_json: bool, as_csv: bool, picks: tuple[str, ...]) -> None:
    """Show a run: front, fixed trials, dominance, conditions.

    RUN is a run's folder or its name under results/.  [default: the latest run]
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    from archsearch.cli.arguments import resolve_run
    from archsearch.report import build_report, parse_expression, report_parts, to_csv
    from archsearch.results import damage_is_an_error, read_rows

    expressions = list(map(parse_expression, picks))
    folder = resolve_run(run, RESULTS)
    with damage_is_an_error(folder):
        if as_csv:
            click.echo(to_csv(read_rows(folder)), nl=False)
        else:
            document = build_report(folder, expressions)
            print_result(document, lambda: report_parts(document), as_json=as_json)
