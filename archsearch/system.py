"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path

from archsearch.errors import UserError


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


def command_line(arguments: Sequence[str]) -> str:
    """The command to type, quoted for a shell."""
    return shlex.join(["archsearch", *arguments])


def _open_lock_file(path: Path) -> int:
    """Descriptor of the lock file, read-only: another user's file serves too, and nothing can be overwritten."""
    try:
        try:
            # Without O_CREAT first: Linux refuses it on another user's file in a world-writable directory.
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT, 0o644)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise UserError(
            f"device lock {path}: cannot be opened ({reason}); remove it or set TMPDIR to a directory of your own"
        ) from error
