"""`archsearch runs`: what can be done with the folders of runs."""

import click

from archsearch.cli.app import RESULTS
from archsearch.cli.completion import complete_run
from archsearch.cli.help import Group


@click.group(cls=Group)
def runs() -> None:
    """Look after the folders of runs."""


@runs.command()
@click.argument("run", shell_complete=complete_run)
def restore(run: str) -> None:
    """Make a run's lost or damaged study.db again.

    RUN is a run's folder or its name under results/. All that trials.parquet holds is kept.
    """
    from archsearch.cli.arguments import resolve_run
    from archsearch.search import restore_run

    folder = resolve_run(run, RESULTS)
    done = restore_run(folder)
    click.echo(
        f"{folder}: {done.trials} trials restored from trials.parquet; go on with the run's own command, without --storage"
    )
    if done.aside is not None:
        click.echo(f"the database that was there is now {done.aside}")
    if done.without_params:
        click.echo(
            f"{done.without_params} trials have parameters that the space lacks: samplers do not learn from them"
        )
    if done.changed:
        click.echo(f"columns that could not be kept as they were: {', '.join(done.changed)}")
