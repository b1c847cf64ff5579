"""The command group: how commands end, and how errors become one sentence and an exit code."""

import contextlib
import errno
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from archsearch.errors import ArchsearchError, UserError, first_line, one_line, without_passwords
from archsearch.system import command_line, interrupted_code, interruptions
from archsearch.version import __version__

RESULTS = Path("results")
# The exit code beside 0, 1 (a run failed), 2 (bad input) and `system.interrupted_code`: page search of the documentation has them all.
TIMED_OUT = 124

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Commands(click.Group):
    """A group that turns every error of a command into one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order they were added: the main job first."""
        return list(self.commands)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """As click does it, with sentences of our length."""
        with _short_usage():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors become one sentence on stderr, a traceback only with --debug. SIGTERM is taken for Ctrl-C, with exit code 143."""
        try:
            with _short_usage(), _terminating_as_interrupting():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except ArchsearchError as error:
            _end(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            _end(ctx, "interrupted", interrupted_code())
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of a pipe has gone; click ends quietly
            if isinstance(error, OSError) and error.filename:  # the user's: only the system knows what is wrong with it
                _end(ctx, f"{error.filename}: {error.strerror}", UserError.exit_code)
            _end(ctx, f"unexpected {type(error).__name__}: {first_line(error)}; {_keep_traceback(ctx)}", 1)


@contextlib.contextmanager
def _short_usage() -> Iterator[None]:
    """Click's own sentences about options and arguments repeat what was typed; they are shortened as ours are."""
    try:
        yield
    except click.UsageError as error:
        # Since click 8.2: a page, no sentence.
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            raise
        raise click.UsageError(one_line(error.format_message()), error.ctx) from None


@contextlib.contextmanager
def resumable(ctx: click.Context, kept: str) -> Iterator[None]:
    """Ctrl-C or SIGTERM inside ends the command; a sentence says what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"interrupted: {kept}; go on with: {command_line(sys.argv[1:])}", err=True)
        ctx.exit(interrupted_code())


def print_result(document: Any, parts: Callable[[], Iterable[Any]], *, as_json: bool) -> None:
    """The document as JSON, or its tables and sentences, which are made only where they are shown."""
    from archsearch.report import make_console, show, to_json

    if as_json:
        click.echo(to_json(document))
    else:
        show(make_console(), *parts())


@contextlib.contextmanager
def _terminating_as_interrupting() -> Iterator[None]:
    """SIGTERM, which job schedulers and `kill` send, raises KeyboardInterrupt meanwhile, unless the caller has it ignored."""
    interruptions.clear()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(signum: int, frame: object) -> None:
    """Note SIGTERM for the exit code, and raise what Ctrl-C does."""
    interruptions.append(signum)
    raise KeyboardInterrupt


def _end(ctx: click.Context, sentence: str, exit_code: int) -> None:
    """Print the sentence on stderr and exit."""
    if ctx.params.get("debug"):
        click.echo(_printable(without_passwords(traceback.format_exc())), err=True, nl=False)
    click.echo(f"error: {one_line(sentence)}", err=True)
    ctx.exit(exit_code)


def _printable(text: str) -> str:
    """The text with what a terminal would obey written out: an exception may quote a damaged file."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)


def _keep_traceback(ctx: click.Context) -> str:
    """Write the traceback to a file; returns words that say where it is."""
    if ctx.params.get("debug"):
        return "the traceback is above"
    try:
        handle, path = tempfile.mkstemp(prefix=f"archsearch-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(without_passwords(traceback.format_exc()))
    except OSError:
        return "give --debug before the command's name to see the traceback"
    return f"the traceback is in {path}"


@click.group(cls=Commands, context_settings=_HELP, no_args_is_help=True)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.  [default: off]")
def main(debug: bool) -> None:
    """Hardware-aware architecture search over hybrid vision backbones.

    A space file goes in, a Pareto front of accuracy, speed and size comes out. Data goes to stdout, progress and messages to stderr.
    """
