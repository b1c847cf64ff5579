"""`archsearch runs`: the list of runs, and what can be done with their folders."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.completion import complete_run
from archsearch.cli.help import Group
from archsearch.cli.options import json_option
from archsearch.errors import UserError

Document = Mapping[str, Any]


@click.group(cls=Group, invoke_without_command=True)
@json_option
@click.pass_context
def runs(ctx: click.Context, as_json: bool) -> None:
    """List the runs, newest first; remove, rename, restore them.

    Without a command: a list of the runs under results/, the one that was written last first.
    """
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"--json belongs to the list, and {ctx.invoked_subcommand} prints none.")
        return
    from archsearch.report import run_list, run_list_parts

    document = run_list(RESULTS)
    print_result(document, lambda: run_list_parts(document), as_json=as_json)


@runs.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_run)
@click.option("--yes", is_flag=True, help="Remove without asking.  [default: ask]")
def rm(names: Sequence[str], yes: bool) -> None:
    """Remove runs: the study and all files made from it.

    RUN is a run's folder or its name under results/. What else lies in a folder is kept. A study in another database stays there.
    """
    from archsearch.report import run_document
    from archsearch.results import other_entries, refuse_at_work, remove_run

    folders = _resolve_each(names)
    for folder in folders:
        refuse_at_work(folder)
    documents = [run_document(folder) for folder in folders]
    if not yes:
        _ask([_removal_line(document, other_entries(Path(document["folder"]))) for document in documents])
    for folder, document in zip(folders, documents, strict=True):
        kept = remove_run(folder)
        click.echo(f"removed {folder}" + (f", but for what is not the run's: {_names(kept)}" if kept else ""))
        if left := _study_left(document):
            click.echo(left)


@runs.command()
@click.argument("run", shell_complete=complete_run)
@click.argument("name")
def rename(run: str, name: str) -> None:
    """Give a run another name.

    RUN is a run's folder or its name under results/, NAME the new name of its folder.
    """
    from archsearch.results import read_manifest, rename_run
    from archsearch.system import command_line

    (folder,) = _resolve_each([run])
    renamed = rename_run(folder, name)
    click.echo(f"{folder} is {renamed} now; go on with it by: {command_line(read_manifest(renamed)['command'][1:])}")


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


def _resolve_each(names: Sequence[str]) -> list[Path]:
    """The folders of runs, damaged ones too. Raises UserError for one that is none, and for one given twice."""
    from archsearch.cli.arguments import resolve_run
    from archsearch.results import is_run_folder

    folders: list[Path] = []
    for name in names:
        there = [path for path in (Path(name), RESULTS / name) if name and is_run_folder(path)]
        folder = there[0] if there else resolve_run(name, RESULTS)
        if any(os.path.realpath(folder) == os.path.realpath(other) for other in folders):
            raise UserError(f"{name}: names {folder} a second time; name every run once")
        folders.append(folder)
    return folders


def _ask(lines: Sequence[str]) -> None:
    """Show what would be removed and ask; ends the command where the answer is no. Raises UserError without a terminal to ask on."""
    for line in lines:
        click.echo(line, err=True)
    if not sys.stdin.isatty():
        raise UserError("runs rm: there is no terminal to ask on; give --yes to remove without asking")
    click.confirm(f"Remove {'this run' if len(lines) == 1 else f'these {len(lines)} runs'}?", abort=True, err=True)


def _removal_line(document: Document, others: Sequence[str]) -> str:
    """One line: what a folder holds, and what of it would be kept."""
    from archsearch.report import removal_text

    return removal_text(document) + (f"; kept, since not the run's: {_names(others)}" if others else "")


def _names(names: Sequence[str]) -> str:
    from archsearch.units import format_names

    return format_names(names)


def _study_left(document: Document) -> str | None:
    """Where a study in another database remains, and the two things that can be done with it; None for one in the folder."""
    from archsearch.search import driver_url

    if not document["is_elsewhere"]:
        return None
    command = shlex.join(
        ["optuna", "delete-study", "--study-name", document["study"], "--storage", driver_url(document["storage"])]
    )
    return (
        f"its study {document['study']} remains in {document['storage']}: the run's own command makes the folder again from it, "
        f"`{command}` removes it"
    )
