"""`archsearch report`: the front of a run, its trials, and the conditions it was measured under. Starts without torch."""

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.completion import complete_run_or_trial
from archsearch.cli.help import Command
from archsearch.cli.options import json_option


@click.command(cls=Command)
@click.argument("run", required=False, shell_complete=complete_run_or_trial)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print the trials as CSV on stdout.  [default: tables]")
def report(run: str | None, as_json: bool, as_csv: bool) -> None:
    """Show a run: front, fixed trials, dominance, conditions.

    RUN is a run's folder or its name under results/. RUN:TRIAL, or :TRIAL of the latest run, shows one trial: drawn, with its costs and what a
    change of one choice would do.  [default: the latest run]
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    from archsearch.cli.arguments import names_trial, resolve_run
    from archsearch.report import build_report, report_parts, to_csv
    from archsearch.results import damage_is_an_error, read_rows

    if run is not None and names_trial(run):
        _report_trial(run, as_json=as_json, as_csv=as_csv)
        return
    folder = resolve_run(run, RESULTS)
    with damage_is_an_error(folder):
        if as_csv:
            click.echo(to_csv(read_rows(folder)), nl=False)
        else:
            document = build_report(folder)
            print_result(document, lambda: report_parts(document), as_json=as_json)


def _report_trial(text: str, *, as_json: bool, as_csv: bool) -> None:
    """Show one trial of a run."""
    if as_csv:
        raise click.UsageError("--csv is for a whole run; a trial alone takes --json.")
    from archsearch.cli.arguments import find_trial
    from archsearch.report import build_candidate, candidate_parts, make_console
    from archsearch.results import damage_is_an_error

    folder, number = find_trial(text, RESULTS)
    with damage_is_an_error(folder):
        document = build_candidate(folder, number)
        print_result(document, lambda: candidate_parts(document, make_console().width), as_json=as_json)
