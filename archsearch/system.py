"""Whole files, locks, processes and the command line: what the rooms ask of the operating system. No torch."""

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from pathlib import Path

from archsearch.errors import UserError

if sys.platform != "win32":
    import fcntl

# How long work tells its caller what it does: `say(line)` prints one line, `progress(done, total, text)` moves a bar. The first call of `progress`
# says how much was done before this session, so that the time left is worked out from what this session does.
Say = Callable[[str], None]
Progress = Callable[[float, float, str], None]


# The password of an address, `scheme://user:password@host`, up to the last @ since one may stand in it unescaped, and of its query, `?password=...`.
_PASSWORD = re.compile(
    r"(?<=://)([^\s:/@]*:)\S+(?=@)|(?<=[?&])((?:\w*pass\w*|pwd|secret|token)=)[^\s&'\"]+", re.IGNORECASE
)


def ignore(*_: object) -> None:
    """A `Say` or `Progress` that shows nothing."""


def replace_file(path: Path, write: Callable[[Path], object], *, kept: str = "") -> None:
    """Write beside `path`, then rename: a reader, a full disk or a kill never meets half a file.

    Raises UserError where that is impossible; `kept` says what is not lost by it.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        safe = f"{kept}: " if kept else ""
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); {safe}"
            "make room or make the folder writable, then give the same command again"
        ) from error


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """A process started meanwhile never gets the Ctrl-C that a terminal sends to a whole group; ours only comes later."""
    if sys.platform == "win32":
        yield
        return
    # Started here, since on its own start it would lift the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def without_passwords(text: str) -> str:
    """The text with `***` for every password that stands in an address, such as that of a database: for what is shown or written to a file."""
    return _PASSWORD.sub(lambda match: f"{match[1] or match[2]}***", text)


def command_line(arguments: Sequence[str]) -> str:
    """The command to type, quoted for a shell, without passwords."""
    return shlex.join(["archsearch", *map(without_passwords, arguments)])


def utc_now(timespec: str = "seconds") -> str:
    """The time now in UTC as ISO 8601, to the second or another `timespec` of `datetime.isoformat`."""
    return datetime.now(UTC).isoformat(timespec=timespec)


@contextlib.contextmanager
def flocked(descriptor: int, *, exclusive: bool = True, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of an open file meanwhile; False, and no lock, where another process has it and `wait` is off.

    The lock ends with the process that holds it, however that ends. Windows has none: there the answer is always True.
    """
    if sys.platform == "win32":
        yield True
        return
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        # Unlocked by hand, since a forked child (a data loader's) still has the open file after we close ours.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
