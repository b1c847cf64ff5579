"""`archsearch doctor`: what works on this machine, what does not, and what to do."""

import click

from archsearch.cli.app import RESULTS, print_result
from archsearch.cli.help import Command
from archsearch.cli.options import json_option


@click.command(cls=Command)
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what works on this machine, and what to do.

    Versions, devices, compilers, extras, load and free disk. The exit code is 1 where something essential is broken.
    """
    from archsearch.report import doctor_document, doctor_parts, is_broken

    document = doctor_document(RESULTS)
    print_result(document, lambda: doctor_parts(document), as_json=as_json)
    if is_broken(document):
        ctx.exit(1)
