"""`archsearch docs`: the documentation that the package carries, one page at a time."""

import re
from importlib import resources

import click

from archsearch.cli.completion import offer
from archsearch.cli.help import Command
from archsearch.errors import UserError, did_you_mean

# In the order in which a newcomer needs them; each is a file of archsearch/docs.
PAGES = (
    "spaces search results export training papers proxy data measuring clusters commands python "
    "blocks glossary benchmarks architecture contributing changelog"
).split()
_WIDTH = 120
_LINK_TO_A_PAGE = re.compile(r"\[([^\]]+)\]\([\w/]+\.md(?:#[\w-]+)?\)")


@click.command(cls=Command)
@click.argument("page", required=False, shell_complete=offer(lambda: PAGES))
def docs(page: str | None) -> None:
    """Read the documentation.

    PAGE is one of the pages; plain Markdown where the output is no terminal.  [default: list the pages]
    """
    from archsearch.report import tables

    if page is None:
        rows = [(name, first_sentence(read_page(name))) for name in PAGES]
        columns = ["page", "what it says"]
        tables.show(tables.make_console(), tables.make_table(columns, rows, left=columns))
        click.echo("\nNext: archsearch docs PAGE")
        return
    text, console = read_page(page), tables.make_console()
    if not console.is_terminal:
        click.echo(text, nl=False)
        return
    from rich.markdown import Markdown

    with console.capture() as shown:
        document = Markdown(_LINK_TO_A_PAGE.sub(r"\1", text), code_theme="ansi_dark", hyperlinks=False)
        console.print(document, width=min(console.width, _WIDTH))
    lines = [line.rstrip() for line in shown.get().splitlines()]
    show = click.echo_via_pager if len(lines) >= console.height else click.echo
    show("\n".join(lines))


def read_page(name: str) -> str:
    """The Markdown of a page. Raises UserError with the nearest name."""
    if name not in PAGES:
        raise UserError(f"docs: no page {name!r}{did_you_mean(name, PAGES)}; pages: {', '.join(PAGES)}")
    return (resources.files("archsearch") / "docs" / f"{name}.md").read_text(encoding="utf-8")


def first_sentence(text: str) -> str:
    """The first sentence under the title, on one line and without its full stop."""
    _, paragraph, *_ = text.split("\n\n")
    return re.split(r"\.(?:\s|$)", " ".join(paragraph.split()))[0]
