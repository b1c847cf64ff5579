"""The two ways a command can fail, each with its exit code."""

import difflib
from collections.abc import Sequence


class ArchsearchError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class UserError(ArchsearchError):
    """Something the user can put right: one sentence saying where, what was got, and what is allowed."""

    exit_code = 2


class RunError(ArchsearchError):
    """A run that could not go on; everything measured before it is kept."""

    exit_code = 1


def did_you_mean(name: object, known: Sequence[str]) -> str:
    """`, did you mean 'hilo'?` when something known is close to `name`, else nothing."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
