"""`archsearch report`: the front of a run, its trials, and the conditions it was measured under. Starts without torch."""

from collections.abc import Sequence

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.options import json_option


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print the trials as CSV on stdout.  [default: tables]")
@click.option(
    "--pick",
    "picks",
    multiple=True,
    metavar="EXPRESSION",
    help='Pick one more trial, such as "score>=best-1se, params<=25M; fastest" (page results).  [default: four picks]',
)
def report(runs: Sequence[str], as_json: bool, as_csv: bool, picks: tuple[str, ...]) -> None:
    """Show a run: front, fixed trials, dominance, conditions.

    RUN is a run's folder or its name under results/.  [default: the latest run]

    Several runs are compared: fronts, hypervolumes on one scale, seeds of one request, what several measured.
    """
    if len(runs) > 1:
        for option, is_given in (("--csv", as_csv), ("--pick", bool(picks))):
            if is_given:
                raise click.UsageError(f"{option} is for one run; name one, or leave {option} out.")
        _compare(runs, as_json=as_json)
        return
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    from archsearch.cli.arguments import resolve_run
    from archsearch.report import build_report, parse_expression, report_parts, to_csv
    from archsearch.results import damage_is_an_error, read_rows

    expressions = list(map(parse_expression, picks))
    folder = resolve_run(runs[0] if runs else None, RESULTS)
    with damage_is_an_error(folder):
        if as_csv:
            click.echo(to_csv(read_rows(folder)), nl=False)
        else:
            document = build_report(folder, expressions)
            print_result(document, lambda: report_parts(document), as_json=as_json)


def _compare(names: Sequence[str], *, as_json: bool) -> None:
    """Print the comparison of several runs."""
    from archsearch.cli.arguments import resolve_run
    from archsearch.report import build_comparison, comparison_parts

    document = build_comparison([resolve_run(name, RESULTS) for name in names])
    print_result(document, lambda: comparison_parts(document), as_json=as_json)
