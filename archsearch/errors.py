"""The two ways a command can fail, each with its exit code."""


class ArchsearchError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class UserError(ArchsearchError):
    """Something the user can put right: one sentence saying where, what was got, and what is allowed."""

    exit_code = 2


class RunError(ArchsearchError):
    """A run that could not go on; everything measured before it is kept."""

    exit_code = 1
